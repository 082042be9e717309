// Package update replaces a program by another version of itself: taken out of a
// release's archive, asked for its version, put in place by one rename, with the
// version before kept beside it. It knows neither where releases come from nor
// how they are trusted.
package update

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/run"
)

// maxProgram bounds what is taken out of an archive, in bytes.
const maxProgram = 512 << 20

const (
	suffixNew = ".new" // being written; whoever finds one may replace it
	suffixOld = ".old" // the version before
)

// Program is the program that is replaced.
type Program struct {
	Path   string // of the file itself, not of a link to it
	Runner run.Runner
}

// Stage takes the file bin/NAME out of an archive (tar.gz), writes it beside the
// program and asks it for its version, which has to be the one given. The program
// itself is not touched.
//
// Errors: mvm.ErrBroken for an archive without it, or a program that says
// something else; mvm.ErrPrivilege where the directory cannot be written.
func (p Program) Stage(ctx context.Context, archive, version string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := p.unpack(ctx, f); err != nil {
		_ = os.Remove(p.Path + suffixNew)
		return err
	}
	if err := p.says(ctx, p.Path+suffixNew, version); err != nil {
		_ = os.Remove(p.Path + suffixNew)
		return err
	}
	return nil
}

func (p Program) unpack(ctx context.Context, archive io.Reader) error {
	z, err := gzip.NewReader(archive)
	if err != nil {
		return broken("the archive cannot be read: %w", err)
	}
	name := "bin/" + filepath.Base(p.Path)
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return broken("the archive has no %s", name)
		}
		if err != nil {
			return broken("the archive cannot be read: %w", err)
		}
		if path.Clean(h.Name) != name || h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Size > maxProgram {
			return broken("%s in the archive has %d bytes", name, h.Size)
		}
		return p.write(ctx, t)
	}
}

func (p Program) write(ctx context.Context, from io.Reader) error {
	_ = os.Remove(p.Path + suffixNew) // of an update that was killed
	out, err := os.OpenFile(p.Path+suffixNew, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return denied(err)
	}
	_, err = io.Copy(out, contextReader{ctx, from})
	return errors.Join(err, out.Chmod(0o755), out.Sync(), out.Close())
}

// Swap puts what was staged in place of the program, and keeps that. It is one
// rename: at any moment the path names the old program or the new one, whole.
func (p Program) Swap(ctx context.Context, version string) error {
	if err := p.keep(); err != nil {
		return errors.Join(err, os.Remove(p.Path+suffixNew))
	}
	if err := os.Rename(p.Path+suffixNew, p.Path); err != nil {
		return denied(err)
	}
	if err := fsx.SyncDir(filepath.Dir(p.Path)); err != nil {
		return err
	}
	// It ran when it was staged; what differs now is the place, which may be on a
	// file system that executes nothing, or be watched over.
	if err := p.says(ctx, p.Path, version); err != nil {
		if back := os.Rename(p.Path+suffixOld, p.Path); back != nil {
			return errors.Join(err, back)
		}
		return mvm.Wrap(err, "update", p.Path)
	}
	return nil
}

// keep makes a second name for the program as it is.
func (p Program) keep() error {
	tmp := p.Path + suffixOld + suffixNew
	_ = os.Remove(tmp)
	if err := os.Link(p.Path, tmp); err != nil {
		return denied(err)
	}
	return denied(os.Rename(tmp, p.Path+suffixOld))
}

// Rollback puts the version before in place again, and keeps the present one in
// its stead, so that rolling back twice changes nothing. It returns the version
// that the program then is.
//
// Errors: mvm.ErrNotFound where no version before is kept.
func (p Program) Rollback(ctx context.Context) (version string, err error) {
	old, tmp := p.Path+suffixOld, p.Path+suffixNew
	if version, err = p.version(ctx, old); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", mvm.Errorf(mvm.ErrNotFound, "no version before is kept beside %s", p.Path).
				WithHint("name the version that you want: mvm self-update --version VERSION")
		}
		return "", err
	}
	_ = os.Remove(tmp)
	if err := os.Rename(old, tmp); err != nil {
		return "", denied(err)
	}
	if err := p.keep(); err != nil {
		return "", errors.Join(err, os.Rename(tmp, old))
	}
	if err := os.Rename(tmp, p.Path); err != nil {
		return "", denied(err)
	}
	return version, fsx.SyncDir(filepath.Dir(p.Path))
}

// says checks that a program is the version that it should be.
func (p Program) says(ctx context.Context, file, version string) error {
	got, err := p.version(ctx, file)
	if err != nil {
		return err
	}
	if got != version {
		return broken("%s says that it is version %s, not %s", filepath.Base(file), mvm.Quote(got), version)
	}
	return nil
}

func (p Program) version(ctx context.Context, file string) (string, error) {
	if _, err := os.Stat(file); err != nil {
		return "", err
	}
	res, err := p.Runner.Run(ctx, run.Cmd{Name: file, Args: []string{"version"}, Env: []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent"}})
	if err != nil {
		return "", broken("%s does not run: %w", filepath.Base(file), err)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(res.Stdout), "mvm ")), nil
}

func broken(format string, args ...any) error {
	return mvm.Errorf(mvm.ErrBroken, format, args...).WithHint("nothing was changed; tell the makers of this release")
}

// denied gives a refusal by the file system its kind.
func denied(err error) error {
	if err != nil && errors.Is(err, fs.ErrPermission) {
		return mvm.Errorf(mvm.ErrPrivilege, "%w", err).WithHint("run it as the owner of the file, such as with sudo")
	}
	if err != nil {
		return fmt.Errorf("replace the program: %w", err)
	}
	return nil
}

// contextReader ends reading when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
