package api

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
)

// VMUpdateInput says what changes of VMs. What is nil stays.
type VMUpdateInput struct {
	Identifiers []string
	BalloonMiB  *int            // what the guest is to give up
	DiskLimit   *mvm.VMLimit    // of the root disk; all zero takes the limit away
	NetLimit    *mvm.VMLimit    // in each direction; all zero takes the limit away
	Metadata    json.RawMessage // replaces what the metadata service holds
	Egress      *[]string       // what it may reach outside: a nil list for all, an empty one for nothing
}

func (in VMUpdateInput) validate() error {
	if in.BalloonMiB == nil && in.DiskLimit == nil && in.NetLimit == nil && in.Metadata == nil && in.Egress == nil {
		return mvm.Errorf(mvm.ErrInvalid, "nothing is to be changed").WithHint("say what, for example --net-limit 10M")
	}
	b := VMCreateInput{DiskLimit: in.DiskLimit, NetLimit: in.NetLimit, Metadata: in.Metadata}
	if in.BalloonMiB != nil {
		b.Balloon = &mvm.VMBalloon{MiB: *in.BalloonMiB}
	}
	if in.Egress != nil {
		b.Egress = *in.Egress
	}
	return b.validateOptions()
}

// Update changes VMs: at once where they run, and for all later starts. A device
// that a VM was started without cannot be had by that: it gives ErrUnsupported or
// ErrConflict. Of several changes to a VM that runs those before one that fails are
// in force until it is started again.
func (o *VMOperation) Update(ctx context.Context, in VMUpdateInput) (mvm.Batch[*mvm.VMInstanceItem], error) {
	if err := in.validate(); err != nil {
		return mvm.Batch[*mvm.VMInstanceItem]{}, err
	}
	return o.each(ctx, "update VM", VMInput{Identifiers: in.Identifiers}, func(ctx context.Context, _ *store.Store, vm *mvm.VMInstanceItem) error {
		return o.core.update(ctx, vm, in)
	})
}

func (c *core) update(ctx context.Context, vm *mvm.VMInstanceItem, in VMUpdateInput) error {
	if err := c.requireRoot("this"); err != nil {
		return err
	}
	was := vm.Options
	opts := &vm.Options
	if in.BalloonMiB != nil {
		if opts.Balloon == nil {
			return mvm.Errorf(mvm.ErrConflict, "it was made without a balloon").WithHint("make it with --balloon, for example --balloon 0")
		}
		b := *opts.Balloon
		b.MiB = *in.BalloonMiB
		opts.Balloon = &b
		if err := fitsBalloon(vm); err != nil {
			return err
		}
	}
	if in.DiskLimit != nil {
		opts.DiskLimit = in.DiskLimit
	}
	if in.NetLimit != nil {
		opts.NetLimit = in.NetLimit
	}
	if in.Metadata != nil {
		if opts.Metadata == nil {
			return mvm.Errorf(mvm.ErrConflict, "it was made without a metadata service").WithHint("make it with --metadata")
		}
		opts.Metadata = in.Metadata
	}
	if in.Egress != nil {
		n, err := c.st.GetNetwork(ctx, vm.NetworkID)
		if err != nil {
			return err
		}
		if opts.Egress, err = mvm.CheckEgress(*in.Egress); err == nil {
			err = namesNeedDNS(n, opts.Egress)
		}
		if err != nil {
			vm.Options = was
			return err
		}
	}
	live := func(ctx context.Context) error { return c.updateLive(ctx, vm, in) }
	var step op.Step = &actStep{live}
	if in.Egress != nil || in.NetLimit != nil {
		step = &reachStep{c: c, VMID: vm.ID, do: live}
	}
	if err := c.claimFor(ctx, vm, mvm.VerbUpdate, vm.Status, "updated as asked", step); err != nil {
		vm.Options = was
		return err
	}
	if in.Egress != nil {
		_, err := c.refreshDNS(ctx, vm.NetworkID, "") // opens again what its new rules have closed
		return err
	}
	return nil
}

// updateLive changes a VM that runs.
func (c *core) updateLive(ctx context.Context, vm *mvm.VMInstanceItem, in VMUpdateInput) error {
	if vm.Status != mvm.StatusRunning && vm.Status != mvm.StatusPaused {
		return nil
	}
	m, err := c.attach(ctx, vm)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	cannot := func(what string) error {
		return mvm.Errorf(mvm.ErrUnsupported, "%s cannot change %s of a VM", vm.Hypervisor, what).WithHint("use --hypervisor firecracker")
	}
	for _, change := range []struct {
		wanted bool
		what   string
		do     func() (bool, error)
	}{
		{in.BalloonMiB != nil, "the balloon", func() (bool, error) {
			b, ok := m.(vmm.Ballooner)
			if !ok {
				return false, nil
			}
			return true, b.SetBalloon(ctx, *in.BalloonMiB)
		}},
		{in.DiskLimit != nil, "the limit of a disk", func() (bool, error) {
			l, ok := m.(vmm.RateLimiter)
			if !ok {
				return false, nil
			}
			return true, l.LimitDisk(ctx, "rootfs", rateLimit(in.DiskLimit))
		}},
		{in.Egress != nil, "what may be reached", func() (bool, error) {
			// First who opens addresses, then what is open.
			_, err := c.refreshDNSWith(ctx, vm.NetworkID, "", vm)
			return true, errors.Join(err, c.retap(ctx, vm))
		}},
		{in.NetLimit != nil, "the limit of an interface", func() (bool, error) {
			if !limitsItself(vm) {
				return true, c.retap(ctx, vm)
			}
			l, ok := m.(vmm.NICLimiter)
			if !ok {
				return false, nil
			}
			return true, l.LimitNIC(ctx, "eth0", rateLimit(in.NetLimit), rateLimit(in.NetLimit))
		}},
		{in.Metadata != nil, "the metadata", func() (bool, error) {
			h, ok := m.(vmm.MetadataHolder)
			if !ok {
				return false, nil
			}
			return true, h.SetMetadata(ctx, in.Metadata)
		}},
	} {
		if !change.wanted {
			continue
		}
		switch ok, err := change.do(); {
		case err != nil:
			return err
		case !ok:
			return cannot(change.what)
		}
	}
	return nil
}
