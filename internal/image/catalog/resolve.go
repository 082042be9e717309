package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
)

// Source is where listings and files come from.
type Source struct {
	*asset.Fetcher
	TTL  time.Duration // how long a listing is good
	Arch string        // as uname -m says it

	Notice func(text string) // is told what a user should know; may be nil
}

// version is one that a listing has.
type version struct {
	name   string // for users: "12"
	listed string // in the listing, and so in URLs: "bookworm"
}

// List returns the versions of a type, newest first.
//
// Errors: those of asset.Fetcher; mvm.ErrUnsupported for an architecture that
// the upstream has nothing for.
func (s Source) List(ctx context.Context, e Entry) ([]string, error) {
	all, err := s.versions(ctx, e)
	names := make([]string, 0, len(all))
	for _, v := range all {
		names = append(names, v.name)
	}
	return names, err
}

func (s Source) arch(e Entry) (string, error) {
	if a := e.Arch[s.Arch]; a != "" {
		return a, nil
	}
	return "", mvm.Errorf(mvm.ErrUnsupported, "%s publishes no image for %s", e.Name, s.Arch).WithHint("choose another type; 'mvm image ls --remote' shows them")
}

func (s Source) versions(ctx context.Context, e Entry) ([]version, error) {
	arch, err := s.arch(e)
	if err != nil {
		return nil, err
	}
	names, err := s.listed(ctx, e.Versions.Directory, e.Versions.Bucket, e.Versions.Prefix)
	if err != nil {
		return nil, err
	}
	var out []version
	if len(e.Versions.Fixed) > 0 {
		for _, v := range e.Versions.Fixed {
			out = append(out, version{v, v})
		}
		return out, nil
	}
	re, err := pattern(e.Versions.Match, arch, "")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		m := re.FindStringSubmatch(n)
		if m == nil || len(m) < 2 || m[1] == "" {
			continue
		}
		v := version{m[1], m[1]}
		if e.Versions.Called != nil {
			if v.name = e.Versions.Called[m[1]]; v.name == "" {
				continue
			}
		}
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b version) int { return compareVersions(b.name, a.name) })
	return out, nil
}

// listed returns the names in a directory or bucket; neither gives none.
func (s Source) listed(ctx context.Context, dir, bucket, prefix string) ([]string, error) {
	var names []string
	switch {
	case dir != "":
		entries, err := s.Directory(ctx, dir, s.TTL)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			names = append(names, e.Name)
		}
	case bucket != "":
		objects, err := s.S3(ctx, bucket, prefix, s.TTL)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			names = append(names, o.Key)
		}
	}
	return names, nil
}

// Find returns the file of a version, "" for the newest, and how it is checked. A
// newest version for which there is no file yet, as before a release, is passed
// over.
func (s Source) Find(ctx context.Context, e Entry, want string) (asset.File, string, error) {
	all, err := s.versions(ctx, e)
	if err != nil {
		return asset.File{}, "", err
	}
	if want != "" {
		i := slices.IndexFunc(all, func(v version) bool { return v.name == want || v.listed == want })
		if i < 0 {
			return asset.File{}, "", mvm.Errorf(mvm.ErrNotFound, "%s has no version %s", e.Name, mvm.Quote(want)).WithHint("%s", offer(all))
		}
		all = all[i : i+1]
	}
	const try = 3 // releases to come, and one that was withdrawn
	last := error(mvm.Errorf(mvm.ErrNotFound, "%s lists no version", e.Name).WithHint("its listing may have changed; put the type into an images.yaml of your own"))
	for _, v := range all[:min(len(all), try)] {
		f, err := s.file(ctx, e, v)
		if err == nil || !errors.Is(err, mvm.ErrNotFound) {
			return f, v.name, err
		}
		last = err
	}
	return asset.File{}, "", last
}

func offer(all []version) string {
	if len(all) == 0 {
		return "there are none"
	}
	var names []string
	for _, v := range all[:min(len(all), 8)] {
		names = append(names, v.name)
	}
	return "there is " + strings.Join(names, ", ")
}

