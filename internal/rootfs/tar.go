package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk/ext4"
)

// Tar adds the files of a plain tar archive: PAX, GNU and USTAR, with extended
// attributes as SCHILY.xattr. A later entry replaces an earlier one of its name.
func (b *Builder) Tar(r io.Reader) error { return b.tar(r, false) }

// Layer adds a layer of a container image, a plain tar archive, in which names that
// begin with ".wh." remove what earlier layers have (OCI image specification, "layer.md").
func (b *Builder) Layer(r io.Reader) error { return b.tar(r, true) }

// The names of whiteouts.
const (
	whiteout    = ".wh."
	opaque      = ".wh..wh..opq"
	aufsPrivate = ".wh..wh." // of a file system that images were made with once
)

func (b *Builder) tar(r io.Reader, layer bool) error {
	if layer {
		b.w.NextLayer()
	}
	t := tar.NewReader(ctxReader{b, r})
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) && n > 0 || errors.Is(err, io.EOF) && layer {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return mvm.Errorf(mvm.ErrInvalid, "the archive is empty").WithHint("give a tar archive of a root file system")
		}
		if err != nil {
			return b.damaged(err)
		}
		if layer {
			var done bool
			if done, err = b.whiteout(h.Name); done && err == nil {
				continue
			}
		}
		if err == nil {
			err = b.entry(h, t)
		}
		if ctxErr := b.ctx.Err(); ctxErr != nil {
			return ctxErr
		}
		if err != nil {
			return fault(err)
		}
	}
}

// whiteout removes what name says, if it is the name of a whiteout.
func (b *Builder) whiteout(name string) (bool, error) {
	dir, base := "", strings.TrimSuffix(name, "/")
	if i := strings.LastIndexByte(base, '/'); i >= 0 {
		dir, base = base[:i], base[i+1:]
	}
	switch {
	case base == opaque:
		return true, b.w.Opaque(dir)
	case strings.HasPrefix(base, aufsPrivate):
		return true, nil
	case strings.HasPrefix(base, whiteout):
		target := base[len(whiteout):]
		if target == "" || target == "." || target == ".." {
			return true, fmt.Errorf("%q: %w", name, ext4.ErrPath)
		}
		return true, b.w.Whiteout(dir + "/" + target)
	}
	return false, nil
}

// entry adds one file.
func (b *Builder) entry(h *tar.Header, r io.Reader) error {
	a, err := attr(h)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return b.w.Mkdir(h.Name, a)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		if strings.HasSuffix(h.Name, "/") { // of old archives
			return b.w.Mkdir(h.Name, a)
		}
		if osRelease(h.Name) && h.Size < maxOSRelease {
			var text bytes.Buffer
			err := b.w.Create(h.Name, a, h.Size, io.TeeReader(r, &text))
			b.release = text.Bytes()
			return err
		}
		return b.w.Create(h.Name, a, h.Size, r)
	case tar.TypeSymlink:
		return b.w.Symlink(h.Name, h.Linkname, a)
	case tar.TypeLink:
		return b.w.Link(h.Name, h.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		kind := ext4.Char
		if h.Typeflag == tar.TypeBlock {
			kind = ext4.Block
		}
		if h.Devmajor < 0 || h.Devmajor > 1<<31 || h.Devminor < 0 || h.Devminor > 1<<31 {
			return fmt.Errorf("%q: %w", h.Name, ext4.ErrName)
		}
		return b.w.Mknod(h.Name, kind, uint32(h.Devmajor), uint32(h.Devminor), a)
	case tar.TypeFifo:
		return b.w.Mknod(h.Name, ext4.Fifo, 0, 0, a)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("%w: %q is of the unknown type %q", errArchive, h.Name, h.Typeflag)
}

const maxOSRelease = 64 << 10

// osRelease says whether a file tells what system this is (os-release(5)).
func osRelease(name string) bool {
	name = path.Clean("/" + name)
	return name == "/etc/os-release" || name == "/usr/lib/os-release"
}

// OSRelease is the content of os-release(5) that was added last, or nil.
func (b *Builder) OSRelease() []byte { return b.release }

const paxXattr = "SCHILY.xattr."

func attr(h *tar.Header) (ext4.Attr, error) {
	if h.Uid < 0 || h.Uid >= 1<<32 || h.Gid < 0 || h.Gid >= 1<<32 {
		return ext4.Attr{}, fmt.Errorf("%w: %q belongs to %d:%d", errArchive, h.Name, h.Uid, h.Gid)
	}
	a := ext4.Attr{Mode: uint32(h.Mode) & 0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid), Modified: h.ModTime, Accessed: h.AccessTime}
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok || foreign(name) {
			continue
		}
		if a.Xattrs == nil {
			a.Xattrs = map[string]string{}
		}
		a.Xattrs[name] = v
	}
	return a, nil
}

// foreign says which attributes belong to the machine that made the archive and mean
// nothing, or something wrong, in a guest.
func foreign(name string) bool {
	return name == "security.selinux" || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "com.apple.")
}

// ctxReader ends when the context does.
type ctxReader struct {
	b *Builder
	r io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.b.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
