// Package initramfs builds the first root file system of every guest: one base
// per agent and kernel, shared by all VMs, and per VM a copy of it with one more
// segment that holds the VM's configuration. The kernel unpacks segments one
// after the other (Documentation/driver-api/early-userspace/buffer-format.rst).
//
// It writes cpio archives and must not know the store, images or VMMs.
package initramfs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest"
	"golang.org/x/sys/unix"
)

// BaseSpec is what the shared part is made of.
type BaseSpec struct {
	Agent   string   // the guest-side program, a static executable; becomes /init
	Modules []string // kernel module files (.ko, not compressed) in load order
	Dir     string   // where the file goes, under a name made from its content; made if missing
}

// layout changes when the same input gives another archive, so that bases of
// another release are not taken for ours.
const layout = "mvm initramfs 1"

// Base makes the base initramfs if it is not there and returns its path. The
// name is made from the content of the agent and the modules: the same input
// gives the same file, which is never changed. It is not compressed: at 12 MB
// neither lz4 nor zstd made an emulated guest boot measurably sooner, and plain
// bytes need no compressor and share their blocks with each VM's copy.
//
// Errors: mvm.ErrInvalid when the agent is no static executable, and
// mvm.ErrUnavailable when a file cannot be read or written.
func Base(ctx context.Context, s BaseSpec) (string, error) {
	path, err := base(ctx, s)
	if err != nil {
		return "", mvm.Wrap(err, "build initramfs", s.Dir)
	}
	return path, nil
}

func base(ctx context.Context, s BaseSpec) (string, error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return "", unreadable(err)
	}
	// Reading the content takes longer than all else of a VM's creation: a link
	// named by the inputs' inodes and change times says what was made of them.
	key, err := statKey(s)
	if err != nil {
		return "", unreadable(err)
	}
	known := filepath.Join(s.Dir, ".of-"+key)
	if name, err := os.Readlink(known); err == nil {
		path := filepath.Join(s.Dir, filepath.Base(name))
		if _, err := os.Stat(path); err == nil {
			now := time.Now()
			_ = os.Chtimes(path, now, now) // says when it was used last, to whoever frees the cache
			return path, nil
		}
	}
	if err := checkAgent(s.Agent); err != nil {
		return "", err
	}
	path, err := build(ctx, s)
	if err != nil {
		return "", unreadable(err)
	}
	if err := os.Remove(known); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", unreadable(err)
	}
	if err := os.Symlink(filepath.Base(path), known); err != nil && !errors.Is(err, os.ErrExist) {
		return "", unreadable(err)
	}
	return path, nil
}

func unreadable(err error) error {
	if mvm.HintOf(err) != "" || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("check the file, its directory and the free space")
}

// statKey names the inputs without reading them.
func statKey(s BaseSpec) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, layout)
	for _, path := range append([]string{s.Agent}, s.Modules...) {
		st, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		sys := st.Sys().(*syscall.Stat_t)
		// The change time moves with every write and rename, and cannot be set back.
		fmt.Fprintln(h, filepath.Base(path), sys.Dev, sys.Ino, st.Size(), sys.Ctim.Sec, sys.Ctim.Nsec)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// checkAgent refuses what the guest's kernel could not start as /init.
func checkAgent(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "the agent %s is no executable: %w", path, err).WithHint("reinstall mvm")
	}
	defer func() { _ = f.Close() }()
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return mvm.Errorf(mvm.ErrInvalid, "the agent %s is no executable", path).WithHint("reinstall mvm")
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return mvm.Errorf(mvm.ErrInvalid, "the agent %s is not linked statically", path).
				WithHint("build it with CGO_ENABLED=0")
		}
	}
	return nil
}

