package asset

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	pgperr "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/mvmctl/mvm"
)

// shipped holds the keys of upstreams, one file NAME.asc for each.
//
//go:embed keys
var shipped embed.FS

// Keyring is the OpenPGP keys that an upstream may sign with.
type Keyring struct {
	Name string // of the upstream, "kernel.org"
	keys openpgp.EntityList
	bare []*packet.PublicKey // instead, where they are nothing but the key
}

// LoadKeyring returns the keys of an upstream: those in the directory given
// (NAME.asc or NAME.gpg, where users put keys of their own) or, where it has
// none, those that are shipped. mvm.ErrNotFound when there are none at all.
func LoadKeyring(name, dir string) (*Keyring, error) {
	if name == "" || strings.ContainsAny(name, "/\\") || strings.HasPrefix(name, ".") {
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s is no name of a key", mvm.Quote(name)).WithHint("a name is like kernel.org")
	}
	if dir != "" {
		for _, ending := range []string{".asc", ".gpg"} {
			data, err := os.ReadFile(filepath.Join(dir, name+ending))
			if err == nil {
				return ParseKeyring(name, data)
			}
			if !errors.Is(err, os.ErrNotExist) {
				return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot read a key: %w", err).WithHint("check the owner and mode of the trusted keys")
			}
		}
	}
	data, err := shipped.ReadFile("keys/" + name + ".asc")
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrNotFound, "there is no key of %s to check its signatures with", name).
			WithHint("put its public key into %s", filepath.Join(dir, name+".asc"))
	}
	return ParseKeyring(name, data)
}

// ParseKeyring reads public keys, armored or binary.
func ParseKeyring(name string, data []byte) (*Keyring, error) {
	packets, err := dearmor(data)
	k := &Keyring{Name: name}
	if err == nil {
		k.keys, k.bare, err = readKeys(packets)
	}
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "the key of %s cannot be read: %w", name, err).
			WithHint("export it with 'gpg --armor --export'")
	}
	return k, nil
}

// maxSignature bounds a detached signature, in bytes.
const maxSignature = 64 << 10

// verifyClear checks a clear-signed text and returns what was signed of it, and by
// whom. What stands around the signed part is not returned.
func (k *Keyring) verifyClear(text []byte) (signed []byte, by string, err error) {
	block, _ := clearsign.Decode(text)
	if block == nil {
		return nil, "", mvm.Errorf(mvm.ErrBroken, "it is not signed, though it should be by %s", k.Name).
			WithHint("do not use it; try again, or another mirror")
	}
	sig, err := io.ReadAll(io.LimitReader(block.ArmoredSignature.Body, maxSignature))
	if err != nil {
		return nil, "", k.bad(err)
	}
	by, err = k.verify(bytes.NewReader(block.Bytes), sig)
	if err != nil {
		return nil, "", err
	}
	return block.Plaintext, by, nil
}

// verifyDetached checks a signature, armored or binary, over data.
func (k *Keyring) verifyDetached(data io.Reader, sig []byte) (by string, err error) {
	sig, err = dearmor(sig)
	if err != nil {
		return "", k.bad(err)
	}
	return k.verify(data, sig)
}

func (k *Keyring) verify(data io.Reader, sig []byte) (by string, err error) {
	by, err = k.checkSignature(data, sig, time.Now())
	if err != nil {
		return "", k.bad(err)
	}
	return by, nil
}

// bad says what is wrong with a signature.
func (k *Keyring) bad(err error) error {
	why := fmt.Sprintf("its signature cannot be read: %v", err)
	hint := "do not use it; try again, or another mirror"
	switch {
	case errors.Is(err, pgperr.ErrUnknownIssuer):
		why = "it is not signed by a key of " + k.Name
	case errors.Is(err, pgperr.ErrKeyExpired):
		why, hint = "the key of "+k.Name+" that signed it has expired", "get the renewed key from "+k.Name+" and put it among the trusted keys"
	case errors.Is(err, pgperr.ErrSignatureExpired):
		why = "its signature has expired"
	case errors.Is(err, pgperr.ErrKeyRevoked):
		why = "the key of " + k.Name + " that signed it was revoked"
	case errors.As(err, new(pgperr.SignatureError)):
		why = "its signature by " + k.Name + " does not match: " + err.Error()
	}
	return mvm.Errorf(mvm.ErrBroken, "%s", why).WithHint("%s", hint)
}

// fingerprints of all keys.
func (k *Keyring) fingerprints() []string {
	var all []string
	for _, e := range k.keys {
		all = append(all, fmt.Sprintf("%X", e.PrimaryKey.Fingerprint))
	}
	for _, b := range k.bare {
		all = append(all, fmt.Sprintf("%X", b.Fingerprint))
	}
	return all
}
