package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

const opRestore = "vm.restore"

// SnapshotRestoreInput says what becomes of a snapshot.
type SnapshotRestoreInput struct {
	Snapshot    string // selector
	Name        string // of the new VM; with Count NAME-1 to NAME-N
	NetworkName string // "" takes the network that the VM was on
	Resume      bool   // the new VM runs; else it is paused
	Count       *int
}

// Restore makes new VMs of a snapshot, each of which goes on where the snapshot was
// taken, with disks, address and identity of its own: the guest's agent changes
// host name, machine id, SSH host keys, addresses and random numbers before the
// operation ends. A VM without agent cannot be restored as another one.
func (o *SnapshotOperation) Restore(ctx context.Context, in SnapshotRestoreInput, opts ...Option) (*VMCreateResult, error) {
	names, err := in.names()
	if err != nil {
		return nil, err
	}
	progress := options(opts).progress
	results := make([]*mvm.VMInstanceItem, len(names))
	var batch mvm.Batch[*mvm.VMInstanceItem]
	batch.Entries = make([]mvm.BatchEntry[*mvm.VMInstanceItem], len(names))
	var g errgroup.Group
	g.SetLimit(parallelCreates)
	began := time.Now()
	for i, name := range names {
		g.Go(func() error {
			vm, err := o.restoreOne(ctx, in, name, progress)
			if err == nil {
				results[i] = vm
			}
			batch.Entries[i] = mvm.BatchEntry[*mvm.VMInstanceItem]{Identifier: name, Item: results[i], Err: mvm.Wrap(err, "restore VM", name)}
			return nil
		})
	}
	_ = g.Wait() // the errors are in the entries
	out := &VMCreateResult{VMs: []*mvm.VMInstanceItem{}, Timings: []Timing{{"restore", time.Since(began)}}}
	for _, vm := range results {
		if vm != nil {
			out.VMs = append(out.VMs, vm)
		}
	}
	return out, batch.Err()
}

func (in SnapshotRestoreInput) names() ([]string, error) {
	if in.Snapshot == "" {
		return nil, mvm.Errorf(mvm.ErrInvalid, "no snapshot was named").WithHint("name one; see 'mvm snapshot ls'")
	}
	names := []string{in.Name}
	if in.Count != nil {
		if *in.Count < 1 || *in.Count > maxBatch {
			return nil, mvm.Errorf(mvm.ErrInvalid, "%d VMs asked for; one restore makes 1 to %d", *in.Count, maxBatch).WithHint("set --count to a number from 1 to %d", maxBatch)
		}
		names = nil
		for i := range *in.Count {
			names = append(names, in.Name+"-"+strconv.Itoa(i+1))
		}
	}
	for _, n := range names {
		if err := mvm.ValidateName("VM", n); err != nil {
			return nil, err
		}
	}
	return names, nil
}

func (o *SnapshotOperation) restoreOne(ctx context.Context, in SnapshotRestoreInput, name string, progress mvm.ProgressFunc) (*mvm.VMInstanceItem, error) {
	c := o.core
	snap, err := o.Get(ctx, SnapshotInput{Identifiers: []string{in.Snapshot}})
	if err != nil {
		return nil, err
	}
	dir := c.paths.abs(snap.Path)
	meta, err := readSnapshotMeta(dir)
	if err != nil {
		return nil, err
	}
	l := &loading{meta: meta, dir: dir, state: filepath.Join(dir, snapState), mem: filepath.Join(dir, snapMem), resume: in.Resume}
	if err := checkSnapshotFiles(meta, SnapshotPaths{State: l.state, Memory: l.mem}); err != nil {
		return nil, err
	}
	inv, err := loadInventory(ctx, c.st)
	if err != nil {
		return nil, err
	}
	p, err := c.planRestore(ctx, c.st, inv, l, name, in.NetworkName)
	if err != nil {
		return nil, err
	}
	if p.initrd, err = c.buildInitramfs(ctx, p.kernel, p.bootFSTypes()); err != nil {
		return nil, err
	}
	progress.Send("restore", fmt.Sprintf("restoring %s from %s", name, snap.Name))
	copies, err := p.copyVolumes(ctx, l)
	if err != nil {
		return nil, err
	}
	undo, err := json.Marshal(copies.ids())
	if err != nil {
		return nil, err
	}
	to := mvm.StatusPaused
	if in.Resume {
		to = mvm.StatusRunning
	}
	return p.item, c.journal.Run(ctx, op.Op{
		Kind: opRestore, Subject: name, SubjectID: p.item.ID, UndoData: undo,
		Reserve: func(tx *store.Tx) error { // the plan attaches the volumes
			if err := copies.reserve(ctx, tx); err != nil {
				return err
			}
			return p.reserve(ctx, tx)
		},
		Steps:  p.restoreSteps(l, copies),
		Commit: func(tx *store.Tx) error { return p.commitAs(ctx, tx, to, "restored from snapshot "+snap.Name) },
	})
}

