// Package key makes and reads SSH keys in OpenSSH's formats: what users log in
// with, and what a VM identifies itself by. It knows nothing of VMs and of the
// store, and starts no ssh-keygen.
package key

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// Kind is a key's algorithm, as ssh-keygen's -t takes it.
type Kind string

// The kinds that Generate makes.
const (
	ED25519 Kind = "ed25519"
	RSA     Kind = "rsa"
	ECDSA   Kind = "ecdsa"
)

// MinRSABits is the smallest RSA key that is made or accepted.
const MinRSABits = 2048

// maxRSABits keeps a typing error from computing for minutes.
const maxRSABits = 16384

const defaultRSABits = 4096

// Pair is a key with both halves.
type Pair struct {
	Signer  ssh.Signer
	Private []byte // OpenSSH PEM, without a passphrase
	Public  Public
}

// Generate makes a key. bits is for rsa (2048 and more; 0 is 4096) and ecdsa
// (256, 384, 521; 0 is 256). A bad kind, size or comment gives mvm.ErrInvalid.
func Generate(kind Kind, bits int, comment string) (*Pair, error) {
	if err := checkComment(comment); err != nil {
		return nil, err
	}
	priv, err := generate(kind, bits)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(priv, comment)
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "cannot encode the key: %w", err).WithHint("choose ed25519")
	}
	signer, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "cannot use the key: %w", err).WithHint("choose ed25519")
	}
	return &Pair{Signer: signer, Private: pem.EncodeToMemory(block), Public: Public{signer.PublicKey(), comment}}, nil
}

func generate(kind Kind, bits int) (crypto.PrivateKey, error) {
	switch kind {
	case ED25519, "":
		if bits != 0 && bits != 256 {
			return nil, mvm.Errorf(mvm.ErrInvalid, "an ed25519 key has 256 bits, not %d", bits).WithHint("leave the number of bits out")
		}
		_, priv, err := ed25519.GenerateKey(rand.Reader)
		return priv, err
	case RSA:
		if bits == 0 {
			bits = defaultRSABits
		}
		if bits < MinRSABits || bits > maxRSABits {
			return nil, mvm.Errorf(mvm.ErrInvalid, "an RSA key of %d bits is not made", bits).
				WithHint("choose %d to %d bits, or ed25519", MinRSABits, maxRSABits)
		}
		return rsa.GenerateKey(rand.Reader, bits)
	case ECDSA:
		curve, ok := map[int]elliptic.Curve{0: elliptic.P256(), 256: elliptic.P256(), 384: elliptic.P384(), 521: elliptic.P521()}[bits]
		if !ok {
			return nil, mvm.Errorf(mvm.ErrInvalid, "an ECDSA key of %d bits is not made", bits).WithHint("choose 256, 384 or 521 bits")
		}
		return ecdsa.GenerateKey(curve, rand.Reader)
	}
	return nil, mvm.Errorf(mvm.ErrInvalid, "there is no kind of key %s", mvm.Quote(string(kind))).WithHint("choose ed25519, rsa or ecdsa")
}

func checkComment(c string) error {
	if strings.IndexFunc(c, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0 {
		return mvm.Errorf(mvm.ErrInvalid, "the comment %s has control characters", mvm.Quote(c)).WithHint("use plain text on one line")
	}
	return nil
}

// Save writes the private half to path, mode 0600, and then the public one to
// path+".pub", each whole. It never replaces a key: a path that exists gives
// mvm.ErrExists. Interrupted in between it leaves a private key from which the
// public one can be made.
func (p *Pair) Save(path string) error {
	for _, f := range []string{path, path + ".pub"} {
		if _, err := os.Lstat(f); err == nil {
			return mvm.Errorf(mvm.ErrExists, "%s is there already", f).WithHint("choose another name, or remove it first")
		} else if !errors.Is(err, fs.ErrNotExist) {
			return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("check the directory's permissions")
		}
	}
	if err := fsx.WriteFile(path, p.Private, 0o600); err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot write the private key: %w", err).WithHint("check the directory's permissions and free space")
	}
	if err := fsx.WriteFile(path+".pub", []byte(p.Public.Line()+"\n"), 0o644); err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot write the public key: %w", err).WithHint("check the directory's permissions and free space")
	}
	return nil
}

// LoadSigner reads a private key without a passphrase. A file that others can
// read is refused, as ssh does.
func LoadSigner(path string) (ssh.Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		kind := mvm.ErrUnavailable
		if errors.Is(err, fs.ErrNotExist) {
			kind = mvm.ErrNotFound
		}
		return nil, mvm.Errorf(kind, "%w", err).WithHint("name the private key's file, or make one with 'mvm key create'")
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("check the file")
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, mvm.Errorf(mvm.ErrInvalid, "the private key %s can be read by others", path).WithHint("chmod 600 %s", path)
	}
	data, err := readSmall(f)
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s: %w", path, err).WithHint("name a private key's file")
	}
	return ParseSigner(data)
}

// ParseSigner reads a private key in PEM form.
func ParseSigner(data []byte) (ssh.Signer, error) {
	s, err := ssh.ParsePrivateKey(data)
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return nil, mvm.Errorf(mvm.ErrUnsupported, "the private key has a passphrase").
			WithHint("load it into ssh-agent, or use a key of its own made by 'mvm key create'")
	case err != nil:
		if _, perr := ParsePublic(string(data)); perr == nil {
			return nil, mvm.Errorf(mvm.ErrInvalid, "this is a public key, not a private one").WithHint("name the file without .pub")
		}
		return nil, mvm.Errorf(mvm.ErrInvalid, "this is no private key: %w", err).WithHint("name an OpenSSH or PEM private key")
	}
	return s, nil
}
