package image

import (
	"bytes"
	"context"
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

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// maker makes images of every kind in a directory.
type maker struct {
	t   testing.TB
	dir string
}

func newMaker(t testing.TB) maker { return maker{t, t.TempDir()} }

func (m maker) path(name string) string { return filepath.Join(m.dir, name) }

func (m maker) run(stdin, name string, args ...string) {
	m.t.Helper()
	cmd := run.Cmd{Name: name, Args: args, Dir: m.dir, Stdin: strings.NewReader(stdin),
		// mkfs.xfs(8) refuses file systems of less than 300 MiB to all but its own tests.
		Env: append(os.Environ(), "TEST_DIR=x", "TEST_DEV=x", "QA_CHECK_FS=x", "LC_ALL=C")}
	if _, err := (&run.Host{}).Run(m.t.Context(), cmd); err != nil {
		m.t.Fatalf("%s %q: %v", name, args, err)
	}
}

// treeFiles are the files of a root that says what it is and has what one machine
// leaves behind.
var treeFiles = map[string]string{
	"usr/lib/os-release": "ID=debian\nVERSION_ID=\"12\"\nNAME=\"Debian\"\n", "usr/bin/dash": string(elfHead(62)),
	"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/ssh/ssh_host_ed25519_key": "secret", "etc/ssh/sshd_config": "kept",
	"var/log/syslog": strings.Repeat("log ", 20_000), "var/log/journal/a/system.journal": "journal",
	"var/cache/apt/archives/x.deb": strings.Repeat("deb ", 50_000), "var/lib/apt/lists/mirror_Packages": "lists", "var/lib/dpkg/status": "kept",
}

// tree makes the files; arch is the ELF number of what they run on.
func (m maker) tree(name string, machine byte) string {
	m.t.Helper()
	dir := m.path(name)
	for p, content := range treeFiles {
		if p == "usr/bin/dash" {
			content = string(elfHead(machine))
		}
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(p)), 0o755), os.WriteFile(filepath.Join(dir, p), []byte(content), 0o644)); err != nil {
			m.t.Fatal(err)
		}
	}
	return dir
}

// fs makes a file system with the tree in it.
func (m maker) fs(kind, tree string) string {
	m.t.Helper()
	img := m.path(kind + ".img")
	switch kind {
	case "ext4":
		m.run("", "mke2fs", "-q", "-t", "ext4", "-d", tree, img, "16M")
	case "xfs":
		proto := "/dev/null\n0 0\nd--755 0 0\nusr d--755 0 0\nlib d--755 0 0\nos-release ---644 0 0 " + tree + "/usr/lib/os-release\n$\nbin d--755 0 0\ndash ---755 0 0 " + tree + "/usr/bin/dash\n$\n$\n$\n"
		if err := os.WriteFile(m.path("proto"), []byte(proto), 0o600); err != nil {
			m.t.Fatal(err)
		}
		m.sparse(img, 24<<20)
		m.run("", "mkfs.xfs", "-q", "-p", m.path("proto"), img)
	case "btrfs":
		m.sparse(img, 24<<20)
		m.run("", "mkfs.btrfs", "-q", "-M", "--rootdir", tree, img)
	case "squashfs":
		m.run("", "gensquashfs", "-q", "--pack-dir", tree, img)
	}
	return img
}

func (m maker) sparse(name string, size int64) {
	m.t.Helper()
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, size)); err != nil {
		m.t.Fatal(err)
	}
}

// tables are what sfdisk(8) is told; %d is the root's number of sectors.
var tables = map[string]string{
	"gpt":     "label: gpt\nsize=2048, type=21686148-6449-6E6F-744E-656564454649\nsize=2048, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\nstart=8192, size=%d, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n",
	"mbr":     "label: dos\nsize=2048, type=ef\nstart=8192, size=%d, type=83, bootable\n",
	"logical": "label: dos\nsize=2048, type=82\nstart=4096, type=5\nstart=8192, size=%d, type=83\n",
}

