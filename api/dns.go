package api

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/dns"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
)

// nameServer is how the DNS servers of networks are run; tests have another.
type nameServer interface {
	Ensure(ctx context.Context, s dns.Server) (started bool, err error)
	Running(dir string) bool
	Stop(ctx context.Context, networkID, dir string) error
	PortFree(ctx context.Context, addr netip.AddrPort) error
}

type realNameServer struct{}

func (realNameServer) Ensure(ctx context.Context, s dns.Server) (bool, error) { return s.Ensure(ctx) }
func (realNameServer) Running(dir string) bool {
	_, err := dns.Running(dir)
	return err == nil
}
func (realNameServer) Stop(ctx context.Context, networkID, dir string) error {
	return dns.Stop(ctx, networkID, dir)
}
func (realNameServer) PortFree(ctx context.Context, addr netip.AddrPort) error {
	return dns.PortFree(ctx, addr)
}

// dnsServer is the server of a network.
func (c *core) dnsServer(n *mvm.NetworkItem) (dns.Server, error) {
	gateway, err := netip.ParseAddr(n.IPv4Gateway)
	if err != nil {
		return dns.Server{}, mvm.Errorf(mvm.ErrBroken, "network %s has no valid gateway", mvm.Quote(n.Name)).WithHint("remove the network and create it anew")
	}
	return dns.Server{NetworkID: n.ID, Exe: c.cfg.Executable, Dir: c.paths.dns(n.ID), Listen: netip.AddrPortFrom(gateway, dns.Port), Device: n.Bridge}, nil
}

// refreshDNS has the DNS server of a network know the VMs that run there, and run
// itself for as long as there are any. leaving, if not "", is a VM that does not count
// any more. It says whether the server was started.
func (c *core) refreshDNS(ctx context.Context, networkID, leaving string) (started bool, err error) {
	return c.refreshDNSWith(ctx, networkID, leaving, nil)
}

// lockDNS waits until no other command starts, ends or asks for a DNS server's port.
func (c *core) lockDNS(ctx context.Context) (*fsx.Lock, error) {
	if err := c.makeDir(c.paths.dnsRoot()); err != nil {
		return nil, err
	}
	return fsx.LockWait(ctx, filepath.Join(c.paths.dnsRoot(), "lock"))
}

// refreshDNSWith is refreshDNS for when one VM, if not nil, is another than is stored.
func (c *core) refreshDNSWith(ctx context.Context, networkID, leaving string, changed *mvm.VMInstanceItem) (started bool, err error) {
	if !validID(networkID) {
		return false, mvm.Errorf(mvm.ErrBroken, "%s is not a network's id", mvm.Quote(networkID))
	}
	lock, err := c.lockDNS(ctx)
	if err != nil {
		return false, err
	}
	defer lock.Unlock()
	dir := c.paths.dns(networkID)
	n, err := c.st.GetNetwork(ctx, networkID)
	if err != nil && !errors.Is(err, mvm.ErrNotFound) {
		return false, err
	}
	var vms []*mvm.VMInstanceItem
	if n != nil && n.DNSEnabled && n.DeletedAt == nil {
		if vms, err = c.dnsUsers(ctx, networkID, leaving); err != nil {
			return false, err
		}
	}
	for i, vm := range vms {
		if changed != nil && vm.ID == changed.ID {
			vms[i] = changed
		}
	}
	if len(vms) == 0 {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, errors.Join(c.dns.Stop(ctx, networkID, dir), os.RemoveAll(dir))
	}
	server, err := c.dnsServer(n)
	if err != nil {
		return false, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // the server is nobody, and its zone has no secrets
		return false, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // whatever the umask says
		return false, err
	}
	if err := zoneOf(n, vms).Write(dir); err != nil {
		return false, err
	}
	return c.dns.Ensure(ctx, server)
}

// dnsUsers are the VMs that run, or are about to, on a network.
func (c *core) dnsUsers(ctx context.Context, networkID, leaving string) ([]*mvm.VMInstanceItem, error) {
	vms, err := c.st.ListVMsUsing(ctx, store.UseNetwork, networkID)
	return slices.DeleteFunc(vms, func(vm *mvm.VMInstanceItem) bool {
		return vm.ID == leaving || hasEnded(vm) || vm.Status != mvm.StatusStarting && !runs(vm)
	}), err
}

