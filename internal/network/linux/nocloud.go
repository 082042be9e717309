package linux

import (
	"context"

	"github.com/mvmctl/mvm/internal/network"
)

// AllowNoCloud implements network.Kernel.
func (k *Kernel) AllowNoCloud(ctx context.Context, n network.NoCloudSpec) error {
	if err := n.Validate(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	fw, err := k.openFilters()
	if err != nil {
		return err
	}
	defer fw.close()
	g := noCloudGroup(n)
	was, err := fw.readOurs(ctx, n.Backend, g)
	if err != nil || was.right {
		return err
	}
	return fw.put(ctx, n.Backend, g, was)
}

// RemoveNoCloud implements network.Kernel.
func (k *Kernel) RemoveNoCloud(ctx context.Context, n network.NoCloudSpec) error {
	if err := n.ValidateRemoval(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	fw, err := k.openFilters()
	if err != nil {
		return err
	}
	defer fw.close()
	return fw.remove(ctx, group{name: n.Table(), owner: owner{id: n.VMID}})
}
