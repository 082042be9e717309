package api

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/cloudinit"
	"github.com/mvmctl/mvm/internal/helper"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/image"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/linux"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/firecracker"
)

// core is what the operations of one Client share. Everything is made when it
// is first needed.
type core struct {
	cfg    Config
	paths  paths
	runner *run.Host

	// The machine; tests put another in its place.
	net            network.Kernel
	owned          func(context.Context) ([]network.Owned, error) // the devices of ours on this host
	taken          func(context.Context) ([]network.Taken, error) // the ports of this host that lead to VMs, whosever they are
	qemu           func() vmm.Driver
	firecracker    func(binary string) vmm.Driver
	isRoot         func() bool
	access         func(what string) error // refuses who is not root and may not ask the helper
	checkJail      func(dir string) error
	startRestarter func() error // a process that restarts VMs
	checkKVM       func() host.KVM
	listens        func(network.Publish) error // refuses a port that a program of the host listens on
	serve          func(context.Context, cloudinit.Server) (proc.Identity, error)
	dns            nameServer
	endProcesses   func(ctx context.Context, vmID string, grace time.Duration) error

	packageFiles string // dpkgFiles

	backoff time.Duration // of downloads; 0 is asset's own

	agent string // the program that goes into guests where none was built in

	noticeMu sync.Mutex // one notice at a time

	mu      sync.Mutex
	st      *store.Store
	journal *op.Journal
}

func newCore(cfg Config) (*core, error) {
	p, err := newPaths(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Executable == "" {
		if cfg.Executable, err = os.Executable(); err != nil {
			return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot tell which program this is: %w", err)
		}
	}
	c := &core{cfg: cfg, paths: p, agent: cfg.Executable, runner: &run.Host{}, net: linux.New(), listens: portTaken, isRoot: func() bool { return os.Geteuid() == 0 }, checkJail: firecracker.CheckJail}
	c.access, c.packageFiles, c.checkKVM = helper.Access, dpkgFiles, host.CheckKVM
	if !c.isRoot() {
		c.net = helper.NewClient(linux.New(), c.runner, os.Geteuid())
	}
	c.owned, c.taken = linux.New().Owned, linux.New().Taken
	c.net = network.With(c.net, c.firewallBackend)
	c.qemu, c.firecracker, c.startRestarter = c.realQEMU, c.realFirecracker, c.spawnRestarter
	c.endProcesses = supervisor.End
	c.dns = realNameServer{}
	c.serve = func(ctx context.Context, s cloudinit.Server) (proc.Identity, error) { return s.Start(ctx) }
	return c, nil
}

func (c *core) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.st == nil {
		return nil
	}
	err := c.st.Close()
	c.st, c.journal = nil, nil
	return err
}

// open returns the store, making the cache on first use, and undoes what
// commands that died have left.
func (c *core) open(ctx context.Context) (*store.Store, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.st != nil {
		return c.st, nil
	}
	st, err := store.Open(ctx, c.paths.db())
	if err != nil {
		return nil, err
	}
	c.st, c.journal = st, c.newJournal(st)
	done, err := c.journal.Recover(ctx)
	for _, r := range done {
		c.noticeRecovered(r)
	}
	if err != nil {
		_ = c.st.Close()
		c.st, c.journal = nil, nil
		return nil, err
	}
	c.sweep(ctx, st)
	_ = image.Sweep(ctx, c.runner, c.paths.images()) // if not, the next command
	c.mendDNS(ctx)
	return st, nil
}

// noticeRecovered says what became of an operation that an earlier command left.
func (c *core) noticeRecovered(r op.Recovered) {
	if r.Kind == opEnded {
		return // nobody asked for it, and the VM's phase tells
	}
	what := "an interrupted " + r.Kind + " of " + mvm.Quote(r.Subject)
	switch {
	case r.Err != nil:
		c.notice(what + " could not be mended yet: " + r.Err.Error())
	case r.Kept:
		c.notice(what + " was left in place as asked; remove it with 'mvm vm rm'")
	case r.Kind == opVolumeResize:
		c.notice(what + " ended; its size is what its file says")
	case r.Forward:
		c.notice(what + " was finished")
	default:
		c.notice(what + " was undone")
	}
}

func (c *core) notice(text string) {
	if c.cfg.Notice != nil {
		c.cfg.Notice(text)
	}
}

// noticeOnce tells the user something, and not again until the text changes.
func (c *core) noticeOnce(ctx context.Context, key, text string) {
	st, err := c.open(ctx)
	if err != nil {
		return
	}
	c.noticeMu.Lock()
	defer c.noticeMu.Unlock()
	var last string
	if _, err := st.GetHostState(ctx, "notice."+key, &last); err == nil && last == text {
		return
	}
	c.notice(text)
	// A notice that could not be recorded is shown once more; no harm.
	_ = st.SetHostState(ctx, "notice."+key, text)
}

// requireRoot refuses who is neither root nor in the group whose members have the
// helper do it, before any side effect.
func (c *core) requireRoot(what string) error {
	if c.isRoot() {
		return nil
	}
	return c.access(what)
}

// mayAct reports whether this process may change networks and VMs.
func (c *core) mayAct() bool { return c.requireRoot("this") == nil }

// bridgeName is the name of the bridge of a new network.
func (c *core) bridgeName(name string) string {
	if c.isRoot() {
		return network.BridgeName(name)
	}
	return network.MemberBridge(os.Geteuid(), name)
}
