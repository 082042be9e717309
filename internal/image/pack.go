package image

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/image/format"
)

// PackedFormat is how images are kept that nobody uses: as the raw file, with
// ".zst" behind its name.
const PackedFormat = "zst"

// Packed is the name of the compressed file of an image.
func Packed(name string) string { return name + "." + PackedFormat }

// packWindow keeps the memory of packing and unpacking small, in bytes.
const packWindow = 2 << 20

// Pack compresses an image beside it and returns the size of the result, which is
// durable. The image itself stays. done, which may be nil, is told how many bytes
// were read.
func Pack(ctx context.Context, name string, done func(int64)) (int64, error) {
	in, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(Packed(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	err = pack(ctx, out, in, done)
	err = errors.Join(err, out.Sync(), out.Close())
	if err != nil {
		_ = os.Remove(out.Name())
		return 0, mvm.Errorf(mvm.ErrUnavailable, "compressing the image: %w", err).WithHint("check the free space of %s", filepath.Dir(name))
	}
	st, err := os.Stat(out.Name())
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func pack(ctx context.Context, out io.Writer, in io.Reader, done func(int64)) error {
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(packWindow), zstd.WithEncoderCRC(true), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			_ = z.Close()
			return err
		}
		m, err := in.Read(buf)
		if _, err := z.Write(buf[:m]); err != nil {
			_ = z.Close()
			return err
		}
		if n += int64(m); done != nil {
			done(n)
		}
		if errors.Is(err, io.EOF) {
			return z.Close()
		}
		if err != nil {
			_ = z.Close()
			return err
		}
	}
}

// Unpack makes the image name out of its compressed file, size bytes large. It
// appears whole: somebody who unpacks at the same time is not disturbed, and a
// process that dies leaves nothing under that name.
func Unpack(ctx context.Context, name string, size int64, done func(int64)) error {
	in, err := os.Open(Packed(name))
	if err != nil {
		return mvm.Errorf(mvm.ErrBroken, "the image's file is gone: %w", err).WithHint("pull or import it again with --force")
	}
	defer func() { _ = in.Close() }()
	if err := disk.EnoughSpace(filepath.Dir(name), size/2); err != nil {
		return err
	}
	err = disk.Create(name, func(f *os.File) error {
		z, err := format.Open(ctx, in, PackedFormat, size)
		if err != nil {
			return err
		}
		defer func() { _ = z.Close() }()
		got, err := disk.WriteSparse(ctx, f, z, done)
		if err == nil && got != size {
			err = mvm.Errorf(mvm.ErrBroken, "the image's file unpacks to %d bytes, and had %d", got, size).WithHint("pull or import it again with --force")
		}
		if err != nil {
			return err
		}
		return f.Sync()
	})
	if err != nil {
		return err
	}
	return fsx.SyncDir(filepath.Dir(name))
}
