// Package partition reads the partition tables of disks that nobody vouches for:
// GPT and MBR, logical partitions included. It refuses tables whose entries
// overlap or lead out of the disk, because whoever reads a partition of those
// reads something else than was meant. It writes nothing.
//
// It must not know what a partition is for.
package partition

import (
	"cmp"
	"errors"
	"io"
	"slices"

	"github.com/mvmctl/mvm"
)

// The kinds of table.
const (
	GPT = "gpt"
	MBR = "mbr"
)

// Entry is a partition.
type Entry struct {
	Number int    // from 1 on, as Linux counts; the logical ones of an MBR from 5 on
	Type   string // GPT: a GUID in lower case; MBR: two hex digits
	Label  string // GPT only; printable
	UUID   string // GPT only
	Start  int64  // in bytes
	Size   int64  // in bytes
}

// Table is what a disk is divided into, in the order of the numbers.
type Table struct {
	Kind    string // GPT or MBR
	Entries []Entry
}

// ErrNone says that there is no partition table.
var ErrNone = errors.New("there is no partition table")

// Read finds the table of a disk of size bytes. One without gives ErrNone; a
// table that is damaged, or whose entries overlap or lie outside of the disk,
// mvm.ErrBroken with a hint.
func Read(r io.ReaderAt, size int64) (Table, error) {
	boot := make([]byte, sectorBytes)
	if n, err := r.ReadAt(boot, 0); n < len(boot) {
		if err == nil || errors.Is(err, io.EOF) {
			return Table{}, ErrNone
		}
		return Table{}, err
	}
	t, err := readGPT(r, size, protective(boot))
	if errors.Is(err, ErrNone) {
		t, err = readMBR(r, boot)
	}
	if err != nil {
		return Table{}, err
	}
	return t, t.check(size)
}

// check holds every entry within the disk and apart from the others.
func (t Table) check(size int64) error {
	sorted := slices.SortedFunc(slices.Values(t.Entries), func(a, b Entry) int { return cmp.Compare(a.Start, b.Start) })
	var end int64
	for i, e := range sorted {
		switch {
		case e.Start <= 0 || e.Size <= 0 || e.Start > size || e.Size > size-e.Start:
			return broken("partition %d leads out of the disk, which has %d bytes: the image is cut short, or made to mislead", e.Number, size)
		case e.Start < end:
			return broken("partitions %d and %d overlap", sorted[i-1].Number, e.Number)
		}
		end = e.Start + e.Size
	}
	return nil
}

func broken(format string, args ...any) error {
	return mvm.Errorf(mvm.ErrBroken, "its partition table is not sound: "+format, args...).WithHint("get the image again, from somebody you trust")
}
