package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/cloudinit"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/firecracker"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest/fakevmm"
)

// TestMain lets the test binary be all that mvm starts itself as, the VMM, and a
// command in a hosted world.
func TestMain(m *testing.M) {
	fakevmm.Main()
	if len(os.Args) > 2 {
		rest := os.Args[2:]
		switch os.Args[1] {
		case supervisor.Command:
			os.Exit(supervisor.Main(rest))
		case cloudinit.Command:
			os.Exit(cloudinit.Main(rest))
		case endedCommand:
			os.Exit(endedMain(rest, intoWorld))
		case restartCommand:
			os.Exit(restartMain(rest, intoWorld))
		case worldCommand:
			os.Exit(worldMain(rest))
		}
	}
	os.Exit(m.Run())
}

// hosted is a machine of processes: the real Firecracker driver on fakevmm, real
// supervisors, and a network in a file. Commands on it run in the test, or in
// processes of their own, which can be killed.
type hosted struct {
	t   *testing.T
	dir string
	net *nettest.Fake
}

// Names in the directory of a hosted world.
const (
	worldCache = "cache"
	worldNet   = "net.json"
	worldVMM   = "firecracker" // a link to the program
	worldAgent = "agent"
)

func newHosted(t *testing.T) *hosted {
	t.Helper()
	return hostedWith(t, fakevmm.Install(t))
}

// newJailedHosted is one whose VMMs run in jails that the jailer's double makes.
func newJailedHosted(t *testing.T) *hosted {
	t.Helper()
	testenv.Require(t, "root", "netns")
	before := cgroups(t)
	t.Cleanup(func() {
		for _, dir := range cgroups(t) {
			if slices.Contains(before, dir) {
				continue
			}
			eventually(t, "the cgroup "+dir+" is gone, or that of another test", func() bool {
				procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
				return err != nil || len(procs) > 0
			})
		}
	})
	program, _ := fakevmm.InstallJailed(t)
	w := hostedWith(t, program)
	t.Cleanup(func() { // of the VMs that are left in the end; those that were removed have to have none
		dirs, _ := filepath.Glob(filepath.Join(w.dir, worldCache, "vms", "*"))
		for _, dir := range dirs {
			id := filepath.Base(dir)
			if err := errors.Join(supervisor.End(context.Background(), id, 0), firecracker.Unjail(context.Background(), dir, id)); err != nil {
				t.Error(err)
			}
		}
	})
	return w
}

// cgroups are those of jailed VMs.
func cgroups(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"/sys/fs/cgroup/mvm/mvm-*", "/sys/fs/cgroup/*/mvm/mvm-*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

func hostedWith(t *testing.T, program string) *hosted {
	t.Helper()
	w := &hosted{t: t, dir: t.TempDir()}
	w.net = &nettest.Fake{File: filepath.Join(w.dir, worldNet)}
	err := errors.Join(
		os.Symlink(program, filepath.Join(w.dir, worldVMM)),
		os.Symlink(vmmtest.TinyGuest(t, false), filepath.Join(w.dir, worldAgent)),
		os.Mkdir(filepath.Join(w.dir, worldCache), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // whatever the test left running
		for _, p := range w.processes() {
			_ = proc.Kill(context.Background(), p.id, 0)
		}
	})
	plain := &world{t: t, dir: w.dir}
	plain.stock(w.open())
	return w
}

// intoWorld puts the machine of a hosted world into a core, of which the cache is
// the world's.
func intoWorld(c *core) {
	dir := filepath.Dir(c.paths.cache)
	c.net, c.isRoot, c.agent = network.With(&nettest.Fake{File: filepath.Join(dir, worldNet)}, c.firewallBackend), func() bool { return true }, filepath.Join(dir, worldAgent)
	c.qemu = func() vmm.Driver {
		return probed{Driver: vmmtest.NewFake(), name: "qemu", probe: vmm.Probe{Problems: []vmm.Problem{{What: "there is no QEMU", Hint: "get it", Fatal: true}}}}
	}
	d := firecracker.New(firecracker.Options{
		Binary: filepath.Join(dir, worldVMM), Cache: filepath.Join(c.paths.cache, "firecracker.version"), Runner: c.runner, Launcher: c.launcher(),
		CheckKVM: func() host.KVM { return host.KVM{Usable: true} },
	})
	c.firecracker = func(string) vmm.Driver { return d }
	c.serve, c.dns = serveLocally, &fakeNames{}
}

// serveLocally starts a VM's server on an address that is there, unlike the gateway
// of a network that is not real.
func serveLocally(ctx context.Context, s cloudinit.Server) (proc.Identity, error) {
	s.Listen, s.Exe = netip.MustParseAddrPort("127.0.0.1:0"), os.Args[0]
	return s.Start(ctx)
}

// open makes a client on the world, as a new process would.
func (w *hosted) open() *Client {
	w.t.Helper()
	m, err := enterWorld(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = m.Close() })
	return m
}

