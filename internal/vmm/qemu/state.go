package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// facts are what two VMs must share for one to continue from the other's snapshot.
type facts struct {
	Machine   string `json:"machine"`
	Firmware  string `json:"firmware"` // file name; "" is QEMU's own
	Accel     string `json:"accel"`
	CPU       string `json:"cpu"`
	TSCKHz    uint64 `json:"tsc_khz"` // of the host, which an emulated CPU passes on; 0 is unknown
	VCPUs     int    `json:"vcpus"`
	MemMiB    int    `json:"mem_mib"`
	HugePages bool   `json:"huge_pages"`
	NICs      int    `json:"nics"`
	Agent     bool   `json:"agent"`
	Balloon   bool   `json:"balloon"`
	Ports     int    `json:"ports"` // root ports
}

// factsOf are those of a launch. A CPU that is the host's is named in full.
func (d *Driver) factsOf(l vmm.Launch, lay layout) facts {
	f := facts{
		Machine: machineType, Accel: l.Accel, CPU: cpuModel(l), VCPUs: l.VCPUs, MemMiB: l.MemMiB, HugePages: l.HugePages,
		NICs: len(l.NICs), Agent: l.Agent, Balloon: l.Balloon != nil, Ports: lay.ports,
	}
	if l.Accel == "kvm" {
		f.CPU += " " + shortCPU(d.opts.HostCPU())
		return f
	}
	f.TSCKHz = d.opts.TSCKHz()
	if rom := d.opts.Firmware(l.Binary); rom != "" {
		f.Firmware = filepath.Base(rom)
	}
	return f
}

// shortCPU names a CPU by its model, and its features by a sum.
func shortCPU(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return fmt.Sprintf("%s %08x", strings.Join(lines[:len(lines)-1], " "), crc32.ChecksumIEEE([]byte(text)))
}

// savedState is what a snapshot's state file says. QEMU's own state of devices and
// vCPUs is in the other file, after the memory.
type savedState struct {
	QEMU string `json:"qemu"` // version
	facts
	Disks      []savedDisk `json:"disks"` // in the order in which they came
	BalloonMiB int         `json:"balloon_mib"`
	MemBytes   int64       `json:"mem_bytes"` // of the other file
	MemSum     string      `json:"mem_sum"`
	Written    time.Time   `json:"written"`
}

type savedDisk struct {
	ID       string `json:"id"`
	Port     int    `json:"port"`
	Bytes    int64  `json:"bytes"` // as the guest sees it
	ReadOnly bool   `json:"read_only"`
}

// stateHead begins a state file. The number is of the format; the sum of all that
// follows the line comes after it.
const stateHead = "mvm-qemu-state 1 "

// maxState bounds a state file; ours have some KiB.
const maxState = 1 << 20

// castagnoli finds damage, not malice: whoever can write to a snapshot can do so to
// the VM. Of memory it does some GB a second.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sumText(sum uint32) string { return fmt.Sprintf("crc32c-%08x", sum) }

// encode returns the contents of a state file.
func (s savedState) encode() ([]byte, error) {
	body, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	return append([]byte(stateHead+sumText(crc32.Checksum(body, castagnoli))+"\n"), body...), nil
}

const anew = "make a new snapshot"

func brokenFile(path, format string, args ...any) *mvm.Error {
	return mvm.Errorf(mvm.ErrBroken, "%s %s", path, fmt.Sprintf(format, args...)).WithHint(anew)
}

// decodeState reads the contents of a state file.
func decodeState(path string, data []byte) (savedState, error) {
	var s savedState
	line, body, _ := strings.Cut(string(data), "\n")
	sum, ours := strings.CutPrefix(line, stateHead)
	switch {
	case len(data) == 0:
		return s, brokenFile(path, "is empty")
	case !ours:
		return s, brokenFile(path, "is no state of a VM of QEMU that this mvm has written")
	case sum != sumText(crc32.Checksum([]byte(body), castagnoli)):
		return s, brokenFile(path, "is damaged or cut short")
	}
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		return s, brokenFile(path, "cannot be read: %v", err)
	}
	return s, nil
}