// zoneOf is what a network's DNS server is told.
func zoneOf(n *mvm.NetworkItem, vms []*mvm.VMInstanceItem) dns.Zone {
	builtIn, _ := mvm.SettingOf("defaults.vm", "dns_server")
	z := dns.Zone{Network: n.Name, Fallback: serversOf(builtIn.Default), Hosts: []dns.Host{}}
	z.Gateway, _ = netip.ParseAddr(n.IPv4Gateway) // checked by dnsServer
	z.Subnet, _ = netip.ParsePrefix(n.Subnet)
	for _, vm := range vms {
		addr, err := netip.ParseAddr(vm.IPv4)
		if err != nil { // whoever starts it says what is wrong with it
			continue
		}
		h := dns.Host{VMID: vm.ID, Name: vm.Name, Addr: addr, Limited: vm.Options.Egress != nil}
		_, h.Names = mvm.SplitEgress(vm.Options.Egress)
		if vm.Options.OwnDNS {
			h.Servers = serversOf(vm.DNSServer)
		}
		z.Hosts = append(z.Hosts, h)
	}
	return z
}

// serversOf reads a list of DNS servers.
func serversOf(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// mendDNS starts the servers again that were killed, or went with a reboot, and ends
// those whose last VM was not seen to end. A failure is told, and is no failure of the
// command.
func (c *core) mendDNS(ctx context.Context) {
	if !c.isRoot() {
		return
	}
	entries, err := os.ReadDir(c.paths.dnsRoot())
	if err != nil {
		return
	}
	for _, e := range entries {
		dir := filepath.Join(c.paths.dnsRoot(), e.Name())
		if !e.IsDir() || !validID(e.Name()) {
			continue
		}
		if vms, err := c.dnsUsers(ctx, e.Name(), ""); err == nil && len(vms) > 0 && c.dns.Running(dir) {
			continue
		}
		if _, err := c.refreshDNS(ctx, e.Name(), ""); err != nil {
			c.notice("the DNS server of a network does not run and could not be started: " + err.Error())
		}
	}
}

// dnsStep has the DNS server of the VM's network know the VM.
type dnsStep struct {
	c         *core
	NetworkID string `json:"network_id"`
	VMID      string `json:"vm_id"`
}

func (s *dnsStep) Kind() string { return "dns" }

func (s *dnsStep) Apply(ctx context.Context) error {
	_, err := s.c.refreshDNS(ctx, s.NetworkID, "")
	return err
}

// Revert has it forget the VM, and end with the last one.
func (s *dnsStep) Revert(ctx context.Context) error {
	_, err := s.c.refreshDNS(ctx, s.NetworkID, s.VMID)
	return err
}

// checkDNS refuses to start a VM whose network's DNS server could not run, and one
// that may reach names that nobody would resolve.
func (c *core) checkVMDNS(ctx context.Context, n *mvm.NetworkItem, vm *mvm.VMInstanceItem) error {
	if err := namesNeedDNS(n, vm.Options.Egress); err != nil {
		return err
	}
	if !n.DNSEnabled {
		return nil
	}
	server, err := c.dnsServer(n)
	if err != nil {
		return err
	}
	return c.dnsPortFree(ctx, n, server)
}

// dnsPortFree refuses where a program of the host has the port. A server of ours that
// nobody knows of is ended by whoever starts the next one. To ask is to listen for a
// moment, so no other command may ask or start a server meanwhile.
func (c *core) dnsPortFree(ctx context.Context, n *mvm.NetworkItem, server dns.Server) error {
	if c.dns.Running(server.Dir) {
		return nil
	}
	lock, err := c.lockDNS(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if c.dns.Running(server.Dir) {
		return nil
	}
	err = c.dns.PortFree(ctx, server.Listen)
	if err == nil {
		return nil
	}
	if ids, found := proc.FindByArg(dns.Token(n.ID)); found == nil && len(ids) > 0 {
		return nil
	}
	var known *mvm.Error
	if errors.As(err, &known) && known.Kind == mvm.ErrExists {
		return known.WithHint("have that program listen on its own addresses only, or do without: mvm network dns %s off", n.Name)
	}
	return err
}

func namesNeedDNS(n *mvm.NetworkItem, egress []string) error {
	if _, names := mvm.SplitEgress(egress); len(names) > 0 && !n.DNSEnabled {
		return mvm.Errorf(mvm.ErrConflict, "it may reach %s by name, and network %s has no DNS of its own that would resolve names", mvm.Quote(names[0]), mvm.Quote(n.Name)).
			WithHint("switch it on with 'mvm network dns %s on', or list networks only", n.Name)
	}
	return nil
}

// dnsByDefault says whether a new network has DNS. Its server listens on a port of
// root's, and opens addresses: a member's network has none.
func (c *core) dnsByDefault(set settings) bool {
	return c.isRoot() && set.flag("defaults.network", "dns_enabled")
}

// tellOfNoDNS says what a member's network lacks, which root's has.
func (c *core) tellOfNoDNS(n *mvm.NetworkItem, set settings) {
	if c.isRoot() || n.DNSEnabled || !set.flag("defaults.network", "dns_enabled") {
		return
	}
	c.notice("network " + n.Name + " has no DNS server, which takes root: its VMs do not know each other by name, and ask " + set.str("defaults.vm", "dns_server") + " (defaults.vm dns_server) for others")
}

// mayServeDNS refuses DNS to whom it is not for.
func (c *core) mayServeDNS() error {
	if c.isRoot() {
		return nil
	}
	return mvm.Errorf(mvm.ErrPrivilege, "a DNS server on a gateway takes root: networks of members of the group have none").
		WithHint("do without, or have root make the network and its VMs")
}

// SetDNS switches the DNS server of a network on or off. It answers for the VMs that
// run there; what guests ask is told to them when they start.
func (o *NetworkOperation) SetDNS(ctx context.Context, in NetworkInput, on bool) (*mvm.NetworkItem, error) {
	c := o.core
	n, err := o.Get(ctx, in)
	if err != nil {
		return nil, err
	}
	word := map[bool]string{true: "on", false: "off"}[on]
	if err := c.requireRoot("switching DNS " + word); err != nil {
		return nil, err
	}
	if on {
		if err := c.mayServeDNS(); err != nil {
			return nil, err
		}
	}
	return n, mvm.Wrap(c.setDNS(ctx, n, on), "switch DNS "+word+" for network", n.Name)
}

func (c *core) setDNS(ctx context.Context, n *mvm.NetworkItem, on bool) error {
	server, err := c.dnsServer(n)
	if err != nil {
		return err
	}
	if on {
		if err := c.dnsPortFree(ctx, n, server); err != nil {
			return err
		}
	}
	var vms []*mvm.VMInstanceItem
	err = c.st.Tx(ctx, func(tx *store.Tx) error {
		stored, err := tx.GetNetwork(ctx, n.ID)
		if err != nil {
			return err
		}
		if stored.DeletedAt != nil || !stored.IsPresent {
			return mvm.Errorf(mvm.ErrConflict, "it is being made or removed").WithHint("see 'mvm network ls', then try again")
		}
		if vms, err = tx.ListVMsUsing(ctx, store.UseNetwork, n.ID); err != nil {
			return err
		}
		stored.DNSEnabled = on
		for _, vm := range vms {
			if err := namesNeedDNS(stored, vm.Options.Egress); err != nil {
				return mvm.Errorf(mvm.ErrConflict, "VM %s may reach names, which it would not resolve", mvm.Quote(vm.Name)).
					WithHint("change what it may reach with 'mvm vm update %s --egress', or leave DNS on", vm.Name)
			}
		}
		n.DNSEnabled = on
		return tx.UpdateNetwork(ctx, stored)
	})
	if err != nil {
		return err
	}
	if n.BridgeActive {
		if _, err := c.ensureAndRecord(ctx, networkSpecFor(n, vms...)); err != nil {
			return err
		}
	}
	_, err = c.refreshDNS(ctx, n.ID, "")
	return err
}

// opener opens addresses for the DNS servers.
type opener struct{ net network.Kernel }

func (o opener) Open(ctx context.Context, vmID string, addrs []dns.Address) error {
	open := make([]network.OpenAddr, 0, len(addrs))
	for _, a := range addrs {
		open = append(open, network.OpenAddr{Addr: a.Addr, For: a.For})
	}
	return o.net.OpenEgress(ctx, network.TapSpec{Name: network.TapName(vmID), VMID: vmID}, open)
}

var _ op.Step = (*dnsStep)(nil)
