package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/mvmctl/mvm"
)

// Inspect finds out what kernel a file holds. A file that is no bootable kernel
// is refused with mvm.ErrInvalid and told by what it is.
func Inspect(path string) (Info, error) {
	data, err := readFile(path)
	if err != nil {
		return Info{}, err
	}
	info, what := inspect(data)
	if what != "" {
		return Info{}, notKernel(path, what)
	}
	return info, nil
}

// readFile reads a file of a kernel's size.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not hold us up
	if err != nil {
		return nil, mvm.Errorf(kindOfOpen(err), "cannot read the kernel: %w", err).WithHint("check the path")
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot read the kernel: %w", err).WithHint("check the file")
	case st.IsDir():
		return nil, notKernel(path, "is a directory")
	case !st.Mode().IsRegular():
		return nil, notKernel(path, "is no regular file")
	case st.Size() > maxKernel:
		return nil, notKernel(path, "is larger than 1 GiB")
	}
	data := make([]byte, st.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot read the kernel %s: %w", path, err).WithHint("check the file")
	}
	return data, nil
}

func kindOfOpen(err error) mvm.Kind {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return mvm.ErrNotFound
	case errors.Is(err, os.ErrPermission):
		return mvm.ErrPrivilege
	}
	return mvm.ErrUnavailable
}

// inspect returns what kernel data is, or in words what else it is.
func inspect(data []byte) (info Info, what string) {
	info.Bytes = int64(len(data))
	switch {
	case len(data) == 0:
		return info, "is empty"
	case bytes.HasPrefix(data, []byte("\x7fELF")):
		what = info.elf(data)
	case len(data) >= 64 && string(data[56:60]) == "ARM\x64":
		what = info.arm64(data)
	default:
		s, ok := parseSetup(data)
		if !ok {
			return info, describe(data)
		}
		what = info.bzImage(data, s)
	}
	return info, what
}

// bzImage fills in what a bzImage's header says.
func (info *Info) bzImage(data []byte, s setup) (what string) {
	info.Format, info.Arch = BzImage, X86_64
	switch {
	case s.protocol < 0x020c:
		return "is a bzImage of a kernel older than 3.8"
	case !s.is64:
		return "is a bzImage for 32-bit x86"
	case s.payloadLen == 0 || s.payload+s.payloadLen > int64(len(data)):
		return "is a truncated bzImage"
	}
	if at := int(s.version) + 0x200; s.version != 0 && at < len(data) {
		text := data[at:min(at+256, len(data))]
		text, _, _ = bytes.Cut(text, []byte{0})
		version, _, _ := strings.Cut(string(text), " ")
		if versionPattern.MatchString(version) {
			info.Version = version
		}
	}
	return ""
}

// arm64 fills in what an arm64 Image says (Documentation/arch/arm64/booting.rst).
func (info *Info) arm64(data []byte) (what string) {
	info.Format, info.Arch = Image, ARM64
	if binary.LittleEndian.Uint64(data[24:])&1 != 0 {
		return "is a big-endian arm64 Image"
	}
	if len(data) < 1<<20 {
		return "is a truncated arm64 Image"
	}
	info.Version, info.Config = banner(data), config(data)
	return ""
}

// elf fills in what an ELF kernel says.
func (info *Info) elf(data []byte) (what string) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return "is a truncated or damaged ELF file"
	}
	machine := machineName(f.Machine)
	switch {
	case f.Type == elf.ET_REL:
		return "is an ELF object or kernel module for " + machine
	case f.Type == elf.ET_CORE:
		return "is a core dump"
	case f.Type == elf.ET_DYN && !hasSegment(f, elf.PT_INTERP):
		return "is an ELF shared library for " + machine
	case f.Type != elf.ET_EXEC || hasSegment(f, elf.PT_INTERP):
		return "is an ELF program for " + machine
	case f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB || f.Machine != elf.EM_X86_64:
		return "is an ELF image for " + machine + ", where an x86_64 kernel is expected"
	}
	entry, loads := false, 0
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD && p.Type != elf.PT_NOTE {
			continue
		}
		if p.Off > uint64(len(data)) || p.Filesz > uint64(len(data))-p.Off {
			return "is a truncated ELF kernel"
		}
		if p.Type == elf.PT_LOAD {
			loads++
			entry = entry || f.Entry-p.Paddr < p.Memsz || f.Entry-p.Vaddr < p.Memsz
		}
	}
	if loads == 0 || !entry {
		return "is an ELF file that loads nothing at its entry point"
	}
	info.Format, info.Arch = ELF, X86_64
	info.PVH = hasPVH(f, data)
	info.Version, info.Config = banner(data), config(data)
	if info.Version == "" && !info.PVH {
		return "is a static ELF program for " + machine
	}
	return ""
}

