package firecracker

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/vmm"
)

// present looks for what the launch needs, because Firecracker does not name the
// file that it misses, and ends when the pool of huge pages does.
func present(l vmm.Launch) error {
	type file struct{ path, hint string }
	files := []file{{l.Binary, "mvm binary pull firecracker"}}
	if r := l.Restore; r != nil {
		files = append(files, file{r.State, "take another snapshot"}, file{r.Mem, "take another snapshot"})
	} else {
		files = append(files, file{l.Kernel, "mvm kernel pull"}, file{l.Initrd, "stop the VM and start it again"})
	}
	for _, d := range l.Disks {
		files = append(files, file{d.Path, "remove the VM and create it again"})
	}
	if anyServed(l) {
		files = append(files, file{l.DiskServer, "apt-get install " + diskServerPackage})
	}
	for _, f := range files {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("%s", f.hint)
		}
	}
	for _, d := range l.Disks {
		if err := disk.Standalone(d.Path, d.Format); err != nil {
			return err
		}
	}
	if l.Restore != nil {
		return wholeSnapshot(l)
	}
	if l.HugePages {
		return hugePages(l.MemMiB)
	}
	return nil
}

// wholeSnapshot holds a snapshot's memory to the size of the VM's: Firecracker writes
// all of it, and takes a file that is too large.
func wholeSnapshot(l vmm.Launch) error {
	want := int64(l.MemMiB) << 20
	for _, path := range []string{l.Restore.State, l.Restore.Mem} {
		fi, err := os.Stat(path)
		if err != nil {
			return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("take another snapshot")
		}
		if !fi.Mode().IsRegular() {
			return mvm.Errorf(mvm.ErrBroken, "%s is no file of a snapshot", path).WithHint("take another snapshot")
		}
		if path == l.Restore.Mem && fi.Size() != want {
			return mvm.Errorf(mvm.ErrBroken, "the snapshot's memory %s has %d bytes, that of the VM %d", path, fi.Size(), want).
				WithHint("it is truncated, or of another VM: take another snapshot")
		}
	}
	return nil
}

// hugePool is the kernel's pool of pages of 2 MiB (Documentation/admin-guide/mm/hugetlbpage.rst).
const hugePool = "/sys/kernel/mm/hugepages/hugepages-2048kB"

// hugePages sees whether the pool has enough for a VM: Firecracker reserves none, and
// gets a SIGBUS when it is empty.
func hugePages(memMiB int) error {
	count := func(name string) int {
		data, err := os.ReadFile(filepath.Join(hugePool, name))
		n, nerr := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil || nerr != nil {
			return 0
		}
		return n
	}
	need, have := memMiB/hugePageMiB, count("free_hugepages")-count("resv_hugepages")
	if have < need {
		return mvm.Errorf(mvm.ErrUnavailable, "huge_pages: the VM needs %d pages of 2 MiB, and the pool has %d that are free", need, have).
			WithHint("sysctl vm.nr_hugepages=%d", count("nr_hugepages")+need-have)
	}
	return nil
}

// withoutAsync takes AsyncIO back where this kernel has no io_uring for us.
func withoutAsync(l vmm.Launch) vmm.Launch {
	if !slices.ContainsFunc(l.Disks, func(d vmm.Disk) bool { return d.AsyncIO }) || hasIOUring() {
		return l
	}
	l.Disks = slices.Clone(l.Disks)
	for i := range l.Disks {
		l.Disks[i].AsyncIO = false
	}
	return l
}

// hasIOUring tries to set one up (io_uring_setup(2)). It can be built out, forbidden
// by the sysctl kernel.io_uring_disabled or by seccomp.
func hasIOUring() bool {
	var params [120]byte // struct io_uring_params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return false
	}
	_ = unix.Close(int(fd))
	return true
}