// planRestore makes the plan for a new VM that goes on from a snapshot: the choices
// are those of the VM that it was taken of, but for what makes it another one.
func (c *core) planRestore(ctx context.Context, st *store.Store, inv *inventory, l *loading, name, networkName string) (*vmPlan, error) {
	src := l.meta.Snapshot.SourceVM
	if !src.HasAgent {
		return nil, noNewIdentity()
	}
	item := src
	item.ID, item.Name, item.Status, item.CreatedAt, item.UpdatedAt = newID(), name, mvm.StatusStarting, now(), now()
	item.PID, item.ExitCode, item.ProcessStartTime, item.RelayPID, item.NocloudNetPort, item.NocloudNetPID = 0, nil, nil, nil, nil, nil
	item.IPv4, item.MAC, item.StatusReason, item.VolumeIDs = "", "", "", nil
	item.Options.RestoredFrom, item.Options.JailUID, item.Options.Publish = l.meta.Snapshot.ID, 0, nil
	p, err := c.planFrom(ctx, st, inv, &item, firstOf(networkName, src.NetworkID))
	if err != nil {
		return nil, err
	}
	p.inheritCloudInit()
	if err := c.requireRoot("restoring a VM"); err != nil {
		return nil, err
	}
	if err := fits(&l.meta.Snapshot, p.probe); err != nil {
		return nil, err
	}
	mac, err := network.GuestMAC(p.set.str("defaults.vm", "guest_mac_prefix"), item.ID, 0)
	if err != nil {
		return nil, err
	}
	item.MAC = strings.ToUpper(mac.String())
	p.restore = l.restore(true)
	return p, p.finish(ctx)
}

// restoreSteps are the side effects of a new VM from a snapshot, in order.
func (p *vmPlan) restoreSteps(l *loading, copies *volumeCopies) []op.Step {
	c, id, dir := p.c, p.item.ID, p.c.paths.vm(p.item.ID)
	root := l.meta.Disks[0]
	steps := []op.Step{
		&dirStep{c: c, VMID: id},
		&identityStep{c: c, Path: filepath.Join(dir, identityName), plan: p},
		&cloneStep{Path: p.item.RootfsPath, from: filepath.Join(l.dir, root.File), format: root.Format},
	}
	steps = append(steps, p.cloudInitNew()...)
	steps = append(steps, copies.steps()...)
	steps = append(steps, p.startSteps()...)
	return append(steps, &becomeStep{c: c, plan: p, from: l})
}

// cloneStep copies a disk of a snapshot.
type cloneStep struct {
	Path string `json:"path"`

	from, format string
}

func (s *cloneStep) Kind() string { return "clone" }

func (s *cloneStep) Apply(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.Path), 0o700); err != nil {
		return err
	}
	return disk.CloneDisk(ctx, s.from, s.format, s.Path)
}

func (s *cloneStep) Revert(context.Context) error { return removeFile(s.Path) }

// noNewIdentity refuses to run one guest twice under one identity, which
// Firecracker's docs/snapshotting/random-for-clones.md calls insecure.
func noNewIdentity() error {
	return mvm.Errorf(mvm.ErrUnsupported, "the snapshot's VM has no agent that could give the new one an identity of its own").
		WithHint("load it into the VM that it was taken of with 'mvm vm load', or make VMs without --no-agent")
}

