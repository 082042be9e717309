package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/image/imagetest"
	"github.com/mvmctl/mvm/internal/run"
)

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

// TestImportEveryKind takes each format with each partition table, file system
// and compression.
func TestImportEveryKind(t *testing.T) {
	imagetest.Require(t)
	m := imagetest.Maker{T: t, Dir: memoryDir(t)}
	tree := m.Tree("tree", 62)
	for _, fs := range []string{"ext4", "xfs", "btrfs", "squashfs"} {
		fsImage := m.FS(fs, tree)
		for _, table := range []string{"bare", "gpt", "mbr", "logical"} {
			raw := m.Disk(table, fsImage)
			for format := range imagetest.Formats {
				if fs == "squashfs" && table == "bare" && format != "raw" {
					continue // a squashfs is no disk
				}
				file := m.Format(format, raw)
				for _, compression := range imagetest.Compressions {
					if strings.Contains(format, "-") && compression != "" && compression != "gz" {
						continue // variants of a format
					}
					t.Run(fs+"/"+table+"/"+format+"/"+"in "+compression, func(t *testing.T) {
						importAndCompare(t, m.Compress(compression, file), fs, fsImage)
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
	imagetest.Require(t)
	m := imagetest.New(t)
	tree := m.Tree("tree", 62)
	m.Run("", "tar", "-cf", m.Path("x.tar"), "--numeric-owner", "-C", tree, ".")
	for _, compression := range imagetest.Compressions {
		t.Run("in "+compression, func(t *testing.T) {
			b, err := importOne(t, ImportOptions{Path: m.Compress(compression, m.Path("x.tar")), SkipOptimization: true})
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
	imagetest.Require(t)
	m := imagetest.New(t)
	file := m.Format("qcow2", m.Disk("gpt", m.FS("ext4", m.Tree("tree", 62))))
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
	m.Run("", "e2fsck", "-fn", b.Path)
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
	imagetest.Require(t)
	m := imagetest.New(t)
	ext := m.FS("ext4", m.Tree("tree", 62))
	out := m.Path("two")
	m.Sparse(out, 64<<20)
	m.Run("label: gpt\nstart=8192, size=32768, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\nstart=40960, size=65536, name=root\n", "sfdisk", "-q", out)
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
	imagetest.Require(t)
	m := imagetest.New(t)
	tree := m.Tree("tree", 62)
	ext := m.FS("ext4", tree)
	gpt := m.Disk("gpt", ext)
	qcow := m.Format("qcow2", gpt)
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
	m.Run("", "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", gpt, m.Path("overlay"))
	m.Run("", "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+m.Path("data"), m.Path("outside"), "8M")
	m.Run("", "qemu-img", "create", "-q", "-f", "qcow2", m.Path("huge"), "200G")
	m.Run("", "tar", "-cf", m.Path("up.tar"), "--transform=s,^etc,../../etc,", "-P", "-C", tree, "etc")
	m.Run("", "tar", "-cf", m.Path("whole.tar"), "-C", tree, ".")
	foreign := m.Path("foreign.img")
	m.Run("", "mke2fs", "-q", "-t", "ext4", "-d", m.Tree("arm", 183), foreign, "16M")
	if err := os.WriteFile(m.Path("text"), []byte("just a text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.Run("", "mkfifo", m.Path("fifo"))
	for name, c := range map[string]struct {
		o    ImportOptions
		kind error
		says string
	}{
		"qcow2 on another file":         {ImportOptions{Path: m.Path("overlay")}, mvm.ErrInvalid, "based on another file"},
		"the same, compressed":          {ImportOptions{Path: m.Compress("gz", m.Path("overlay"))}, mvm.ErrInvalid, "based on another file"},
		"qcow2 with data outside":       {ImportOptions{Path: m.Path("outside")}, mvm.ErrInvalid, "data in another file"},
		"qcow2 of 200 GiB":              {ImportOptions{Path: m.Path("huge")}, mvm.ErrInvalid, "more than the 128 GiB"},
		"qcow2 cut":                     {ImportOptions{Path: half(qcow)}, mvm.ErrBroken, ""},
		"vmdk cut":                      {ImportOptions{Path: half(m.Format("vmdk", gpt))}, mvm.ErrBroken, ""},
		"vhd cut":                       {ImportOptions{Path: half(m.Format("vhd", gpt))}, mvm.ErrBroken, ""},
		"fixed vhd cut":                 {ImportOptions{Path: half(m.Format("fixed-vhd", gpt))}, mvm.ErrBroken, "leads out of the disk"},
		"raw cut":                       {ImportOptions{Path: cut(gpt, 9<<20)}, mvm.ErrBroken, "leads out of the disk"},
		"ext4 cut":                      {ImportOptions{Path: half(ext)}, mvm.ErrBroken, "cut short"},
		"gz cut":                        {ImportOptions{Path: half(m.Compress("gz", gpt))}, mvm.ErrBroken, "cut short"},
		"xz cut":                        {ImportOptions{Path: half(m.Compress("xz", gpt))}, mvm.ErrBroken, "cut short"},
		"zst cut":                       {ImportOptions{Path: half(m.Compress("zst", gpt))}, mvm.ErrBroken, "cut short"},
		"bz2 cut":                       {ImportOptions{Path: half(m.Compress("bz2", gpt))}, mvm.ErrBroken, "cut short"},
		"tar cut":                       {ImportOptions{Path: half(m.Path("whole.tar"))}, nil, ""},
		"squashfs cut":                  {ImportOptions{Path: cut(m.FS("squashfs", tree), 900)}, mvm.ErrBroken, "cut short"},
		"a bomb":                        {ImportOptions{Path: m.Compress("zst", gpt), MaxBytes: 4 << 20}, mvm.ErrInvalid, "unpacks to more"},
		"a tar bomb":                    {ImportOptions{Path: m.Compress("gz", m.Path("whole.tar")), MaxBytes: 64 << 10}, mvm.ErrInvalid, ""},
		"tar that climbs":               {ImportOptions{Path: m.Path("up.tar")}, nil, ""},
		"another architecture":          {ImportOptions{Path: foreign}, mvm.ErrUnsupported, "aarch64"},
		"text":                          {ImportOptions{Path: m.Path("text")}, mvm.ErrInvalid, "neither"},
		"a directory":                   {ImportOptions{Path: m.Dir}, mvm.ErrInvalid, "no regular file"},
		"a FIFO":                        {ImportOptions{Path: m.Path("fifo")}, mvm.ErrInvalid, "no regular file"},
		"nothing":                       {ImportOptions{Path: m.Path("nothing")}, mvm.ErrNotFound, "no file"},
		"said to be a tar":              {ImportOptions{Path: qcow, Format: "tar-rootfs"}, mvm.ErrInvalid, "qcow2 by its content"},
		"said to be raw":                {ImportOptions{Path: qcow, Format: "raw"}, mvm.ErrInvalid, "neither"},
		"an unknown format":             {ImportOptions{Path: qcow, Format: "iso"}, mvm.ErrInvalid, "not known"},
		"an unknown detector":           {ImportOptions{Path: qcow, Disabled: []string{"luck"}}, mvm.ErrInvalid, "no detector"},
		"a partition that is not there": {ImportOptions{Path: qcow, Partition: 7}, mvm.ErrInvalid, "no partition 7"},
		"a partition of a tar":          {ImportOptions{Path: m.Path("whole.tar"), Partition: 1}, mvm.ErrInvalid, "no partitions"},
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
	imagetest.Require(t)
	m := imagetest.New(t)
	file := m.Compress("gz", m.Disk("gpt", m.FS("ext4", m.Tree("tree", 62))))
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
