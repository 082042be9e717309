package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// TestProbeAgainstMkfs reads what the real programs write.
func TestProbeAgainstMkfs(t *testing.T) {
	const id = "11223344-5566-7788-99aa-bbccddeeff00"
	for name, c := range map[string]struct {
		tool []string
		want Info
	}{
		"ext2":       {[]string{"mke2fs", "-qF", "-t", "ext2", "-U", id, "-L", "one"}, Info{FS: "ext2", UUID: id, Label: "one", SizeBytes: 512 << 20}},
		"ext3":       {[]string{"mke2fs", "-qF", "-t", "ext3", "-U", id, "-b", "4096"}, Info{FS: "ext3", UUID: id, SizeBytes: 512 << 20}},
		"ext4":       {[]string{"mke2fs", "-qF", "-t", "ext4", "-U", id, "-L", "sixteen letters!", "-b", "1024"}, Info{FS: "ext4", UUID: id, Label: "sixteen letters!", SizeBytes: 512 << 20}},
		"ext4 32bit": {[]string{"mke2fs", "-qF", "-t", "ext4", "-U", id, "-O", "^64bit"}, Info{FS: "ext4", UUID: id, SizeBytes: 512 << 20}},
		"xfs":        {[]string{"mkfs.xfs", "-q", "-f", "-m", "uuid=" + id, "-L", "root"}, Info{FS: "xfs", UUID: id, Label: "root", SizeBytes: 512 << 20}},
		"btrfs":      {[]string{"mkfs.btrfs", "-q", "-f", "-U", id, "-L", "a b"}, Info{FS: "btrfs", UUID: id, Label: "a b", SizeBytes: 512 << 20}},
		"fat":        {[]string{"mkfs.vfat"}, Info{}},
		"mbr":        {[]string{"sfdisk", "-q"}, Info{Partitioned: true}},
		"gpt":        {[]string{"sfdisk", "-q", "-X", "gpt"}, Info{Partitioned: true}},
		"empty":      {nil, Info{}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			sparse(t, path, 512<<20)
			if len(c.tool) > 0 {
				_, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: c.tool[0], Args: append(c.tool[1:], path), Stdin: strings.NewReader("type=linux\n")})
				if errors.Is(err, mvm.ErrUnavailable) {
					t.Skip(err)
				} else if err != nil {
					t.Fatal(err)
				}
			}
			got, err := Probe(path)
			if d := cmp.Diff(c.want, got); err != nil || d != "" {
				t.Error(err, d)
			}
			if format, err := Format(path); err != nil || format != Raw {
				t.Errorf("format %q, %v", format, err)
			}
		})
	}
}

func TestProbeRefusesNonsense(t *testing.T) {
	le, be := binary.LittleEndian, binary.BigEndian
	for name, c := range map[string]struct {
		make func(b []byte)
		want Info
	}{
		"ext with blocks of 4 TiB": {func(b []byte) { le.PutUint16(b[1024+0x38:], 0xef53); le.PutUint32(b[1024+0x18:], 32) }, Info{}},
		"ext beyond all sizes": {func(b []byte) {
			le.PutUint16(b[1024+0x38:], 0xef53)
			le.PutUint32(b[1024+0x60:], 0x80)
			le.PutUint32(b[1024+0x150:], 1<<31)
		}, Info{}},
		"xfs with odd blocks": {func(b []byte) { copy(b, "XFSB"); be.PutUint32(b[4:], 4097) }, Info{}},
		"xfs overflow":        {func(b []byte) { copy(b, "XFSB"); be.PutUint32(b[4:], 4096); be.PutUint64(b[8:], 1<<60) }, Info{}},
		"boot sector only":    {func(b []byte) { b[510], b[511] = 0x55, 0xaa }, Info{}},
		"partition, odd flag": {func(b []byte) { b[510], b[511], b[446], b[450], b[458] = 0x55, 0xaa, 3, 0x83, 1 }, Info{}},
		"label with escapes": {func(b []byte) {
			le.PutUint16(b[1024+0x38:], 0xef53)
			copy(b[1024+0x78:], "a\x1b[2J\xff\u009b")
		}, Info{FS: "ext2", Label: "a?[2J??"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := make([]byte, 128<<10)
			c.make(b)
			got, err := probe(bytes.NewReader(b))
			if d := cmp.Diff(c.want, got); err != nil || d != "" {
				t.Error(err, d)
			}
		})
	}
}

func TestFormat(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for content, want := range map[string]string{"": Raw, "QFI\xfb": Raw, "QFI\xfb\x00\x00\x00\x03": Qcow2, "XFSB\x00\x00\x10\x00": Raw} {
		if got, err := Format(write("f", content)); err != nil || got != want {
			t.Errorf("%q: %q, %v", content, got, err)
		}
	}
	for content, want := range map[string]error{"QFI\xfb\x00\x00\x00\x03": mvm.ErrBroken, "QFI\xfb\x00\x00\x00\x09" + strings.Repeat("\x00", 80): mvm.ErrUnsupported, "QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\xff", 80): mvm.ErrBroken} {
		if _, _, err := Sizes(write("q", content)); !errors.Is(err, want) || mvm.HintOf(err) == "" {
			t.Errorf("%q: %v, want %v", content, err, want)
		}
	}
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte("XFSB\x00\x00\x10\x00"), uint32(0))
	f.Add([]byte{0x53, 0xef}, uint32(1024+0x38))
	f.Add([]byte("_BHRfS_M"), uint32(64<<10+0x40))
	f.Add([]byte{0x55, 0xaa}, uint32(510))
	f.Add([]byte("EFI PART"), uint32(512))
	f.Fuzz(func(t *testing.T, data []byte, off uint32) {
		b := make([]byte, int(off%(70<<10))+len(data))
		copy(b[off%(70<<10):], data)
		info, err := probe(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if info.SizeBytes < 0 || info.SizeBytes > 1<<60 || info.FS != "" && info.Partitioned {
			t.Errorf("%+v", info)
		}
		if strings.ContainsFunc(info.Label+info.UUID, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("control characters in %+v", info)
		}
	})
}

func FuzzQcowSize(f *testing.F) {
	head, _, _ := overlayHeader("./base", Raw, 1<<30)
	f.Add(head)
	f.Fuzz(func(t *testing.T, data []byte) {
		if size, err := qcowSize(bytes.NewReader(data)); err == nil && (size < 0 || size > 1<<62) {
			t.Errorf("size %d", size)
		}
	})
}
