package format

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

func detectFile(t *testing.T, path string) (Kind, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	k, err := Detect(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	virtual, err := CheckDisk(f, st.Size(), k.Format, 1<<40)
	if err != nil {
		t.Fatalf("%v: %v", k, err)
	}
	return k, virtual
}

func TestKnowsWhatQemuImgMakes(t *testing.T) {
	testenv.Require(t, "qemu-img")
	const size = 64 << 20
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"qcow2":           {[]string{"-f", "qcow2"}, Qcow2},
		"qcow2 version 2": {[]string{"-f", "qcow2", "-o", "compat=0.10"}, Qcow2},
		"dynamic vhd":     {[]string{"-f", "vpc", "-o", "force_size=on"}, VHD},
		"fixed vhd":       {[]string{"-f", "vpc", "-o", "subformat=fixed,force_size=on"}, VHD},
		"vmdk":            {[]string{"-f", "vmdk"}, VMDK},
		"streamed vmdk":   {[]string{"-f", "vmdk", "-o", "subformat=streamOptimized"}, VMDK},
		"raw":             {[]string{"-f", "raw"}, Raw},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if _, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: "qemu-img", Args: append(append([]string{"create", "-q"}, c.args...), path, fmt.Sprint(size))}); err != nil {
				t.Fatal(err)
			}
			if k, virtual := detectFile(t, path); k != (Kind{Format: c.want}) || virtual != size {
				t.Errorf("%v of %d bytes", k, virtual)
			}
		})
	}
}

func TestRefusesDisksOnOtherFiles(t *testing.T) {
	testenv.Require(t, "qemu-img")
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"qcow2 on a base":        {[]string{"-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/passwd"}, "based on another file"},
		"qcow2 with a data file": {[]string{"-f", "qcow2", "-o", "data_file=DIR/data,data_file_raw=on"}, "keeps its data in another file"},
		"vmdk on a base":         {[]string{"-f", "vmdk", "-u", "-F", "vmdk", "-b", "DIR/base"}, "based on another file"},
		"vmdk of flat files":     {[]string{"-f", "vmdk", "-o", "subformat=monolithicFlat"}, "data is in other files"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "disk")
			var args []string
			for _, a := range c.args {
				args = append(args, strings.ReplaceAll(a, "DIR", dir))
			}
			host := &run.Host{}
			if strings.HasPrefix(name, "vmdk on") {
				if _, err := host.Run(t.Context(), run.Cmd{Name: "qemu-img", Args: []string{"create", "-q", "-f", "vmdk", dir + "/base", "64M"}}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := host.Run(t.Context(), run.Cmd{Name: "qemu-img", Args: append(append([]string{"create", "-q"}, args...), path, "64M")}); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = check(b)
			if !errors.Is(err, mvm.ErrInvalid) || !strings.Contains(err.Error(), c.says) || mvm.HintOf(err) == "" {
				t.Errorf("%v", err)
			}
		})
	}
}

// check is what import does before a tool sees a file.
func check(b []byte) (Kind, error) {
	r := bytes.NewReader(b)
	k, err := Detect(r, int64(len(b)))
	if err == nil && k.Compression == "" {
		_, err = CheckDisk(r, int64(len(b)), k.Format, 1<<40)
	}
	return k, err
}

// vmdk is a hosted sparse extent with the given descriptor.
func vmdk(capacity uint64, descriptor string) []byte {
	b := make([]byte, 22*512)
	copy(b, "KDMV")
	binary.LittleEndian.PutUint64(b[12:], capacity)
	binary.LittleEndian.PutUint64(b[28:], 1)
	binary.LittleEndian.PutUint64(b[36:], 20)
	copy(b[512:], descriptor)
	return b
}

// qcow is a header of version 3.
func qcow(change func([]byte)) []byte {
	b := make([]byte, 512)
	copy(b, "QFI\xfb")
	binary.BigEndian.PutUint32(b[4:], 3)
	binary.BigEndian.PutUint32(b[20:], 16)
	binary.BigEndian.PutUint64(b[24:], 1<<30)
	binary.BigEndian.PutUint32(b[36:], 2)
	binary.BigEndian.PutUint64(b[40:], 256)
	change(b)
	return b
}

// vhd is the footer of a disk of the given type.
func vhd(typ uint32) []byte {
	b := make([]byte, 512)
	copy(b, "conectix")
	binary.BigEndian.PutUint64(b[48:], 1<<30)
	binary.BigEndian.PutUint32(b[60:], typ)
	binary.BigEndian.PutUint32(b[64:], vhdSum(b))
	return b
}

