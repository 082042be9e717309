package asset

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"strings"

	"github.com/mvmctl/mvm"
)

// Digest is what a file's content hashes to: "sha256:" or "sha512:" and
// lower-case hexadecimal digits. The zero value knows nothing.
type Digest string

// ParseDigest reads a digest with its algorithm, or hexadecimal digits alone,
// whose number then tells the algorithm. "" is the zero Digest.
func ParseDigest(s string) (Digest, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	if s == "" {
		return "", nil
	}
	algorithm, digits, ok := strings.Cut(s, ":")
	if !ok {
		algorithm, digits = "", s
	}
	raw, err := hex.DecodeString(digits)
	of := map[int]string{sha256.Size: "sha256", sha512.Size: "sha512"}[len(raw)]
	if err != nil || of == "" || algorithm != "" && algorithm != of {
		return "", mvm.Errorf(mvm.ErrInvalid, "%s is no SHA-256 or SHA-512", mvm.Quote(s)).
			WithHint("a SHA-256 has 64 hexadecimal digits, a SHA-512 has 128")
	}
	return Digest(of + ":" + digits), nil
}

// Algorithm returns "sha256", "sha512" or "".
func (d Digest) Algorithm() string { a, _, _ := strings.Cut(string(d), ":"); return a }

// Hex returns the digits.
func (d Digest) Hex() string { _, h, _ := strings.Cut(string(d), ":"); return h }

// title is how people write the algorithm.
func (d Digest) title() string { return "SHA-" + strings.TrimPrefix(d.Algorithm(), "sha") }

func newHash(algorithm string) hash.Hash {
	if algorithm == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

// digestOf hashes a file from its beginning.
func digestOf(f io.ReadSeeker, algorithm string) (Digest, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := newHash(algorithm)
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return Digest(algorithm + ":" + hex.EncodeToString(h.Sum(nil))), nil
}

// has tells whether the file at path has the digest.
func (d Digest) has(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	got, err := digestOf(f, d.Algorithm())
	return err == nil && got == d
}