// build writes the archive and returns its path.
func build(ctx context.Context, s BaseSpec) (path string, err error) {
	removeStale(s.Dir)
	tmp, err := os.CreateTemp(s.Dir, ".base.*.tmp")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	defer func() { _ = tmp.Close() }()
	out := bufio.NewWriterSize(tmp, 1<<20)
	sum := sha256.New()
	fmt.Fprintln(sum, layout)
	w := NewWriter(out)
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "mvm", guest.ModulesDir, "root", "newroot"} {
		w.Dir(d, 0o755)
	}
	// The kernel opens the console for /init before anything is mounted.
	w.CharDevice("dev/console", 0o600, 5, 1)
	w.CharDevice("dev/null", 0o666, 1, 3)
	if err := addFile(w, sum, guest.InitPath, 0o755, s.Agent); err != nil {
		return "", err
	}
	var list strings.Builder
	for _, m := range s.Modules {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		name := filepath.Base(m)
		fmt.Fprintln(&list, name)
		if err := addFile(w, sum, guest.ModulesDir+"/"+name, 0o644, m); err != nil {
			return "", err
		}
	}
	w.File(guest.ModulesList, 0o644, int64(list.Len()), strings.NewReader(list.String()))
	if err := errors.Join(w.Close(), out.Flush(), tmp.Chmod(0o644), tmp.Sync()); err != nil {
		return "", err
	}
	path = filepath.Join(s.Dir, "base-"+hex.EncodeToString(sum.Sum(nil)[:16])+".cpio")
	if err := os.Rename(tmp.Name(), path); err != nil {
		return "", err
	}
	return path, fsx.SyncDir(s.Dir)
}

// removeStale removes what a killed build left; a build takes well under the
// hour after which its file counts as left.
func removeStale(dir string) {
	stale, _ := filepath.Glob(filepath.Join(dir, ".base.*.tmp")) // the pattern is valid
	for _, path := range stale {
		if st, err := os.Stat(path); err == nil && time.Since(st.ModTime()) > time.Hour {
			_ = os.Remove(path) // somebody else's turn, then
		}
	}
}

// addFile adds the file at path and feeds its name and content to sum.
func addFile(w *Writer, sum hash.Hash, name string, perm uint32, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintln(sum, name, st.Size())
	w.File(name, perm, st.Size(), io.TeeReader(f, sum))
	return w.err
}

// ForVM writes a VM's initrd to dest, replacing it whole: the base and a segment
// with the VM's configuration. The file holds keys and gets mode 0600. It
// shares the base's blocks where the file system can. It is not made durable:
// after a power failure, write it anew before the VM starts.
//
// Errors: mvm.ErrBroken when the base is missing, mvm.ErrUnavailable when dest
// cannot be written.
func ForVM(base, dest string, c guest.BootConfig) error {
	segment, err := configSegment(c)
	if err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "cannot write the guest's configuration: %w", err).WithHint("check the VM's settings")
	}
	src, err := os.Open(base)
	if err != nil {
		return mvm.Errorf(mvm.ErrBroken, "the base initramfs is missing: %w", err).WithHint("start the VM again to rebuild it")
	}
	defer func() { _ = src.Close() }()
	if err := cloneAndAppend(src, dest, segment); err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot write the VM's initramfs: %w", err).
			WithHint("check the free space of %s", filepath.Dir(dest))
	}
	return nil
}

// configSegment is an archive with the configuration and nothing else; its
// directory is in the base.
func configSegment(c guest.BootConfig) ([]byte, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := NewWriter(&b)
	w.File(guest.ConfigPath, 0o600, int64(len(data)), bytes.NewReader(data))
	err = w.Close()
	return b.Bytes(), err
}

func cloneAndAppend(src *os.File, dest string, segment []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(dest), "."+filepath.Base(dest)+".*.tmp") // has mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	defer func() { _ = tmp.Close() }()
	if err := unix.IoctlFileClone(int(tmp.Fd()), int(src.Fd())); err != nil {
		if _, err := io.Copy(tmp, src); err != nil { // copy_file_range, inside the kernel
			return err
		}
	}
	if _, err := tmp.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	if _, err := tmp.Write(segment); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), dest)
}
