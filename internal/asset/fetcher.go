package asset

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// Fetcher downloads what upstreams publish, checked, into a cache that is addressed
// by content, and keeps their listings. Several processes may use one cache.
type Fetcher struct {
	Dir      string        // of the cache; made if missing
	Keys     string        // directory with keys of the user's own (see LoadKeyring); "" has none
	Mirror   string        // see Options
	NoCache  bool          // ask for listings even where a fresh one is kept
	Backoff  time.Duration // see Options
	Progress mvm.ProgressFunc
}

// File is a file that an upstream publishes, and how to tell that it is that one:
// by one of Digest, Sums and Signature. With none of them it is refused.
type File struct {
	URL       string
	MaxBytes  int64      // refuses more; 0 means 16 GiB
	Digest    Digest     // known beforehand
	Sums      *Sums      // a list of checksums that names it
	Signature *Signature // of the file itself, which has to be whole before it can be checked
	Unchecked bool       // take it as it comes (--skip-checksum)
}

// Sums is a published list of checksums.
type Sums struct {
	URL       string
	Name      string     // what the list calls the file; "" is the last element of its URL
	Signature *Signature // nil for a list that is not signed
}

// Signature says who has to have signed something.
type Signature struct {
	Upstream string // whose keys; see LoadKeyring
	URL      string // of the detached signature; "" where the text itself is clear-signed
}

// Got is a file in the cache.
type Got struct {
	Path string // stays as it is until the cache is emptied: to be copied or unpacked, not changed
	mvm.Provenance
}

// Fetch brings a file into the cache.
//
// Errors: those of the function Fetch; mvm.ErrBroken where a checksum or signature
// does not match, is missing, or is by somebody else; mvm.ErrNotFound also where no
// key of the upstream is known.
func (f *Fetcher) Fetch(ctx context.Context, file File) (Got, error) {
	got, err := f.fetch(ctx, file)
	switch {
	case err == nil:
		return got, nil
	case mvm.HintOf(err) != "":
		return Got{}, err
	}
	return Got{}, mvm.Wrap(err, "download", Shown(file.URL))
}

func (f *Fetcher) fetch(ctx context.Context, file File) (Got, error) {
	if file.Unchecked {
		return f.unknown(ctx, file, func(_ string, p *mvm.Provenance) error {
			p.Verification = mvm.VerifiedNot
			return nil
		})
	}
	got := Got{Provenance: mvm.Provenance{Source: Shown(file.URL), Verification: mvm.VerifiedChecksum}}
	digest := file.Digest
	if digest == "" && file.Sums != nil {
		var err error
		if digest, got.SignedBy, err = f.published(ctx, file); err != nil {
			return Got{}, err
		}
		if got.SignedBy != "" {
			got.Verification = mvm.VerifiedSignature
		}
	}
	switch {
	case digest != "":
		digest, err := ParseDigest(string(digest))
		if err != nil {
			return Got{}, err
		}
		got.Digest = string(digest)
		got.Path, err = f.blob(digest)
		if err == nil {
			err = Fetch(ctx, f.options(file, got.Path, digest))
		}
		return got, err
	case file.Signature != nil:
		return f.signed(ctx, file)
	}
	return Got{}, f.noChecksum(ctx, file, nil)
}

func (f *Fetcher) options(file File, dest string, d Digest) Options {
	return Options{URL: file.URL, Dest: dest, Digest: d, Mirror: f.Mirror, MaxBytes: file.MaxBytes, Backoff: f.Backoff, Progress: f.Progress}
}

// blob returns where the cache has what hashes to d.
func (f *Fetcher) blob(d Digest) (string, error) {
	dir := filepath.Join(f.Dir, d.Algorithm())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", mvm.Errorf(mvm.ErrUnavailable, "cannot make the download cache: %w", err).WithHint("check that %s can be written", f.Dir)
	}
	return filepath.Join(dir, d.Hex()), nil
}

// Read downloads a small file of at most max bytes that needs no check, because
// what it says is checked otherwise or binds nobody.
func (f *Fetcher) Read(ctx context.Context, url string, max int64) ([]byte, error) {
	return read(ctx, Options{URL: url, Mirror: f.Mirror, MaxBytes: max, Backoff: f.Backoff})
}

// published returns the digest that the list of checksums has for a file, and the
// fingerprint of the key that signed the list, "" where it is not signed.
func (f *Fetcher) published(ctx context.Context, file File) (Digest, string, error) {
	list, err := f.Read(ctx, file.Sums.URL, maxSums)
	if errors.Is(err, mvm.ErrNotFound) {
		return "", "", f.noChecksum(ctx, file, err)
	}
	if err != nil {
		return "", "", err
	}
	by := ""
	if s := file.Sums.Signature; s != nil {
		if list, by, err = f.signedText(ctx, list, s); err != nil {
			return "", "", mvm.Wrap(err, "trust", Shown(file.Sums.URL))
		}
	}
	name := file.Sums.Name
	if name == "" {
		name = fileName(file.URL)
	}
	d, err := sumFor(list, name)
	return d, by, mvm.Wrap(err, "check", Shown(file.URL))
}

