package asset

import (
	"bufio"
	"bytes"
	"path"
	"strings"

	"github.com/mvmctl/mvm"
)

// maxSums bounds a list of checksums, in bytes: kernel.org's, of all releases of a
// series, is the longest that we know, with about 1 MiB.
const maxSums = 8 << 20

// sumFor finds a file's digest in a list of checksums. It knows the lines of
// sha256sum ("HASH  NAME", "HASH *NAME"), those of BSD ("SHA256 (NAME) = HASH"),
// and a lone hash, as some upstreams publish for one file. SHA-512 is preferred
// where a list has both. Other lines, and hashes that we do not trust (MD5,
// SHA-1), are passed over. A name is compared without its directory; two
// different digests for one name are an error.
func sumFor(list []byte, name string) (Digest, error) {
	var found Digest
	lines, lone := 0, Digest("")
	sc := bufio.NewScanner(bytes.NewReader(list))
	sc.Buffer(nil, 64<<10)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		lines++
		digest, of := sumLine(line)
		if digest != "" && of == "" {
			lone = digest
		}
		if digest == "" || path.Base(strings.TrimPrefix(of, "*")) != name {
			continue
		}
		switch {
		case found == "" || len(digest) > len(found):
			found = digest
		case digest != found && len(digest) == len(found):
			return "", mvm.Errorf(mvm.ErrBroken, "the list of checksums names %s twice, with different ones", mvm.Quote(name)).
				WithHint("do not use the file; tell those who publish it")
		}
	}
	if err := sc.Err(); err != nil {
		return "", mvm.Errorf(mvm.ErrBroken, "the list of checksums cannot be read: %w", err).WithHint("check the address")
	}
	if found == "" && lines == 1 {
		found = lone
	}
	if found == "" {
		return "", mvm.Errorf(mvm.ErrBroken, "the published list of checksums does not name %s", mvm.Quote(name)).
			WithHint("--skip-checksum does without")
	}
	return found, nil
}

// sumLine reads one line of a list: the digest and the name it is for, which is
// "" for a hash alone. What is no such line has no digest.
func sumLine(line string) (Digest, string) {
	if algorithm, rest, ok := strings.Cut(line, " ("); ok && !strings.Contains(algorithm, " ") {
		at := strings.LastIndex(rest, ") = ")
		if at < 0 {
			return "", ""
		}
		d, err := ParseDigest(rest[at+len(") = "):])
		if err != nil || strings.ReplaceAll(strings.ToLower(algorithm), "-", "") != d.Algorithm() {
			return "", ""
		}
		return d, rest[:at]
	}
	hash, name, _ := strings.Cut(line, " ")
	if strings.Contains(hash, ":") {
		return "", ""
	}
	d, err := ParseDigest(hash)
	if err != nil {
		return "", ""
	}
	return d, strings.TrimLeft(name, " \t")
}