// disk puts a file system on a disk with a partition table, or bare.
func (m maker) disk(table, fs string) string {
	m.t.Helper()
	if table == "bare" {
		return fs
	}
	content, err := os.ReadFile(fs)
	if err != nil {
		m.t.Fatal(err)
	}
	out := m.path(table + "-" + filepath.Base(fs))
	sectors := (len(content) + 4095) / 4096 * 8
	m.sparse(out, int64(sectors)*512+8<<20)
	m.run(fmt.Sprintf(tables[table], sectors), "sfdisk", "-q", out)
	f, err := os.OpenFile(out, os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := f.WriteAt(content, 8192*512); err != nil || f.Close() != nil {
		m.t.Fatal(err)
	}
	return out
}

// formats are what qemu-img(1) makes.
var formats = map[string][]string{
	"raw": nil, "qcow2": {"-O", "qcow2", "-c"}, "vmdk": {"-O", "vmdk"}, "vhd": {"-O", "vpc", "-o", "force_size=on"},
	"fixed-vhd": {"-O", "vpc", "-o", "subformat=fixed,force_size=on"}, "stream-vmdk": {"-O", "vmdk", "-o", "subformat=streamOptimized"},
}

func (m maker) format(kind, raw string) string {
	m.t.Helper()
	if kind == "raw" {
		return raw
	}
	out := raw + "." + kind
	m.run("", "qemu-img", append(append([]string{"convert", "-f", "raw"}, formats[kind]...), raw, out)...)
	return out
}

var compressions = []string{"", "gz", "xz", "zst", "bz2"}

func (m maker) compress(kind, name string) string {
	m.t.Helper()
	if kind == "" {
		return name
	}
	if kind == "bz2" {
		m.run("", "bzip2", "-1", "-k", "-f", name)
		return name + ".bz2"
	}
	in, err := os.Open(name)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(name + "." + kind)
	if err != nil {
		m.t.Fatal(err)
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
		m.t.Fatal(err)
	}
	return out.Name()
}

// importOne imports a file and sees that nothing but the image is left.
func importOne(t *testing.T, o ImportOptions) (Built, error) {
	t.Helper()
	return importInto(t, t.TempDir(), o)
}

func importInto(t *testing.T, parent string, o ImportOptions) (Built, error) {
	t.Helper()
	o.Runner, o.Dest = &run.Host{}, filepath.Join(parent, "one")
	b, err := Import(t.Context(), o)
	want := []string{".build.lock"}
	if err == nil {
		want = append(want, "one")
	}
	if got := list(t, parent); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("left are %q", got)
	}
	return b, err
}

func needTools(t testing.TB) {
	testenv.Require(t, "root", "userns", "qemu-img", "e2fsprogs", "sfdisk", "xfsprogs", "btrfs-progs", "squashfs-tools-ng", "bzip2")
}

// TestImportEveryKind takes each format with each partition table, file system
// and compression.
func TestImportEveryKind(t *testing.T) {
	needTools(t)
	m := maker{t, memoryDir(t)}
	tree := m.tree("tree", 62)
	for _, fs := range []string{"ext4", "xfs", "btrfs", "squashfs"} {
		fsImage := m.fs(fs, tree)
		for _, table := range []string{"bare", "gpt", "mbr", "logical"} {
			raw := m.disk(table, fsImage)
			for format := range formats {
				if fs == "squashfs" && table == "bare" && format != "raw" {
					continue // a squashfs is no disk
				}
				file := m.format(format, raw)
				for _, compression := range compressions {
					if strings.Contains(format, "-") && compression != "" && compression != "gz" {
						continue // variants of a format
					}
					t.Run(fs+"/"+table+"/"+format+"/"+"in "+compression, func(t *testing.T) {
						importAndCompare(t, m.compress(compression, file), fs, fsImage)
					})
				}
			}
		}
	}
}

