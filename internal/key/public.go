package key

import (
	"crypto/rsa"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
)

// Public is a public key with its comment.
type Public struct {
	Key     ssh.PublicKey
	Comment string
}

// maxFile bounds what is read as a key.
const maxFile = 64 << 10

func readSmall(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = errors.New("it is too long for a key")
	}
	return data, err
}

// ParsePublic reads the one line of a .pub file. A private key, several lines, a
// line with authorized_keys options and a weak key give mvm.ErrInvalid.
func ParsePublic(text string) (Public, error) {
	if strings.Contains(text, "PRIVATE KEY-----") {
		return Public{}, mvm.Errorf(mvm.ErrInvalid, "this is a private key, not a public one").
			WithHint("name the file that ends in .pub; never give a private key away")
	}
	line := strings.TrimSpace(text)
	if strings.ContainsAny(line, "\n\r\x00") {
		return Public{}, mvm.Errorf(mvm.ErrInvalid, "this is more than one line").WithHint("give one public key at a time")
	}
	k, comment, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return Public{}, mvm.Errorf(mvm.ErrInvalid, "this is no OpenSSH public key").
			WithHint("it starts with a word such as ssh-ed25519; ssh-keygen -y -f KEY prints it")
	}
	if len(options) > 0 {
		return Public{}, mvm.Errorf(mvm.ErrInvalid, "the public key has options before it").WithHint("give the key alone, from its type on")
	}
	if err := checkComment(comment); err != nil {
		return Public{}, err
	}
	return Public{k, comment}, checkStrength(k)
}

// checkStrength refuses what OpenSSH refuses or is about to.
func checkStrength(k ssh.PublicKey) error {
	if k.Type() == "ssh-dss" {
		return mvm.Errorf(mvm.ErrInvalid, "DSA keys are not accepted any more").WithHint("make an ed25519 key")
	}
	c, ok := k.(ssh.CryptoPublicKey)
	if !ok {
		return nil
	}
	if r, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok && r.N.BitLen() < MinRSABits {
		return mvm.Errorf(mvm.ErrInvalid, "the RSA key has only %d bits", r.N.BitLen()).WithHint("make an ed25519 key, or an RSA key of %d bits", defaultRSABits)
	}
	return nil
}

// LoadPublic reads a .pub file.
func LoadPublic(path string) (Public, error) {
	f, err := os.Open(path)
	if err != nil {
		kind := mvm.ErrUnavailable
		if errors.Is(err, os.ErrNotExist) {
			kind = mvm.ErrNotFound
		}
		return Public{}, mvm.Errorf(kind, "%w", err).WithHint("name the .pub file")
	}
	defer func() { _ = f.Close() }()
	data, err := readSmall(f)
	if err != nil {
		return Public{}, mvm.Errorf(mvm.ErrInvalid, "%s: %w", path, err).WithHint("name the .pub file")
	}
	p, err := ParsePublic(string(data))
	return p, mvm.Wrap(err, "read the key", path)
}

// Line is the key as it stands in a .pub or authorized_keys file.
func (p Public) Line() string {
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(p.Key)))
	if p.Comment != "" {
		line += " " + p.Comment
	}
	return line
}

// Fingerprint is the key's SHA-256 as OpenSSH prints it: "SHA256:…".
func (p Public) Fingerprint() string { return ssh.FingerprintSHA256(p.Key) }

// Kind is the key's algorithm.
func (p Public) Kind() Kind {
	switch t := p.Key.Type(); {
	case t == ssh.KeyAlgoED25519:
		return ED25519
	case t == ssh.KeyAlgoRSA:
		return RSA
	case strings.HasPrefix(t, "ecdsa-"):
		return ECDSA
	default:
		return Kind(t)
	}
}

// Bits is the key's size as ssh-keygen -l prints it.
func (p Public) Bits() int {
	if c, ok := p.Key.(ssh.CryptoPublicKey); ok {
		if r, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok {
			return r.N.BitLen()
		}
	}
	switch p.Key.Type() {
	case ssh.KeyAlgoECDSA384:
		return 384
	case ssh.KeyAlgoECDSA521:
		return 521
	}
	return 256
}