func enterWorld(dir string) (*Client, error) {
	m, err := Open(context.Background(), Config{CacheDir: filepath.Join(dir, worldCache), ConfigDir: filepath.Join(dir, "config"), TempDir: filepath.Join(dir, "tmp")})
	if err == nil {
		intoWorld(m.core)
	}
	return m, err
}

// worldCommand is the first argument of a command in a hosted world: its directory
// and the name of a deed follow.
const worldCommand = "__world"

func worldMain(args []string) int {
	m, err := enterWorld(args[0])
	if err == nil {
		err = deeds[args[1]](context.Background(), m)
		err = errors.Join(err, m.Close())
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// command is a deed as a process of its own.
func (w *hosted) command(fault, deed string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], worldCommand, w.dir, deed)
	cmd.Env = append(os.Environ(), op.FaultVariable+"="+fault)
	return cmd
}

// run does a deed in a process of its own.
func (w *hosted) run(fault, deed string) error {
	out, err := w.command(fault, deed).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// process is one that belongs to the world.
type process struct {
	id   proc.Identity
	line string
}

// processes are all that have the world's directory in their command line, and so
// all that its commands have started.
func (w *hosted) processes() []process {
	found, err1 := proc.FindByArg(w.dir)
	jailed, err2 := proc.FindByArg("/firecracker\x00--id\x00") // which do not know where they are
	if err := errors.Join(err1, err2); err != nil {
		w.t.Fatal(err)
	}
	for _, id := range jailed {
		if mounts, err := os.ReadFile("/proc/" + strconv.Itoa(id.PID) + "/mountinfo"); err == nil && strings.Contains(string(mounts), w.dir) && !slices.Contains(found, id) {
			found = append(found, id)
		}
	}
	servers, err := proc.FindByArg(supervisor.ServerToken("")) // nor do these, but what they serve is open
	if err != nil {
		w.t.Fatal(err)
	}
	for _, id := range servers {
		if file, err := os.Readlink("/proc/" + strconv.Itoa(id.PID) + "/fd/4"); err == nil && strings.HasPrefix(file, w.dir+"/") {
			found = append(found, id)
		}
	}
	var out []process
	for _, id := range found {
		if line := strings.Join(cmdline(id.PID), " "); line != "" {
			out = append(out, process{id, line})
		}
	}
	return out
}

// listing is all that commands may leave behind, a line each: rows, leases, links,
// processes and files. Where two worlds differ only in what is chosen anew for
// each VM, their listings are the same.
func (w *hosted) listing() []string {
	w.t.Helper()
	m := w.open()
	ctx := w.t.Context()
	st, err := m.core.open(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	lines := []string{}
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	vms, err1 := st.ListVMs(ctx)
	nets, err2 := st.ListNetworks(ctx)
	ops, err3 := st.ListOps(ctx, "")
	taps, err4 := w.net.Taps(ctx)
	links, err5 := w.net.Interfaces(ctx)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		w.t.Fatal(err)
	}
	var names []string // what is chosen anew, and what stands for it
	snapshots, err := st.ListSnapshots(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range snapshots {
		names = append(names, s.ID, "<"+s.Name+">")
		add("snapshot %s of %s in %s", s.Name, s.VMName, s.Path)
	}
	for _, v := range vms {
		names = append(names, v.ID, "<"+v.Name+">", v.TapDevice, "<tap of "+v.Name+">")
		add("vm %s %s %s pid=%v handle=%v reason=%q restart=%v volumes=%v", v.Name, v.Status, v.IPv4, v.PID > 0, len(v.Handle) > 0, v.StatusReason, v.Options.RestartAt != "", v.VolumeIDs)
		add("state of %s %s", v.Name, w.observed(m, v))
		add("jail of %s %v, %d cgroups, disk of user %v", v.Name, v.Options.Jailed, len(w.cgroupsOf(v)), w.owner(v) == v.Options.JailUID)
	}
	for _, n := range nets {
		add("DNS of %s runs: %v", n.Name, (&fakeNames{}).Running(m.core.paths.dns(n.ID)))
		leases, err := st.ListLeases(ctx, n.ID)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, l := range leases {
			add("lease %s %s", l.IPv4, deref(l.VMID))
		}
	}
	volumes, err := st.ListVolumes(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, v := range volumes {
		names = append(names, v.ID, "<"+v.Name+">")
		add("volume %s %s", v.Name, v.Status)
	}
	for _, o := range ops {
		add("operation %s %s %s", o.Kind, o.Subject, o.State)
	}
	for _, tap := range taps {
		add("tap %s of %s up=%v guarded=%v on %s", tap.Name, tap.VMID, tap.Up, tap.Guarded, tap.Bridge)
	}
	for _, l := range links {
		add("link %s", l)
	}
	for _, name := range w.net.Tables() {
		add("table %s", name)
	}
	for _, p := range w.processes() {
		add("process %s", strings.ReplaceAll(p.line, w.dir, ""))
	}
	lines = append(lines, w.files()...)
	replace := strings.NewReplacer(names...)
	for i := range lines {
		lines[i] = replace.Replace(lines[i])
	}
	slices.Sort(lines)
	return lines
}

func (w *hosted) cgroupsOf(v *mvm.VMInstanceItem) []string {
	return slices.DeleteFunc(cgroups(w.t), func(dir string) bool { return filepath.Base(dir) != supervisor.Token(v.ID) })
}

// owner is whose a VM's disk is; -1 when there is none.
func (w *hosted) owner(v *mvm.VMInstanceItem) int {
	st, err := os.Stat(v.RootfsPath)
	if err != nil {
		return -1
	}
	return int(st.Sys().(*syscall.Stat_t).Uid)
}

// observed is what the VMM of a VM says.
func (w *hosted) observed(m *Client, v *mvm.VMInstanceItem) string {
	machine, err := m.core.attach(w.t.Context(), v)
	if err != nil {
		return "none"
	}
	state, err := machine.State(w.t.Context())
	if err != nil {
		return "none"
	}
	return string(state)
}

// anew are files of a VM that each run writes anew, or not, or a moment after its start.
var anew = []string{vmm.ExitFile, "console.sock", "supervisor.json", "firecracker.json", "firecracker.log", "firecracker.stderr", "firecracker.console.log", "firecracker.metrics", seedName}

func (w *hosted) files() []string {
	var out []string
	root := filepath.Join(w.dir, worldCache)
	for _, part := range []string{"vms", "ops", "volumes", "snapshots", "out"} {
		err := filepath.WalkDir(filepath.Join(root, part), func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			}
			rel, _ := filepath.Rel(root, path)
			if rel != part && !slices.Contains(anew, strings.TrimSuffix(d.Name(), ".1")) && !strings.HasPrefix(d.Name(), "asset-") && d.Name() != assetGate {
				out = append(out, "file "+rel)
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return out
}

// settled is the listing once nothing in the world moves any more: what a
// supervisor has started to write an end down takes a moment.
func (w *hosted) settled() []string {
	w.t.Helper()
	eventually(w.t, "nothing is under way", func() bool {
		return !slices.ContainsFunc(w.processes(), func(p process) bool {
			return strings.Contains(p.line, endedCommand) || strings.Contains(p.line, restartCommand) || strings.Contains(p.line, worldCommand)
		})
	})
	return w.listing()
}

// becomes waits until the world is one of those given, and says which.
func (w *hosted) becomes(what string, want ...[]string) int {
	w.t.Helper()
	var got []string
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		got = w.settled()
		for i, one := range want {
			if slices.Equal(got, one) {
				return i
			}
		}
		if time.Now().After(end) {
			var b bytes.Buffer
			for i, one := range want {
				for _, l := range one {
					if !slices.Contains(got, l) {
						fmt.Fprintf(&b, "world %d lacks: %s\n", i, l)
					}
				}
				for _, l := range got {
					if !slices.Contains(one, l) {
						fmt.Fprintf(&b, "world %d has not: %s\n", i, l)
					}
				}
			}
			w.t.Fatalf("%s: the world is none of those wanted:\n%s", what, b.String())
		}
	}
}
