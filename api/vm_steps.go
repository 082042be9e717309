package api

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/initramfs"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// The steps of a VM's plans. What is marshalled is only what Revert needs;
// secrets and inputs of Apply stay out of the journal. Steps get theirs from the
// plan when they are applied, after the reservation has chosen addresses.

// dirStep makes the VM's directory.
type dirStep struct {
	c    *core
	VMID string `json:"vm_id"`
}

func (s *dirStep) Kind() string { return "dir" }

func (s *dirStep) Apply(context.Context) error {
	if err := os.MkdirAll(s.c.paths.vms(), 0o700); err != nil {
		return err
	}
	// Mkdir, not MkdirAll: a directory that is there already is not ours to fill.
	if err := os.Mkdir(s.c.paths.vm(s.VMID), 0o700); err != nil {
		return err
	}
	return nil
}

func (s *dirStep) Revert(context.Context) error {
	if !validID(s.VMID) {
		return mvm.Errorf(mvm.ErrBroken, "%s is not a VM's id", mvm.Quote(s.VMID))
	}
	return os.RemoveAll(s.c.paths.vm(s.VMID))
}

// diskStep makes the VM's root disk from its image.
type diskStep struct {
	c    *core
	Path string `json:"path"`

	image  *mvm.ImageItem
	base   string
	format string // of the disk to make
	size   int64
}

func (s *diskStep) Kind() string { return "disk" }

func (s *diskStep) Apply(ctx context.Context) error {
	if err := s.c.unpack(ctx, s.image, nil); err != nil {
		return err
	}
	if s.format == "qcow2" {
		return disk.Overlay(ctx, s.base, "raw", s.Path, s.size)
	}
	// A clone that was made ahead, if there is one, else a copy.
	if err := (&disk.Pool{Base: s.base, Copy: s.c.paths.memory().Find(s.image.ID, s.base)}).Take(ctx, s.Path); err != nil {
		return err
	}
	return disk.Grow(s.Path, s.size)
}

func (s *diskStep) Revert(context.Context) error { return removeFile(s.Path) }

// seedStep writes the VM's own initrd: the shared one and what this guest is told.
type seedStep struct {
	c    *core
	Path string `json:"path"`

	base   string
	config func() (guest.BootConfig, error)
}

func (s *seedStep) Kind() string { return "seed" }

func (s *seedStep) Apply(context.Context) error {
	cfg, err := s.config()
	if err != nil {
		return err
	}
	return initramfs.ForVM(s.base, s.Path, cfg)
}

func (s *seedStep) Revert(context.Context) error { return removeFile(s.Path) }

// netStep brings the network up. Reverting leaves it: a network is there for
// all its VMs, and the store says that it should be.
type netStep struct {
	c    *core
	spec network.Spec
}

func (s *netStep) Kind() string { return "network" }

func (s *netStep) Apply(ctx context.Context) error {
	changes, err := s.c.ensureNetwork(ctx, s.spec)
	if err != nil || len(changes) == 0 {
		return err
	}
	return s.c.st.Tx(ctx, func(tx *store.Tx) error { return recordRules(ctx, tx, s.spec) })
}

func (s *netStep) Revert(context.Context) error { return nil }

// tapStep makes the VM's tap device.
type tapStep struct {
	c    *core
	VMID string `json:"vm_id"`
	Name string `json:"name"`

	plan *vmPlan
}

func (s *tapStep) Kind() string { return "tap" }

func (s *tapStep) Apply(ctx context.Context) error {
	spec, err := tapSpec(s.plan.item, s.plan.network)
	if err != nil {
		return err
	}
	return s.c.net.AddTap(ctx, spec)
}

func (s *tapStep) Revert(ctx context.Context) error {
	return s.c.net.RemoveTap(ctx, network.TapSpec{Name: s.Name, VMID: s.VMID})
}

// vmmStep starts the VMM.
type vmmStep struct {
	c    *core
	VMID string `json:"vm_id"`

	plan *vmPlan
}

func (s *vmmStep) Kind() string { return "vmm" }

func (s *vmmStep) Apply(ctx context.Context) error {
	m, err := s.plan.driver.Start(ctx, s.plan.launch())
	if err != nil {
		return err
	}
	s.plan.handle = m.Handle()
	s.plan.startedAt = time.Now()
	return m.Close()
}

// Revert ends whatever process has the VM's id in its command line: after a
// crash nobody may have written down which one it is.
func (s *vmmStep) Revert(ctx context.Context) error { return s.c.killVMM(ctx, s.VMID, 0) }

