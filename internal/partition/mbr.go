package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	sectorBytes  = 512
	mbrEntries   = 446 // offset of the four entries
	mbrEntry     = 16
	mostLogical  = 128 // Linux numbers fewer than that
	typeGPT      = 0xee
	firstLogical = 5
)

// protective tells whether the boot sector is only there to keep tools that do
// not know GPT from writing.
func protective(boot []byte) bool {
	if !signed(boot) {
		return false
	}
	for _, e := range entries(boot) {
		if e.typ == typeGPT {
			return true
		}
	}
	return false
}

func signed(sector []byte) bool { return sector[510] == 0x55 && sector[511] == 0xaa }

type mbrSlot struct {
	status, typ byte
	start, size int64 // in sectors
}

func entries(sector []byte) [4]mbrSlot {
	var out [4]mbrSlot
	for i := range out {
		b := sector[mbrEntries+i*mbrEntry:]
		out[i] = mbrSlot{b[0], b[4], int64(binary.LittleEndian.Uint32(b[8:])), int64(binary.LittleEndian.Uint32(b[12:]))}
	}
	return out
}

func (s mbrSlot) empty() bool    { return s.typ == 0 || s.size == 0 }
func (s mbrSlot) extended() bool { return s.typ == 0x05 || s.typ == 0x0f || s.typ == 0x85 }

// readMBR reads the four primary entries and the chain of logical ones. A boot
// sector of a file system has the same signature, so the entries have to make
// sense: their status is 0 or 0x80, and one of them is used.
func readMBR(r io.ReaderAt, boot []byte) (Table, error) {
	if !signed(boot) {
		return Table{}, ErrNone
	}
	t := Table{Kind: MBR}
	var chain []mbrSlot
	some := false
	for i, e := range entries(boot) {
		if e.status&0x7f != 0 {
			return Table{}, ErrNone
		}
		switch {
		case e.empty():
			continue
		case e.extended():
			chain = append(chain, e)
		default:
			t.Entries = append(t.Entries, mbrPartition(i+1, e, 0))
		}
		some = true
	}
	switch {
	case !some:
		return Table{}, ErrNone
	case len(chain) > 1:
		return Table{}, broken("it has %d extended partitions", len(chain))
	case len(chain) == 1:
		logical, err := readLogical(r, chain[0])
		if err != nil {
			return Table{}, err
		}
		t.Entries = append(t.Entries, logical...)
	}
	return t, nil
}

func mbrPartition(number int, e mbrSlot, base int64) Entry {
	return Entry{Number: number, Type: fmt.Sprintf("%02x", e.typ), Start: (base + e.start) * sectorBytes, Size: e.size * sectorBytes}
}

// readLogical follows the chain of boot records in an extended partition. Each
// holds one partition, counted from that record, and the way to the next record,
// counted from the extended partition. Records lie within it and lead onward
// only, so the chain ends.
func readLogical(r io.ReaderAt, ext mbrSlot) ([]Entry, error) {
	var out []Entry
	sector := make([]byte, sectorBytes)
	for at, next := ext.start, int64(0); ; at = ext.start + next {
		if len(out) == mostLogical {
			return nil, broken("it has more than %d logical partitions", mostLogical)
		}
		if n, err := r.ReadAt(sector, at*sectorBytes); n < len(sector) {
			if err == nil || errors.Is(err, io.EOF) {
				return nil, broken("the extended partition leads out of the disk")
			}
			return nil, err
		}
		if !signed(sector) {
			return nil, broken("the chain of logical partitions is cut")
		}
		slots := entries(sector)
		if e := slots[0]; !e.empty() {
			p := mbrPartition(firstLogical+len(out), e, at)
			if p.Start+p.Size > (ext.start+ext.size)*sectorBytes {
				return nil, broken("partition %d leads out of the extended partition", p.Number)
			}
			out = append(out, p)
		}
		link := slots[1]
		if link.empty() {
			return out, nil
		}
		if !link.extended() || link.start <= next || link.start >= ext.size {
			return nil, broken("the chain of logical partitions leads back, or out of the extended partition")
		}
		next = link.start
	}
}
