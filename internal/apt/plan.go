package apt

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
)

// item is one line of what --print-uris prints.
type item struct {
	file                string // "busybox_1%3a1.35.0-4_amd64.deb"
	name, version, arch string
	size                int64
	sha256              string // hex
}

// planLine is 'URI' FILE SIZE SHA256:HEX (with Acquire::ForceHash=sha256).
var planLine = regexp.MustCompile(`^'[^']*' ([A-Za-z0-9.+~%_-]+\.deb) ([0-9]+) (?:SHA256:([0-9a-f]{64}))?\s*$`)

// parsePlan reads the output of apt-get --print-uris.
func parsePlan(out string) ([]item, error) {
	var plan []item
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "'") {
			continue // "Reading package lists…" of a client that is not quiet enough
		}
		it, err := parsePlanLine(line)
		if err != nil {
			return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot read the package client's plan: %w", err).
				WithHint("run 'apt-get download --print-uris NAME' to see what it prints")
		}
		plan = append(plan, it)
	}
	return plan, nil
}

func parsePlanLine(line string) (item, error) {
	m := planLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
	if m == nil {
		return item{}, fmt.Errorf("the line %q has not the form 'URI' FILE SIZE SHA256:HASH", strings.TrimSpace(line))
	}
	// Neither names nor versions nor architectures have an underscore (Debian Policy 5.6.1, 5.6.12).
	parts := strings.Split(strings.TrimSuffix(m[1], ".deb"), "_")
	if len(parts) != 3 || parts[0] == "" || strings.HasPrefix(parts[0], ".") {
		return item{}, fmt.Errorf("%q is not NAME_VERSION_ARCH.deb", m[1])
	}
	version, err := url.PathUnescape(parts[1]) // the colon of an epoch is %3a
	if err != nil {
		return item{}, err
	}
	size, err := strconv.ParseInt(m[2], 10, 64)
	if err != nil {
		return item{}, err
	}
	return item{m[1], parts[0], version, parts[2], size, m[3]}, nil
}

// spec names exactly this package to the client.
func (it item) spec() string {
	if it.arch == "all" {
		return it.name + "=" + it.version
	}
	return it.name + ":" + it.arch + "=" + it.version
}

func (it item) deb(dir string) Deb {
	return Deb{Name: it.name, Version: it.version, Arch: it.arch, Path: filepath.Join(dir, it.file)}
}

// check says how the file at path is not the planned one: a kept download that
// was cut or damaged is fetched anew.
func (it item) check(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	n, err := io.Copy(h, f)
	switch {
	case err != nil:
		return err
	case n != it.size:
		return fmt.Errorf("it has %d bytes instead of %d", n, it.size)
	case it.sha256 != "" && hex.EncodeToString(h.Sum(nil)) != it.sha256:
		return errors.New("its SHA-256 is not the one in the package list")
	}
	return nil
}