// memoryDir is a directory where writing to the disk is waited for by nobody.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "mvm-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func importAndCompare(t *testing.T, file, fs, fsImage string) {
	t.Helper()
	b, err := importInto(t, memoryDir(t), ImportOptions{Path: file, SkipOptimization: true})
	if err != nil {
		t.Fatalf("%v (hint: %s)", err, mvm.HintOf(err))
	}
	if b.Distro != "debian 12" || b.Version != "12" || b.Arch != "x86_64" {
		t.Errorf("%+v", b)
	}
	if fs == "squashfs" {
		if b.FSType != "ext4" || b.UUID == "" {
			t.Errorf("%+v", b)
		}
		return
	}
	want, err := disk.Probe(fsImage)
	if err != nil || b.FSType != fs || b.UUID != want.UUID || b.SizeBytes != want.SizeBytes {
		t.Errorf("%+v, want %+v, %v", b, want, err)
	}
	if !sameBytes(t, b.Path, fsImage, want.SizeBytes) {
		t.Error("the root is not what it was")
	}
}

func sameBytes(t *testing.T, a, b string, n int64) bool {
	t.Helper()
	x, err1 := os.ReadFile(a)
	y, err2 := os.ReadFile(b)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return int64(len(x)) == n && bytes.Equal(x, y[:n])
}

