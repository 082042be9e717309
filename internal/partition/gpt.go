package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// The GUID partition table, as in the UEFI specification 2.10, 5.3. All numbers
// are little-endian.
const (
	gptSignature   = "EFI PART"
	gptHeaderBytes = 92
	gptEntryBytes  = 128
	gptMostEntries = 1024 // tools make 128
	gptMostBytes   = 4096 // of an entry
)

// readGPT reads the table in front, or else the one at the end. Disks have
// sectors of 512 or, rarely, 4096 bytes. expected says that the boot sector
// promises a table: then none to be found is damage.
func readGPT(r io.ReaderAt, size int64, expected bool) (Table, error) {
	var damage error
	for _, sector := range []int64{512, 4096} {
		for _, lba := range []int64{1, size/sector - 1} {
			t, err := gptAt(r, lba, sector)
			if err == nil {
				return t, nil
			}
			if !errors.Is(err, ErrNone) && damage == nil {
				damage = err
			}
		}
	}
	switch {
	case damage != nil:
		return Table{}, damage
	case expected:
		return Table{}, broken("the disk says that it has a GPT, and there is none")
	}
	return Table{}, ErrNone
}

// gptAt reads the table whose header is in one sector.
func gptAt(r io.ReaderAt, lba, sector int64) (Table, error) {
	if lba < 1 {
		return Table{}, ErrNone
	}
	head := make([]byte, sector)
	if n, err := r.ReadAt(head, lba*sector); n < len(head) {
		if err == nil || errors.Is(err, io.EOF) {
			return Table{}, ErrNone
		}
		return Table{}, err
	}
	if string(head[:8]) != gptSignature {
		return Table{}, ErrNone
	}
	le := binary.LittleEndian
	length := le.Uint32(head[12:])
	if length < gptHeaderBytes || int64(length) > sector {
		return Table{}, broken("the GPT's header has %d bytes", length)
	}
	sum := le.Uint32(head[16:])
	clear(head[16:20])
	if crc32.ChecksumIEEE(head[:length]) != sum || int64(le.Uint64(head[24:])) != lba {
		return Table{}, broken("the checksum of the GPT's header is wrong")
	}
	first, last := le.Uint64(head[40:]), le.Uint64(head[48:])
	at, count, each := le.Uint64(head[72:]), le.Uint32(head[80:]), le.Uint32(head[84:])
	if count > gptMostEntries || each < gptEntryBytes || each > gptMostBytes || each&(each-1) != 0 || at < 1 || at > 1<<40 {
		return Table{}, broken("the GPT has %d entries of %d bytes at sector %d", count, each, at)
	}
	raw := make([]byte, int(count)*int(each))
	if n, err := r.ReadAt(raw, int64(at)*sector); n < len(raw) {
		if err == nil || errors.Is(err, io.EOF) {
			return Table{}, broken("the entries of the GPT are missing")
		}
		return Table{}, err
	}
	if crc32.ChecksumIEEE(raw) != le.Uint32(head[88:]) {
		return Table{}, broken("the checksum of the GPT's entries is wrong")
	}
	return gptEntries(raw, int(each), uint64(sector), first, last)
}

func gptEntries(raw []byte, each int, sector, first, last uint64) (Table, error) {
	t := Table{Kind: GPT}
	for i := 0; i+each <= len(raw); i += each {
		e := raw[i : i+each]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		number := i/each + 1
		from, to := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if from > to || from < first || to > last || to >= 1<<50 {
			return Table{}, broken("partition %d goes from sector %d to %d, outside of what can be used (%d to %d)", number, from, to, first, last)
		}
		t.Entries = append(t.Entries, Entry{
			Number: number, Type: guid(e[:16]), UUID: guid(e[16:32]), Label: label(e[56:128]),
			Start: int64(from * sector), Size: int64((to - from + 1) * sector),
		})
	}
	return t, nil
}

// guid prints a GUID; its first three parts are little-endian (UEFI, appendix A).
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// label is UTF-16 up to its first zero; what cannot be printed becomes a question mark.
func label(b []byte) string {
	var units []uint16
	for i := 0; i+1 < len(b); i += 2 {
		u := binary.LittleEndian.Uint16(b[i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	out := utf16.Decode(units)
	for i, r := range out {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			out[i] = '?'
		}
	}
	return string(out)
}
