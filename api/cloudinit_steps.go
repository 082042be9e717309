package api

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/cloudinit"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/vmm"
)

// cloudInitNew are the steps of a new VM.
func (p *vmPlan) cloudInitNew() []op.Step {
	if p.item.CloudInitMode == mvm.CloudInitOff {
		return nil
	}
	return []op.Step{&cloudInitStep{c: p.c, VMID: p.item.ID, plan: p}}
}

// cloudInitBefore are the steps of a start that come before the VMM. A VM that goes
// on from a snapshot asks no server.
func (p *vmPlan) cloudInitBefore() []op.Step {
	switch o := p.item.Options.CloudInit; {
	case hasISO(p.item) && !o.OwnISO:
		return []op.Step{&isoStep{Path: p.c.cloudInitISO(p.item), docs: p.c.cloudInitDocs(p.item.ID)}}
	case p.item.CloudInitMode == mvm.CloudInitNet && p.restore == nil:
		return []op.Step{&nocloudStep{c: p.c, VMID: p.item.ID, plan: p}}
	}
	return nil
}

// cloudInitAfter are those that come after it.
func (p *vmPlan) cloudInitAfter() []op.Step {
	if o := p.item.Options.CloudInit; hasISO(p.item) && !o.OwnISO && !o.KeepISO {
		return []op.Step{&isoGoneStep{Path: p.c.cloudInitISO(p.item)}}
	}
	return nil
}

// cloudInitStep keeps a new VM's documents, or the user's own ISO, in its directory.
type cloudInitStep struct {
	c    *core
	VMID string `json:"vm_id"`

	plan *vmPlan
}

func (s *cloudInitStep) Kind() string { return "cloud-init" }

func (s *cloudInitStep) Apply(ctx context.Context) error {
	if s.plan.item.Options.CloudInit.OwnISO {
		path := s.plan.c.cloudInitISO(s.plan.item)
		if err := disk.CloneDisk(ctx, s.plan.cloudInit.iso, disk.Raw, path); err != nil {
			return err
		}
		return os.Chmod(path, 0o600)
	}
	docs, err := s.plan.cloudInitDocuments()
	if err != nil {
		return err
	}
	return docs.Write(s.c.cloudInitDocs(s.VMID))
}

// Revert removes the documents; an ISO goes with the VM's directory.
func (s *cloudInitStep) Revert(context.Context) error {
	if !validID(s.VMID) {
		return mvm.Errorf(mvm.ErrBroken, "%s is not a VM's id", mvm.Quote(s.VMID))
	}
	return os.RemoveAll(s.c.cloudInitDocs(s.VMID))
}

// isoStep makes the ISO of the documents, anew for each start.
type isoStep struct {
	Path string `json:"path"`

	docs string
}

func (s *isoStep) Kind() string { return "iso" }

func (s *isoStep) Apply(ctx context.Context) error {
	docs, err := cloudinit.ReadDocuments(s.docs)
	if err != nil {
		return err
	}
	return cloudinit.WriteISO(ctx, s.Path, docs)
}

func (s *isoStep) Revert(context.Context) error { return cloudinit.RemoveISO(s.Path) }

// isoGoneStep removes the ISO's name once the VMM has it open: documents with
// secrets need not lie about.
type isoGoneStep struct {
	Path string `json:"path"`
}

func (s *isoGoneStep) Kind() string { return "iso-gone" }

func (s *isoGoneStep) Apply(context.Context) error { return cloudinit.RemoveISO(s.Path) }

func (s *isoGoneStep) Revert(context.Context) error { return nil }

// nocloudStep starts the server that the VM's cloud-init reads from, and the rules
// by which nobody else does.
type nocloudStep struct {
	c    *core
	VMID string `json:"vm_id"`

	plan *vmPlan
}

func (s *nocloudStep) Kind() string { return "nocloud" }

func (s *nocloudStep) Apply(ctx context.Context) error {
	it := s.plan.item
	spec, err := noCloudSpec(it, s.plan.network)
	if err != nil {
		return err
	}
	if err := cloudinit.StopServer(ctx, s.VMID); err != nil { // of an earlier run
		return err
	}
	if err := s.c.net.AllowNoCloud(ctx, spec); err != nil {
		return err
	}
	id, err := s.c.serve(ctx, cloudinit.Server{
		VMID: s.VMID, Exe: s.c.cfg.Executable, Documents: s.c.cloudInitDocs(s.VMID), Peer: spec.IP,
		Listen: netip.AddrPortFrom(spec.Gateway, uint16(spec.Port)), //nolint:gosec // a port
		Ended:  filepath.Join(s.c.paths.vm(s.VMID), vmm.ExitFile),
	})
	if err != nil {
		return err
	}
	it.NocloudNetPID = &id.PID
	return nil
}

// noCloudSpec is what the kernel is to have for a VM's server.
func noCloudSpec(vm *mvm.VMInstanceItem, n *mvm.NetworkItem) (network.NoCloudSpec, error) {
	gateway, err1 := netip.ParseAddr(n.IPv4Gateway)
	ip, err2 := netip.ParseAddr(vm.IPv4)
	if err := errors.Join(err1, err2); err != nil || vm.NocloudNetPort == nil {
		return network.NoCloudSpec{}, mvm.Errorf(mvm.ErrBroken, "the stored addresses of the NoCloud server: %w", err).WithHint("remove the VM and create it anew")
	}
	return network.NoCloudSpec{VMID: vm.ID, Bridge: n.Bridge, Gateway: gateway, IP: ip, Port: *vm.NocloudNetPort}, nil
}

// Revert ends whatever process has the token of the VM's server in its command
// line: after a crash nobody may have written down which one it is.
func (s *nocloudStep) Revert(ctx context.Context) error {
	if !validID(s.VMID) {
		return mvm.Errorf(mvm.ErrBroken, "%s is not a VM's id", mvm.Quote(s.VMID))
	}
	return errors.Join(cloudinit.StopServer(ctx, s.VMID), s.c.net.RemoveNoCloud(ctx, network.NoCloudSpec{VMID: s.VMID}))
}

// endServer ends a VM's server with the VM.
func (c *core) endServer(ctx context.Context, vm *mvm.VMInstanceItem) error {
	if vm.CloudInitMode != mvm.CloudInitNet {
		return nil
	}
	vm.NocloudNetPID = nil
	return (&nocloudStep{c: c, VMID: vm.ID}).Revert(ctx)
}