// openSaved opens a file of a snapshot and returns its size. Nothing but a regular
// file is opened: of a FIFO the reader would wait for a writer.
func openSaved(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		hint := "see whether it can be read"
		if errors.Is(err, fs.ErrNotExist) {
			hint = "name the files of a snapshot"
		}
		return nil, 0, mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("%s", hint)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = brokenFile(path, "is no file")
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// readState reads a state file.
func readState(path string) (savedState, error) {
	f, size, err := openSaved(path)
	if err != nil {
		return savedState{}, err
	}
	defer func() { _ = f.Close() }()
	if size > maxState {
		return savedState{}, brokenFile(path, "is no state of a VM of QEMU that this mvm has written")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return savedState{}, mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint(anew)
	}
	return decodeState(path, data)
}

// openMem opens the memory of a snapshot, at its beginning, when it is whole.
func (s savedState) openMem(ctx context.Context, path string) (*os.File, error) {
	f, size, err := openSaved(path)
	if err != nil {
		return nil, err
	}
	if err := s.checkMem(ctx, f, size); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (s savedState) checkMem(ctx context.Context, f *os.File, size int64) error {
	const foreign = ": it is cut short, or belongs to another state"
	if size != s.MemBytes {
		return brokenFile(f.Name(), "has %d bytes in place of %d"+foreign, size, s.MemBytes)
	}
	sum, err := sumOf(ctx, f)
	if err != nil {
		return err
	}
	if sum != s.MemSum {
		return brokenFile(f.Name(), "has the sum %s in place of %s"+foreign, sum, s.MemSum)
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// sumOf reads a file from its beginning to its end.
func sumOf(ctx context.Context, f *os.File) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := crc32.New(castagnoli)
	r := bufio.NewReaderSize(f, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		switch _, err := io.CopyN(h, r, 16<<20); {
		case errors.Is(err, io.EOF):
			return sumText(h.Sum32()), nil
		case err != nil:
			return "", mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("see whether the disk works")
		}
	}
}

// fits tells what keeps a VM from continuing from this state: its QEMU of that
// version, what it is made of, and its disks.
func (s savedState) fits(version string, f facts) error {
	if s.QEMU != version {
		return mvm.Errorf(mvm.ErrUnsupported, "the snapshot is of QEMU %s, and here is %s", s.QEMU, version).
			WithHint("load it with that version, or make a new snapshot")
	}
	for _, c := range []struct {
		what       string
		then, here any
	}{
		{"acceleration", s.Accel, f.Accel}, {"machine", s.Machine, f.Machine}, {"firmware", s.Firmware, f.Firmware}, {"CPU", s.CPU, f.CPU},
	} {
		if c.then != c.here {
			return mvm.Errorf(mvm.ErrUnsupported, "the snapshot's VM has the %s %q, and here it is %q", c.what, c.then, c.here).
				WithHint("load it on a host like the one where it was made")
		}
	}
	if a, b := s.TSCKHz, f.TSCKHz; a > 0 && b > 0 && (a > b+b/100 || b > a+a/100) {
		return mvm.Errorf(mvm.ErrUnsupported, "the snapshot's VM counts time at %d kHz, and this host at %d: its clock would go wrong", a, b).
			WithHint("load it on a host like the one where it was made")
	}
	for _, c := range []struct {
		what       string
		then, here any
	}{
		{"vCPUs", s.VCPUs, f.VCPUs}, {"MiB of memory", s.MemMiB, f.MemMiB}, {"interfaces", s.NICs, f.NICs},
	} {
		if c.then != c.here {
			return mvm.Errorf(mvm.ErrConflict, "the snapshot's VM has %d %s, and this one has %d", c.then, c.what, c.here).WithHint("give it as many")
		}
	}
	for _, c := range []struct {
		what       string
		then, here bool
	}{
		{"a channel for the agent", s.Agent, f.Agent}, {"a balloon", s.Balloon, f.Balloon}, {"huge pages", s.HugePages, f.HugePages},
	} {
		if c.then != c.here {
			return mvm.Errorf(mvm.ErrConflict, "of the snapshot's VM and this one only one has %s", c.what).WithHint("give both the same devices")
		}
	}
	return nil
}

// place finds the port of each disk of a launch: by its id, where the state has all
// of them, and else by its position.
func (s savedState) place(disks []vmm.Disk) (layout, error) {
	lay := layout{ports: s.Ports}
	if len(disks) != len(s.Disks) {
		return lay, mvm.Errorf(mvm.ErrConflict, "the snapshot's VM has %d disks, and this one has %d", len(s.Disks), len(disks)).WithHint("give it as many")
	}
	byID := !slices.ContainsFunc(disks, func(d vmm.Disk) bool { return s.disk(d.ID) == nil })
	for i, d := range disks {
		was := &s.Disks[i]
		if byID {
			was = s.disk(d.ID)
		}
		if was.ReadOnly != d.ReadOnly {
			return lay, mvm.Errorf(mvm.ErrConflict, "of disk %s here and disk %s of the snapshot only one is read-only", d.ID, was.ID).WithHint("give both the same disks")
		}
		lay.disks = append(lay.disks, was.Port)
	}
	return lay, nil
}

func (s savedState) disk(id string) *savedDisk {
	i := slices.IndexFunc(s.Disks, func(d savedDisk) bool { return d.ID == id })
	if i < 0 {
		return nil
	}
	return &s.Disks[i]
}
