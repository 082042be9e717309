// Package asset downloads files: resumed where that is possible, tried again
// where it helps, checked against a SHA-256, and put in place whole. A mirror,
// a directory or another host, can stand in for every download host. It knows
// nothing of what the files are.
package asset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// Options say what to fetch.
type Options struct {
	URL      string           // http or https
	Dest     string           // the file to make; its directory exists
	SHA256   string           // 64 hex digits the content must have; "" checks nothing
	Mirror   string           // directory or URL that stands in for the URL's host; "" for none
	MaxBytes int64            // refuses more; 0 means 16 GiB
	Backoff  time.Duration    // pause before the second attempt, doubled for each further; 0 means half a second
	Progress mvm.ProgressFunc // phase "download"
}

const (
	maxBytes = 16 << 30
	attempts = 5 // without a byte of progress
	stall    = time.Minute
)

// Fetch downloads URL to Dest, which afterwards is the whole file or what it was
// before. What was loaded stays in Dest+".part" and is gone on with by the next
// Fetch if a SHA256 makes sure that both halves belong together. A Dest that has
// the SHA256 already is not loaded again. Several processes may fetch the same
// Dest at once; one loads and the others wait.
//
// Errors: mvm.ErrUnavailable without network, mvm.ErrNotFound where the server
// has no such file, mvm.ErrBroken for another content than SHA256 says.
func Fetch(ctx context.Context, o Options) error {
	if err := o.check(); err != nil {
		return mvm.Wrap(err, "download", o.URL)
	}
	part, err := lockPart(ctx, o.Dest+".part")
	if err != nil {
		return mvm.Wrap(err, "download", o.URL)
	}
	defer part.Unlock()
	if o.SHA256 != "" && hasSum(o.Dest, o.SHA256) {
		_ = os.Remove(o.Dest + ".part") // ours: it is locked
		return nil
	}
	return mvm.Wrap(o.fill(ctx, part.File()), "download", o.URL)
}

func (o *Options) check() error {
	o.SHA256 = strings.ToLower(o.SHA256)
	if raw, err := hex.DecodeString(o.SHA256); err != nil || o.SHA256 != "" && len(raw) != sha256.Size {
		return mvm.Errorf(mvm.ErrInvalid, "%q is no SHA-256", o.SHA256).WithHint("a SHA-256 has 64 hexadecimal digits")
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = maxBytes
	}
	if o.Backoff == 0 {
		o.Backoff = time.Second / 2
	}
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
func (o *Options) fill(ctx context.Context, part *os.File) error {
	have, err := part.Seek(0, io.SeekEnd)
	if err == nil && o.SHA256 == "" && have > 0 {
		have, err = 0, part.Truncate(0)
	}
	if err != nil {
		return err
	}
	resumed := have > 0
	if err := o.load(ctx, part); err != nil {
		return err
	}
	err = o.verify(part)
	if err != nil && resumed {
		// The first half may be of another version of the file.
		if err := part.Truncate(0); err != nil {
			return err
		}
		if err := o.load(ctx, part); err != nil {
			return err
		}
		err = o.verify(part)
	}
	if err != nil {
		_ = os.Remove(part.Name())
		return err
	}
	if err := errors.Join(part.Chmod(0o644), part.Sync()); err != nil {
		return err
	}
	if err := os.Rename(part.Name(), o.Dest); err != nil {
		return err
	}
	return fsx.SyncDir(filepath.Dir(o.Dest))
}

// load tries until the file is whole, or five attempts in a row brought nothing.
func (o *Options) load(ctx context.Context, part *os.File) error {
	pause := o.Backoff
	for failed := 0; ; {
		before, err := part.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		err = o.attempt(ctx, part, before)
		var again *temporary
		if !errors.As(err, &again) {
			return err
		}
		if now, _ := part.Seek(0, io.SeekEnd); now > before {
			failed, pause = 0, o.Backoff
		}
		if failed++; failed == attempts {
			return mvm.Errorf(mvm.ErrUnavailable, "%w", again.err).
				WithHint("check the network and HTTPS_PROXY, or set MVM_ASSET_MIRROR to a directory or URL that has the file")
		}
		o.Progress.Send("download", fmt.Sprintf("%v; trying again", again.err))
		select {
		case <-time.After(pause):
			pause *= 2
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// verify compares the content with the SHA-256.
func (o *Options) verify(f *os.File) error {
	if o.SHA256 == "" {
		return nil
	}
	got, err := sum(f)
	if err == nil && got != o.SHA256 {
		err = mvm.Errorf(mvm.ErrBroken, "its SHA-256 is %s, not %s", got, o.SHA256).
			WithHint("try again; if it stays, the file was changed at its source: do not use it")
	}
	return err
}

func sum(f *os.File) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func hasSum(path, want string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	got, err := sum(f)
	return err == nil && got == want
}

// Read downloads a small file, of at most max bytes, into memory.
func Read(ctx context.Context, url, mirror string, max int64) ([]byte, error) {
	dir, err := os.MkdirTemp("", "mvm-asset-")
	if err != nil {
		return nil, mvm.Wrap(err, "download", url)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	dest := filepath.Join(dir, "file")
	if err := Fetch(ctx, Options{URL: url, Dest: dest, Mirror: mirror, MaxBytes: max}); err != nil {
		return nil, err
	}
	return os.ReadFile(dest)
}
