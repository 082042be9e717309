package store

import (
	"context"
	"net/netip"

	"github.com/mvmctl/mvm"
)

var networks = table[mvm.NetworkItem]{
	name: "networks", noun: "network", soft: true,
	cols: []string{"id", "name", "subnet", "bridge", "ipv4_gateway", "bridge_active", "nat_enabled", "is_default", "is_present",
		"created_at", "updated_at", "deleted_at", "nat_gateways", "dns_enabled"},
	fields: func(n *mvm.NetworkItem) []any {
		return []any{&n.ID, &n.Name, &n.Subnet, &n.Bridge, &n.IPv4Gateway, &n.BridgeActive, &n.NATEnabled, &n.IsDefault, &n.IsPresent,
			&n.CreatedAt, &n.UpdatedAt, &n.DeletedAt, &n.NATGateways, &n.DNSEnabled}
	},
	stamp: func(n *mvm.NetworkItem) []*string { return []*string{&n.CreatedAt, &n.UpdatedAt} },
	unique: map[string]taken{
		"networks.name": {cols: []string{"name"}, what: "a network named %q exists already",
			hint: "choose another name; 'mvm network ls' shows those in use"},
		"networks.subnet": {cols: []string{"subnet"}, what: "the subnet %s is used",
			owner: `select 'network "' || name || '"' from networks where subnet = ? and deleted_at is null`,
			hint:  "choose another with --subnet"},
		"networks.bridge": {cols: []string{"bridge"}, what: "the bridge %s is used",
			owner: `select 'network "' || name || '"' from networks where bridge = ? and deleted_at is null`,
			hint:  "choose another name for the network"},
	},
}

// InsertNetwork adds a network. ErrExists when its name or bridge is taken, or
// its subnet overlaps that of another network.
func (q Queries) InsertNetwork(ctx context.Context, n *mvm.NetworkItem) error {
	return q.tx(ctx, func(tx *Tx) error {
		if err := networks.insert(ctx, tx.Queries, n); err != nil {
			return err
		}
		return tx.overlap(ctx, n)
	})
}

// UpsertNetwork adds a network or replaces the one with its id.
func (q Queries) UpsertNetwork(ctx context.Context, n *mvm.NetworkItem) error {
	return q.tx(ctx, func(tx *Tx) error {
		if err := networks.upsert(ctx, tx.Queries, n); err != nil {
			return err
		}
		return tx.overlap(ctx, n)
	})
}

// overlap refuses a subnet that shares addresses with another network's. It has
// to run in the transaction that wrote n.
func (q Queries) overlap(ctx context.Context, n *mvm.NetworkItem) error {
	mine, err := netip.ParsePrefix(n.Subnet)
	if err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "%s is not a subnet", mvm.Quote(n.Subnet)).WithHint("write one such as 172.27.0.0/24")
	}
	all, err := q.ListNetworks(ctx)
	if err != nil {
		return err
	}
	for _, other := range all {
		theirs, err := netip.ParsePrefix(other.Subnet)
		if err == nil && other.ID != n.ID && mine.Overlaps(theirs) {
			return mvm.Errorf(mvm.ErrExists, "the subnet %s overlaps %s of network %s", n.Subnet, other.Subnet, mvm.Quote(other.Name)).
				WithHint("choose another with --subnet")
		}
	}
	return nil
}

// GetNetwork returns a network by id, also a deleted one, or ErrNotFound. Leases
// and rules are not filled in.
func (q Queries) GetNetwork(ctx context.Context, id string) (*mvm.NetworkItem, error) {
	return networks.get(ctx, q, id)
}

// ListNetworks returns the networks that are not deleted, by name.
func (q Queries) ListNetworks(ctx context.Context) ([]*mvm.NetworkItem, error) {
	return networks.where(ctx, q, "deleted_at is null order by name")
}

// UpdateNetwork writes all fields of a network but CreatedAt.
func (q Queries) UpdateNetwork(ctx context.Context, n *mvm.NetworkItem) error {
	return networks.update(ctx, q, n)
}

// DeleteNetwork marks a network deleted and frees its name, subnet and bridge.
// One that is gone is no error.
func (q Queries) DeleteNetwork(ctx context.Context, id string) error {
	return networks.remove(ctx, q, id)
}

// ForgetNetwork removes a network's row, its rules and its leases altogether, as if
// there had never been one.
func (q Queries) ForgetNetwork(ctx context.Context, id string) error {
	return q.tx(ctx, func(tx *Tx) error {
		for _, query := range []string{
			"delete from firewall_rules where network_id = ?", "delete from leases where network_id = ?", "delete from networks where id = ?",
		} {
			if _, err := tx.exec(ctx, query, id); err != nil {
				return tx.fail(err)
			}
		}
		return nil
	})
}

// SetDefaultNetwork makes a network the only default one.
func (q Queries) SetDefaultNetwork(ctx context.Context, id string) error {
	return networks.setDefault(ctx, q, id)
}

