package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/mvmctl/mvm"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

const (
	testVersion = "6.1.0-9-cloud-amd64"
	testBanner  = "Linux version " + testVersion + " (builder@example) #1 SMP\n"
)

// elfFile makes an ELF file with the segments text (PT_LOAD at 16 MiB) and note.
func elfFile(kind elf.Type, m elf.Machine, segment elf.ProgType, text, note []byte) []byte {
	const base = 1 << 24
	var b bytes.Buffer
	head := elf.Header64{Type: uint16(kind), Machine: uint16(m), Version: 1, Entry: base, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64}
	copy(head.Ident[:], "\x7fELF\x02\x01\x01")
	off := uint64(64 + 2*56)
	progs := []elf.Prog64{
		{Type: uint32(segment), Off: off, Vaddr: 0xffffffff81000000, Paddr: base, Filesz: uint64(len(text)), Memsz: uint64(len(text)) + 4096},
		{Type: uint32(elf.PT_NOTE), Off: off + uint64(len(text)), Filesz: uint64(len(note)), Memsz: uint64(len(note))},
	}
	for _, part := range []any{head, progs, text, note} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// pvhNote is XEN_ELFNOTE_PHYS32_ENTRY, after another note.
var pvhNote = []byte("\x04\x00\x00\x00\x02\x00\x00\x00\x06\x00\x00\x00Xen\x00ab\x00\x00" +
	"\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x00\x01")

func vmlinux(text string) []byte {
	return elfFile(elf.ET_EXEC, elf.EM_X86_64, elf.PT_LOAD, []byte(text), pvhNote)
}

// bzImage makes a bzImage with this payload, one setup sector after the first.
func bzImage(payload []byte) []byte {
	b := make([]byte, 2*512, 2*512+16+len(payload))
	b[0x1f1], b[0x1fe], b[0x1ff] = 1, 0x55, 0xaa
	copy(b[0x202:], "HdrS")
	le := binary.LittleEndian
	le.PutUint16(b[0x206:], 0x020f)
	le.PutUint16(b[0x20e:], 0x300-0x200)
	le.PutUint16(b[0x236:], 1)
	le.PutUint32(b[0x248:], 16)
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	copy(b[0x300:], testVersion+" (builder@example) #1\x00")
	return append(append(b, make([]byte, 16)...), payload...)
}

func arm64Image() []byte {
	b := make([]byte, 1<<20)
	copy(b[56:], "ARM\x64")
	copy(b[1000:], testBanner)
	return b
}

func ikconfig(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return "IKCFG_ST" + b.String() + "IKCFG_ED"
}

// pack compresses data as the kernel's build does: with the unpacked size
// behind it, except for gzip.
func pack(t testing.TB, how string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var err error
	switch how {
	case "gzip":
		w := gzip.NewWriter(&b)
		_, err = w.Write(data)
		err = errors.Join(err, w.Close())
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	case "xz":
		w, e := xz.NewWriter(&b)
		if e != nil {
			t.Fatal(e)
		}
		_, err = w.Write(data)
		err = errors.Join(err, w.Close())
	case "lzma":
		w, e := lzma.NewWriter(&b)
		if e != nil {
			t.Fatal(e)
		}
		_, err = w.Write(data)
		err = errors.Join(err, w.Close())
	case "zstd":
		w, e := zstd.NewWriter(&b)
		if e != nil {
			t.Fatal(e)
		}
		_, err = w.Write(data)
		err = errors.Join(err, w.Close())
	case "lz4":
		b.WriteString("\x02\x21\x4c\x18")
		for len(data) > 0 {
			chunk := data[:min(len(data), lz4Block)]
			out := make([]byte, lz4.CompressBlockBound(len(chunk)))
			n, e := lz4.CompressBlock(chunk, out, nil)
			if e != nil || n == 0 {
				t.Fatal(n, e)
			}
			_ = binary.Write(&b, binary.LittleEndian, uint32(n))
			b.Write(out[:n])
			data = data[len(chunk):]
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.AppendUint32(b.Bytes(), uint32(len(data)))
}

func write(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestInspect(t *testing.T) {
	for name, c := range map[string]struct {
		data []byte
		want Info
	}{
		"elf": {vmlinux("code Linux version %s (%s) " + testBanner), Info{Format: ELF, Arch: X86_64, Version: testVersion, PVH: true}},
		"elf without note": {elfFile(elf.ET_EXEC, elf.EM_X86_64, elf.PT_LOAD, []byte(testBanner), nil),
			Info{Format: ELF, Arch: X86_64, Version: testVersion}},
		"elf with configuration": {vmlinux(ikconfig("# comment\nCONFIG_PVM_GUEST=y\nCONFIG_HZ=250\n")),
			Info{Format: ELF, Arch: X86_64, PVH: true, Config: map[string]string{"CONFIG_PVM_GUEST": "y", "CONFIG_HZ": "250"}}},
		"bzImage": {bzImage([]byte("payload")), Info{Format: BzImage, Arch: X86_64, Version: testVersion}},
		"arm64":   {arm64Image(), Info{Format: Image, Arch: ARM64, Version: testVersion}},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.Bytes = int64(len(c.data))
			got, err := Inspect(write(t, c.data))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
			if got.PVMGuest() != (name == "elf with configuration") {
				t.Error("PVMGuest is", got.PVMGuest())
			}
		})
	}
}

func TestInspectRefuses(t *testing.T) {
	good, bz := vmlinux(testBanner), bzImage(make([]byte, 100))
	bz32, old := bytes.Clone(bz), bytes.Clone(bz)
	bz32[0x236], old[0x206] = 0, 0x06
	ext4 := make([]byte, 4096)
	ext4[0x438], ext4[0x439] = 0x53, 0xef
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":          {nil, "is empty"},
		"script":         {[]byte("#!/bin/sh\nexit 0\n"), "is a shell script"},
		"python":         {[]byte("#!/usr/bin/python3\n"), "is a script"},
		"text":           {[]byte("hello, world\n"), "is a text file"},
		"gzip":           {pack(t, "gzip", []byte("x")), "is gzip-compressed data"},
		"initramfs":      {[]byte("070701000000"), "is a cpio archive"},
		"qcow2":          {[]byte("QFI\xfb\x00\x00\x00\x03"), "is a qcow2 disk image"},
		"deb":            {[]byte("!<arch>\ndebian-binary"), "is a Debian package"},
		"ext4":           {ext4, "is an ext4 file system"},
		"zeros":          {make([]byte, 8192), "has no kernel's header"},
		"shared library": {elfFile(elf.ET_DYN, elf.EM_AARCH64, elf.PT_LOAD, nil, nil), "is an ELF shared library for aarch64"},
		"program":        {elfFile(elf.ET_DYN, elf.EM_X86_64, elf.PT_INTERP, []byte("ld.so\x00"), nil), "is an ELF program for x86_64"},
		"static program": {elfFile(elf.ET_EXEC, elf.EM_X86_64, elf.PT_LOAD, []byte("busybox"), nil), "is a static ELF program"},
		"module":         {elfFile(elf.ET_REL, elf.EM_X86_64, elf.PT_LOAD, nil, nil), "is an ELF object or kernel module"},
		"arm64 vmlinux":  {elfFile(elf.ET_EXEC, elf.EM_AARCH64, elf.PT_LOAD, []byte(testBanner), nil), "is an ELF image for aarch64"},
		"nothing loaded": {elfFile(elf.ET_EXEC, elf.EM_X86_64, elf.PT_NULL, []byte(testBanner), nil), "loads nothing"},
		"cut elf":        {good[:len(good)-40], "is a truncated ELF kernel"},
		"cut elf header": {good[:40], "is a truncated or damaged ELF file"},
		"cut bzImage":    {bz[:len(bz)-1], "is a truncated bzImage"},
		"32-bit":         {bz32, "is a bzImage for 32-bit x86"},
		"old protocol":   {old, "older than 3.8"},
		"cut Image":      {arm64Image()[:4096], "is a truncated arm64 Image"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Inspect(write(t, c.data))
			if !errors.Is(err, mvm.ErrInvalid) || !strings.Contains(err.Error(), c.want) || mvm.HintOf(err) == "" {
				t.Errorf("err = %v, want %q", err, c.want)
			}
			if _, err := Import(t.Context(), write(t, c.data), t.TempDir()); !errors.Is(err, mvm.ErrInvalid) {
				t.Errorf("Import: %v", err)
			}
		})
	}
	if _, err := Inspect(t.TempDir()); !errors.Is(err, mvm.ErrInvalid) {
		t.Errorf("a directory: %v", err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo") // nobody writes to it
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(fifo); !errors.Is(err, mvm.ErrInvalid) {
		t.Errorf("a FIFO: %v", err)
	}
	if _, err := Inspect(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, mvm.ErrNotFound) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestExtractVmlinux(t *testing.T) {
	var text strings.Builder // more than one lz4 block, and not too regular
	text.WriteString(testBanner)
	for random := rand.New(rand.NewPCG(1, 2)); text.Len() < lz4Block+1<<20; {
		fmt.Fprintf(&text, "%016x:%016x ", random.Uint64(), text.Len())
	}
	want := vmlinux(text.String())
	for _, how := range []string{"lz4", "gzip", "xz", "zstd", "lzma"} {
		t.Run(how, func(t *testing.T) {
			packed := bzImage(pack(t, how, want))
			var got bytes.Buffer
			if err := ExtractVmlinux(bytes.NewReader(packed), &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("got %d bytes, want %d", got.Len(), len(want))
			}
			damaged := bytes.Clone(packed)
			copy(damaged[len(damaged)-2000:], strings.Repeat("\xff", 1500))
			if err := ExtractVmlinux(bytes.NewReader(damaged), &got); err == nil && how != "lz4" { // lz4 has no checksum
				t.Error("damage was not seen")
			}
		})
	}
	for name, data := range map[string][]byte{
		"no bzImage": []byte("x"), "no ELF inside": bzImage(pack(t, "gzip", []byte("hello"))), "lzo": bzImage([]byte("\x89LZO\x00 and more")),
	} {
		err := ExtractVmlinux(bytes.NewReader(data), &bytes.Buffer{})
		if !errors.Is(err, mvm.ErrInvalid) && !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExtractRefusesBombs(t *testing.T) {
	err := ExtractVmlinux(bytes.NewReader(bzImage(pack(t, "gzip", make([]byte, 32<<20)))), &bytes.Buffer{})
	if !errors.Is(err, mvm.ErrInvalid) || !errors.Is(err, errTooLarge) {
		t.Errorf("err = %v", err)
	}
}

func TestDecompressIsBounded(t *testing.T) {
	bomb := make([]byte, 32<<20)
	for _, how := range []string{"lz4", "gzip", "xz", "zstd", "lzma"} {
		var out bytes.Buffer
		if err := decompress(&out, pack(t, how, bomb), 1<<20); !errors.Is(err, errTooLarge) {
			t.Errorf("%s: %v", how, err)
		}
		if out.Len() > 1<<20+1 {
			t.Errorf("%s wrote %d bytes", how, out.Len())
		}
	}
}

func TestImport(t *testing.T) {
	elfKernel := vmlinux(testBanner)
	for name, c := range map[string]struct {
		data    []byte
		file    string
		content []byte
		warning bool
	}{
		"elf":     {elfKernel, "vmlinux", elfKernel, false},
		"bzImage": {bzImage(pack(t, "zstd", elfKernel)), "vmlinux", elfKernel, false},
		"lzo":     {bzImage([]byte("\x89LZO\x00 and more")), "bzImage", bzImage([]byte("\x89LZO\x00 and more")), true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "new")
			im, err := Import(t.Context(), write(t, c.data), dir)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(dir, c.file))
			if err != nil || !bytes.Equal(got, c.content) || im.Path != filepath.Join(dir, c.file) {
				t.Errorf("%s: %d bytes, %v", im.Path, len(got), err)
			}
			if im.Info.Version != testVersion || (im.Warning != "") != c.warning {
				t.Errorf("%+v", im)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 1 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(vmlinux(testBanner))
	f.Add(vmlinux(ikconfig("CONFIG_X=y\n")))
	f.Add(bzImage([]byte("payload")))
	f.Add(arm64Image()[:128])
	f.Add([]byte("#!/bin/sh\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		info, what := inspect(data)
		if what == "" && (info.Format == "" || info.Arch == "") {
			t.Errorf("accepted as %+v", info)
		}
	})
}

func FuzzExtractVmlinux(f *testing.F) {
	for _, how := range []string{"lz4", "gzip", "xz", "zstd", "lzma"} {
		f.Add(bzImage(pack(f, how, vmlinux(testBanner))))
	}
	f.Add(bzImage(vmlinux("plain")))
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		if err := ExtractVmlinux(bytes.NewReader(data), &out); err == nil && !bytes.HasPrefix(out.Bytes(), []byte("\x7fELF")) {
			t.Error("made something that is no ELF file")
		}
	})
}
