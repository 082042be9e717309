package fakevmm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"os"
	"slices"
)

// stateMagic begins the fake's state files; what follows is JSON and, in eight
// bytes, its checksum. Firecracker's are a magic number, bitcode and a CRC.
const stateMagic = "fakevmm snapshot 10.0.0\n"

// savedState is what a state file has: configuration and devices.
type savedState struct {
	PCI      bool   `json:"pci"`
	Config   config `json:"config"`
	Realtime bool   `json:"realtime"`

	Unplugged bool     `json:"unplugged"`
	Astray    []string `json:"astray"`
}

// fatalError is answered as any other, and then ends the process.
type fatalError struct{ error }

func (m *machine) onSnapshot(path string, body []byte) error {
	if path != "/snapshot/create" {
		return postBoot
	}
	var s struct {
		Type  string `json:"snapshot_type"`
		State string `json:"snapshot_path"`
		Mem   string `json:"mem_file_path"`
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return err
	}
	for _, d := range m.config.Drives {
		if d.server != nil {
			return refusal("Create snapshot error: Cannot save the microVM state: Operation not allowed: Devices without snapshot support are present: vhost-user-block(id: " + d.ID + ")")
		}
	}
	m.guest.queueReset() // devices are saved first, vCPUs are looked at later
	if m.state != "Paused" {
		return refusal("Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")
	}
	if err := m.writeState(s.State); err != nil {
		return refusal("Create snapshot error: Cannot perform open on the snapshot backing file: " + err.Error())
	}
	if err := m.writeMemory(s.Mem, s.Type == "Diff"); err != nil {
		return refusal("Create snapshot error: Cannot write memory file: " + err.Error())
	}
	return nil
}

func (m *machine) writeState(path string) error {
	data, err := json.Marshal(savedState{PCI: m.pci, Config: *m.config, Realtime: m.realtime, Unplugged: m.unplugged, Astray: m.astray})
	if err != nil {
		return err
	}
	data = append([]byte(stateMagic), data...)
	return writeTo(path, os.O_TRUNC, binary.LittleEndian.AppendUint64(data, checksum(data)), -1)
}

func checksum(data []byte) uint64 { return crc64.Checksum(data, crc64.MakeTable(crc64.ECMA)) }

const (
	pageSize = 4096
	// touched is how much of its memory a guest has written to. The real one writes
	// all memory; holes save the tests' time.
	touched = 4 << 20
)

// writeMemory writes the guest's memory: the page that the guest changes, and with it
// the others, unless only changes are asked for. A file that has the size already is
// written over, any other begun anew.
func (m *machine) writeMemory(path string, diff bool) error {
	page, err := m.guest.memory()
	if err != nil {
		return err
	}
	size := int64(m.config.Machine.Mem) << 20
	if fi, err := os.Stat(path); err == nil && fi.Size() != size {
		if err := os.Truncate(path, 0); err != nil {
			return err
		}
	}
	if !diff {
		page = append(page, make([]byte, touched-len(page))...)
	}
	return writeTo(path, 0, page, size)
}

func writeTo(path string, flag int, data []byte, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flag, 0o644)
	if err != nil {
		return err
	}
	if size >= 0 {
		err = f.Truncate(size)
	}
	if err == nil {
		_, err = f.Write(data)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// loadRequest is the body of PUT /snapshot/load.
type loadRequest struct {
	State string `json:"snapshot_path"`
	Mem   struct {
		Type string `json:"backend_type"`
		Path string `json:"backend_path"`
	} `json:"mem_backend"`
	Track  bool `json:"track_dirty_pages"`
	Resume bool `json:"resume_vm"`
	NICs   []struct {
		ID  string `json:"iface_id"`
		Tap string `json:"host_dev_name"`
	} `json:"network_overrides"`
	Vsock *struct {
		Path string `json:"uds_path"`
	} `json:"vsock_override"`
	Clock bool `json:"clock_realtime"`
}

// load continues a VM. What fails here ends the process.
func (m *machine) load(body []byte) error {
	var r loadRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return err
	}
	if err := m.restore(r); err != nil {
		return fatalError{fmt.Errorf("Load snapshot error: Failed to restore from snapshot: %w", err)} //nolint:staticcheck // Firecracker's words
	}
	if r.Resume {
		m.guest.resume()
		m.state = "Running"
	}
	return nil
}

