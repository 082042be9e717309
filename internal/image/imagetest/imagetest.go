// Package imagetest makes the images that tests import, pull and boot, with the
// tools that distributions make theirs with. It is for tests only.
package imagetest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// Require skips a test where one of the tools is missing, or what import needs.
func Require(t testing.TB) {
	t.Helper()
	testenv.Require(t, "root", "userns", "qemu-img", "e2fsprogs", "sfdisk", "xfsprogs", "btrfs-progs", "squashfs", "bzip2")
}

// ELF is the beginning of a program for a machine by its ELF number: 62 is x86-64,
// 183 is AArch64.
func ELF(machine byte) []byte {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	b[18] = machine
	return b
}

// Maker makes images of every kind in a directory.
type Maker struct {
	T   testing.TB
	Dir string
}

// New makes them in a temporary directory.
func New(t testing.TB) Maker { return Maker{t, t.TempDir()} }

// Path is a file in the directory.
func (m Maker) Path(name string) string { return filepath.Join(m.Dir, name) }

// Run runs a tool there.
func (m Maker) Run(stdin, name string, args ...string) {
	m.T.Helper()
	cmd := run.Cmd{Name: name, Args: args, Dir: m.Dir, Stdin: strings.NewReader(stdin),
		// mkfs.xfs(8) refuses file systems of less than 300 MiB to all but its own tests.
		Env: append(os.Environ(), "TEST_DIR=x", "TEST_DEV=x", "QA_CHECK_FS=x", "LC_ALL=C")}
	if _, err := (&run.Host{}).Run(m.T.Context(), cmd); err != nil {
		m.T.Fatalf("%s %q: %v", name, args, err)
	}
}

// TreeFiles are the files of a root that says what it is and has what one machine
// leaves behind.
var TreeFiles = map[string]string{
	"usr/lib/os-release": "ID=debian\nVERSION_ID=\"12\"\nNAME=\"Debian\"\n", "usr/bin/dash": string(ELF(62)),
	"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/ssh/ssh_host_ed25519_key": "secret", "etc/ssh/sshd_config": "kept",
	"var/log/syslog": strings.Repeat("log ", 20_000), "var/log/journal/a/system.journal": "journal",
	"var/cache/apt/archives/x.deb": strings.Repeat("deb ", 50_000), "var/lib/apt/lists/mirror_Packages": "lists", "var/lib/dpkg/status": "kept",
}

// Tree makes the files; arch is the ELF number of what they run on.
func (m Maker) Tree(name string, machine byte) string {
	m.T.Helper()
	dir := m.Path(name)
	for p, content := range TreeFiles {
		if p == "usr/bin/dash" {
			content = string(ELF(machine))
		}
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(p)), 0o755), os.WriteFile(filepath.Join(dir, p), []byte(content), 0o644)); err != nil {
			m.T.Fatal(err)
		}
	}
	return dir
}

// FS makes a file system with the tree in it.
func (m Maker) FS(kind, tree string) string {
	m.T.Helper()
	img := m.Path(kind + ".img")
	switch kind {
	case "ext4":
		m.Run("", "mke2fs", "-q", "-t", "ext4", "-d", tree, img, "16M")
	case "xfs":
		proto := "/dev/null\n0 0\nd--755 0 0\nusr d--755 0 0\nlib d--755 0 0\nos-release ---644 0 0 " + tree + "/usr/lib/os-release\n$\nbin d--755 0 0\ndash ---755 0 0 " + tree + "/usr/bin/dash\n$\n$\n$\n"
		if err := os.WriteFile(m.Path("proto"), []byte(proto), 0o600); err != nil {
			m.T.Fatal(err)
		}
		m.Sparse(img, 24<<20)
		m.Run("", "mkfs.xfs", "-q", "-p", m.Path("proto"), img)
	case "btrfs":
		m.Sparse(img, 24<<20)
		m.Run("", "mkfs.btrfs", "-q", "-M", "--rootdir", tree, img)
	case "squashfs":
		m.Run("", "gensquashfs", "-q", "--pack-dir", tree, img)
	}
	return img
}

// layouts are where Root puts the tree: $1 is the tree, $2 where the file system is
// mounted.
var layouts = map[string]string{
	"xfs":    `cp -a "$1/." "$2"`,
	"btrfs":  `cp -a "$1/." "$2"`,
	"fedora": `for s in home root var; do btrfs -q subvolume create "$2/$s"; done; cp -a "$1/." "$2/root"`,
	"opensuse": `btrfs -q subvolume create "$2/@"; btrfs -q subvolume create "$2/@/.snapshots"; mkdir "$2/@/.snapshots/1"
		btrfs -q subvolume create "$2/@/.snapshots/1/snapshot"; cp -a "$1/." "$2/@/.snapshots/1/snapshot"; btrfs subvolume set-default "$2/@/.snapshots/1/snapshot"`,
}