func TestImportArchives(t *testing.T) {
	needTools(t)
	m := newMaker(t)
	tree := m.tree("tree", 62)
	m.run("", "tar", "-cf", m.path("x.tar"), "--numeric-owner", "-C", tree, ".")
	for _, compression := range compressions {
		t.Run("in "+compression, func(t *testing.T) {
			b, err := importOne(t, ImportOptions{Path: m.compress(compression, m.path("x.tar")), SkipOptimization: true})
			if err != nil || b.FSType != "ext4" || b.Distro != "debian 12" || b.Arch != "x86_64" {
				t.Fatalf("%+v, %v", b, err)
			}
			if got := inImage(t, b.Path, "cat /etc/ssh/sshd_config"); got != "kept" {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestImportOptimizes(t *testing.T) {
	needTools(t)
	m := newMaker(t)
	file := m.format("qcow2", m.disk("gpt", m.fs("ext4", m.tree("tree", 62))))
	b, err := importOne(t, ImportOptions{Path: file})
	if err != nil || len(b.Warnings) > 0 {
		t.Fatalf("%q, %v (hint: %s)", b.Warnings, err, mvm.HintOf(err))
	}
	packed, err := os.Stat(Packed(b.Path))
	if err != nil || packed.Size() != b.PackedBytes || packed.Mode() != 0o600 || b.SizeBytes >= 16<<20 || b.MinimumMiB < int(b.SizeBytes>>20)+64 {
		t.Errorf("%+v, %v", b, err)
	}
	if _, err := os.Stat(b.Path); !os.IsNotExist(err) {
		t.Errorf("the image is there twice: %v", err)
	}
	if err := Unpack(t.Context(), b.Path, b.SizeBytes, nil); err != nil {
		t.Fatal(err)
	}
	m.run("", "e2fsck", "-fn", b.Path)
	for p, kept := range map[string]bool{"etc/ssh/sshd_config": true, "var/lib/dpkg/status": true, "etc/ssh/ssh_host_ed25519_key": false,
		"var/log/syslog": false, "var/log/journal/a/system.journal": false, "var/cache/apt/archives/x.deb": false, "var/lib/apt/lists/mirror_Packages": false} {
		if got := strings.Contains(inImage(t, b.Path, "stat /"+p), "Type: regular"); got != kept {
			t.Errorf("%s is there: %v", p, got)
		}
	}
	wantNodes(t, b.Path, map[string]string{"/etc/machine-id": "Type: regular, Mode: 0444, Size: 0, User: 0 Group: 0", "/var/log/journal": "Type: directory"})
	if err := Unpack(t.Context(), b.Path, b.SizeBytes, nil); !errors.Is(err, mvm.ErrExists) {
		t.Errorf("unpacked over an image: %v", err)
	}
}

// The partition that is asked for is taken, and detectors can be switched off.
func TestImportPartitionAsked(t *testing.T) {
	needTools(t)
	m := newMaker(t)
	ext := m.fs("ext4", m.tree("tree", 62))
	out := m.path("two")
	m.sparse(out, 64<<20)
	m.run("label: gpt\nstart=8192, size=32768, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\nstart=40960, size=65536, name=root\n", "sfdisk", "-q", out)
	content, err := os.ReadFile(ext)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(out, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	second := bytes.Clone(content)
	second[1024+0x68]++ // the UUID; what reads it does not look at the checksum
	if _, err := f.WriteAt(content, 8192*512); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(second, 40960*512); err != nil {
		t.Fatal(err)
	}
	info, err := disk.Probe(ext)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o     ImportOptions
		first bool
	}{
		"by type":   {ImportOptions{}, true},
		"asked":     {ImportOptions{Partition: 2}, false},
		"type off":  {ImportOptions{Disabled: []string{"type"}}, false},
		"size only": {ImportOptions{Disabled: []string{"type", "label", "filesystem"}}, false},
	} {
		c.o.Path, c.o.SkipOptimization = out, true
		b, err := importOne(t, c.o)
		if err != nil || (b.UUID == info.UUID) != c.first {
			t.Errorf("%s: %+v, %v", name, b, err)
		}
	}
	if _, err := importOne(t, ImportOptions{Path: out, Disabled: Detectors}); !errors.Is(err, mvm.ErrInvalid) || !strings.Contains(mvm.HintOf(err), "--root-partition") {
		t.Errorf("%v", err)
	}
}

// TestImportRefuses: each with a clear error, and nothing left.
func TestImportRefuses(t *testing.T) {
	needTools(t)
	m := newMaker(t)
	tree := m.tree("tree", 62)
	ext := m.fs("ext4", tree)
	gpt := m.disk("gpt", ext)
	qcow := m.format("qcow2", gpt)
	cut := func(name string, to int64) string {
		out := name + ".cut" + strconv.FormatInt(to, 10)
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(out, b[:to], 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	half := func(name string) string {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return cut(name, st.Size()/2)
	}
	m.run("", "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", gpt, m.path("overlay"))
	m.run("", "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+m.path("data"), m.path("outside"), "8M")
	m.run("", "qemu-img", "create", "-q", "-f", "qcow2", m.path("huge"), "200G")
	m.run("", "tar", "-cf", m.path("up.tar"), "--transform=s,^etc,../../etc,", "-P", "-C", tree, "etc")
	m.run("", "tar", "-cf", m.path("whole.tar"), "-C", tree, ".")
	foreign := m.path("foreign.img")
	m.run("", "mke2fs", "-q", "-t", "ext4", "-d", m.tree("arm", 183), foreign, "16M")
	if err := os.WriteFile(m.path("text"), []byte("just a text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.run("", "mkfifo", m.path("fifo"))
	for name, c := range map[string]struct {
		o    ImportOptions
		kind error
		says string
	}{
		"qcow2 on another file":         {ImportOptions{Path: m.path("overlay")}, mvm.ErrInvalid, "based on another file"},
		"the same, compressed":          {ImportOptions{Path: m.compress("gz", m.path("overlay"))}, mvm.ErrInvalid, "based on another file"},
		"qcow2 with data outside":       {ImportOptions{Path: m.path("outside")}, mvm.ErrInvalid, "data in another file"},
		"qcow2 of 200 GiB":              {ImportOptions{Path: m.path("huge")}, mvm.ErrInvalid, "more than the 128 GiB"},
		"qcow2 cut":                     {ImportOptions{Path: half(qcow)}, mvm.ErrBroken, ""},
		"vmdk cut":                      {ImportOptions{Path: half(m.format("vmdk", gpt))}, mvm.ErrBroken, ""},
		"vhd cut":                       {ImportOptions{Path: half(m.format("vhd", gpt))}, mvm.ErrBroken, ""},
		"fixed vhd cut":                 {ImportOptions{Path: half(m.format("fixed-vhd", gpt))}, mvm.ErrBroken, "leads out of the disk"},
		"raw cut":                       {ImportOptions{Path: cut(gpt, 9<<20)}, mvm.ErrBroken, "leads out of the disk"},
		"ext4 cut":                      {ImportOptions{Path: half(ext)}, mvm.ErrBroken, "cut short"},
		"gz cut":                        {ImportOptions{Path: half(m.compress("gz", gpt))}, mvm.ErrBroken, "cut short"},
		"xz cut":                        {ImportOptions{Path: half(m.compress("xz", gpt))}, mvm.ErrBroken, "cut short"},
		"zst cut":                       {ImportOptions{Path: half(m.compress("zst", gpt))}, mvm.ErrBroken, "cut short"},
		"bz2 cut":                       {ImportOptions{Path: half(m.compress("bz2", gpt))}, mvm.ErrBroken, "cut short"},
		"tar cut":                       {ImportOptions{Path: half(m.path("whole.tar"))}, nil, ""},
		"squashfs cut":                  {ImportOptions{Path: cut(m.fs("squashfs", tree), 900)}, mvm.ErrBroken, "cut short"},
		"a bomb":                        {ImportOptions{Path: m.compress("zst", gpt), MaxBytes: 4 << 20}, mvm.ErrInvalid, "unpacks to more"},
		"a tar bomb":                    {ImportOptions{Path: m.compress("gz", m.path("whole.tar")), MaxBytes: 64 << 10}, mvm.ErrInvalid, ""},
		"tar that climbs":               {ImportOptions{Path: m.path("up.tar")}, nil, ""},
		"another architecture":          {ImportOptions{Path: foreign}, mvm.ErrUnsupported, "aarch64"},
		"text":                          {ImportOptions{Path: m.path("text")}, mvm.ErrInvalid, "neither"},
		"a directory":                   {ImportOptions{Path: m.dir}, mvm.ErrInvalid, "no regular file"},
		"a FIFO":                        {ImportOptions{Path: m.path("fifo")}, mvm.ErrInvalid, "no regular file"},
		"nothing":                       {ImportOptions{Path: m.path("nothing")}, mvm.ErrNotFound, "no file"},
		"said to be a tar":              {ImportOptions{Path: qcow, Format: "tar-rootfs"}, mvm.ErrInvalid, "qcow2 by its content"},
		"said to be raw":                {ImportOptions{Path: qcow, Format: "raw"}, mvm.ErrInvalid, "neither"},
		"an unknown format":             {ImportOptions{Path: qcow, Format: "iso"}, mvm.ErrInvalid, "not known"},
		"an unknown detector":           {ImportOptions{Path: qcow, Disabled: []string{"luck"}}, mvm.ErrInvalid, "no detector"},
		"a partition that is not there": {ImportOptions{Path: qcow, Partition: 7}, mvm.ErrInvalid, "no partition 7"},
		"a partition of a bare disk":    {ImportOptions{Path: ext, Partition: 1}, mvm.ErrInvalid, "no partitions"},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			c.o.Runner, c.o.Dest = &run.Host{}, filepath.Join(parent, "images", "one")
			b, err := Import(t.Context(), c.o)
			if err == nil || c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || mvm.HintOf(err) == "" {
				t.Errorf("%+v: %v (hint %q)", b, err, mvm.HintOf(err))
			}
			if entries, err := os.ReadDir(filepath.Join(parent, "images")); err == nil && len(entries) > 1 {
				t.Errorf("left are %v", entries)
			}
		})
	}
}

func TestCancelledImportLeavesNothing(t *testing.T) {
	needTools(t)
	m := newMaker(t)
	file := m.compress("gz", m.disk("gpt", m.fs("ext4", m.tree("tree", 62))))
	for _, at := range []string{"reading", "unpacking", "checking", "dropping", "making the file system smaller", "compressing"} {
		t.Run(at, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			parent := t.TempDir()
			_, err := Import(ctx, ImportOptions{Runner: &run.Host{}, Path: file, Dest: filepath.Join(parent, "one"), Progress: func(e mvm.ProgressEvent) {
				if strings.HasPrefix(e.Message, at) {
					cancel()
				}
			}})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
			if got := list(t, parent); len(got) != 1 || got[0] != ".build.lock" {
				t.Errorf("left are %q", got)
			}
		})
	}
}
