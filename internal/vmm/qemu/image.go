package qemu

import (
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Of the qcow2 format (docs/interop/qcow2.txt in QEMU); numbers are big-endian.
const (
	qcowMagic     = 0x514649fb
	extBackingFmt = 0xe2792aca
	maxQcowHead   = 4096 // of header and extensions that are looked at
)

// checkImage refuses a file that is not what the disk says, and a qcow2 that leaves
// it to QEMU to guess what lies under it: a guest could have written there whatever
// it wants to be taken for.
func checkImage(disk vmm.Disk) error {
	f, err := os.OpenFile(disk.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return unusable(disk, err)
	}
	defer func() { _ = f.Close() }()
	if disk.Format != "qcow2" {
		return nil
	}
	head := make([]byte, maxQcowHead)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return unusable(disk, err)
	}
	if why := qcowProblem(head[:n]); why != "" {
		return mvm.Errorf(mvm.ErrInvalid, "disk %s: %s %s", disk.ID, disk.Path, why).WithHint("make it anew, naming the format of what it is based on")
	}
	return nil
}

// qcowProblem looks at the beginning of a qcow2 file.
func qcowProblem(head []byte) string {
	be := binary.BigEndian
	if len(head) < 72 || be.Uint32(head) != qcowMagic {
		return "is no qcow2"
	}
	if be.Uint64(head[8:]) == 0 { // no backing file
		return ""
	}
	at := 72 // version 2 has extensions there, later ones say where
	if be.Uint32(head[4:]) >= 3 {
		if len(head) < 104 {
			return "is cut short"
		}
		at = int(min(be.Uint32(head[100:]), maxQcowHead))
	}
	for at+8 <= len(head) {
		kind, size := be.Uint32(head[at:]), int(min(be.Uint32(head[at+4:]), maxQcowHead))
		if kind == extBackingFmt && size > 0 {
			return ""
		}
		if kind == 0 {
			break
		}
		at += 8 + (size+7)&^7
	}
	return "does not say of what format the file is that it is based on"
}
