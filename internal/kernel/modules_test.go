package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mvmctl/mvm"
)

// module makes a .ko file with this .modinfo.
func module(fields ...string) []byte {
	info := []byte(strings.Join(fields, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	head := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2,
		Shoff: uint64(64 + len(info) + len(names))}
	copy(head.Ident[:], "\x7fELF\x02\x01\x01")
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: 64, Size: uint64(len(info))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(64 + len(info)), Size: uint64(len(names))},
	}
	var b bytes.Buffer
	for _, part := range []any{head, info, names, sections} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func TestParseModule(t *testing.T) {
	got, err := ParseModule(module("name=virtio_net", "depends=net_failover,virtio-ring,", "alias=virtio:d00000001v*",
		"softdep=pre: crc32c sha256 post: other", "vermagic=6.1", "noequals"))
	if err != nil {
		t.Fatal(err)
	}
	want := Module{Name: "virtio_net", Depends: []string{"net_failover", "virtio_ring"}, Soft: []string{"crc32c", "sha256"},
		Aliases: []string{"virtio:d00000001v*"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range [][]byte{nil, []byte("text"), vmlinux(testBanner)} {
		if _, err := ParseModule(bad); !errors.Is(err, mvm.ErrInvalid) {
			t.Errorf("ParseModule(%d bytes) = %v", len(bad), err)
		}
	}
}

func TestLoadOrder(t *testing.T) {
	mods := map[string]Module{}
	for _, m := range []Module{
		{Name: "a", Depends: []string{"b", "c"}}, {Name: "b", Depends: []string{"c"}}, {Name: "c"},
		{Name: "wishes", Soft: []string{"alg", "fast", "none", "circle"}},
		{Name: "alg_generic", Aliases: []string{"crypto-alg"}, Depends: []string{"c"}},
		{Name: "fast_x86", Path: "kernel/arch/x86/crypto/fast.ko", Aliases: []string{"crypto-fast"}},
		{Name: "circle", Soft: []string{"wishes"}},
		{Name: "broken", Depends: []string{"missing"}},
		{Name: "loop1", Depends: []string{"loop2"}}, {Name: "loop2", Depends: []string{"loop1"}},
	} {
		mods[m.Name] = m
	}
	for _, c := range []struct {
		want, order string
		err         string
	}{
		{"a", "c b a", ""},
		{"c a b a", "c b a", ""},
		{"builtin a", "c b a", ""},
		{"wishes", "c alg_generic circle wishes", ""},
		{"circle", "c alg_generic wishes circle", ""},
		{"", "", ""},
		{"broken", "", "needs missing"},
		{"loop1", "", "need each other"},
	} {
		order, err := LoadOrder(mods, strings.Fields(c.want))
		var names []string
		for _, m := range order {
			names = append(names, m.Name)
		}
		if got := strings.Join(names, " "); got != c.order {
			t.Errorf("LoadOrder(%s) = %s, want %s", c.want, got, c.order)
		}
		if c.err == "" && err != nil || c.err != "" && (!errors.Is(err, mvm.ErrBroken) || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("LoadOrder(%s): %v, want %q", c.want, err, c.err)
		}
	}
}

func TestChooseModules(t *testing.T) {
	dir := t.TempDir()
	add := func(path string, data []byte) {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	blk := module("name=virtio_blk", "depends=virtio")
	packed := pack(t, "xz", blk)
	add("kernel/drivers/block/virtio_blk.ko.xz", packed[:len(packed)-4])
	add("kernel/drivers/virtio/virtio.ko.gz", pack(t, "gzip", module("name=virtio")))
	add("kernel/drivers/virtio/virtio_pci.ko", module("name=virtio_pci", "depends=virtio"))
	add("kernel/fs/xfs/xfs.ko", module("name=xfs"))
	add("kernel/sound/snd.ko", module("name=snd"))
	if err := chooseModules(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "kernel/drivers/block/virtio_blk.ko")); err != nil || !bytes.Equal(got, blk) {
		t.Errorf("virtio_blk.ko: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "kernel/sound")); err == nil {
		t.Error("modules of no use were kept")
	}
	for fsType, want := range map[string]string{"ext4": "virtio virtio_pci virtio_blk", "xfs": "virtio virtio_pci virtio_blk xfs",
		"": "virtio virtio_pci virtio_blk xfs"} {
		paths, err := BootModules(dir, fsType)
		var names []string
		for _, p := range paths {
			names = append(names, ModuleName(p))
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("BootModules(%q) = %s, %v; want %s", fsType, got, err, want)
		}
	}

	// Without a disk driver a kernel is of no use, unless it is built in.
	if err := os.Remove(filepath.Join(dir, "kernel/drivers/block/virtio_blk.ko")); err != nil {
		t.Fatal(err)
	}
	if err := chooseModules(t.Context(), dir); !errors.Is(err, mvm.ErrBroken) {
		t.Errorf("no virtio_blk: %v", err)
	}
	add("modules.builtin", []byte("kernel/drivers/block/virtio_blk.ko\n"))
	if err := chooseModules(t.Context(), dir); err != nil {
		t.Errorf("built in: %v", err)
	}
	if paths, err := BootModules("", "ext4"); paths != nil || err != nil {
		t.Errorf("no modules: %v %v", paths, err)
	}
	if _, err := BootModules(filepath.Join(dir, "missing"), "ext4"); !errors.Is(err, mvm.ErrBroken) {
		t.Errorf("missing directory: %v", err)
	}
}

func FuzzParseModule(f *testing.F) {
	f.Add(module("name=a", "depends=b,c", "softdep=pre: d"))
	f.Add(vmlinux(testBanner))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseModule(data)
		if err == nil && strings.Contains(m.Name, "-") {
			t.Errorf("%q", m.Name)
		}
	})
}
