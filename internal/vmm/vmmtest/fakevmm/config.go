package fakevmm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
)

// config is the configuration file with what the fake looks at, and what it tells of
// a VM that runs. Firecracker refuses unknown fields within a section and missing
// "drives" and "boot-source"; it ignores unknown sections.
type config struct {
	Boot    bootSource      `json:"boot-source"`
	Drives  []drive         `json:"drives"`
	Machine machineConfig   `json:"machine-config"`
	NICs    []nic           `json:"network-interfaces"`
	Vsock   *vsockConfig    `json:"vsock"`
	Metrics *metricsConfig  `json:"metrics"`
	Balloon *balloonConfig  `json:"balloon"`
	MMDS    *mmdsConfig     `json:"mmds-config"`
	Entropy json.RawMessage `json:"entropy"`
}

type bootSource struct {
	Kernel string  `json:"kernel_image_path"`
	Initrd *string `json:"initrd_path"`
	Args   *string `json:"boot_args"`
}

type drive struct {
	ID        string       `json:"drive_id"`
	Path      string       `json:"path_on_host,omitempty"`
	Socket    string       `json:"socket,omitempty"`
	Root      bool         `json:"is_root_device"`
	ReadOnly  *bool        `json:"is_read_only,omitempty"`
	CacheType string       `json:"cache_type,omitempty"`
	IOEngine  string       `json:"io_engine,omitempty"`
	Limiter   *rateLimiter `json:"rate_limiter,omitempty"`

	server *vuDisk // behind Socket
}

type machineConfig struct {
	VCPUs      int    `json:"vcpu_count"`
	Mem        int    `json:"mem_size_mib"`
	SMT        bool   `json:"smt"`
	TrackDirty bool   `json:"track_dirty_pages"`
	HugePages  string `json:"huge_pages"`
}

type nic struct {
	ID  string       `json:"iface_id"`
	Tap string       `json:"host_dev_name"`
	MAC string       `json:"guest_mac"`
	MTU *int         `json:"mtu"`
	RX  *rateLimiter `json:"rx_rate_limiter"`
	TX  *rateLimiter `json:"tx_rate_limiter"`
}

type vsockConfig struct {
	CID  int    `json:"guest_cid"`
	Path string `json:"uds_path"`
}

type metricsConfig struct {
	Path string `json:"metrics_path"`
}

type balloonConfig struct {
	Amount   int  `json:"amount_mib"`
	Deflate  bool `json:"deflate_on_oom"`
	Interval int  `json:"stats_polling_interval_s"`
}

type mmdsConfig struct {
	Version string   `json:"version"`
	NICs    []string `json:"network_interfaces"`
	Address string   `json:"ipv4_address,omitempty"`
}

type rateLimiter struct {
	Bandwidth *bucket `json:"bandwidth"`
	Ops       *bucket `json:"ops"`
}

type bucket struct {
	Size   uint64  `json:"size"`
	Burst  *uint64 `json:"one_time_burst"`
	Refill uint64  `json:"refill_time"`
}

// patch changes the buckets that are given; an empty one does not bound.
func (r *rateLimiter) patch(with *rateLimiter) *rateLimiter {
	var now rateLimiter
	if r != nil {
		now = *r
	}
	if with == nil {
		return r
	}
	for _, b := range []struct{ to, from **bucket }{{&now.Bandwidth, &with.Bandwidth}, {&now.Ops, &with.Ops}} {
		switch new := *b.from; {
		case new == nil:
		case new.Size == 0 || new.Refill == 0:
			*b.to = nil
		default:
			*b.to = new
		}
	}
	if now == (rateLimiter{}) {
		return nil
	}
	return &now
}

// readConfig reads and checks a configuration file as far as Firecracker does
// before it touches KVM.
func readConfig(path string, spec *Spec) (*config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("Unable to open or read from the configuration file: %w", err) //nolint:staticcheck // Firecracker's words
	}
	var sections map[string]json.RawMessage
	if err := json.Unmarshal(data, &sections); err != nil {
		return nil, fmt.Errorf("BuildFromJson(ParseFromJson(InvalidJson(%w)))", err)
	}
	for _, name := range []string{"boot-source", "drives"} {
		if sections[name] == nil {
			return nil, fmt.Errorf("BuildFromJson(ParseFromJson(InvalidJson(missing field `%s`)))", name)
		}
	}
	if spec != nil {
		if err := spec.CheckConfig(data); err != nil {
			return nil, fmt.Errorf("BuildFromJson(ParseFromJson(InvalidJson(%w)))", err)
		}
	}
	c := &config{}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(c); err != nil {
		return nil, fmt.Errorf("BuildFromJson(ParseFromJson(InvalidJson(%w)))", err)
	}
	if c.Machine.HugePages == "" {
		c.Machine.HugePages = "None"
	}
	return c, c.check()
}

