// Package rootfs makes the root file system of a guest out of archives: tar files,
// squashfs images, the layers of a container image. What comes out is a raw ext4
// file. Nothing is unpacked on the host: names, links and devices of an archive are
// those of the new file system, and cannot lead out of it.
//
// It must not know of images, registries or VMs.
package rootfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk/ext4"
)

// Options say what a root file system shall be. The zero value has no label, a
// random UUID, 16 MiB free and the limits that package ext4 states.
type Options struct {
	Label      string
	Free       int64 // bytes free in it at least; 0 is 16 MiB
	MaxBytes   int64 // that the contents of all files may have, holes included
	MaxEntries int   // how many files there may be
}

// Result is a root file system that is complete.
type Result struct {
	UUID      string // of the file system
	SizeBytes int64  // of the raw file
	UsedBytes int64  // in use in the file system
	Entries   int    // files of all kinds
}

const defaultFree = 16 << 20

// Builder fills one new root file system.
type Builder struct {
	ctx  context.Context
	f    *os.File
	w    *ext4.Writer
	uuid [16]byte

	release []byte
}

// New begins the file dest, which must not be there.
func New(ctx context.Context, dest string, o Options) (*Builder, error) {
	f, err := os.OpenFile(dest, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fault(err)
	}
	b := &Builder{ctx: ctx, f: f}
	_, _ = rand.Read(b.uuid[:]) // never fails (crypto/rand)
	b.uuid[6], b.uuid[8] = b.uuid[6]&0x0f|0x40, b.uuid[8]&0x3f|0x80
	if o.Free == 0 {
		o.Free = defaultFree
	}
	b.w, err = ext4.New(f, ext4.Options{Label: o.Label, UUID: b.uuid, Free: o.Free, MaxBytes: o.MaxBytes, MaxEntries: o.MaxEntries})
	if err != nil {
		b.Discard()
		return nil, fault(err)
	}
	return b, nil
}

// Discard removes the file. After Close it does nothing.
func (b *Builder) Discard() {
	if b.f != nil {
		_ = os.Remove(b.f.Name())
		_ = b.f.Close()
		b.f = nil
	}
}

// Close completes the file. On an error it is gone.
func (b *Builder) Close() (Result, error) {
	res, err := b.w.Close()
	if err == nil {
		err = b.ctx.Err()
	}
	if err != nil {
		b.Discard()
		return Result{}, fault(err)
	}
	err = b.f.Close()
	b.f = nil
	u := b.uuid
	return Result{
		UUID:      fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
		SizeBytes: res.SizeBytes, UsedBytes: res.UsedBytes, Entries: res.Entries,
	}, fault(err)
}

// FromTar makes the file dest out of a tar archive, plain or compressed (see
// Decompress). On an error there is no file.
func FromTar(ctx context.Context, r io.Reader, dest string, o Options) (Result, error) {
	b, err := New(ctx, dest, o)
	if err != nil {
		return Result{}, err
	}
	defer b.Discard()
	plain, err := Decompress(r)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = plain.Close() }()
	if err := b.Tar(plain); err != nil {
		return Result{}, err
	}
	if _, err := io.Copy(io.Discard, ctxReader{b, plain}); err != nil { // so that a checksum at the end is checked
		return Result{}, b.damaged(err)
	}
	return b.Close()
}

// fault gives an error its kind and its hint.
func fault(err error) error {
	var e *mvm.Error
	hint := "get the archive anew, from somebody you trust"
	kind := mvm.ErrInvalid
	switch {
	case err == nil, errors.As(err, &e), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, ext4.ErrTooLarge):
		hint = fmt.Sprintf("an archive may hold files of %d GiB together", ext4.DefaultMaxBytes>>30)
	case errors.Is(err, ext4.ErrTooMany):
		hint = fmt.Sprintf("an archive may hold %d files", ext4.DefaultMaxEntries)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind, hint = mvm.ErrUnavailable, "make room on the disk, for example by removing images that are not needed"
	case errors.Is(err, fs.ErrExist):
		kind, hint = mvm.ErrExists, "remove it first"
	case errors.As(err, new(*fs.PathError)):
		kind, hint = mvm.ErrUnavailable, "check that the directory can be written"
	case errors.Is(err, ext4.ErrPath), errors.Is(err, ext4.ErrName), errors.Is(err, ext4.ErrNotDir), errors.Is(err, ext4.ErrLinks),
		errors.Is(err, ext4.ErrNoTarget), errors.Is(err, ext4.ErrXattr), errors.Is(err, ext4.ErrShort), errors.Is(err, errArchive):
	default: // of the reader
		err = fmt.Errorf("%w: %w", errArchive, err)
	}
	return mvm.Errorf(kind, "%w", err).WithHint("%s", hint)
}

// damaged says what an error of reading an archive means.
func (b *Builder) damaged(err error) error {
	if ctxErr := b.ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	return fault(err)
}

// errArchive is an archive that cannot be read.
var errArchive = errors.New("the archive is damaged")
