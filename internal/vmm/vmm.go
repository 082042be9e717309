// Package vmm is the contract between mvm and a hypervisor: what a driver is
// given to start a VM (Launch), what it hands back (Machine, Handle), and what
// it can do (Capabilities). It knows no hypervisor, no store and no network: a
// driver gets a tap's name and files' paths.
package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
)

// Driver starts VMs with one hypervisor. It keeps no state per VM, and its
// methods may be called at once from several goroutines.
type Driver interface {
	// Name returns "qemu" or "firecracker".
	Name() string

	// Probe looks at what is installed and what the host allows, here and now.
	// It starts no child process when the binary's version is known to binfo
	// caches, and never fails: what is wrong stands in Problems.
	Probe(ctx context.Context) Probe

	// Render turns a launch into the exact command and configuration. It is
	// pure. A field that the driver cannot honour gives mvm.ErrUnsupported
	// that names the field and the way out.
	Render(l Launch) (Rendered, error)

	// Start starts the VM under a supervisor of its own and returns when its
	// vCPUs run. The VM outlives the caller. On error, cancel included,
	// nothing is left: no process, no socket.
	Start(ctx context.Context, l Launch) (Machine, error)

	// Attach finds a VM that runs already, also from another process than the
	// one that started it. When its VMM is gone it returns ErrGone.
	Attach(ctx context.Context, h Handle) (Machine, error)
}

// Machine is a VM that was started. Its methods may be called at once from
// several goroutines.
type Machine interface {
	// Handle returns what Attach needs, to be stored.
	Handle() Handle

	// State asks the VMM. After the VMM's end it is StateExited without error.
	State(ctx context.Context) (State, error)

	// Wait returns when the VMM has ended, with how it ended.
	Wait(ctx context.Context) (Exit, error)

	// Shutdown asks the guest to power off by what the VMM has (ACPI button,
	// Ctrl-Alt-Del) and returns at once; Wait tells when it did.
	Shutdown(ctx context.Context) error

	// Kill ends the VMM: SIGTERM, then after grace SIGKILL (at once with
	// grace 0), and waits until the process is gone. Killing twice is fine.
	Kill(ctx context.Context, grace time.Duration) error

	// DialGuest opens a stream to the agent's port in the guest. It fails with
	// mvm.ErrUnavailable while nothing listens there.
	DialGuest(ctx context.Context, port uint32) (net.Conn, error)

	// Close releases what this process holds of the machine; the VM runs on.
	Close() error
}

// Pauser is a Machine whose vCPUs can be stopped and continued.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// State is what the VMM says of its VM.
type State string

// The states that a VMM reports.
const (
	StateRunning State = "running"
	StatePaused  State = "paused"
	StateExited  State = "exited"
)

// Exit says how a VMM ended.
type Exit struct {
	Code   int       `json:"code"`   // exit status, or 128+signal
	Signal string    `json:"signal"` // "" unless a signal ended it
	At     time.Time `json:"at"`
	Reason string    `json:"reason"` // one line for a person: last line of the VMM's stderr, "guest powered off", …
}

// Handle is all that is needed to find a running VM again. It is stored as
// JSON; Version tells old ones apart.
type Handle struct {
	Version    int             `json:"version"` // 1
	Driver     string          `json:"driver"`
	ID         string          `json:"id"`
	Dir        string          `json:"dir"`        // the VM's directory
	VMM        proc.Identity   `json:"vmm"`        // the hypervisor's process
	Supervisor proc.Identity   `json:"supervisor"` // the process that owns it
	APISocket  string          `json:"api_socket"` // QMP or Firecracker's API
	Guest      GuestChannel    `json:"guest"`
	Accel      string          `json:"accel"`
	Jail       *Jailed         `json:"jail,omitempty"`  // nil runs unjailed
	Extra      json.RawMessage `json:"extra,omitempty"` // the driver's own
}

// GuestChannel says how the host reaches the agent.
type GuestChannel struct {
	Kind string `json:"kind"` // "vsock-uds" (Firecracker), "vsock" (vhost), "mux" (yamux in the supervisor), "" (none)
	Path string `json:"path"` // the unix socket, for vsock-uds and mux
	CID  uint32 `json:"cid"`  // for vsock
}

// Probe is what a driver found on the host.
type Probe struct {
	Path         string       // of the binary; "" when there is none
	Version      string       // "7.2.22"
	Accel        string       // "kvm" or "tcg"; "" when the driver cannot run here
	Capabilities Capabilities // meaningful when Usable
	DiskServer   string       // the program for Launch.DiskServer; "" where there is none, or the driver needs none
	Problems     []Problem    // why it cannot run, or runs worse
	Usable       bool
}

// Problem is something wrong with a driver or host, and its remedy.
type Problem struct {
	What  string
	Hint  string
	Fatal bool // the driver cannot run because of it
}