func (m *machine) restore(r loadRequest) error {
	s, err := readState(r.State)
	if err == nil {
		err = r.override(&s.Config)
	}
	if err != nil {
		return fmt.Errorf("Failed to get snapshot state from file: %w", err) //nolint:staticcheck // Firecracker's words
	}
	var page []byte
	if s.Config.Machine.HugePages == "2M" {
		err = errors.New("Cannot restore hugetlbfs backed snapshot by mapping the memory file. Please use uffd.") //nolint:staticcheck,revive // likewise
	} else {
		page, err = readMemory(r.Mem.Path, int64(s.Config.Machine.Mem)<<20)
	}
	if err == nil {
		err = m.guest.recall(page)
	}
	if err != nil {
		return fmt.Errorf("Failed to load guest memory: Error creating guest memory from file: %w", err) //nolint:staticcheck // likewise
	}
	if r.Clock && !s.Realtime {
		err = errors.New("Failed to restore microVM state: clock_realtime requested but not present in the snapshot state") //nolint:staticcheck // likewise
	} else {
		s.Config.Machine.TrackDirty = r.Track
		if err = m.resurrect(s); err != nil {
			err = fmt.Errorf("Failed to restore devices: %w", err) //nolint:staticcheck // likewise
		}
	}
	if err != nil {
		return fmt.Errorf("Failed to build microVM from snapshot: %w", err) //nolint:staticcheck // likewise
	}
	return nil
}

// override puts the request's names in place of the snapshot's.
func (r loadRequest) override(c *config) error {
	for _, o := range r.NICs {
		i := slices.IndexFunc(c.NICs, func(n nic) bool { return n.ID == o.ID })
		if i < 0 {
			return errors.New("Unknown Network Device.") //nolint:staticcheck,revive // likewise
		}
		c.NICs[i].Tap = o.Tap
	}
	if r.Vsock != nil {
		if c.Vsock == nil {
			return errors.New("Unknown Vsock Device.") //nolint:staticcheck,revive // likewise
		}
		c.Vsock.Path = r.Vsock.Path
	}
	return nil
}

// resurrect makes the devices, and a guest whose vCPUs are paused.
func (m *machine) resurrect(s *savedState) error {
	c := &s.Config
	for i := range c.Drives {
		if err := c.Drives[i].check(); err != nil {
			return err
		}
	}
	for _, n := range c.NICs {
		if err := m.openTap(n.Tap); err != nil {
			return err
		}
	}
	if c.Vsock != nil {
		if err := m.listenVsock(c.Vsock.Path); err != nil {
			return err
		}
	}
	if c.Balloon != nil {
		m.balloon = c.Balloon.Amount
	}
	m.config, m.pci, m.realtime, m.state = c, s.PCI, s.Realtime, "Paused"
	m.unplugged, m.astray = s.Unplugged, s.Astray
	m.guest.pause()
	m.guest.queueReset() // it is in the memory, unread
	go func() { m.ended <- m.guest.goOn() }()
	return nil
}

func readState(path string) (*savedState, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("Failed to open snapshot file: %w", err) //nolint:staticcheck // Firecracker's words
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(f)
	broken := func(why string) error {
		return fmt.Errorf("Failed to load snapshot state from file: %s", why) //nolint:staticcheck // Firecracker's words
	}
	switch {
	case err != nil:
		return nil, broken("IO Error: " + err.Error())
	case len(data) < 8:
		return nil, broken("IO Error: File too short to contain CRC")
	}
	data, sum := data[:len(data)-8], binary.LittleEndian.Uint64(data[len(data)-8:])
	s := &savedState{}
	if len(data) < len(stateMagic) || string(data[:len(stateMagic)]) != stateMagic || json.Unmarshal(data[len(stateMagic):], s) != nil {
		return nil, broken("An error occurred during bitcode serialization: bitcode error")
	}
	if checksum(data) != sum {
		return nil, broken("CRC64 validation failed")
	}
	return s, nil
}

func readMemory(path string, size int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("Failed to load guest memory: %w", err) //nolint:staticcheck // Firecracker's words
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() < size {
		return nil, errors.New("Failed to restore guest memory: Total sum of memory regions exceeds largest possible file offset") //nolint:staticcheck // Firecracker's words
	}
	page := make([]byte, pageSize)
	_, err = io.ReadFull(f, page)
	return page, err
}