func (c *core) decoders() map[string]op.Decoder {
	return map[string]op.Decoder{
		"dir":           decode(func() op.Step { return &dirStep{c: c} }),
		"disk":          decode(func() op.Step { return &diskStep{c: c} }),
		"seed":          decode(func() op.Step { return &seedStep{c: c} }),
		"network":       decode(func() op.Step { return &netStep{c: c} }),
		"tap":           decode(func() op.Step { return &tapStep{c: c} }),
		"reach":         decode(func() op.Step { return &reachStep{c: c} }),
		"dns":           decode(func() op.Step { return &dnsStep{c: c} }),
		"identity":      decode(func() op.Step { return &identityStep{c: c} }),
		"clear":         decode(func() op.Step { return &clearStep{c: c} }),
		"act":           decode(func() op.Step { return &actStep{} }),
		"plug":          decode(func() op.Step { return &plugStep{plugged: plugged{c: c}} }),
		"unplug":        decode(func() op.Step { return &unplugStep{plugged: plugged{c: c}} }),
		"volume":        decode(func() op.Step { return &volumeStep{c: c} }),
		"volume-resize": decode(func() op.Step { return &resizeStep{c: c} }),
		"vmm":           decode(func() op.Step { return &vmmStep{c: c} }),
		"stop":          decode(func() op.Step { return &stopStep{c: c} }),
		"phase":         decode(func() op.Step { return &phaseStep{c: c} }),

		"cloud-init": decode(func() op.Step { return &cloudInitStep{c: c} }),
		"iso":        decode(func() op.Step { return &isoStep{} }),
		"iso-gone":   decode(func() op.Step { return &isoGoneStep{} }),
		"nocloud":    decode(func() op.Step { return &nocloudStep{c: c} }),

		"bridge":   decode(func() op.Step { return &bridgeStep{c: c} }),
		"firewall": decode(func() op.Step { return &moveStep{c: c} }),

		"setting": decode(func() op.Step { return &hostStep{c: c} }),

		"snapshot-dir":   decode(func() op.Step { return &snapDirStep{c: c} }),
		"hold":           decode(func() op.Step { return &holdStep{c: c} }),
		"memory":         decode(func() op.Step { return &memoryStep{c: c} }),
		"snapshot-disks": decode(func() op.Step { return &snapDisksStep{} }),
		"publish":        decode(func() op.Step { return &publishStep{} }),
		"release":        decode(func() op.Step { return &releaseStep{c: c} }),
		"swap":           decode(func() op.Step { return &swapStep{} }),
		"clone":          decode(func() op.Step { return &cloneStep{} }),
		"become":         decode(func() op.Step { return &becomeStep{} }),
		"run":            decode(func() op.Step { return &runStep{c: c} }),
	}
}

func decode(empty func() op.Step) op.Decoder {
	return func(data []byte) (op.Step, error) {
		s := empty()
		return s, json.Unmarshal(data, s)
	}
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// validID reports whether s has the form of our ids, and so can be joined to a
// path without leading elsewhere.
func validID(s string) bool {
	if len(s) != idLen {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// vmFiles are the names in a VM's directory.
func vmFiles(s settings, driver string) vmm.Files {
	f := vmm.Files{
		API:           s.str("defaults.firecracker", "api_socket_filename"),
		Config:        s.str("defaults.firecracker", "config_filename"),
		Log:           s.str("defaults.firecracker", "log_filename"),
		Console:       s.str("defaults.firecracker", "serial_output_filename"),
		ConsoleSocket: s.str("defaults.firecracker", "console_socket_filename"),
		Metrics:       s.str("defaults.firecracker", "metrics_filename"),
		PID:           s.str("defaults.firecracker", "pid_filename"),
		Agent:         "agent.sock",
	}
	if driver == "qemu" {
		f.API, f.Config, f.Log, f.Console = "qmp.sock", "qemu.json", "qemu.log", "console.log"
	}
	return f
}

const (
	seedName     = "initrd"
	identityName = "identity.json"
)

// vmIdentity are the secrets of one VM, made at creation and kept with mode 0600
// in its directory: who the guest is, and how the host proves itself to its agent.
type vmIdentity struct {
	HostKey      string `json:"host_key"`      // of the guest's SSH server, OpenSSH PEM
	HostPublic   string `json:"host_public"`   // authorized_keys format
	AgentKey     string `json:"agent_key"`     // of the agent's SSH server
	AgentPublic  string `json:"agent_public"`  //
	ClientKey    string `json:"client_key"`    // what the host logs in to the agent with
	ClientPublic string `json:"client_public"` //
}

func readIdentity(dir string) (vmIdentity, error) {
	var id vmIdentity
	data, err := os.ReadFile(filepath.Join(dir, identityName))
	if err == nil {
		err = json.Unmarshal(data, &id)
	}
	return id, err
}

func (c *core) loadIdentity(vmID string) (vmIdentity, error) {
	id, err := readIdentity(c.paths.vm(vmID))
	if err != nil {
		return id, mvm.Errorf(mvm.ErrBroken, "the VM's identity cannot be read: %w", err).WithHint("remove the VM and create it anew")
	}
	return id, nil
}

// identityStep makes and keeps the VM's identity.
type identityStep struct {
	c    *core
	Path string `json:"path"`

	plan *vmPlan
}

func (s *identityStep) Kind() string { return "identity" }

func (s *identityStep) Apply(context.Context) error {
	id, err := newIdentity(s.plan.item.Name)
	if err != nil {
		return err
	}
	s.plan.identity = id
	data, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return fsx.WriteFile(s.Path, data, 0o600)
}

func (s *identityStep) Revert(context.Context) error { return removeFile(s.Path) }