// becomeStep has the agent make another machine of a guest that was restored, and
// stops its vCPUs again where that was asked for. Until it is done the tap drops
// what the guest sends: its addresses are still another VM's.
type becomeStep struct {
	c    *core
	plan *vmPlan
	from *loading
}

func (s *becomeStep) Kind() string                 { return "become" }
func (s *becomeStep) Revert(context.Context) error { return nil }

func (s *becomeStep) Apply(ctx context.Context) error {
	p, c := s.plan, s.c
	cfg, err := p.bootConfig()
	if err != nil {
		return err
	}
	next := guest.NewIdentity{Config: cfg, OldMAC: s.from.meta.Snapshot.SourceVM.MAC, OldAddr: s.from.address()}
	was, err := s.from.login()
	if err != nil {
		return err
	}
	m, err := p.driver.Attach(ctx, p.handle)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(p.set.num("settings.vm", "ready_timeout_sec"))*time.Second)
	defer cancel()
	dial := c.dialAgent(p.item, m)
	if err := whileItRuns(ctx, m, p.item, "another machine", func(ctx context.Context) error {
		return s.become(ctx, dial, was, next)
	}); err != nil {
		return err
	}
	if s.from.resume {
		return nil
	}
	pauser, ok := m.(vmm.Pauser)
	if !ok {
		return mvm.Errorf(mvm.ErrUnsupported, "%s cannot pause a VM", p.driver.Name()).WithHint("restore it with --resume")
	}
	return pauser.Pause(ctx)
}

// become gives the guest its new identity, and looks whether it has taken it.
func (s *becomeStep) become(ctx context.Context, dial guest.DialFunc, was guest.Login, next guest.NewIdentity) error {
	client, _, err := guest.WaitReady(ctx, dial, was)
	if err != nil {
		return err
	}
	err = client.SetTime(ctx, time.Now())
	if err == nil {
		err = client.SetIdentity(ctx, next)
	}
	_ = client.Close()
	if err != nil {
		return err
	}
	return s.verify(ctx, dial)
}

// verify logs in by the new identity: the guest is another one when it knows that.
func (s *becomeStep) verify(ctx context.Context, dial guest.DialFunc) error {
	login, err := s.plan.identity.agentLogin()
	if err != nil {
		return err
	}
	client, ready, err := guest.WaitReady(ctx, dial, login)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	if ready.Hostname != s.plan.item.Name {
		return mvm.Errorf(mvm.ErrUnavailable, "the guest calls itself %s after it was named %s", mvm.Quote(ready.Hostname), mvm.Quote(s.plan.item.Name)).
			WithHint("see 'mvm logs %s'", s.plan.item.Name)
	}
	return nil
}

// address is the one that the guest had, as it was told it.
func (l *loading) address() string {
	subnet, err := netip.ParsePrefix(l.meta.Subnet)
	if err != nil {
		return ""
	}
	return l.meta.Snapshot.SourceVM.IPv4 + "/" + strconv.Itoa(subnet.Bits())
}

// login is how the agent in the snapshot is logged in to.
func (l *loading) login() (guest.Login, error) {
	id, err := readIdentity(l.dir)
	if err != nil {
		return guest.Login{}, mvm.Errorf(mvm.ErrBroken, "the snapshot's identity cannot be read: %w", err).WithHint("make a new snapshot")
	}
	return id.agentLogin()
}

// agentLogin is how the host proves itself to the agent with this identity.
func (id vmIdentity) agentLogin() (guest.Login, error) {
	hostKey, _, _, _, err1 := ssh.ParseAuthorizedKey([]byte(id.AgentPublic))
	signer, err2 := ssh.ParsePrivateKey([]byte(id.ClientKey))
	if err := errors.Join(err1, err2); err != nil {
		return guest.Login{}, mvm.Errorf(mvm.ErrBroken, "the VM's identity is damaged: %w", err).WithHint("remove the VM and create it anew")
	}
	return guest.Login{HostKey: hostKey, Signers: []ssh.Signer{signer}, User: "root"}, nil
}
