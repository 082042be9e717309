package linux

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// systemBus is where D-Bus has its socket (D-Bus specification: Well-known Message Bus
// Instances). The environment is not asked: the helper runs for others.
const systemBus = "unix:path=/run/dbus/system_bus_socket"

// What firewalld is called, and its zone for what is accepted altogether
// (firewalld.dbus(5), firewalld.zones(5)).
const (
	firewalldName  = "org.fedoraproject.FirewallD1"
	firewalldTable = "firewalld"
	firewalldZone  = "trusted"
	firewalldWait  = 5 * time.Second // it may be busy with a reload
)

// ofFirewalld says whether a table is the one that firewalld keeps, and makes anew
// whenever it likes: nobody else can put rules there.
func ofFirewalld(t *nftables.Table) bool {
	return t.Family == nftables.TableFamilyINet && t.Name == firewalldTable
}

// firewalld is firewalld on the system bus. What it is told there holds until it
// reloads or ends; its files stay the administrator's.
type firewalld struct {
	ctx    context.Context
	cancel context.CancelFunc
	conn   *dbus.Conn
}

// dialFirewalld connects to firewalld; nil says that it does not run.
func dialFirewalld(ctx context.Context, bus string) (*firewalld, error) {
	ctx, cancel := context.WithTimeout(ctx, firewalldWait)
	conn, err := dbus.Connect(bus, dbus.WithContext(ctx))
	if err != nil {
		cancel()
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			return nil, nil
		}
		return nil, explain(err, "reach the system bus")
	}
	f := &firewalld{ctx: ctx, cancel: cancel, conn: conn}
	var running bool
	err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, firewalldName).Store(&running)
	if err != nil || !running {
		f.close()
		return nil, explain(err, "look for firewalld on the system bus")
	}
	return f, nil
}

func (f *firewalld) close() {
	_ = f.conn.Close()
	f.cancel()
}

// ask calls a method of one of its interfaces that returns text.
func (f *firewalld) ask(iface, method string, args ...any) (string, error) {
	path := "/org/fedoraproject/FirewallD1"
	if iface == ".config" {
		path += "/config"
	}
	var answer string
	err := f.conn.Object(firewalldName, dbus.ObjectPath(path)).
		CallWithContext(f.ctx, firewalldName+iface+"."+method, dbus.FlagNoAutoStart, args...).Store(&answer)
	if err != nil {
		return "", mvm.Errorf(mvm.ErrUnavailable, "ask firewalld (%s): %w", method, err).WithHint("see 'firewall-cmd --state' and 'journalctl -u firewalld', then try again")
	}
	return answer, nil
}

// said says whether firewalld refused with a code of its own (firewall/errors.py).
func said(err error, code string) bool {
	var refused dbus.Error
	return errors.As(err, &refused) && strings.HasPrefix(refused.Error(), code)
}

// zoneOf returns the zone that an interface is in, and whether somebody has put it
// there. Those that nobody has are in the default zone.
func (f *firewalld) zoneOf(ifname string) (zone string, put bool, err error) {
	if zone, err = f.ask(".zone", "getZoneOfInterface", ifname); err != nil || zone != "" {
		return zone, true, err
	}
	zone, err = f.ask("", "getDefaultZone")
	return zone, false, err
}

// accepts says whether a zone lets everything through. Before firewalld 0.9 it cannot
// be asked, and is taken not to.
func (f *firewalld) accepts(zone string) bool {
	if zone == firewalldZone {
		return true
	}
	var settings map[string]dbus.Variant
	err := f.conn.Object(firewalldName, "/org/fedoraproject/FirewallD1").
		CallWithContext(f.ctx, firewalldName+".zone.getZoneSettings2", dbus.FlagNoAutoStart, zone).Store(&settings)
	target, _ := settings["target"].Value().(string)
	return err == nil && target == "ACCEPT"
}

// trust puts an interface into the zone that accepts everything.
func (f *firewalld) trust(ifname string) error {
	_, err := f.ask(".zone", "addInterface", firewalldZone, ifname)
	if said(err, "ZONE_ALREADY_SET") {
		return nil
	}
	return err
}

// distrust takes an interface out of that zone, unless firewalld's files put it there,
// or it is not in it.
func (f *firewalld) distrust(ifname string) error {
	zone, put, err := f.zoneOf(ifname)
	if err != nil || !put || zone != firewalldZone {
		return err
	}
	filed, err := f.ask(".config", "getZoneOfInterface", ifname)
	if err != nil || filed == firewalldZone {
		return err
	}
	_, err = f.ask(".zone", "removeInterface", firewalldZone, ifname)
	if said(err, "UNKNOWN_INTERFACE") {
		return nil
	}
	return err
}

// firewalldDropper tells what firewalld does to the guests of a network. c is the
// chain by which it was seen.
func (f *filters) firewalldDropper(ctx context.Context, s network.Spec, c *nftables.Chain) *dropper {
	d := &dropper{firewalld: true, Passage: network.Passage{Program: "firewalld", Place: "zone " + firewalldZone + " of firewalld"}}
	fd, err := dialFirewalld(ctx, f.bus)
	if err != nil || fd == nil {
		d.Place = "chain " + c.Name + " of table " + familyTitle(c.Table) + " drops what it does not accept, while firewalld does not answer on the system bus"
		return d
	}
	defer fd.close()
	zone, put, err := fd.zoneOf(s.Bridge)
	switch {
	case err != nil:
		d.Place = "firewalld does not say which zone " + s.Bridge + " is in"
	case fd.accepts(zone):
		d.Place, d.Open, d.Ours = "zone "+zone+" of firewalld", true, true
		if put {
			d.Kept = 1
		}
	case put:
		d.Place = "zone " + zone + " of firewalld, which somebody has put " + s.Bridge + " into, does not accept everything"
	default:
		d.Ours, d.Added = true, 1
	}
	return d
}

// trustBridge has firewalld let a network's guests through: their bridge is one to
// trust, as far as our own rules do.
func (f *filters) trustBridge(ctx context.Context, s network.Spec) error {
	fd, err := dialFirewalld(ctx, f.bus)
	if err != nil || fd == nil {
		return err
	}
	defer fd.close()
	return fd.trust(s.Bridge)
}

// distrustBridge takes that back, where firewalld runs.
func (f *filters) distrustBridge(ctx context.Context, bridge string) error {
	tables, err := f.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return explain(err, "read nftables tables")
	}
	for _, t := range tables {
		if !ofFirewalld(t) {
			continue
		}
		fd, err := dialFirewalld(ctx, f.bus)
		if err != nil || fd == nil { // one that has ended has forgotten the bridge
			return err
		}
		defer fd.close()
		return fd.distrust(bridge)
	}
	return nil
}
