package image

import (
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/run"
)

const (
	blockBytes = 4096
	// growTo is how far the file system can grow while it is mounted: the blocks
	// for its descriptors are set aside. Beyond, the kernel has to use meta_bg.
	growTo = 1 << 40
)

// mkfsArgs are the arguments of mke2fs for a file system of size bytes on file
// that holds the tree.
func mkfsArgs(tree, file, uuid string, size int64) []string {
	return []string{"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(blockBytes), "-m", "1", "-L", RootLabel, "-U", uuid,
		"-E", fmt.Sprintf("resize=%d,root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1", growTo/blockBytes),
		"-J", "size=" + strconv.Itoa(journalMiB(size)), "-d", tree, file, strconv.FormatInt(size/1024, 10) + "k"}
}

// journalMiB is as small as ext4 takes it in small images (1,024 blocks).
func journalMiB(size int64) int {
	if size < 256<<20 {
		return 4
	}
	return 16
}

// newUUID returns a random UUID, version 4 (RFC 9562, 5.4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, says its documentation
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// usage is what a tree takes, for choosing a size.
type usage struct {
	bytes int64 // in whole blocks
	nodes int64
}

func (u *usage) add(size int64) {
	u.nodes++
	u.bytes += (size + blockBytes - 1) / blockBytes * blockBytes
}

// measure counts a tree that is ours to read.
func measure(dir string) (usage, error) {
	var u usage
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		u.add(info.Size())
		return nil
	})
	return u, err
}

// mkfsConfigFile is disk.Mke2fsConfig in the directory that mke2fs runs in.
const mkfsConfigFile = "mke2fs.conf"

// mkfsCmd writes a file system with the tree to file; both are names in the
// directory that it runs in. Files belong to whom they seem to there.
func mkfsCmd(tree, file string, size int64) run.Cmd {
	return run.Cmd{Name: "mke2fs", Args: mkfsArgs(tree, file, newUUID(), size), Env: append(boxEnv(), "MKE2FS_CONFIG="+mkfsConfigFile)}
}

// hostTool finds a tool in the directories that a PATH often lacks.
func hostTool(name string) string {
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if _, err := os.Stat(dir + name); err == nil {
			return dir + name
		}
	}
	return name
}

// describe fills in what the finished file itself says.
func (b *Built) describe(file string) error {
	info, err := disk.Probe(file)
	if err != nil {
		return err
	}
	if info.FS != "ext4" || info.UUID == "" || info.Label != RootLabel {
		return mvm.Errorf(mvm.ErrBroken, "mke2fs made %q labelled %q", info.FS, info.Label).WithHint("check the e2fsprogs on this host")
	}
	b.FSType, b.UUID, b.Arch = info.FS, info.UUID, arch()
	b.MinimumMiB = int((info.SizeBytes + 1<<20 - 1) >> 20)
	b.SizeBytes, b.AllocatedBytes, err = disk.Sizes(file)
	return err
}
