package asset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"html"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset/listing"
	"github.com/mvmctl/mvm/internal/fsx"
)

// maxListing bounds one page of a listing, in bytes.
const maxListing = 32 << 20

// maxPages bounds how many pages a listing has.
const maxPages = 200

// Directory lists the files below a URL that a web server shows as a page, kept
// for ttl. A mirror that is a directory shows its own.
func (f *Fetcher) Directory(ctx context.Context, dir string, ttl time.Duration) ([]listing.Entry, error) {
	if !strings.HasSuffix(dir, "/") {
		dir += "/"
	}
	page, err := f.kept(ctx, dir, ttl, func(data []byte) error { _, err := listing.Directory(data, dir); return err })
	if err != nil {
		return nil, err
	}
	entries, err := listing.Directory(page, dir)
	return entries, mvm.Wrap(err, "list", Shown(dir))
}

// S3 lists the objects of a bucket whose keys begin with prefix, kept for ttl.
// bucket is its URL. A mirror that is a directory shows its own files.
func (f *Fetcher) S3(ctx context.Context, bucket, prefix string, ttl time.Duration) ([]listing.Object, error) {
	if f.Mirror != "" && !isHTTP(f.Mirror) {
		return f.localObjects(bucket, prefix)
	}
	var all []listing.Object
	next := ""
	for range maxPages {
		q := url.Values{"list-type": {"2"}, "prefix": {prefix}}
		if next != "" {
			q.Set("continuation-token", next)
		}
		data, err := f.kept(ctx, strings.TrimSuffix(bucket, "/")+"/?"+q.Encode(), ttl, func(data []byte) error { _, err := listing.S3(data); return err })
		if err != nil {
			return nil, err
		}
		page, err := listing.S3(data)
		if err != nil {
			return nil, mvm.Wrap(err, "list", Shown(bucket))
		}
		all = append(all, page.Objects...)
		if next = page.Next; next == "" {
			return all, nil
		}
	}
	return nil, mvm.Errorf(mvm.ErrBroken, "the bucket's listing has no end").On("list", Shown(bucket)).WithHint("check the address")
}

// localObjects lists a mirror that is a directory as a bucket.
func (f *Fetcher) localObjects(bucket, prefix string) ([]listing.Object, error) {
	roots, err := places(strings.TrimSuffix(bucket, "/")+"/", f.Mirror)
	if err != nil {
		return nil, err
	}
	for _, root := range append(roots[:2], f.Mirror) {
		var all []listing.Object
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error { // what cannot be read is not listed
			rel, relErr := filepath.Rel(root, path)
			if err != nil || relErr != nil || !d.Type().IsRegular() || !strings.HasPrefix(rel, prefix) {
				return nil //nolint:nilerr // likewise
			}
			if info, err := d.Info(); err == nil {
				all = append(all, listing.Object{Key: rel, Size: info.Size(), Modified: info.ModTime()})
			}
			return nil
		})
		if len(all) > 0 {
			return all, nil
		}
	}
	return nil, mvm.Errorf(mvm.ErrNotFound, "the mirror %s has nothing below %s", f.Mirror, mvm.Quote(prefix)).On("list", Shown(bucket)).
		WithHint("put files there under the names that the bucket has, or unset MVM_ASSET_MIRROR")
}

// GitHubReleases lists the releases of a repository by the API's URL for them, kept for ttl.
func (f *Fetcher) GitHubReleases(ctx context.Context, api string, ttl time.Duration) ([]listing.Release, error) {
	data, err := f.kept(ctx, api, ttl, func(data []byte) error { _, err := listing.GitHubReleases(data); return err })
	if err != nil {
		return nil, err
	}
	all, err := listing.GitHubReleases(data)
	return all, mvm.Wrap(err, "list", Shown(api))
}

// KernelOrg lists the releases of the kernel that are current, kept for ttl.
func (f *Fetcher) KernelOrg(ctx context.Context, releases string, ttl time.Duration) ([]listing.KernelRelease, error) {
	data, err := f.kept(ctx, releases, ttl, func(data []byte) error { _, err := listing.KernelOrg(data); return err })
	if err != nil {
		return nil, err
	}
	all, err := listing.KernelOrg(data)
	return all, mvm.Wrap(err, "list", Shown(releases))
}