// Root makes a file system of a size in MiB with the whole tree in it: an xfs, a btrfs,
// or a btrfs that has it in a subvolume only. "fedora" has that beside others, "opensuse"
// has a snapshot that is mounted without naming it. The test is skipped where no loop
// device can be mounted.
func (m Maker) Root(layout, tree string, mib int64) string {
	m.T.Helper()
	img, at := m.Path(layout+"-root.img"), m.Path(layout+"-mount")
	m.Sparse(img, mib<<20)
	if layout == "xfs" {
		m.Run("", "mkfs.xfs", "-q", img)
	} else {
		m.Run("", "mkfs.btrfs", "-q", "-M", img)
	}
	if err := os.Mkdir(at, 0o700); err != nil {
		m.T.Fatal(err)
	}
	// In mounts of its own, which end with it.
	const noLoop = 99
	script := `mount -o loop "$3" "$2" || exit ` + strconv.Itoa(noLoop) + "\n" + layouts[layout] + "\n" + `umount "$2"`
	_, err := (&run.Host{}).Run(m.T.Context(), run.Cmd{Name: "unshare", Args: []string{"--mount", "sh", "-euc", script, "sh", tree, at, img}})
	var exit *run.ExitError
	if errors.As(err, &exit) && exit.Code == noLoop {
		m.T.Skipf("needs loop devices and the file system in the kernel: %v", err)
	}
	if err != nil {
		m.T.Fatal(err)
	}
	return img
}

// Sparse makes a file of zeros.
func (m Maker) Sparse(name string, size int64) {
	m.T.Helper()
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, size)); err != nil {
		m.T.Fatal(err)
	}
}

// Tables are what sfdisk(8) is told; %d is the root's number of sectors.
var Tables = map[string]string{
	"gpt":     "label: gpt\nsize=2048, type=21686148-6449-6E6F-744E-656564454649\nsize=2048, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\nstart=8192, size=%d, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n",
	"mbr":     "label: dos\nsize=2048, type=ef\nstart=8192, size=%d, type=83, bootable\n",
	"logical": "label: dos\nsize=2048, type=82\nstart=4096, type=5\nstart=8192, size=%d, type=83\n",
}

// Disk puts a file system on a disk with a partition table, or bare.
func (m Maker) Disk(table, fs string) string {
	m.T.Helper()
	if table == "bare" {
		return fs
	}
	return m.DiskIn(table, fs, m.Path(table+"-"+filepath.Base(fs)))
}

// DiskIn is Disk into a file.
func (m Maker) DiskIn(table, fs, out string) string {
	m.T.Helper()
	content, err := os.ReadFile(fs)
	if err != nil {
		m.T.Fatal(err)
	}
	sectors := (len(content) + 4095) / 4096 * 8
	m.Sparse(out, int64(sectors)*512+8<<20)
	m.Run(fmt.Sprintf(Tables[table], sectors), "sfdisk", "-q", out)
	f, err := os.OpenFile(out, os.O_RDWR, 0)
	if err != nil {
		m.T.Fatal(err)
	}
	if _, err := f.WriteAt(content, 8192*512); err != nil || f.Close() != nil {
		m.T.Fatal(err)
	}
	return out
}

// Formats are what qemu-img(1) makes.
var Formats = map[string][]string{
	"raw": nil, "qcow2": {"-O", "qcow2", "-c"}, "vmdk": {"-O", "vmdk"}, "vhd": {"-O", "vpc", "-o", "force_size=on"},
	"fixed-vhd": {"-O", "vpc", "-o", "subformat=fixed,force_size=on"}, "stream-vmdk": {"-O", "vmdk", "-o", "subformat=streamOptimized"},
}

// Format makes a disk image of a raw disk.
func (m Maker) Format(kind, raw string) string {
	m.T.Helper()
	if kind == "raw" {
		return raw
	}
	out := raw + "." + kind
	m.Run("", "qemu-img", append(append([]string{"convert", "-f", "raw"}, Formats[kind]...), raw, out)...)
	return out
}

// Compressions are what Compress makes; the first is none.
var Compressions = []string{"", "gz", "xz", "zst", "bz2"}

// Compress makes a compressed file beside a plain one.
func (m Maker) Compress(kind, name string) string {
	m.T.Helper()
	if kind == "" {
		return name
	}
	if kind == "bz2" {
		m.Run("", "bzip2", "-1", "-k", "-f", name)
		return name + ".bz2"
	}
	in, err := os.Open(name)
	if err != nil {
		m.T.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(name + "." + kind)
	if err != nil {
		m.T.Fatal(err)
	}
	var w io.WriteCloser
	switch kind {
	case "gz":
		w, err = gzip.NewWriterLevel(out, 1)
	case "xz":
		w, err = xz.WriterConfig{DictCap: 1 << 16}.NewWriter(out)
	case "zst":
		w, err = zstd.NewWriter(out)
	}
	if err == nil {
		_, err = io.Copy(w, in)
	}
	if err := errors.Join(err, w.Close(), out.Close()); err != nil {
		m.T.Fatal(err)
	}
	return out.Name()
}
