// Package catalog knows where distributions publish their images: a list that is
// shipped, which users extend and override, and how the listings of its upstreams
// name versions and files. What it finds still has to be downloaded and checked.
//
// It must not know what becomes of an image.
package catalog

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/mvmctl/mvm"
)

//go:embed images.yaml
var shipped []byte

// Catalog is the images that can be downloaded, in the order of the files.
type Catalog []Entry

// Entry is one type of image.
type Entry struct {
	Type     string            `yaml:"type"`
	Name     string            `yaml:"name"`
	Arch     map[string]string `yaml:"arch"` // by architecture as uname -m says it, the upstream's word for it
	Versions Versions          `yaml:"versions"`
	File     File              `yaml:"file"`

	Checksums      string `yaml:"checksums"`       // URL of a list of checksums
	ChecksumsMatch string `yaml:"checksums_match"` // instead: pattern of its name beside the image
	Signature      string `yaml:"signature"`       // URL of a detached signature of the list; "inline" for one that is in it
	SignedBy       string `yaml:"signed_by"`       // name of the key, see asset.LoadKeyring
	MustBeSigned   bool   `yaml:"must_be_signed"`  // else a signature is checked where its key is there
	Packages       bool   `yaml:"packages"`        // can be built from packages instead
}

// Versions says how a listing tells which versions there are.
type Versions struct {
	Directory string            `yaml:"directory"` // URL of a page with links
	Bucket    string            `yaml:"bucket"`    // or URL of an S3 bucket,
	Prefix    string            `yaml:"prefix"`    // and what keys in it begin with
	Fixed     []string          `yaml:"fixed"`     // or the versions themselves
	Match     string            `yaml:"match"`     // pattern of names; its first group is the version
	Called    map[string]string `yaml:"called"`    // versions by what the listing calls them; others are not taken
}

// File says how a listing tells which file it is.
type File struct {
	Directory string `yaml:"directory"`
	Bucket    string `yaml:"bucket"`
	Prefix    string `yaml:"prefix"`
	Sums      bool   `yaml:"sums"`  // Directory cannot be listed; the list of checksums is
	Match     string `yaml:"match"` // pattern of the name; of several the newest
	URL       string `yaml:"url"`   // or the file itself
}

// maxCatalog bounds a user's file, in bytes.
const maxCatalog = 1 << 20

// Load returns the shipped catalog with the user's file over it. One that is not
// there is fine.
func Load(user string) (Catalog, error) {
	c, err := Parse(shipped)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(user)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "the catalog cannot be read: %w", err).WithHint("check %s", user)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxCatalog))
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "the catalog cannot be read: %w", err).WithHint("check %s", user)
	}
	own, err := Parse(data)
	if err != nil {
		return nil, mvm.Wrap(err, "read catalog", user)
	}
	for _, e := range own {
		if i := slices.IndexFunc(c, func(x Entry) bool { return x.Type == e.Type }); i >= 0 {
			c[i] = e
		} else {
			c = append(c, e)
		}
	}
	return c, nil
}

// Parse reads a catalog and refuses one that could not work.
func Parse(data []byte) (Catalog, error) {
	var file struct {
		Images Catalog `yaml:"images"`
	}
	d, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithKnownFields())
	if err == nil {
		err = d.Load(&file)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, mvm.Errorf(mvm.ErrInvalid, "it is no catalog of images: %w", err).WithHint("see docs/images.md for what one looks like")
	}
	seen := map[string]bool{}
	for i, e := range file.Images {
		err := e.check()
		if err == nil && seen[e.Type] {
			err = errors.New("it is there twice")
		}
		if err != nil {
			return nil, mvm.Errorf(mvm.ErrInvalid, "image %d, type %s: %w", i+1, mvm.Quote(e.Type), err).WithHint("see docs/images.md for what a catalog looks like")
		}
		seen[e.Type] = true
	}
	return file.Images, nil
}

var typePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

func (e Entry) check() error {
	switch {
	case !typePattern.MatchString(e.Type):
		return errors.New("a type has up to 32 small letters, digits and hyphens")
	case len(e.Arch) == 0:
		return errors.New("no architecture is named")
	case e.File.URL == "" && e.File.Directory == "" && e.File.Bucket == "":
		return errors.New("file has neither directory, bucket nor url")
	case e.File.URL == "" && e.File.Match == "":
		return errors.New("file has no match")
	case e.Versions.Directory == "" && e.Versions.Bucket == "" && len(e.Versions.Fixed) == 0:
		return errors.New("versions has neither directory, bucket nor fixed")
	case len(e.Versions.Fixed) == 0 && e.Versions.Match == "":
		return errors.New("versions has no match")
	case e.MustBeSigned && (e.Signature == "" || e.SignedBy == ""):
		return errors.New("it must be signed, and it does not say where the signature is and whose")
	case e.File.Sums && e.Checksums == "":
		return errors.New("file is to be found in the checksums, and there are none")
	}
	for _, u := range []string{e.Versions.Directory, e.Versions.Bucket, e.File.Directory, e.File.Bucket, e.File.URL, e.Checksums, strings.TrimPrefix(e.Signature, "inline")} {
		if u == "" {
			continue
		}
		p, err := url.Parse(strings.NewReplacer("{arch}", "a", "{version}", "1", "{name}", "n").Replace(u))
		if err != nil || p.Scheme != "https" && p.Scheme != "http" || p.Host == "" {
			return fmt.Errorf("%s is no http or https address", mvm.Quote(u))
		}
	}
	for _, p := range []string{e.Versions.Match, e.File.Match, e.ChecksumsMatch} {
		if _, err := pattern(p, "x", "1"); err != nil {
			return err
		}
	}
	if re, err := pattern(e.Versions.Match, "x", "1"); err != nil || len(e.Versions.Fixed) == 0 && re.NumSubexp() < 1 {
		return errors.New("the match of versions has no group")
	}
	return nil
}

// pattern compiles a match, in which {arch} and {version} are text.
func pattern(p, arch, version string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(strings.NewReplacer("{arch}", regexp.QuoteMeta(arch), "{version}", regexp.QuoteMeta(version)).Replace(p))
	if err != nil {
		return nil, fmt.Errorf("the pattern %s: %w", mvm.Quote(p), err)
	}
	return re, nil
}

// Types returns the names of all types.
func (c Catalog) Types() []string {
	var out []string
	for _, e := range c {
		out = append(out, e.Type)
	}
	return out
}

// Entry returns the entry of a type.
func (c Catalog) Entry(typ string) (Entry, error) {
	for _, e := range c {
		if e.Type == typ {
			return e, nil
		}
	}
	err := mvm.Errorf(mvm.ErrNotFound, "there is no image type %s", mvm.Quote(typ))
	if near := mvm.Nearest(typ, c.Types()); len(near) > 0 {
		return Entry{}, err.WithHint("did you mean %s?", strings.Join(near, " or "))
	}
	return Entry{}, err.WithHint("the types are %s", strings.Join(c.Types(), ", "))
}
