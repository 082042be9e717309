// Package asset downloads files: resumed where that is possible, in parts at
// once where the server allows, tried again where it helps, checked against a
// published or signed checksum, and put in place whole. A mirror, a directory or
// another host, can stand in for every download host. It keeps what it got under
// the digest of its content, and listings of what there is for a while. It knows
// nothing of what the files are.
package asset

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// Options say what Fetch loads.
type Options struct {
	URL      string           // http or https
	Dest     string           // the file to make; its directory exists
	Digest   Digest           // what the content must hash to; "" checks nothing
	Mirror   string           // directory or URL that stands in for the URL's host; "" for none
	MaxBytes int64            // refuses more; 0 means 16 GiB
	Backoff  time.Duration    // pause before the second attempt, doubled for each further; 0 means half a second
	Parallel int              // how many parts at once; 0 means 4, 1 never
	Progress mvm.ProgressFunc // phase "download"

	chunk int64 // bytes of one part; 0 means 4 MiB
}

const (
	maxBytes = 16 << 30
	attempts = 5 // without a byte of progress
	stall    = time.Minute
	workers  = 4
	// chunkBytes is a part's size. Parts wait in memory for their turn, so this
	// times the workers is what a download takes.
	chunkBytes = 4 << 20
)

// loading is one call of Fetch.
type loading struct {
	Options
	meter  meter
	etag   string // strong validator of what is in the partial file, "" when the server named none
	serial bool   // the server did not do parts
}

// Fetch downloads URL to Dest, which afterwards is the whole file or what it was
// before. What was loaded stays in Dest+".part" and is gone on with by the next
// Fetch if a Digest makes sure that both halves belong together. A Dest that has
// the Digest already is not loaded again. Several processes may fetch the same
// Dest at once; one loads and the others wait.
//
// Errors: mvm.ErrUnavailable without network, mvm.ErrNotFound where the server
// has no such file, mvm.ErrBroken for another content than Digest says.
func Fetch(ctx context.Context, o Options) error {
	l := &loading{Options: o}
	if err := l.check(); err != nil {
		return mvm.Wrap(err, "download", Shown(o.URL))
	}
	part, err := lockPart(ctx, l.Dest+".part")
	if err != nil {
		return mvm.Wrap(err, "download", Shown(o.URL))
	}
	defer part.Unlock()
	if l.Digest != "" && l.Digest.has(l.Dest) {
		_ = os.Remove(l.Dest + ".part") // ours: it is locked
		return nil
	}
	return mvm.Wrap(l.fill(ctx, part.File()), "download", Shown(o.URL))
}

// Shown is a URL as it may be printed: without password, and without query,
// which may be a signature.
func Shown(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "an address that cannot be read"
	}
	u.RawQuery, u.Fragment = "", ""
	return u.Redacted()
}

func (l *loading) check() error {
	d, err := ParseDigest(string(l.Digest))
	if err != nil {
		return err
	}
	l.Digest = d
	if l.MaxBytes == 0 {
		l.MaxBytes = maxBytes
	}
	if l.Backoff == 0 {
		l.Backoff = time.Second / 2
	}
	if l.Parallel == 0 {
		l.Parallel = workers
	}
	if l.chunk == 0 {
		l.chunk = chunkBytes
	}
	l.meter.now = time.Now
	return nil
}

// lockPart opens and locks the partial file. Whoever held it before may have
// renamed it into place meanwhile; then the lock is on another file.
func lockPart(ctx context.Context, path string) (*fsx.Lock, error) {
	for {
		lock, err := fsx.LockWait(ctx, path)
		if err != nil {
			return nil, err
		}
		held, err1 := lock.File().Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(held, named) {
			return lock, nil
		}
		lock.Unlock()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// fill loads into the partial file, checks it and puts it in place.
func (l *loading) fill(ctx context.Context, part *os.File) error {
	have, err := part.Seek(0, io.SeekEnd)
	if err == nil && l.Digest == "" && have > 0 {
		have, err = 0, part.Truncate(0)
	}
	if err != nil {
		return err
	}
	resumed := have > 0
	if err := l.load(ctx, part); err != nil {
		if end, _ := part.Seek(0, io.SeekEnd); end == 0 || errors.Is(err, mvm.ErrInvalid) {
			_ = os.Remove(part.Name()) // nothing to go on with
		}
		return err
	}
	err = l.verify(part)
	if err != nil && resumed {
		// The first half may be of another version of the file.
		if err := part.Truncate(0); err != nil {
			return err
		}
		if err := l.load(ctx, part); err != nil {
			return err
		}
		err = l.verify(part)
	}
	if err != nil {
		_ = os.Remove(part.Name())
		return err
	}
	if err := errors.Join(part.Chmod(0o644), part.Sync()); err != nil {
		return err
	}
	if err := os.Rename(part.Name(), l.Dest); err != nil {
		return err
	}
	return fsx.SyncDir(filepath.Dir(l.Dest))
}

// load tries until the file is whole, or five attempts in a row brought nothing.
func (l *loading) load(ctx context.Context, part *os.File) error {
	r := retry{pause: l.Backoff}
	for {
		before, err := part.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		err = l.attempt(ctx, part, before)
		if now, _ := part.Seek(0, io.SeekEnd); now > before {
			r = retry{pause: l.Backoff}
		}
		if err = r.next(ctx, err, l.Progress); err != nil || !r.again {
			return err
		}
	}
}

// verify compares the content with the digest.
func (l *loading) verify(f *os.File) error {
	if l.Digest == "" {
		return nil
	}
	got, err := digestOf(f, l.Digest.Algorithm())
	if err == nil && got != l.Digest {
		err = mvm.Errorf(mvm.ErrBroken, "its %s is %s, not %s", got.title(), got.Hex(), l.Digest.Hex()).
			WithHint("try again; if it stays, the file was changed at its source: do not use it")
	}
	return err
}

// Read downloads a small file, of at most max bytes, into memory.
func Read(ctx context.Context, url, mirror string, max int64) ([]byte, error) {
	return read(ctx, Options{URL: url, Mirror: mirror, MaxBytes: max})
}

func read(ctx context.Context, o Options) ([]byte, error) {
	dir, err := os.MkdirTemp("", "mvm-asset-")
	if err != nil {
		return nil, mvm.Wrap(err, "download", Shown(o.URL))
	}
	defer func() { _ = os.RemoveAll(dir) }()
	o.Dest = filepath.Join(dir, "file")
	if err := Fetch(ctx, o); err != nil {
		return nil, err
	}
	return os.ReadFile(o.Dest)
}