var leases = table[mvm.NetworkLeaseItem]{
	name: "leases", noun: "lease",
	cols: []string{"id", "network_id", "ipv4", "vm_id", "leased_at", "expires_at"},
	fields: func(l *mvm.NetworkLeaseItem) []any {
		return []any{&l.ID, &l.NetworkID, &l.IPv4, &l.VMID, &l.LeasedAt, &l.ExpiresAt}
	},
	unique: map[string]taken{
		"leases.network_id, leases.ipv4": {cols: []string{"network_id", "ipv4"}, what: "in network %s the address %s is leased",
			owner: `select 'VM "' || v.name || '"' from leases l join vms v on v.id = l.vm_id where l.network_id = ? and l.ipv4 = ?`,
			hint:  "choose another address with --ip, or leave it out to get a free one"},
	},
}

// InsertLease leases an address, and sets its ID and, if empty, LeasedAt.
// ErrExists when the address is leased already; ErrConflict when there is no
// such network or VM.
func (q Queries) InsertLease(ctx context.Context, l *mvm.NetworkLeaseItem) error {
	if l.LeasedAt == "" {
		l.LeasedAt = now()
	}
	return insertNumbered(ctx, q, &leases, l, &l.ID)
}

// ListLeases returns the leases of a network, or all when networkID is "".
func (q Queries) ListLeases(ctx context.Context, networkID string) ([]*mvm.NetworkLeaseItem, error) {
	return leases.where(ctx, q, "? in ('', network_id) order by network_id, id", networkID)
}

// ListLeasesOfVM returns the leases of a VM.
func (q Queries) ListLeasesOfVM(ctx context.Context, vmID string) ([]*mvm.NetworkLeaseItem, error) {
	return leases.where(ctx, q, "vm_id = ? order by id", vmID)
}

// DeleteLease frees an address. One that is free is no error.
func (q Queries) DeleteLease(ctx context.Context, networkID, ipv4 string) error {
	_, err := q.exec(ctx, "delete from leases where network_id = ? and ipv4 = ?", networkID, ipv4)
	return q.fail(err)
}

// DeleteLeasesOfNetwork frees all addresses of a network.
func (q Queries) DeleteLeasesOfNetwork(ctx context.Context, networkID string) error {
	_, err := q.exec(ctx, "delete from leases where network_id = ?", networkID)
	return q.fail(err)
}

// DeleteLeasesOfVM frees the addresses of a VM.
func (q Queries) DeleteLeasesOfVM(ctx context.Context, vmID string) error {
	_, err := q.exec(ctx, "delete from leases where vm_id = ?", vmID)
	return q.fail(err)
}

var rules = table[mvm.FirewallRule]{
	name: "firewall_rules", noun: "firewall rule",
	cols: []string{"id", "table_name", "chain_name", "rule_type", "protocol", "source", "destination", "in_interface", "out_interface",
		"target", "sport", "dport", "network_id", "is_active", "network_name", "command_string", "comment_tag", "created_at", "last_verified_at"},
	fields: func(r *mvm.FirewallRule) []any {
		return []any{&r.ID, &r.TableName, &r.ChainName, &r.RuleType, &r.Protocol, &r.Source, &r.Destination, &r.InInterface, &r.OutInterface,
			&r.Target, &r.SPort, &r.DPort, &r.NetworkID, &r.IsActive, &r.NetworkName, &r.CommandString, &r.CommentTag, &r.CreatedAt, &r.LastVerifiedAt}
	},
}

// InsertFirewallRule adds a rule and sets its ID and, if nil, CreatedAt.
func (q Queries) InsertFirewallRule(ctx context.Context, r *mvm.FirewallRule) error {
	if r.CreatedAt == nil {
		at := now()
		r.CreatedAt = &at
	}
	return insertNumbered(ctx, q, &rules, r, &r.ID)
}

// ListFirewallRules returns the rules of a network in the order in which they
// were added, or all when networkID is "".
func (q Queries) ListFirewallRules(ctx context.Context, networkID string) ([]*mvm.FirewallRule, error) {
	return rules.where(ctx, q, "? in ('', network_id) order by id", networkID)
}

// UpdateFirewallRule writes all fields of a rule that has an ID.
func (q Queries) UpdateFirewallRule(ctx context.Context, r *mvm.FirewallRule) error {
	return rules.update(ctx, q, r)
}

// VerifyFirewallRules notes that all rules of a network were seen in the kernel
// at a time.
func (q Queries) VerifyFirewallRules(ctx context.Context, networkID, at string) error {
	_, err := q.exec(ctx, "update firewall_rules set is_active = 1, last_verified_at = ? where network_id = ?", at, networkID)
	return q.fail(err)
}

// DeleteFirewallRules removes the rules of a network.
func (q Queries) DeleteFirewallRules(ctx context.Context, networkID string) error {
	_, err := q.exec(ctx, "delete from firewall_rules where network_id = ?", networkID)
	return q.fail(err)
}