// kept returns a listing from the cache if it is younger than ttl, else from its
// source. Where the source does not answer, an older one is better than none; the
// user is told. Only what valid accepts is kept.
func (f *Fetcher) kept(ctx context.Context, from string, ttl time.Duration, valid func([]byte) error) ([]byte, error) {
	dir := filepath.Join(f.Dir, "listings")
	key := sha256.Sum256([]byte(f.Mirror + "\n" + from))
	file := filepath.Join(dir, hex.EncodeToString(key[:]))
	info, statErr := os.Stat(file)
	local := f.Mirror != "" && !isHTTP(f.Mirror) // is as fast as the cache, and never stale
	if age := time.Duration(0); statErr == nil && !f.NoCache && !local {
		if age = time.Since(info.ModTime()); age >= 0 && age < ttl {
			if data, err := os.ReadFile(file); err == nil && valid(data) == nil {
				return data, nil
			}
		}
	}
	data, err := f.page(ctx, from)
	if errors.Is(err, mvm.ErrUnavailable) && ctx.Err() == nil && statErr == nil && !f.NoCache && !local {
		if old, readErr := os.ReadFile(file); readErr == nil && valid(old) == nil {
			f.Progress.Send("list", fmt.Sprintf("%v; going by what was there on %s", err, info.ModTime().Format(time.DateTime)))
			return old, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if err := valid(data); err != nil {
		return nil, mvm.Wrap(err, "list", Shown(from))
	}
	if !local {
		if err := errors.Join(os.MkdirAll(dir, 0o755), fsx.WriteFile(file, data, 0o644)); err != nil {
			return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot keep a listing: %w", err).WithHint("check that %s can be written", f.Dir)
		}
	}
	return data, nil
}

// page reads a page from its source; that of a directory in the file system is
// made on the spot, unless it has an index.html.
func (f *Fetcher) page(ctx context.Context, from string) ([]byte, error) {
	if f.Mirror != "" && !isHTTP(f.Mirror) {
		all, err := places(from, f.Mirror)
		if err != nil {
			return nil, err
		}
		for _, dir := range all[:2] {
			if data, err := os.ReadFile(filepath.Join(dir, "index.html")); err == nil {
				return data, nil
			}
			if entries, err := os.ReadDir(dir); err == nil {
				return index(entries), nil
			}
		}
	}
	f.Progress.Send("list", "asking "+hostOf(from)+" what there is")
	return f.Read(ctx, from, maxListing)
}

func index(entries []fs.DirEntry) []byte {
	var b strings.Builder
	b.WriteString("<html><body><pre>\n")
	for _, e := range entries {
		slash := ""
		if e.IsDir() {
			slash = "/"
		}
		fmt.Fprintf(&b, "<a href=\"./%s%s\">%s</a>\n", url.PathEscape(e.Name()), slash, html.EscapeString(e.Name()))
	}
	b.WriteString("</pre></body></html>\n")
	return []byte(b.String())
}

func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Host
}

// exists asks whether there is a file at a URL, without loading it.
func (f *Fetcher) exists(ctx context.Context, from string) error {
	all, err := places(from, f.Mirror)
	if err != nil {
		return err
	}
	l := &loading{Options: Options{URL: from, Mirror: f.Mirror}}
	for _, place := range all {
		if !isHTTP(place) {
			if _, err := os.Stat(place); err == nil {
				return nil
			}
			err = mvm.Errorf(mvm.ErrNotFound, "the mirror %s has no %s", f.Mirror, filepath.Base(place)).
				WithHint("put the file into the directory that MVM_ASSET_MIRROR names, or unset it")
			continue
		}
		var resp *http.Response
		if resp, err = l.get(ctx, place, 0); err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode < 400 {
			return nil
		}
		if err = refused(resp, place); !errors.Is(err, mvm.ErrNotFound) {
			return err
		}
	}
	return err
}
