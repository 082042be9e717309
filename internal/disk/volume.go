package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// The sizes that a volume can have, in bytes. Above MaxVolume lies no file system
// that guests commonly have (ext4 with blocks of 4 KiB).
const (
	MinVolume   = 1 << 20
	MaxVolume   = 16 << 40
	VolumeGrain = 4096 // sizes are rounded up to a multiple of it
)

// Volume says what the file of a new volume is to be.
type Volume struct {
	Path   string
	Format string // Raw or Qcow2
	Size   int64  // bytes, what a guest sees
	Sparse bool   // raw: room on the host is taken when it is written to, not now
	FS     string // "ext4", "xfs" or "btrfs"; "" for none
	Label  string // of the file system; cut to what that has room for
}

// Check refuses with mvm.ErrInvalid what can never be made.
func (v Volume) Check() error {
	if v.Format != Raw && v.Format != Qcow2 {
		return mvm.Errorf(mvm.ErrInvalid, "format %s is not known", mvm.Quote(v.Format)).WithHint("use raw or qcow2")
	}
	if v.Format == Qcow2 && v.Sparse {
		return mvm.Errorf(mvm.ErrInvalid, "a qcow2 volume takes room as it is written to in any case").WithHint("leave --sparse out")
	}
	if err := CheckVolumeSize(v.Size); err != nil {
		return err
	}
	if v.FS == "" {
		return nil
	}
	smallest, ok := smallestFS[v.FS]
	switch {
	case !ok:
		return mvm.Errorf(mvm.ErrInvalid, "file system %s is not known", mvm.Quote(v.FS)).WithHint("use ext4, xfs or btrfs")
	case v.Size < smallest:
		return mvm.Errorf(mvm.ErrInvalid, "%s is too small for %s, which needs %s", human(v.Size), v.FS, human(smallest)).
			WithHint("make it larger, or choose ext4")
	}
	return nil
}

// CheckVolumeSize refuses a size that no volume can have.
func CheckVolumeSize(size int64) error {
	switch {
	case size < MinVolume:
		return mvm.Errorf(mvm.ErrInvalid, "%s is too small for a volume", human(size)).WithHint("ask for 1M or more")
	case size > MaxVolume:
		return mvm.Errorf(mvm.ErrInvalid, "%s is too large for a volume", human(size)).WithHint("ask for at most 16T")
	case size%VolumeGrain != 0:
		return mvm.Errorf(mvm.ErrInvalid, "%d bytes is not a multiple of %d", size, VolumeGrain).WithHint("round it up")
	}
	return nil
}

// MakeVolume makes the file of a volume, with mode 0600. A raw one that is not
// sparse has all its room on the host from now on: there has to be so much free.
// When it is interrupted, RemoveVolume removes what there is.
//
// Errors: those of Check; mvm.ErrExists when the file is there;
// mvm.ErrUnavailable when the disk is full or a tool is missing.
func MakeVolume(ctx context.Context, r run.Runner, v Volume) error {
	if err := v.Check(); err != nil {
		return err
	}
	if v.Format == Qcow2 {
		return makeQcow2(ctx, r, v)
	}
	if !v.Sparse {
		if err := EnoughSpace(filepath.Dir(v.Path), v.Size); err != nil {
			return err
		}
	}
	err := create(v.Path, func(f *os.File) error {
		if v.Sparse {
			return f.Truncate(v.Size)
		}
		return allocate(ctx, f, 0, v.Size)
	})
	if err != nil {
		return volumeFault(err, "make volume", v.Path, v.Size)
	}
	return mkfs(ctx, r, v, v.Path)
}

// makeQcow2 makes an empty qcow2 file, or one that has a file system.
func makeQcow2(ctx context.Context, r run.Runner, v Volume) error {
	if v.FS == "" {
		err := create(v.Path, func(f *os.File) error {
			head, refcounts, clusters := overlayHeader("", "", v.Size)
			return writeEmpty(f, head, refcounts, clusters)
		})
		return volumeFault(err, "make volume", v.Path, clusterBytes)
	}
	work := workFile(v.Path)
	if err := create(work, func(f *os.File) error { return f.Truncate(v.Size) }); err != nil {
		return volumeFault(err, "make volume", work, 0)
	}
	err := mkfs(ctx, r, v, work)
	if err == nil {
		_, err = r.Run(ctx, tool("qemu-img", "convert", "-f", Raw, "-O", Qcow2, work, v.Path))
		if err == nil {
			err = os.Chmod(v.Path, 0o600)
		}
	}
	return volumeFault(errors.Join(err, os.Remove(work)), "make volume", v.Path, 0)
}

// workFile is where a volume is made that is converted to its format.
func workFile(path string) string { return path + ".work" }

// RemoveVolume removes the file of a volume and what making it may have left.
// What is gone already is no error.
func RemoveVolume(path string) error {
	for _, p := range []string{workFile(path), path} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return volumeFault(err, "remove volume", path, 0)
		}
	}
	return nil
}