var hostile = map[string]struct {
	file []byte
	kind error
	says string
}{
	"empty":                   {nil, mvm.ErrInvalid, "empty"},
	"qcow2 cut":               {[]byte("QFI\xfb\x00\x00\x00\x03"), mvm.ErrBroken, "cut short"},
	"qcow2 cut after 72":      {qcow(func([]byte) {})[:90], mvm.ErrBroken, "cut short"},
	"qcow2 without a table":   {qcow(func(b []byte) { b[46] = 9 }), mvm.ErrBroken, "cut short"},
	"qcow2 table cut":         {qcow(func(b []byte) { b[260] = 1 }), mvm.ErrBroken, "cut short"},
	"qcow2 of odd clusters":   {qcow(func(b []byte) { b[23] = 60 }), mvm.ErrBroken, "no sense"},
	"qcow2 of 8 EiB":          {qcow(func(b []byte) { b[24] = 0xff }), mvm.ErrBroken, "its header says"},
	"qcow2 of 2 TiB":          {qcow(func(b []byte) { binary.BigEndian.PutUint64(b[24:], 2<<40) }), mvm.ErrInvalid, "more than the 1024 GiB"},
	"qcow2 of nothing":        {qcow(func(b []byte) { clear(b[24:32]) }), mvm.ErrBroken, "0 bytes"},
	"qcow2 encrypted":         {qcow(func(b []byte) { b[35] = 2 }), mvm.ErrUnsupported, "encrypted"},
	"qcow2 version 9":         {qcow(func(b []byte) { b[7] = 9 }), mvm.ErrUnsupported, "version 9"},
	"qcow2 with a base":       {qcow(func(b []byte) { b[15], b[19] = 104, 11; copy(b[104:], "/etc/passwd") }), mvm.ErrInvalid, "based on another"},
	"qcow2 with data":         {qcow(func(b []byte) { b[79] = 4 }), mvm.ErrInvalid, "data in another"},
	"vmdk without size":       {vmdk(0, `createType="monolithicFlat"`+"\nRW 1 FLAT \"/etc/shadow\" 0\n"), mvm.ErrInvalid, "in other files"},
	"vmdk of a foreign type":  {vmdk(9, "CID=1\ncreateType = \"vmfsSparse\"\n"), mvm.ErrInvalid, "in other files"},
	"vmdk of several extents": {vmdk(9, "createType=\"monolithicSparse\"\nRW 1 SPARSE \"a\"\nRW 1 SPARSE \"b\"\n"), mvm.ErrInvalid, "several files"},
	"vmdk with a parent":      {vmdk(9, "parentCID=ffffffff\nparentFileNameHint=\"/etc/passwd\"\n"), mvm.ErrInvalid, "based on another"},
	"vmdk with a parent's id": {vmdk(9, "ParentCID = 12345678\n"), mvm.ErrInvalid, "based on another"},
	"vmdk cut":                {vmdk(9, "")[:600], mvm.ErrBroken, "descriptor"},
	"vmdk descriptor":         {[]byte("# Disk DescriptorFile\nversion=1\n"), mvm.ErrInvalid, "other files"},
	"vhd differencing":        {vhd(4), mvm.ErrInvalid, "differencing"},
	"vhd fixed without end":   {append(vhd(2), make([]byte, 4096)...), mvm.ErrBroken, "cut short"},
	"vhdx":                    {[]byte("vhdxfile"), mvm.ErrUnsupported, "not taken"},
	"zip":                     {[]byte("PK\x03\x04abcdef"), mvm.ErrUnsupported, "archive"},
	"lz4":                     {[]byte("\x04\x22\x4d\x18abcdef"), mvm.ErrUnsupported, "compressed in a way"},
	"gz of nothing":           {squeeze("gz", nil), mvm.ErrInvalid, "nothing in it"},
	"gz of gz":                {squeeze("gz", squeeze("gz", []byte("x"))), mvm.ErrInvalid, "twice"},
	"gz cut":                  {squeeze("gz", bytes.Repeat([]byte("abc"), 99))[:15], mvm.ErrBroken, "cut short"},
	"xz damaged":              {append(squeeze("xz", []byte("abc"))[:12], "garbage garbage"...), mvm.ErrBroken, "cut short"},
	"zst damaged":             {[]byte("\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), nil, ""},
}

// squeeze compresses data; there is no encoder for bzip2 at hand.
func squeeze(compression string, data []byte) []byte {
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch compression {
	case "gz":
		w = gzip.NewWriter(&out)
	case "xz":
		w, err = xz.NewWriter(&out)
	case "zst":
		w, err = zstd.NewWriter(&out)
	}
	if err != nil {
		panic(err)
	}
	if _, err := w.Write(data); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func TestRefuses(t *testing.T) {
	for name, c := range hostile {
		t.Run(name, func(t *testing.T) {
			k, err := check(c.file)
			if err == nil || c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || mvm.HintOf(err) == "" {
				t.Errorf("%v: %v (hint %q)", k, err, mvm.HintOf(err))
			}
		})
	}
}

func TestLooksIntoCompressedFiles(t *testing.T) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755}), w.Close()); err != nil {
		t.Fatal(err)
	}
	skippable := append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"), squeeze("zst", archive.Bytes())...)
	if got, err := check(qcow(func([]byte) {})); err != nil || got.Format != Qcow2 {
		t.Error(got, err)
	}
	for name, c := range map[string]struct {
		file []byte
		want Kind
	}{
		"tar":            {archive.Bytes(), Kind{Tar, ""}},
		"tar.gz":         {squeeze("gz", archive.Bytes()), Kind{Tar, "gz"}},
		"tar.xz":         {squeeze("xz", archive.Bytes()), Kind{Tar, "xz"}},
		"tar.zst":        {squeeze("zst", archive.Bytes()), Kind{Tar, "zst"}},
		"tar.zst, pzstd": {skippable, Kind{Tar, "zst"}},
		"qcow2.gz":       {squeeze("gz", qcow(func([]byte) {})), Kind{Qcow2, "gz"}},
		"squashfs":       {[]byte("hsqs" + strings.Repeat("\x00", 99)), Kind{Squashfs, ""}},
		"raw.xz":         {squeeze("xz", make([]byte, 4096)), Kind{Raw, "xz"}},
		"short raw.zst":  {squeeze("zst", []byte("x")), Kind{Raw, "zst"}},
	} {
		if got, err := Detect(bytes.NewReader(c.file), int64(len(c.file))); got != c.want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestStreamHasALimit(t *testing.T) {
	bomb := squeeze("zst", make([]byte, 3<<20))
	for limit, ok := range map[int64]bool{3 << 20: true, 3<<20 - 1: false, 1: false} {
		s, err := Open(t.Context(), bytes.NewReader(bomb), "zst", limit)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, s)
		if ok != (err == nil) || n > limit || !ok && (!errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "") {
			t.Errorf("limit %d: %d bytes, %v", limit, n, err)
		}
		_ = s.Close()
	}
}