// check opens what the configuration names.
func (c *config) check() error {
	if c.Machine.VCPUs < 1 || c.Machine.VCPUs > 32 {
		return errors.New("BuildFromJson(ParseFromJson(MachineConfig(InvalidVcpuCount)))")
	}
	if c.Machine.Mem < 1 || c.Machine.HugePages == "2M" && c.Machine.Mem%2 != 0 {
		return errors.New("BuildFromJson(ParseFromJson(MachineConfig(InvalidMemorySize)))")
	}
	if err := opens(c.Boot.Kernel, os.O_RDONLY); err != nil {
		return fmt.Errorf("BuildFromJson(ParseFromJson(BootSource(InvalidKernelPath(%w))))", err)
	}
	if c.Boot.Initrd != nil {
		if err := opens(*c.Boot.Initrd, os.O_RDONLY); err != nil {
			return fmt.Errorf("BuildFromJson(ParseFromJson(BootSource(InvalidInitrdPath(%w))))", err)
		}
	}
	for i := range c.Drives {
		if err := c.Drives[i].open(); err != nil {
			return fmt.Errorf("BuildFromJson(ParseFromJson(BlockDevice(CreateBlockDevice(%w))))", err)
		}
	}
	if b := c.Balloon; b != nil && (b.Amount > c.Machine.Mem || b.Interval > 65535) {
		return errors.New("BuildFromJson(ParseFromJson(BalloonDevice(TooManyPagesRequested)))")
	}
	return c.checkNICs()
}

func (c *config) checkNICs() error {
	macs := map[string]bool{}
	for _, n := range c.NICs {
		if _, err := net.ParseMAC(n.MAC); n.MAC != "" && err != nil {
			return fmt.Errorf("BuildFromJson(ParseFromJson(InvalidJson(%w)))", err)
		}
		if n.MAC != "" && macs[n.MAC] {
			return fmt.Errorf("BuildFromJson(ParseFromJson(NetDevice(GuestMacAddressInUse(%q))))", n.MAC)
		}
		if n.MTU != nil && (*n.MTU < 68 || *n.MTU > 65535) {
			return fmt.Errorf("BuildFromJson(ParseFromJson(NetDevice(CreateNetworkDevice(InvalidMtu(%d)))))", *n.MTU)
		}
		macs[n.MAC] = true
	}
	if c.MMDS == nil {
		return nil
	}
	if len(c.MMDS.NICs) == 0 {
		return errors.New("BuildFromJson(ParseFromJson(MmdsConfig(EmptyNetworkIfaceList)))")
	}
	for _, id := range c.MMDS.NICs {
		if !slices.ContainsFunc(c.NICs, func(n nic) bool { return n.ID == id }) {
			return errors.New("BuildFromJson(ParseFromJson(MmdsConfig(InvalidNetworkInterfaceId)))")
		}
	}
	return nil
}

// open opens the drive's file, or connects to its server for as long as the fake runs.
func (d *drive) open() (err error) {
	if d.Socket == "" {
		return d.check()
	}
	if d.Path != "" || d.ReadOnly != nil || d.IOEngine != "" || d.Limiter != nil {
		return errors.New("InvalidBlockConfig")
	}
	d.server, err = connectDisk(d.Socket)
	return err
}

// size is what the guest sees of the drive: sectors of 512 bytes, and 1 for one that
// it cannot write to.
func (d *drive) size() (sectors uint64, readOnly int) {
	var size int64
	if fi, err := os.Stat(d.Path); err == nil {
		size = fi.Size()
	}
	sectors, ro := uint64(size)/512, d.ReadOnly != nil && *d.ReadOnly //nolint:gosec // not negative
	if d.server != nil {
		sectors, ro = d.server.sectors, d.server.readOnly
	}
	if ro {
		readOnly = 1
	}
	return sectors, readOnly
}

// check opens the drive's file.
func (d *drive) check() error {
	how := os.O_RDWR
	if d.ReadOnly != nil && *d.ReadOnly {
		how = os.O_RDONLY
	}
	if err := opens(d.Path, how); err != nil {
		return fmt.Errorf("VirtioBackend(BackingFile(%w, %q))", err, d.Path)
	}
	return nil
}

func opens(path string, how int) error {
	f, err := os.OpenFile(path, how, 0)
	if err != nil {
		return err
	}
	return f.Close()
}