func machineName(m elf.Machine) string {
	switch m {
	case elf.EM_X86_64:
		return "x86_64"
	case elf.EM_AARCH64:
		return "aarch64"
	case elf.EM_386:
		return "i386"
	}
	return strings.ToLower(strings.TrimPrefix(m.String(), "EM_"))
}

func hasSegment(f *elf.File, t elf.ProgType) bool {
	for _, p := range f.Progs {
		if p.Type == t {
			return true
		}
	}
	return false
}

// hasPVH looks for the note that holds the 32-bit entry point
// (xen/include/public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY is 18).
func hasPVH(f *elf.File, data []byte) bool {
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes := data[p.Off : p.Off+p.Filesz] // bounds were checked
		for len(notes) >= 12 {
			le := binary.LittleEndian
			name, desc, kind := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
			total := 12 + (name+3)&^3 + (desc+3)&^3
			if total > uint64(len(notes)) {
				break
			}
			if kind == 18 && name == 4 && string(notes[12:16]) == "Xen\x00" {
				return true
			}
			notes = notes[total:]
		}
	}
	return false
}

var (
	versionPattern = regexp.MustCompile(`^[0-9]+\.[0-9]+[A-Za-z0-9.+~_-]*$`)
	bannerStart    = []byte("Linux version ")
)

// banner returns the version in the line that the kernel greets with
// (init/version.c), or "".
func banner(data []byte) string {
	for {
		i := bytes.Index(data, bannerStart)
		if i < 0 {
			return ""
		}
		data = data[i+len(bannerStart):]
		version, _, ok := bytes.Cut(data[:min(128, len(data))], []byte(" ("))
		if ok && versionPattern.Match(version) {
			return string(version)
		}
	}
}

// config returns the configuration that kernels with CONFIG_IKCONFIG hold
// (kernel/configs.c), or nil.
func config(data []byte) map[string]string {
	_, rest, ok := bytes.Cut(data, []byte("IKCFG_ST\x1f\x8b"))
	if !ok {
		return nil
	}
	gz, err := gzip.NewReader(io.MultiReader(strings.NewReader("\x1f\x8b"), bytes.NewReader(rest)))
	if err != nil {
		return nil
	}
	gz.Multistream(false)
	text, err := io.ReadAll(io.LimitReader(gz, 4<<20))
	if err != nil {
		return nil
	}
	return parseConfig(string(text))
}

// parseConfig reads the lines CONFIG_X=value.
func parseConfig(text string) map[string]string {
	c := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.HasPrefix(name, "CONFIG_") {
			c[name] = value
		}
	}
	return c
}

// otherFiles are what users take for a kernel, by their first bytes.
var otherFiles = []struct {
	off         int
	magic, what string
}{
	{0, "070701", "is a cpio archive (an initramfs?)"},
	{0, "070702", "is a cpio archive (an initramfs?)"},
	{0, "QFI\xfb", "is a qcow2 disk image"},
	{0, "!<arch>\n", "is a Debian package or static library"},
	{0, "PK\x03\x04", "is a zip archive"},
	{0, "hsqs", "is a squashfs file system"},
	{0, "\x27\x05\x19\x56", "is a U-Boot image"},
	{257, "ustar", "is a tar archive"},
	{0x438, "\x53\xef", "is an ext4 file system"},
	{0x8001, "CD001", "is an ISO image"},
	{510, "\x55\xaa", "is a disk image or boot sector"},
	{0, "MZ", "is an EFI program"},
}

// describe says what data is that is no kernel.
func describe(data []byte) string {
	if bytes.HasPrefix(data, []byte("#!")) {
		line, _, _ := bytes.Cut(data[2:min(len(data), 100)], []byte("\n"))
		if bytes.Contains(line, []byte("sh")) {
			return "is a shell script"
		}
		return "is a script"
	}
	for _, o := range otherFiles {
		if len(data) >= o.off && bytes.HasPrefix(data[o.off:], []byte(o.magic)) {
			return o.what
		}
	}
	if c := compression(data); c != "" {
		return fmt.Sprintf("is %s-compressed data", c)
	}
	if head := data[:min(len(data), 512)]; utf8.Valid(head) && !bytes.ContainsRune(head, 0) {
		return "is a text file"
	}
	return "has no kernel's header"
}