// step is how much is allocated between two looks at the context.
const step = 1 << 30

// allocate gives a file its blocks from one offset to another.
func allocate(ctx context.Context, f *os.File, from, to int64) error {
	for off := from; off < to; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(to-off, step)
		err := unix.Fallocate(int(f.Fd()), 0, off, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP): // NFS before 4.2, ZFS
			return writeZeros(ctx, f, off, to)
		case err != nil:
			return os.NewSyscallError("fallocate", err)
		}
		off += n
	}
	return nil
}

func writeZeros(ctx context.Context, f *os.File, from, to int64) error {
	zeros := make([]byte, 1<<20)
	for off := from; off < to; off += int64(len(zeros)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.WriteAt(zeros[:min(to-off, int64(len(zeros)))], off); err != nil {
			return err
		}
	}
	return nil
}

// GrowVolume makes a raw volume size bytes long. One that had all its room on the
// host has it for the new end too. On error it is as long as before.
func GrowVolume(ctx context.Context, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return volumeFault(err, "resize volume", path, 0)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return volumeFault(err, "resize volume", path, 0)
	}
	have := st.Size()
	if size < have {
		return mvm.Errorf(mvm.ErrInvalid, "a raw volume cannot become smaller than its %s: what is at its end would be lost", human(have)).
			WithHint("ask for more, or make a new one and copy")
	}
	if size == have || allocatedBytes(st) < have {
		return volumeFault(f.Truncate(size), "resize volume", path, 0)
	}
	if err := EnoughSpace(filepath.Dir(path), size-have); err != nil {
		return err
	}
	if err := allocate(ctx, f, have, size); err != nil {
		return volumeFault(errors.Join(err, f.Truncate(have)), "resize volume", path, size-have)
	}
	return nil
}

// ResizeQcow2 makes a qcow2 volume size bytes large. Making it smaller takes
// shrink, and loses what is beyond.
func ResizeQcow2(ctx context.Context, r run.Runner, path string, size int64, shrink bool) error {
	if err := Standalone(path, Qcow2); err != nil {
		return err
	}
	args := []string{"resize", "-q", "-f", Qcow2}
	if shrink {
		args = append(args, "--shrink")
	}
	_, err := r.Run(ctx, tool("qemu-img", append(args, path, strconv.FormatInt(size, 10))...))
	return volumeFault(err, "resize volume", path, 0)
}

// Standalone refuses with mvm.ErrBroken a file that is not in its recorded format,
// or that takes content from another file: QEMU would open that one too, whatever
// it is. Ours never do. Raw files have no say in it.
func Standalone(path, format string) error {
	if format != Qcow2 {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return volumeFault(err, "read volume", path, 0)
	}
	defer func() { _ = f.Close() }()
	refuse := func(why string) error {
		return mvm.Errorf(mvm.ErrBroken, "%s", why).On("use volume", path).WithHint("somebody else changed the file; put back the one that mvm made")
	}
	var b [80]byte
	if n, err := f.ReadAt(b[:], 0); n < len(b) {
		if err != nil && n == 0 {
			return refuse("it cannot be read, or is empty")
		}
		return refuse("it is no qcow2 file")
	}
	be := binary.BigEndian
	const externalData = 1 << 2 // incompatible features, docs/interop/qcow2.txt
	switch {
	case be.Uint32(b[:]) != qcowMagic:
		return refuse("it is no qcow2 file")
	case be.Uint64(b[8:]) != 0:
		return refuse("it is based on another file, and a volume never is")
	case be.Uint32(b[4:]) >= 3 && be.Uint64(b[72:])&externalData != 0:
		return refuse("it keeps its data in another file, and a volume never does")
	case be.Uint32(b[32:]) != 0:
		return refuse("it is encrypted, and mvm has no key")
	}
	return nil
}

// tool is a command whose messages can be read: they are in English. It ends with
// us, however we do: what it writes to may be removed by the next command.
func tool(name string, args ...string) run.Cmd {
	return run.Cmd{Name: name, Args: args, Env: append(os.Environ(), "LC_ALL=C"), Attr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
}

// volumeFault is fault for what tools and huge files report too.
func volumeFault(err error, op, path string, need int64) error {
	var exit *run.ExitError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EFBIG):
		return mvm.Errorf(mvm.ErrInvalid, "the file system of %s holds no file that large", filepath.Dir(path)).On(op, path).
			WithHint("make a smaller volume, or set MVM_CACHE_DIR to another file system")
	case errors.As(err, &exit) && slices.ContainsFunc([]string{"No space left on device", "ENOSPC"}, func(s string) bool { return strings.Contains(exit.Stderr, s) }):
		return fault(errors.Join(unix.ENOSPC, err), op, path, need)
	case errors.As(err, &exit):
		return mvm.Errorf(mvm.ErrUnavailable, "%w", err).On(op, path).WithHint("see whether the disk of %s is full", filepath.Dir(path))
	}
	return fault(err, op, path, need)
}