// Capabilities are the optional abilities of a driver. The conformance suite
// (vmmtest) keeps each equal to the optional interface that it stands for.
type Capabilities struct {
	Pause       bool // Pauser
	Snapshot    bool // Snapshotter, and Launch.Restore
	DiskHotplug bool // DiskHotplugger
	Balloon     bool // Ballooner, and Launch.Balloon
	RateLimit   bool // RateLimiter, and Disk.Limit
	NICLimit    bool // NICLimiter, and NIC.RX and NIC.TX; QEMU has no limiter of its own
	Metadata    bool // MetadataHolder, and Launch.Metadata
	Metrics     bool // Metered, and Launch.Metrics
	HugePages   bool // Launch.HugePages
	Jail        bool // Launch.Jail
	Qcow2       bool // disks may be qcow2
	// Qcow2Volumes says that disks other than the root may be qcow2. Without Qcow2 such
	// disks neither come nor go while the VM runs, and it takes no snapshot.
	Qcow2Volumes bool
	Vsock        bool
	NestedVirt   bool
}

// Launch is everything a driver is told of a VM. Paths are absolute.
type Launch struct {
	ID          string // of the VM; stands in the VMM's command line, so that a lost process can be found
	Name        string
	Dir         string   // the VM's own directory, 0700; sockets, logs and configuration go here
	Binary      string   // of the VMM
	DiskServer  string   // serves the VMM disks that it cannot read itself: Probe.DiskServer
	Jail        *Jail    // nil runs unjailed
	Restore     *Restore // nil boots the kernel
	Accel       string   // "kvm" or "tcg"
	Kernel      string   // ELF vmlinux
	Initrd      string   // "" for none
	Cmdline     string   // complete but for what only the driver knows (console device, machine quirks)
	VCPUs       int
	MemMiB      int
	Disks       []Disk // the first is the root disk
	NICs        []NIC
	PCI         bool
	Nested      bool
	CPUTemplate json.RawMessage // Firecracker's format; nil for none
	Agent       bool            // give the guest a channel for the agent
	Files       Files
	Logging     bool
	LogLevel    string
	Metrics     bool
	Balloon     *Balloon        // nil for no balloon device
	Metadata    json.RawMessage // what the metadata service holds; nil for no service
	HugePages   bool            // memory from the host's pool of 2 MiB pages
	TrackDirty  bool            // keep track of changed memory, for SnapshotFiles.Diff
	Env         []string        // for the VMM; nil for a minimal one
}

// Files are the names, within Launch.Dir, of what a VMM leaves there.
type Files struct {
	API           string // API or QMP socket
	Config        string // configuration kept for inspection
	Log           string // of the VMM
	Console       string // the serial console's log
	ConsoleSocket string // where viewers attach
	Metrics       string
	PID           string
	Agent         string // guest channel socket
}

// Disk is a drive of the VM.
type Disk struct {
	ID        string // "rootfs", "vol-…": letters, digits, '-' and '_'
	Path      string
	Format    string // "raw" or "qcow2"; never guessed from the content
	ReadOnly  bool
	Writeback bool // writes may be cached until the guest flushes them, which both drivers do in any case
	AsyncIO   bool // io_uring, where the VMM and the kernel have it
	NoDiscard bool // what the guest discards stays allocated in the file
	Limit     RateLimit
}

// NIC is a network interface of the VM.
type NIC struct {
	ID  string // "eth0"
	Tap string // an existing tap device
	MAC string
	MTU int       // 0 leaves it to the guest
	RX  RateLimit // what the guest receives
	TX  RateLimit // what it sends
}

// Rendered is a launch as a driver would run it.
type Rendered struct {
	Argv      []string // program and arguments
	Dir       string   // working directory; socket paths in Argv may be relative to it
	Config    []byte   // Firecracker's configuration; nil where there is none
	Guest     GuestChannel
	APISocket string // absolute
}

// ExitFile is the name, in a VM's directory, of the JSON of the Exit that the
// supervisor writes when the VMM has ended.
const ExitFile = "exit.json"

// ErrGone says that a VM's VMM does not run any more.
var ErrGone = &mvm.Error{Kind: mvm.ErrNotFound, Err: errors.New("the VMM does not run any more")}

// exitFileLimit bounds how long the supervisor has to write ExitFile after the
// VMM's end; a supervisor that was killed writes none.
const exitFileLimit = 5 * time.Second

// WaitExit returns when the VMM of a handle has ended, with how it did, as far as
// the supervisor could tell.
func WaitExit(ctx context.Context, h Handle) (Exit, error) {
	if err := proc.WaitExit(ctx, h.VMM); err != nil {
		return Exit{}, err
	}
	if h.Supervisor.PID > 0 { // it ends soon after it has written the file
		soon, cancel := context.WithTimeout(ctx, exitFileLimit)
		_ = proc.WaitExit(soon, h.Supervisor)
		cancel()
	}
	if exit, err := ReadExit(h.Dir); err == nil {
		return exit, nil
	}
	return Exit{Code: -1, At: time.Now().UTC(), Reason: "the VMM is gone; nothing tells how it ended"}, nil
}

// ReadExit reads how the last VMM in a VM's directory ended.
func ReadExit(dir string) (Exit, error) {
	var e Exit
	data, err := os.ReadFile(filepath.Join(dir, ExitFile))
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(data, &e)
}
