package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// machine implements vmm.Machine and all the optional interfaces.
type machine struct {
	handle vmm.Handle
	api    *Client
}

var (
	_ vmm.Pauser         = (*machine)(nil)
	_ vmm.Snapshotter    = (*machine)(nil)
	_ vmm.DiskHotplugger = (*machine)(nil)
	_ vmm.Ballooner      = (*machine)(nil)
	_ vmm.RateLimiter    = (*machine)(nil)
	_ vmm.NICLimiter     = (*machine)(nil)
	_ vmm.MetadataHolder = (*machine)(nil)
	_ vmm.Metered        = (*machine)(nil)
)

// extra is the driver's own part of a handle: what Firecracker does not tell.
type extra struct {
	Root    string `json:"root,omitempty"`    // id of the root disk
	Metrics string `json:"metrics,omitempty"` // name of the file, in the VM's directory
	Served  bool   `json:"served,omitempty"`  // disks come from servers
}

func extraOf(l vmm.Launch) extra {
	e := extra{Served: anyServed(l)}
	if len(l.Disks) > 0 {
		e.Root = l.Disks[0].ID
	}
	if l.Metrics {
		e.Metrics = l.Files.Metrics
	}
	return e
}

// extra reads the driver's part of the handle. One of an earlier mvm has none.
func (m *machine) extra() extra {
	var e extra
	_ = json.Unmarshal(m.handle.Extra, &e)
	return e
}

func (d *Driver) machine(h vmm.Handle) *machine {
	return &machine{handle: h, api: NewClient(h.APISocket)}
}

// Handle implements vmm.Machine.
func (m *machine) Handle() vmm.Handle { return m.handle }

// State implements vmm.Machine.
func (m *machine) State(ctx context.Context) (vmm.State, error) {
	if !proc.Alive(m.handle.VMM) {
		return vmm.StateExited, nil
	}
	info, err := m.api.Info(ctx)
	if err != nil {
		if !proc.Alive(m.handle.VMM) {
			return vmm.StateExited, nil // it ended meanwhile
		}
		return "", err
	}
	switch info.State {
	case "Running":
		return vmm.StateRunning, nil
	case "Paused":
		return vmm.StatePaused, nil
	}
	return "", mvm.Errorf(mvm.ErrBroken, "firecracker says that it is %q", info.State).
		WithHint("stop the VM with --force and start it again")
}

// Wait implements vmm.Machine.
func (m *machine) Wait(ctx context.Context) (vmm.Exit, error) {
	exit, err := vmm.WaitExit(ctx, m.handle)
	if err == nil {
		exit.Reason = reason(exit.Code, exit.Reason)
		if said := m.jailerSaid(); exit.Code == 1 && said != "" {
			exit.Reason = said
		}
	}
	return exit, err
}

// Kill implements vmm.Machine. Firecracker has no handler for SIGTERM: it ends
// at once, and with it the guest.
func (m *machine) Kill(ctx context.Context, grace time.Duration) error {
	if err := proc.Kill(ctx, m.handle.VMM, grace); err != nil {
		return err
	}
	return m.clear(ctx)
}

// supervisorTime is what a supervisor has to write down how its VMM ended.
const supervisorTime = 5 * time.Second

// clear waits for the supervisor and removes the sockets that Firecracker leaves
// behind, unless the VM was started again meanwhile: then they are not ours.
func (m *machine) clear(ctx context.Context) error {
	soon, cancel := context.WithTimeout(ctx, supervisorTime)
	_ = proc.WaitExit(soon, m.handle.Supervisor)
	cancel()
	if err := proc.Kill(ctx, m.handle.Supervisor, 0); err != nil {
		return err
	}
	if others, err := proc.FindByArg(supervisor.Token(m.handle.ID)); err != nil || len(others) > 0 {
		return err
	}
	if err := supervisor.EndServers(ctx, m.handle.ID); err != nil {
		return err
	}
	sockets, _ := filepath.Glob(filepath.Join(m.handle.Dir, linkPrefix+"*"+socketSuffix))
	for _, path := range append(sockets, m.handle.APISocket, m.handle.Guest.Path) {
		if path == "" {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return Unjail(ctx, m.handle.Dir, m.handle.ID)
}

// Close implements vmm.Machine. Nothing is held: each request has a connection
// of its own.
func (m *machine) Close() error { return nil }

// Pause implements vmm.Pauser. A paused VM stays paused.
//
// What makes Resume work where vsock falls silent needs a snapshot to be begun, which
// Firecracker refuses for a VM with disks from servers.
func (m *machine) Pause(ctx context.Context) error {
	info, err := m.api.Info(ctx)
	if err == nil && m.handle.Guest.Kind != "" && silencesVsock(info.Version) {
		err = m.servesDisks("pause", "version "+info.Version+" could not reach the guest's agent any more when it goes on")
	}
	if err != nil {
		return err
	}
	return m.api.Pause(ctx)
}

// silencesVsock tells whether a Firecracker stops delivering to vsock when it resumes.
func silencesVsock(version string) bool { return version == "1.16.0" || version == "1.16.1" }

// Resume implements vmm.Pauser. A running VM is left alone.
//
// Firecracker 1.16.0 and 1.16.1 stop delivering anything to the guest's vsock
// when a VM is resumed, until the guest has acknowledged a transport reset,
// which only a snapshot sends (firecracker pull request 6100). So a snapshot is
// begun that cannot be written: the reset is queued before the file is opened.
// Connections from before the pause are dead afterwards, as after a snapshot.
func (m *machine) Resume(ctx context.Context) error {
	info, err := m.api.Info(ctx)
	if err != nil {
		return err
	}
	if info.State == "Running" {
		return nil // a second resume would silence vsock too
	}
	if m.handle.Guest.Kind != "" && silencesVsock(info.Version) {
		const nowhere = "/dev/null/nowhere" // ENOTDIR, whoever asks
		_ = m.api.CreateSnapshot(ctx, SnapshotCreate{State: nowhere, Mem: nowhere})
	}
	return m.api.Resume(ctx)
}

// Shutdown implements vmm.Machine: it presses Ctrl-Alt-Del.
func (m *machine) Shutdown(ctx context.Context) error {
	if runtime.GOARCH != "amd64" {
		return mvm.Errorf(mvm.ErrUnsupported, "firecracker has no power button on %s", runtime.GOARCH).
			WithHint("shut the guest down through its agent, or stop it with --force")
	}
	return m.api.CtrlAltDel(ctx)
}

// DialGuest implements vmm.Machine.
func (m *machine) DialGuest(ctx context.Context, port uint32) (net.Conn, error) {
	if m.handle.Guest.Kind == "" {
		return nil, mvm.Errorf(mvm.ErrUnsupported, "the VM was started without a channel for the agent").
			WithHint("use ssh")
	}
	return dialVsock(ctx, m.handle.Guest.Path, port)
}

// reason makes one line for a person of how Firecracker ended.
func reason(code int, stderr string) string {
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	if text, ok := strings.CutPrefix(last, "Error: "); ok {
		last = text
	}
	switch {
	case code == 0:
		return "guest powered off"
	case last != "":
		return last
	}
	if why, ok := exits[code]; ok {
		return why
	}
	return "firecracker failed"
}

// exits are FcExitCode in Firecracker's source.
var exits = map[int]string{
	148: "a system call was refused by seccomp", 149: "SIGBUS", 150: "SIGSEGV", 151: "a file grew over its limit (SIGXFSZ)",
	152: "the configuration is wrong", 153: "the command line is wrong", 154: "the CPU limit was reached (SIGXCPU)",
	156: "SIGHUP", 157: "SIGILL",
}
