package linux

import (
	"context"

	"github.com/google/nftables"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// backend is where the IP rules of networks and VMs stand: nftables or iptables.
// Each renders whatever rules package network gives it, in the same meaning:
//
//   - A drop is final. An accept ends the rules of its group alone: the packet goes
//     on to the other groups, and to what other programs have.
//   - Groups are independent. Which of two was made first decides nothing, but for
//     those that mark packets, which come before the rest.
type backend interface {
	// read tells what the kernel has of a group, and whether that is right.
	read(ctx context.Context, g group) (groupState, error)

	// put brings a group in place as a whole, in one transaction for each chain at
	// least: packets see its old rules or the new ones. One without rules is
	// removed. was is what read said before.
	put(ctx context.Context, g group, was groupState) error

	// present says whether anything has a group's name, without a child process.
	present(g group) (bool, error)

	// remove removes what is there of a group, if it is ours; only the group's name
	// and owner's id are read.
	remove(ctx context.Context, g group) error

	// title says for people where a group stands.
	title(g group) string
}

// group is a set of rules that come and go together.
type group struct {
	name  string // of at most 15 characters, or as long as a table's name may be: bridge, tap, ...
	owner owner
	rules []mvm.FirewallRule
	early bool           // its packets pass it before they pass the groups of networks
	sets  []nftables.Set // that its rules use; of nftables' alone
}

// groupState is a group as it is in the kernel.
type groupState struct {
	exists  bool
	foreign bool // the name is somebody else's
	right   bool // just the rules wanted, and all that leads to them
	rules   []mvm.FirewallRule
	table   tableState // of nftables
}

// owner is whose rules they are: what the model says of them besides what stands in
// the kernel.
type owner struct{ id, networkID, name string }

func networkGroup(s network.Spec) group {
	return group{name: s.Bridge, owner: owner{s.NetworkID, s.NetworkID, s.Name}, rules: network.Rules(s)}
}

// guestGroup are the rules of a VM; most have none.
func guestGroup(t network.TapSpec) group {
	return group{name: t.Name, owner: owner{t.VMID, t.NetworkID, t.VMName}, rules: network.GuestRules(t)}
}

// noCloudGroup are the rules of one VM's NoCloud server. They are apart from the
// network's: two VMs that start at once never write the same object.
func noCloudGroup(n network.NoCloudSpec) group {
	return group{name: n.Table(), owner: owner{id: n.VMID}, rules: network.NoCloudRules(n), early: true}
}

// filters are one call's ways to the rules of the host.
type filters struct {
	*firewall
	all map[network.Backend]backend
	bus string // where firewalld is asked
}

func (k *Kernel) openFilters() (*filters, error) {
	fw, err := openFirewall()
	if err != nil {
		return nil, err
	}
	all := map[network.Backend]backend{network.NFTables: nft{fw}, network.IPTables: iptables{fw: fw, run: k.run}}
	return &filters{fw, all, k.bus}, nil
}

// in returns a backend, which is nftables where none is named.
func (f *filters) in(b network.Backend) backend { return f.all[b.OrDefault()] }

// read reads a group in its backend, and refuses one whose name is somebody else's.
func (f *filters) readOurs(ctx context.Context, b network.Backend, g group) (groupState, error) {
	was, err := f.read(ctx, b, g)
	if err == nil && was.foreign {
		return was, foreign(f.in(b).title(g))
	}
	return was, err
}

// read reads a group in its backend. One that another backend has too is not right.
func (f *filters) read(ctx context.Context, b network.Backend, g group) (groupState, error) {
	was, err := f.in(b).read(ctx, g)
	if err != nil || !was.right {
		return was, err
	}
	for name, other := range f.all {
		if name != b.OrDefault() {
			there, err := other.present(g)
			if err != nil {
				return was, err
			}
			was.right = was.right && !there
		}
	}
	return was, nil
}

// put brings a group in place in one backend, and only then removes it from the
// others: the guests are never without rules.
func (f *filters) put(ctx context.Context, b network.Backend, g group, was groupState) error {
	if err := f.in(b).put(ctx, g, was); err != nil {
		return err
	}
	return f.removeExcept(ctx, b.OrDefault(), g)
}

// remove removes a group from all backends.
func (f *filters) remove(ctx context.Context, g group) error { return f.removeExcept(ctx, "", g) }

func (f *filters) removeExcept(ctx context.Context, kept network.Backend, g group) error {
	for name, b := range f.all {
		if name == kept {
			continue
		}
		there, err := b.present(g)
		if err == nil && there {
			err = b.remove(ctx, g)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