func (s Source) file(ctx context.Context, e Entry, v version) (asset.File, error) {
	arch, err := s.arch(e)
	if err != nil {
		return asset.File{}, err
	}
	name := ""
	fill := func(t string) string {
		return strings.NewReplacer("{arch}", arch, "{version}", v.listed, "{name}", name).Replace(t)
	}
	var f asset.File
	var names []string
	if e.File.URL != "" {
		f.URL = fill(e.File.URL)
		name = f.URL[strings.LastIndexByte(f.URL, '/')+1:]
	} else {
		if names, err = s.candidates(ctx, e, fill); err != nil {
			return f, err
		}
		re, err := pattern(e.File.Match, arch, v.listed)
		if err != nil {
			return f, err
		}
		if name = newest(names, re); name == "" {
			return f, mvm.Errorf(mvm.ErrNotFound, "%s %s has no image for %s that is known", e.Name, v.name, s.Arch).WithHint("choose another version; 'mvm image ls --remote' shows them")
		}
		f.URL = strings.TrimSuffix(fill(e.File.Directory+e.File.Bucket), "/") + "/" + name
	}
	sums := fill(e.Checksums)
	if e.ChecksumsMatch != "" {
		re, err := pattern(e.ChecksumsMatch, arch, v.listed)
		if err != nil {
			return f, err
		}
		if list := newest(names, re); list != "" {
			sums = strings.TrimSuffix(fill(e.File.Directory), "/") + "/" + list
		}
	}
	if sums != "" {
		f.Sums = &asset.Sums{URL: sums, Signature: s.signature(e, fill)}
	}
	return f, nil
}

// candidates are the names that the file is among.
func (s Source) candidates(ctx context.Context, e Entry, fill func(string) string) ([]string, error) {
	if !e.File.Sums {
		return s.listed(ctx, fill(e.File.Directory), fill(e.File.Bucket), fill(e.File.Prefix))
	}
	list, err := s.Read(ctx, fill(e.Checksums), 1<<20)
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(list), func(r rune) bool { return strings.ContainsRune(" \t\r\n*()", r) }), nil
}

// signature says who has to have signed the checksums. Where nobody has given us the
// key, and the entry does not insist, nobody.
func (s Source) signature(e Entry, fill func(string) string) *asset.Signature {
	if e.Signature == "" || e.SignedBy == "" {
		return nil
	}
	sig := &asset.Signature{Upstream: fill(e.SignedBy)}
	if e.Signature != "inline" {
		sig.URL = fill(e.Signature)
	}
	if _, err := asset.LoadKeyring(sig.Upstream, s.Keys); errors.Is(err, mvm.ErrNotFound) && !e.MustBeSigned {
		if s.Notice != nil {
			s.Notice(fmt.Sprintf("the checksums of %s are signed, and not checked for that: the key %s is not in %s", e.Name, sig.Upstream, s.Keys))
		}
		return nil
	}
	return sig
}

// newest returns the newest name that matches, "" when none does.
func newest(names []string, re *regexp.Regexp) string {
	best := ""
	for _, n := range names {
		if re.MatchString(n) && (best == "" || compareVersions(n, best) > 0) {
			best = n
		}
	}
	return best
}

// compareVersions orders by the numbers in two strings, and else as text.
func compareVersions(a, b string) int {
	x, y := pieces(a), pieces(b)
	for i := range min(len(x), len(y)) {
		m, errM := strconv.ParseUint(x[i], 10, 63)
		n, errN := strconv.ParseUint(y[i], 10, 63)
		c := strings.Compare(x[i], y[i])
		if errM == nil && errN == nil {
			c = cmp.Compare(m, n)
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(x), len(y))
}

var piece = regexp.MustCompile(`[0-9]+|[^0-9]+`)

func pieces(s string) []string { return piece.FindAllString(s, -1) }
