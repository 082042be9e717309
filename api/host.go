package api

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Status looks at the host: which hypervisors work, what is missing, and what
// to do about it. It changes nothing.
func (o *HostOperation) Status(ctx context.Context) (*HostStatus, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	inv, err := loadInventory(ctx, st)
	if err != nil {
		return nil, err
	}
	kernel := defaultKernel(inv.kernels)
	kvm := c.kvmFor(kernel)
	s := &HostStatus{
		KVMAccessible: kvm.Usable, IPForward: host.IPForward(), MissingBinaries: host.MissingBinaries(),
		Drivers: []DriverState{}, Problems: []HostProblem{}, CacheDir: c.paths.cache, State: "not ready", Hypervisor: "none",
	}
	if !kvm.Usable {
		s.KVMReason, s.KVMHint = kvm.Problem.What, kvm.Problem.Hint
		s.Problems = append(s.Problems, HostProblem{kvm.Problem.What, kvm.Problem.Hint})
	}
	binary, err := c.findBinary(ctx, st, "")
	if err != nil {
		return nil, err
	}
	path := ""
	if binary != nil {
		path = c.paths.abs(binary.Path)
	}
	for _, d := range []vmm.Driver{c.firecracker(path), c.qemu()} {
		p := c.forKernel(d.Probe(ctx), kernel)
		ds := DriverState{Name: d.Name(), Usable: p.Usable, Path: p.Path, Version: p.Version, Accel: p.Accel, Problems: []string{}}
		for _, pr := range p.Problems {
			ds.Problems = append(ds.Problems, pr.What)
			if s.KVMReason == "" || !strings.HasPrefix(pr.What, s.KVMReason) {
				s.Problems = append(s.Problems, HostProblem{d.Name() + ": " + pr.What, pr.Hint})
			}
		}
		if p.Usable && s.Hypervisor == "none" {
			s.Hypervisor = d.Name()
		}
		s.Drivers = append(s.Drivers, ds)
	}
	if err := c.hostSettings(ctx, s); err != nil {
		return nil, err
	}
	c.hostAccess(s)
	switch {
	case s.Hypervisor == "none":
	case s.KVMAccessible && s.IPForward == "1" && len(s.MissingBinaries) == 0:
		s.State = "ready"
	default:
		s.State = "degraded"
	}
	return s, nil
}

// hostSettings compares the host with what init wants of it. Where init ran, what
// differs by now is a problem; where it never did, it is only told.
func (c *core) hostSettings(ctx context.Context, s *HostStatus) error {
	s.Settings = []HostSetting{}
	plan, err := c.planHost(ctx)
	if errors.Is(err, fs.ErrPermission) { // an ordinary user cannot read all of it
		return nil
	}
	if err != nil {
		s.Problems = append(s.Problems, HostProblem{err.Error(), mvm.HintOf(err)})
		return nil
	}
	setup, err := readSetup(ctx, c.st.Queries)
	if err != nil {
		return err
	}
	for _, ch := range plan.kept {
		s.Settings = append(s.Settings, HostSetting{What: ch.Setting.String(), Now: settingText(ch.Setting, ch.Old), Want: settingText(ch.Setting, ch.New), OK: true})
	}
	for _, ch := range plan.changes {
		row := HostSetting{What: ch.Setting.String(), Now: settingText(ch.Setting, ch.Old), Want: settingText(ch.Setting, ch.New)}
		s.Settings = append(s.Settings, row)
		if setup.At != "" {
			s.Problems = append(s.Problems, HostProblem{row.What + " is not as 'mvm host init' has left it: " + orAbsent(row.Now), "run 'sudo mvm host init' again"})
		}
	}
	return nil
}

// hostAccess tells what this user may do, and what is in the way.
func (c *core) hostAccess(s *HostStatus) {
	err := c.requireRoot("making networks and VMs")
	switch {
	case c.isRoot():
		s.Access = "root"
	case err == nil:
		s.Access = "member"
		if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
			_ = f.Close()
		} else {
			s.Problems = append(s.Problems, HostProblem{"/dev/net/tun cannot be opened by this user, so that VMs have no network: " + err.Error(),
				"have an administrator run 'chmod 0666 /dev/net/tun', as udev does"})
		}
	default:
		s.Access = "none"
		p := HostProblem{What: err.Error(), Hint: mvm.HintOf(err)}
		var ask *mvm.NeedsInteraction
		if errors.As(err, &ask) {
			p = HostProblem{ask.What, "run '" + strings.Join(ask.Command, " ") + "'"}
		}
		s.Problems = append(s.Problems, p)
	}
}
