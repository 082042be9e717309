package vmmtest

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// GuestHello is what TinyGuest prints on its console.
const GuestHello = "hello from the tiny guest\n"

// TinyGuest writes a kernel of some hundred bytes: an ELF with a PVH entry (the
// Xen documentation's pvh.pandoc; both QEMU and Firecracker take it). It prints
// GuestHello on the first serial port, and then waits for ever, or powers q35's
// PM1a off when powerOff is set.
func TinyGuest(t testing.TB, powerOff bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.elf")
	if err := os.WriteFile(path, tinyELF(powerOff), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Where the guest is loaded: at 1 MiB, code first, then the text.
const (
	loadAt = 0x100000
	ehSize = 64 // ELF64 header
	phSize = 56 // ELF64 program header
)

// code is entered in 32-bit protected mode with flat segments.
func code(powerOff bool) []byte {
	c := []byte{
		0xfa,             // cli
		0xbe, 0, 0, 0, 0, // mov esi, text
		0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
		// next:
		0xac,       // lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x03, // jz done
		0xee,       // out dx, al
		0xeb, 0xf8, // jmp next
		// done:
	}
	if powerOff {
		// A q35's firmware gives PM1a its address. Without one, it is set here:
		// LPC bridge 00:1f.0, PMBASE (0x40) = 0x600, ACPI_CNTL (0x44) = enabled
		// (ICH9 datasheet, 13.1.15 and 13.1.16). Then PM1_CNT = SLP_EN and type S5,
		// which is 0 on QEMU.
		c = append(c, outl(0xcf8, 0x8000f840)...)
		c = append(c, outl(0xcfc, 0x601)...)
		c = append(c, outl(0xcf8, 0x8000f844)...)
		c = append(c, outl(0xcfc, 0x80)...)
		c = append(c, 0xba, 0x04, 0x06, 0, 0, 0xb8, 0x00, 0x20, 0, 0, 0x66, 0xef) // out 0x604, ax
	}
	c = append(c, 0xf4, 0xeb, 0xfd) // hlt; jmp back
	binary.LittleEndian.PutUint32(c[2:], uint32(loadAt+len(c)))
	return c
}

// outl is "mov edx, port; mov eax, value; out dx, eax".
func outl(port, value uint32) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{0xba}, port)
	b = binary.LittleEndian.AppendUint32(append(b, 0xb8), value)
	return append(b, 0xef)
}

// tinyELF wraps the code in an ELF64 for x86-64, whose note tells the PVH entry
// (XEN_ELFNOTE_PHYS32_ENTRY, 18).
func tinyELF(powerOff bool) []byte {
	text := append(code(powerOff), GuestHello...)
	text = append(text, 0)
	le := binary.LittleEndian
	note := le.AppendUint32(nil, 4)
	note = le.AppendUint32(note, 8)
	note = le.AppendUint32(note, 18)
	note = append(note, "Xen\x00"...)
	note = le.AppendUint64(note, loadAt)

	noteAt := uint64(ehSize + 2*phSize)
	textAt := noteAt + uint64(len(note))
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(b, 2)      // ET_EXEC
	b = le.AppendUint16(b, 62)     // EM_X86_64
	b = le.AppendUint32(b, 1)      // version
	b = le.AppendUint64(b, loadAt) // entry
	b = le.AppendUint64(b, ehSize) // program headers
	b = le.AppendUint64(b, 0)      // no section headers
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{ehSize, phSize, 2, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	segment := func(kind, flags uint32, at, addr, size uint64) {
		b = le.AppendUint32(b, kind)
		b = le.AppendUint32(b, flags)
		for _, v := range []uint64{at, addr, addr, size, size, 4} {
			b = le.AppendUint64(b, v)
		}
	}
	segment(1, 7, textAt, loadAt, uint64(len(text)))        // PT_LOAD
	segment(4, 4, noteAt, loadAt-0x1000, uint64(len(note))) // PT_NOTE
	return append(append(b, note...), text...)
}
