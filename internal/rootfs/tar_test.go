package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// entry is one of an archive; its content is as long as its header says.
type entry struct {
	tar.Header
	data string
}

var stamp = time.Date(2021, 3, 4, 5, 6, 7, 123456789, time.UTC)

func dir(name string) entry { return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name}} }

func file(name, data string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name}, data: data}
}

func link(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}}
}

// archive packs entries; modes and times that are not set become usual ones.
func archive(t testing.TB, all ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range all {
		h := e.Header
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = stamp
		}
		h.Size, h.Format = int64(len(e.data)), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// image is a file system that was made, as e2fsprogs see it.
type image struct {
	t    testing.TB
	path string
}

// layered makes a file system of layers, and has e2fsck look at it.
func layered(t testing.TB, layers ...[]byte) image {
	t.Helper()
	b, err := New(context.Background(), filepath.Join(t.TempDir(), "rootfs"), Options{Label: "mvm-root"})
	if err != nil {
		t.Fatal(err)
	}
	path := b.f.Name()
	for _, l := range layers {
		if err := b.Layer(bytes.NewReader(l)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return checked(t, path)
}

func checked(t testing.TB, path string) image {
	t.Helper()
	testenv.Require(t, "e2fsprogs")
	res, err := (&run.Host{}).Run(context.Background(), run.Cmd{Name: "e2fsck", Args: []string{"-fn", path}})
	if err != nil {
		var out bytes.Buffer
		_, _ = (&run.Host{}).Run(context.Background(), run.Cmd{Name: "e2fsck", Args: []string{"-fn", path}, Stdout: &out})
		t.Fatalf("%v\n%s%s", err, out.String(), res.Stderr)
	}
	return image{t, path}
}

// debugfs runs one request on the image.
func (i image) debugfs(request string) string {
	i.t.Helper()
	res, err := (&run.Host{}).Run(context.Background(), run.Cmd{Name: "debugfs", Args: []string{"-R", request, i.path}})
	if err != nil {
		i.t.Fatal(err)
	}
	return string(res.Stdout)
}

// names are the files below a directory, without lost+found.
func (i image) names(at string) []string {
	i.t.Helper()
	var out []string
	for line := range strings.Lines(i.debugfs("ls -p " + at)) {
		f := strings.Split(strings.TrimSpace(line), "/")
		if len(f) < 7 || f[5] == "." || f[5] == ".." || f[5] == "lost+found" {
			continue
		}
		path := strings.TrimSuffix(at, "/") + "/" + f[5]
		out = append(out, path[1:])
		if strings.HasPrefix(f[2], "04") {
			out = append(out, i.names(path)...)
		}
	}
	return out
}

func (i image) expect(at string, want string) {
	i.t.Helper()
	if got := strings.Join(i.names(at), " "); got != want {
		i.t.Errorf("files are\n%s\nwant\n%s", got, want)
	}
}

func (i image) expectData(path, want string) {
	i.t.Helper()
	if got := i.debugfs("cat " + path); got != want {
		i.t.Errorf("%s has %.80q, want %.80q", path, got, want)
	}
}

// stat looks for words in what debugfs says of a file.
func (i image) stat(path string, want ...string) {
	i.t.Helper()
	got := i.debugfs("stat " + path)
	flat := regexp.MustCompile(`\s+`).ReplaceAllString(got, " ")
	for _, w := range want {
		if !strings.Contains(flat, w) {
			i.t.Errorf("%s: no %q in\n%s", path, w, got)
		}
	}
}

func TestTarKeepsWhatFilesHave(t *testing.T) {
	long := strings.Repeat("n", 255)
	deep := strings.Repeat("directory-of-some-length/", 30)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	all := []entry{
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o711, Uid: 1, Gid: 2}},
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./tmp/", Mode: 0o1777}},
		{Header: tar.Header{Name: "./bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 0, Gid: 42}, data: "#!"},
		{Header: tar.Header{Name: "bin/ping", Typeflag: tar.TypeReg, Mode: 0o755, Uid: 100000, Gid: 3000000000,
			PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.security.selinux": "x"}}, data: "p"},
		{Header: tar.Header{Name: "acl", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.system.posix_acl_access": acl}}},
		{Header: tar.Header{Name: "attrs", Typeflag: tar.TypeReg, PAXRecords: map[string]string{
			"SCHILY.xattr.user.b": strings.Repeat("v", 2000), "SCHILY.xattr.user.a": "1", "SCHILY.xattr.user.empty": "", "SCHILY.xattr.trusted.t": "2"}}},
		link("bin/ping6", "bin/ping"), link("bin/ping7", "/bin/ping6"),
		symlink("short", "bin/su"), symlink("long", strings.Repeat("x/", 100)), symlink("etc/mtab", "/proc/mounts"),
		{Header: tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{Header: tar.Header{Name: "dev/big", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000}},
		{Header: tar.Header{Name: "fifo", Typeflag: tar.TypeFifo}},
		file(deep+long, "deep"), file("empty", ""), file("again", "first"), file("again", "second"),
		{Header: tar.Header{Name: "old", Typeflag: tar.TypeReg, ModTime: time.Date(1910, 1, 1, 0, 0, 0, 0, time.UTC)}},
		{Header: tar.Header{Name: "future", Typeflag: tar.TypeReg, ModTime: time.Date(2150, 1, 1, 0, 0, 0, 0, time.UTC)}},
	}
	dest := filepath.Join(t.TempDir(), "rootfs")
	res, err := FromTar(context.Background(), bytes.NewReader(archive(t, all...)), dest, Options{Label: "mvm-root"})
	if err != nil {
		t.Fatal(err)
	}
	i := checked(t, dest)
	i.stat("/", "Type: directory", "Mode: 0711", "User: 1 Group: 2")
	i.stat("/tmp", "Mode: 01777")
	i.stat("/bin/su", "Mode: 04755", "User: 0 Group: 42", "Size: 2", "mtime: 0x60406abf:1d6f3454")
	i.stat("/bin/ping", "User: 100000 Group: -1294967296", "Links: 3", "security.capability (20) = 01 00 00 02")
	if strings.Contains(i.debugfs("stat /bin/ping"), "selinux") {
		t.Error("a label of the machine that made the archive came along")
	}
	i.stat("/acl", "system.posix_acl_access")
	i.stat("/attrs", `user.a (1) = "1"`, "user.b (2000)", "user.empty (0)", "trusted.t (1)")
	i.stat("/short", "Type: symlink", `Fast link dest: "bin/su"`)
	i.stat("/long", "Type: symlink", "Size: 200")
	i.stat("/etc/mtab", `Fast link dest: "/proc/mounts"`)
	i.stat("/etc", "Mode: 0755", "User: 0")
	i.stat("/dev/null", "Type: character special", "Device major/minor number: 01:03")
	i.stat("/dev/big", "Type: block special", "Device major/minor number: 259:70000")
	i.stat("/fifo", "Type: FIFO")
	i.stat("/old", "mtime:", "1910")
	i.stat("/future", "mtime:", "2150")
	i.expectData("/"+deep+long, "deep")
	i.expectData("/again", "second")
	info, err := disk.Probe(dest)
	if err != nil || info.FS != "ext4" || info.UUID != res.UUID || info.Label != "mvm-root" || info.SizeBytes != res.SizeBytes {
		t.Errorf("probe says %+v, %v; the result is %+v", info, err, res)
	}
}

// pattern is content that repeats nowhere near.
func pattern(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func TestLargeAndManyFiles(t *testing.T) {
	big := pattern(150 << 20) // over the border of the first group, whose copy of the superblock is in the way
	holes := make([]byte, 24<<20)
	for at := 0; at < len(holes); at += 3 * 4096 { // more extents than one block lists
		holes[at] = byte(1 + at/4096%255)
	}
	all := []entry{file("big", string(big)), file("holes", string(holes)), file("zeros", string(make([]byte, 10<<20)))}
	for n := range 20000 { // more than a group has inodes
		all = append(all, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "many/" + strconv.Itoa(n)}})
	}
	dest := filepath.Join(t.TempDir(), "rootfs")
	res, err := FromTar(context.Background(), bytes.NewReader(archive(t, all...)), dest, Options{})
	if err != nil {
		t.Fatal(err)
	}
	i := checked(t, dest)
	out := filepath.Join(t.TempDir(), "out")
	for name, want := range map[string][]byte{"big": big, "holes": holes, "zeros": make([]byte, 10<<20)} {
		i.debugfs("dump /" + name + " " + out)
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs: %d bytes, %v", name, len(got), err)
		}
	}
	i.stat("/zeros", "Size: 10485760", "Blockcount: 0")
	if res.Entries < 20000 || res.UsedBytes < 150<<20 || res.UsedBytes > 220<<20 {
		t.Errorf("result %+v", res)
	}
}

func TestCompressed(t *testing.T) {
	plain := archive(t, file("etc/os-release", "ID=x\n"))
	pack := func(open func(io.Writer) (io.WriteCloser, error)) []byte {
		var b bytes.Buffer
		w, err := open(&b)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(plain)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	formats := map[string][]byte{
		"tar": plain,
		"gz":  pack(func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		"zst": pack(func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
		"xz":  pack(func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }),
	}
	for name, data := range formats {
		dest := filepath.Join(t.TempDir(), "rootfs")
		if _, err := FromTar(context.Background(), bytes.NewReader(data), dest, Options{}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checked(t, dest).expectData("/etc/os-release", "ID=x\n")
		for _, broken := range [][]byte{data[:len(data)/2], append(bytes.Clone(data[:len(data)/2]), bytes.Repeat([]byte{0xa5}, len(data)/2)...)} {
			dest := filepath.Join(t.TempDir(), "rootfs")
			_, err := FromTar(context.Background(), bytes.NewReader(broken), dest, Options{})
			if !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
				t.Errorf("%s: damaged: %v", name, err)
			}
			if _, err := os.Lstat(dest); err == nil {
				t.Errorf("%s: a file is left", name)
			}
		}
	}
}

func TestHostileArchives(t *testing.T) {
	circle := []entry{symlink("a", "b"), symlink("b", "a")}
	for name, all := range map[string][]entry{
		"../x":                  {file("../x", "")},
		"a/../../x":             {file("a/../../x", "")},
		"link out":              {file("a", ""), link("x", "../../etc/passwd")},
		"link to nothing":       {link("x", "etc/passwd")},
		"link to a directory":   {dir("d"), link("x", "d")},
		"below a file":          {file("a", ""), file("a/b", "")},
		"circle":                append(circle, file("a/x", "")),
		"name too long":         {file(strings.Repeat("n", 256), "")},
		"target too long":       {symlink("s", strings.Repeat("n", 5000))},
		"the root as a file":    {file("x", ""), link(".", "x")},
		"device out of range":   {{Header: tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1 << 20}}},
		"attributes too large":  {{Header: tar.Header{Name: "f", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 5000)}}}},
		"attribute of no kind":  {{Header: tar.Header{Name: "f", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.other": "x"}}}},
		"a list of no meaning":  {{Header: tar.Header{Name: "f", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.system.posix_acl_access": "x"}}}},
		"more than the limit":   {file("a", strings.Repeat("x", 2000)), file("b", strings.Repeat("x", 2000))},
		"more files than there": {file("1", ""), file("2", ""), file("3", ""), file("4", ""), file("5", ""), file("6", "")},
		"nothing":               {},
	} {
		dest := filepath.Join(t.TempDir(), "rootfs")
		_, err := FromTar(context.Background(), bytes.NewReader(archive(t, all...)), dest, Options{MaxBytes: 3000, MaxEntries: 5})
		if !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(dest); err == nil {
			t.Errorf("%s: a file is left", name)
		}
	}
	// What looks like a way out and is none: it stays in the tree.
	i := layered(t, archive(t,
		symlink("out", "/../../../.."), file("out/etc/x", "1"), symlink("abs", "/etc"), file("abs/y", "2"),
		symlink("up", "../../etc"), file("up/z", "3"), dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/libc", "4"), file("/abs2", "5")))
	i.expect("/", "abs abs2 etc etc/x etc/y etc/z lib out up usr usr/lib usr/lib/libc")
}

func TestLayers(t *testing.T) {
	base := archive(t, dir("etc"), file("etc/a", "1"), file("etc/b", "2"), dir("etc/d"), file("etc/d/x", "3"), dir("var/cache"), file("var/cache/y", "4"), symlink("lib", "usr/lib"), file("usr/lib/z", "5"))
	for _, tc := range []struct {
		name  string
		layer []entry
		want  string
	}{
		{"whiteout", []entry{file("etc/.wh.a", "")}, "etc etc/b etc/d etc/d/x lib usr usr/lib usr/lib/z var var/cache var/cache/y"},
		{"whiteout of a tree", []entry{file("etc/.wh.d", ""), file(".wh.var", "")}, "etc etc/a etc/b lib usr usr/lib usr/lib/z"},
		{"whiteout by a link", []entry{file("lib/.wh.z", "")}, "etc etc/a etc/b etc/d etc/d/x lib usr usr/lib var var/cache var/cache/y"},
		{"opaque first", []entry{dir("etc"), file("etc/.wh..wh..opq", ""), file("etc/n", "")}, "etc etc/n lib usr usr/lib usr/lib/z var var/cache var/cache/y"},
		{"opaque last", []entry{dir("etc"), file("etc/n", ""), file("etc/d/k", ""), file("etc/.wh..wh..opq", "")}, "etc etc/d etc/d/k etc/n lib usr usr/lib usr/lib/z var var/cache var/cache/y"},
		{"of the same layer", []entry{file("etc/a", "new"), file("etc/.wh.a", "")}, "etc etc/a etc/b etc/d etc/d/x lib usr usr/lib usr/lib/z var var/cache var/cache/y"},
		{"of nothing", []entry{file("no/where/.wh.x", ""), file(".wh..wh.plnk", "")}, "etc etc/a etc/b etc/d etc/d/x lib usr usr/lib usr/lib/z var var/cache var/cache/y"},
		{"a directory in place of a file", []entry{dir("etc/a"), file("etc/a/in", "")}, "etc etc/a etc/a/in etc/b etc/d etc/d/x lib usr usr/lib usr/lib/z var var/cache var/cache/y"},
		{"a file in place of a directory", []entry{file("etc", "")}, "etc lib usr usr/lib usr/lib/z var var/cache var/cache/y"},
	} {
		t.Run(tc.name, func(t *testing.T) { layered(t, base, archive(t, tc.layer...)).expect("/", tc.want) })
	}
	i := layered(t, base, archive(t, link("etc/hard", "etc/b")), archive(t, file("etc/b", "new"), file("etc/.wh.a", "")))
	i.expectData("/etc/hard", "2")
	i.expectData("/etc/b", "new")
	i.stat("/etc/hard", "Links: 1")
	for _, name := range []string{"etc/.wh...", ".wh..", "etc/.wh.", "../.wh.x"} {
		b, err := New(context.Background(), filepath.Join(t.TempDir(), "rootfs"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Layer(bytes.NewReader(archive(t, file(name, "")))); !errors.Is(err, mvm.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		b.Discard()
	}
}

// What a layer replaces is free for the next.
func TestLayersReuseBlocks(t *testing.T) {
	data := string(pattern(8 << 20))
	var layers [][]byte
	for n := range 10 {
		layers = append(layers, archive(t, file("f", data+fmt.Sprint(n))))
	}
	i := layered(t, layers...)
	if st, err := os.Stat(i.path); err != nil || st.Size() > 60<<20 {
		t.Errorf("the file system has %v bytes, %v", st.Size(), err)
	}
	i.expectData("/f", data+"9")
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	dest := filepath.Join(t.TempDir(), "rootfs")
	r := io.MultiReader(bytes.NewReader(archive(t, file("a", "b"))[:1024]), readerFunc(func(p []byte) (int, error) {
		cancel()
		return len(p), nil
	}))
	if _, err := FromTar(ctx, r, dest, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(dest); err == nil {
		t.Error("a file is left")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestSquashfs(t *testing.T) {
	testenv.Require(t, "squashfs")
	file1 := filepath.Join(t.TempDir(), "x.squashfs")
	in := archive(t, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "bin/su", Mode: 0o4755, Uid: 5, Gid: 6}, data: "x"}, link("bin/su2", "bin/su"), symlink("s", "bin"),
		entry{Header: tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}})
	if _, err := (&run.Host{}).Run(context.Background(), run.Cmd{Name: "tar2sqfs", Args: []string{"--quiet", file1}, Stdin: bytes.NewReader(in)}); err != nil {
		t.Fatal(err)
	}
	dest := filepath.Join(t.TempDir(), "rootfs")
	if _, err := FromSquashfs(context.Background(), &run.Host{}, file1, dest, Options{}); err != nil {
		t.Fatal(err)
	}
	i := checked(t, dest)
	i.stat("/bin/su2", "Mode: 04755", "User: 5 Group: 6", "Links: 2")
	i.stat("/dev/null", "Type: character special")
	data, err := os.ReadFile(file1)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 50, 200} {
		if err := os.WriteFile(file1, data[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		dest := filepath.Join(t.TempDir(), "rootfs")
		if _, err := FromSquashfs(context.Background(), &run.Host{}, file1, dest, Options{}); !errors.Is(err, mvm.ErrInvalid) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
		if _, err := os.Lstat(dest); err == nil {
			t.Error("a file is left")
		}
	}
}

// FuzzLayers reads archives that are made up: they become a file system that e2fsck
// has nothing to say about, or nothing.
func FuzzLayers(f *testing.F) {
	f.Add(archive(f, dir("a"), file("a/b", "c"), link("d", "a/b"), symlink("e", "a"), file("e/.wh.b", "")))
	f.Add(archive(f, file("a/.wh..wh..opq", ""), symlink("a", "."), file("a/a/a/x", "y"), link("x", "a")))
	f.Add(archive(f, entry{Header: tar.Header{Name: "n", Typeflag: tar.TypeBlock, Devmajor: 300, Devminor: 1, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}}))
	f.Add([]byte("not an archive"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := New(context.Background(), filepath.Join(t.TempDir(), "rootfs"), Options{MaxBytes: 1 << 20, MaxEntries: 100})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Discard()
		path := b.f.Name()
		for range 2 {
			if b.Layer(bytes.NewReader(data)) != nil {
				return
			}
		}
		if _, err := b.Close(); err != nil {
			t.Fatal(err)
		}
		checked(t, path)
	})
}
