package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// smallestFS is what the tools of a file system refuse to go below, rounded up.
var smallestFS = map[string]int64{
	"ext4":  2 << 20,
	"xfs":   300 << 20, // mkfs.xfs 5.19 and later
	"btrfs": 128 << 20,
}

// Mke2fsConfig stands in for the host's mke2fs.conf (mke2fs.conf(5)), so that a file
// system has the same features wherever it is made: those that every kernel since
// 4.14 mounts, without orphan_file and metadata_csum_seed, which are newer.
const Mke2fsConfig = `[defaults]
	base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
	blocksize = 4096
	inode_size = 256
	inode_ratio = 16384
	enable_periodic_fsck = 0
[fs_types]
	ext4 = {
		features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
	}
	small = {
		inode_ratio = 8192
	}
`

// mkfs makes the file system of a volume on a raw file. None of the tools may
// discard: that would give back the room that was allocated.
func mkfs(ctx context.Context, r run.Runner, v Volume, file string) error {
	var cmd run.Cmd
	switch v.FS {
	case "":
		return nil
	case "ext4":
		config, err := memoryFile("mke2fs.conf", Mke2fsConfig)
		if err != nil {
			return err
		}
		defer func() { _ = config.Close() }()
		cmd = tool("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-L", cut(v.Label, 16), "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", file)
		cmd.Env = append(cmd.Env, "MKE2FS_CONFIG="+pathOf(config))
	case "xfs":
		args := []string{"-q", "-f", "-K", "-L", cut(v.Label, 12), file}
		// Kernels before 5.19 do not mount large extent counters. A tool that does
		// not know them does not make them, and is asked again.
		_, err := r.Run(ctx, tool("mkfs.xfs", append([]string{"-i", "nrext64=0"}, args...)...))
		var exit *run.ExitError
		if !errors.As(err, &exit) {
			return mkfsDone(v, file, err)
		}
		cmd = tool("mkfs.xfs", args...)
	case "btrfs":
		cmd = tool("mkfs.btrfs", "-q", "-f", "-K", "-L", cut(v.Label, 255), file)
	}
	_, err := r.Run(ctx, cmd)
	return mkfsDone(v, file, err)
}

// mkfsDone looks whether there is what the guest will look for, whatever the tool's
// status said.
func mkfsDone(v Volume, file string, err error) error {
	if err != nil {
		return volumeFault(err, "make the file system of volume", v.Path, 0)
	}
	info, err := Probe(file)
	if err != nil {
		return err
	}
	if info.FS != v.FS {
		return mvm.Errorf(mvm.ErrBroken, "it has %q where %s was asked for", info.FS, v.FS).WithHint("check the tools of %s on this host", v.FS)
	}
	return nil
}

// memoryFile is a file without a name, for a tool that reads it by pathOf.
func memoryFile(name, content string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteString(content); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// pathOf names an open file for a child process, by our own descriptor.
func pathOf(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
