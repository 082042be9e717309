package boot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Rootfs is a mounted root file system whose content is not trusted. Every path
// is resolved as if the process had been chrooted there: absolute symlinks and
// ".." stay inside, because the kernel does the resolving (openat2(2),
// RESOLVE_IN_ROOT, Linux 5.6).
type Rootfs struct {
	dir *os.File
}

// OpenRootfs opens the directory that is to be the root.
func OpenRootfs(dir string) (*Rootfs, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &Rootfs{dir: f}, nil
}

// Close releases the directory.
func (r *Rootfs) Close() error { return r.dir.Close() }

// maxLinks is how many dangling symlinks MkdirAll follows; the kernel's limit
// for one lookup is the same.
const maxLinks = 40

// maxRead bounds what is read of a file of the image.
const maxRead = 4 << 20

func (r *Rootfs) open(p string, flags int) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	name := strings.TrimLeft(p, "/")
	if name == "" {
		name = "."
	}
	for {
		fd, err := unix.Openat2(int(r.dir.Fd()), name, how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), p), nil
		case unix.EINTR, unix.EAGAIN: // EAGAIN: a rename raced with a "..", openat2(2)
			continue
		case unix.ENOSYS:
			return nil, &fs.PathError{Op: "openat2 (needs Linux 5.6)", Path: p, Err: err}
		}
		return nil, &fs.PathError{Op: "open", Path: p, Err: err}
	}
}

// parent opens the directory that holds the last component of p, without
// following that component, and makes it when mk is set.
func (r *Rootfs) parent(p string, mk bool) (*os.File, string, error) {
	clean := strings.TrimRight(p, "/")
	dir, base := path.Split(clean)
	if base == "" || base == "." || base == ".." {
		return nil, "", &fs.PathError{Op: "open", Path: p, Err: fs.ErrInvalid}
	}
	if mk {
		if err := r.MkdirAll(dir, 0o755); err != nil {
			return nil, "", err
		}
	}
	d, err := r.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	return d, base, err
}

// MkdirAll makes directory p and its parents. A component that is a dangling
// symlink has its target made, inside the root.
func (r *Rootfs) MkdirAll(p string, perm fs.FileMode) error { return r.mkdirAll(p, perm, 0) }

func (r *Rootfs) mkdirAll(p string, perm fs.FileMode, depth int) error {
	if depth > maxLinks {
		return &fs.PathError{Op: "mkdir", Path: p, Err: unix.ELOOP}
	}
	if d, err := r.open(p, unix.O_PATH|unix.O_DIRECTORY); err == nil {
		return d.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	prefix := ""
	for _, c := range strings.Split(p, "/") {
		if c == "" || c == "." {
			continue
		}
		up := prefix
		prefix += "/" + c
		if err := r.mkdirOne(up, c, prefix, perm, depth); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rootfs) mkdirOne(up, name, full string, perm fs.FileMode, depth int) error {
	d, err := r.open(full, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		return d.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, err := r.open(up, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if target, err := readlinkat(dir, name); err == nil {
		if !path.IsAbs(target) {
			target = up + "/" + target // not cleaned: ".." after a symlink is the kernel's to resolve
		}
		return r.mkdirAll(target, perm, depth+1)
	}
	if err := unix.Mkdirat(int(dir.Fd()), name, uint32(perm.Perm())); err != nil && err != unix.EEXIST {
		return &fs.PathError{Op: "mkdir", Path: full, Err: err}
	}
	return nil
}

func readlinkat(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// Owner is who a file is to belong to.
type Owner struct{ UID, GID uint32 }

// WriteFile replaces p by data as a whole. Whatever stands at p (symlink, FIFO,
// device) is replaced, not followed or opened; a directory there is an error.
// Nothing is synced: see Sync.
func (r *Rootfs) WriteFile(p string, data []byte, perm fs.FileMode, own Owner) error {
	dir, base, err := r.parent(p, true)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	tmp := "." + base + ".mvm-tmp" // no randomness: the pool may not be ready yet, and nothing else runs
	_ = unix.Unlinkat(int(dir.Fd()), tmp, 0)
	fd, err := unix.Openat(int(dir.Fd()), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "create", Path: p, Err: err}
	}
	f := os.NewFile(uintptr(fd), p)
	_, err = f.Write(data)
	if own != (Owner{uint32(os.Geteuid()), uint32(os.Getegid())}) {
		err = errors.Join(err, f.Chown(int(own.UID), int(own.GID)))
	}
	err = errors.Join(err, f.Chmod(perm), f.Close())
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), tmp, int(dir.Fd()), base)
	}
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), tmp, 0)
		return &fs.PathError{Op: "write", Path: p, Err: err}
	}
	return nil
}

// ReadFile reads the regular file p, following symlinks inside the root. It is
// looked at before it is opened, so that a FIFO cannot block and a device is
// not touched.
func (r *Rootfs) ReadFile(p string) ([]byte, error) {
	o, err := r.open(p, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer func() { _ = o.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(o.Fd()), &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &fs.PathError{Op: "read", Path: p, Err: errNotRegular}
	}
	f, err := os.OpenFile(procFD(o), os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxRead+1))
	if err == nil && len(data) > maxRead {
		err = &fs.PathError{Op: "read", Path: p, Err: unix.EFBIG}
	}
	return data, err
}

var errNotRegular = errors.New("not a regular file")

// procFD is a path to an open file whatever its name is; /proc must be mounted.
func procFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// Readlink returns where the symlink p points, unresolved.
func (r *Rootfs) Readlink(p string) (string, error) {
	dir, base, err := r.parent(p, false)
	if err != nil {
		return "", err
	}
	defer func() { _ = dir.Close() }()
	return readlinkat(dir, base)
}

// Remove removes the file or symlink p itself. One that is not there is fine.
func (r *Rootfs) Remove(p string) error {
	dir, base, err := r.parent(p, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := unix.Unlinkat(int(dir.Fd()), base, 0); err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "remove", Path: p, Err: err}
	}
	return nil
}

// ReadDir lists the names in directory p.
func (r *Rootfs) ReadDir(p string) ([]string, error) {
	d, err := r.open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	return d.Readdirnames(-1)
}

// IsDir says whether p is a directory, after symlinks.
func (r *Rootfs) IsDir(p string) bool {
	d, err := r.open(p, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	_ = d.Close()
	return true
}

// Executable says whether p is a regular file with an x bit, after symlinks.
func (r *Rootfs) Executable(p string) bool {
	f, err := r.open(p, unix.O_PATH)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0
}

// EnsureDir makes directory p with exactly this mode and owner when it is
// missing. One that exists keeps its mode, but must be a directory.
func (r *Rootfs) EnsureDir(p string, perm fs.FileMode, own Owner) error {
	if r.IsDir(p) {
		return nil
	}
	if err := r.MkdirAll(p, perm); err != nil {
		return err
	}
	d, err := r.open(p, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	if own != (Owner{uint32(os.Geteuid()), uint32(os.Getegid())}) {
		err = d.Chown(int(own.UID), int(own.GID))
	}
	return errors.Join(err, d.Chmod(perm))
}

// OpenDir opens directory p, made when missing, for mounting on procFD of it.
func (r *Rootfs) OpenDir(p string) (*os.File, error) {
	if err := r.MkdirAll(p, 0o755); err != nil {
		return nil, err
	}
	return r.open(p, unix.O_PATH|unix.O_DIRECTORY)
}

// Sync writes the whole file system out.
func (r *Rootfs) Sync() error {
	d, err := r.open("/", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return unix.Syncfs(int(d.Fd()))
}