// signedText returns what of a text is signed.
func (f *Fetcher) signedText(ctx context.Context, text []byte, s *Signature) ([]byte, string, error) {
	keys, err := LoadKeyring(s.Upstream, f.Keys)
	if err != nil {
		return nil, "", err
	}
	if s.URL == "" {
		return keys.verifyClear(text)
	}
	sig, err := f.Read(ctx, s.URL, maxSignature)
	if err != nil {
		return nil, "", err
	}
	by, err := keys.verifyDetached(bytes.NewReader(text), sig)
	if err != nil {
		return nil, "", err
	}
	return text, by, nil
}

// signed fetches a file that is signed itself.
func (f *Fetcher) signed(ctx context.Context, file File) (Got, error) {
	keys, err := LoadKeyring(file.Signature.Upstream, f.Keys)
	if err != nil {
		return Got{}, err
	}
	sig, err := f.Read(ctx, file.Signature.URL, maxSignature)
	if errors.Is(err, mvm.ErrNotFound) {
		return Got{}, f.noChecksum(ctx, file, err)
	}
	if err != nil {
		return Got{}, err
	}
	return f.unknown(ctx, file, func(path string, p *mvm.Provenance) error {
		r, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = r.Close() }()
		p.Verification = mvm.VerifiedSignature
		p.SignedBy, err = keys.verifyDetached(r, sig)
		return mvm.Wrap(err, "trust", Shown(file.URL))
	})
}

// unknown fetches a file whose digest is not known before it is there. Only what
// check accepts, and then says how, gets into the cache.
func (f *Fetcher) unknown(ctx context.Context, file File, check func(path string, p *mvm.Provenance) error) (Got, error) {
	incoming := filepath.Join(f.Dir, "incoming")
	if err := os.MkdirAll(incoming, 0o755); err != nil {
		return Got{}, mvm.Errorf(mvm.ErrUnavailable, "cannot make the download cache: %w", err).WithHint("check that %s can be written", f.Dir)
	}
	f.sweep(incoming)
	dir, err := os.MkdirTemp(incoming, "")
	if err != nil {
		return Got{}, err
	}
	lock, err := fsx.TryLock(filepath.Join(dir, ".lock")) // tells sweep that somebody works here
	if err != nil {
		return Got{}, err
	}
	defer func() { _ = os.RemoveAll(dir); lock.Unlock() }()
	path := filepath.Join(dir, "file")
	if err := Fetch(ctx, f.options(file, path, "")); err != nil {
		return Got{}, err
	}
	got := Got{Provenance: mvm.Provenance{Source: Shown(file.URL)}}
	if err := check(path, &got.Provenance); err != nil {
		return Got{}, err
	}
	r, err := os.Open(path)
	if err != nil {
		return Got{}, err
	}
	digest, err := digestOf(r, "sha256")
	_ = r.Close()
	if err != nil {
		return Got{}, err
	}
	got.Digest = string(digest)
	if got.Path, err = f.blob(digest); err != nil {
		return Got{}, err
	}
	return got, os.Rename(path, got.Path)
}

// sweep removes what downloads that were killed have left.
func (f *Fetcher) sweep(incoming string) {
	dirs, _ := filepath.Glob(filepath.Join(incoming, "*")) // the pattern is fine
	for _, dir := range dirs {
		lock, err := fsx.TryLock(filepath.Join(dir, ".lock"))
		if err != nil {
			continue
		}
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > time.Minute { // not one that is just being made
			_ = os.RemoveAll(dir)
		}
		lock.Unlock()
	}
}

// noChecksum says that a file cannot be checked, or that there is no such file.
func (f *Fetcher) noChecksum(ctx context.Context, file File, cause error) error {
	if err := f.exists(ctx, file.URL); errors.Is(err, mvm.ErrNotFound) {
		return mvm.Wrap(err, "download", Shown(file.URL))
	}
	why := "none is published"
	if cause != nil {
		why = cause.Error()
	}
	return mvm.Errorf(mvm.ErrBroken, "there is no checksum to check it with: %s", why).On("download", Shown(file.URL)).
		WithHint("--skip-checksum takes it unchecked; 'inspect' will say so")
}

// Forget removes a file from the cache, for one that will not be asked for again.
func (f *Fetcher) Forget(g Got) { _ = os.Remove(g.Path) }