// Wherever a stream is cut, that is an error and never a shorter image.
func TestStreamCutAnywhere(t *testing.T) {
	content := []byte(strings.Repeat("some text that repeats, ", 400) + fmt.Sprint(hostile))
	for _, compression := range []string{"gz", "xz", "zst"} {
		whole := squeeze(compression, content)
		for cut := 1; cut < len(whole); cut += 1 + cut%7 {
			s, err := Open(t.Context(), bytes.NewReader(whole[:cut]), compression, 1<<30)
			if err == nil {
				_, err = io.Copy(io.Discard, s)
				_ = s.Close()
			}
			if err == nil || mvm.HintOf(err) == "" {
				t.Errorf("%s cut at %d of %d: %v", compression, cut, len(whole), err)
			}
		}
	}
}

// A frame may ask for gigabytes of memory in a few bytes.
func TestStreamBoundsMemory(t *testing.T) {
	// RFC 8878, 3.1.1.1: magic, no single segment, window of 2 GiB, one raw block.
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 0x09, 0x00, 0x00, 'x'}
	var large bytes.Buffer // xz with a dictionary of 128 MiB
	w, err := xz.WriterConfig{DictCap: 128 << 20}.NewWriter(&large)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"zst": frame, "xz": large.Bytes()} {
		_, err := Detect(bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, mvm.ErrInvalid) || !strings.Contains(err.Error(), "memory") {
			t.Error(name, err)
		}
	}
}

func FuzzDetect(f *testing.F) {
	for _, c := range hostile {
		f.Add(c.file)
	}
	f.Add(vhd(3))
	f.Add(vmdk(1<<20, "CID=1\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\nRW 9 SPARSE \"x\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		k, err := Detect(r, int64(len(b)))
		if err != nil || k.Compression != "" {
			return
		}
		virtual, err := CheckDisk(r, int64(len(b)), k.Format, 1<<40)
		if err != nil {
			return
		}
		if k.Format != Tar && k.Format != Squashfs && (virtual <= 0 || virtual > 1<<40) {
			t.Errorf("%v of %d bytes", k, virtual)
		}
	})
}

func FuzzDescriptor(f *testing.F) {
	f.Add("createType=\"monolithicSparse\"\nRW 1 SPARSE \"a\"\n")
	f.Add("parentFileNameHint = \"x\"")
	f.Fuzz(func(t *testing.T, text string) {
		if checkDescriptor(text) != nil {
			return
		}
		before, _, _ := strings.Cut(text, "\x00")
		for line := range strings.Lines(before) {
			if strings.HasPrefix(strings.ToLower(strings.TrimSpace(line)), "parentfilenamehint=") {
				t.Errorf("took %q", text)
			}
		}
	})
}
