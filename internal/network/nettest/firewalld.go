package nettest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// Firewalld is a firewalld of its own for a namespace, on a bus of its own. It has the
// zones that firewalld comes with; its default zone is "public", which rejects.
type Firewalld struct {
	Bus string // the address of its bus

	t   testing.TB
	end func()
}

const firewalldName = "org.fedoraproject.FirewallD1"

// NewFirewalld starts the real firewalld in a namespace, and ends it with the test. It
// skips where firewalld is not installed. Only CI installs it: on a host with systemd that
// would start it.
func NewFirewalld(t testing.TB, ns *Namespace) *Firewalld {
	t.Helper()
	testenv.Require(t, "root", "firewalld")
	dir := t.TempDir()
	bus := "unix:path=" + filepath.Join(dir, "bus")
	conf := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(conf, []byte(`<busconfig><type>system</type><listen>`+bus+`</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "etc", "zones"), 0o700); err != nil {
		t.Fatal(err)
	}
	daemon := func(name string, args ...string) (end func()) {
		ctx, cancel := context.WithCancel(context.Background())
		thread, done := ns.Thread(), make(chan struct{})
		go func() {
			defer close(done)
			thread.Do(func() {
				_, err := (&run.Host{}).Run(ctx, run.Cmd{Name: name, Args: args, Env: append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+bus)})
				if ctx.Err() == nil {
					t.Errorf("%s ended: %v", name, err)
				}
			})
		}()
		return func() { cancel(); <-done }
	}
	f := &Firewalld{Bus: bus, t: t}
	endBus := daemon("dbus-daemon", "--config-file="+conf, "--nofork", "--nopidfile")
	t.Cleanup(endBus)
	wait(t, "the bus", func() bool { _, err := os.Stat(filepath.Join(dir, "bus")); return err == nil })
	endOwn := daemon("firewalld", "--nofork", "--nopid", "--log-target", "console", "--system-config", filepath.Join(dir, "etc"))
	f.end = func() { endOwn(); endBus() }
	t.Cleanup(f.end)
	wait(t, "firewalld", func() bool { return f.try("", "getDefaultZone", new(string)) == nil })
	return f
}

// wait waits until something is so.
func wait(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("%s is not there after a minute", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// try calls a method as others do.
func (f *Firewalld) try(iface, method string, answer any, args ...any) error {
	conn, err := dbus.Connect(f.Bus)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	path := "/org/fedoraproject/FirewallD1"
	if iface == ".config" {
		path += "/config"
	}
	if zone, ok := strings.CutPrefix(iface, "@"); ok { // an object of its own
		path, iface = zone, ".config.zone"
	}
	call := conn.Object(firewalldName, dbus.ObjectPath(path)).CallWithContext(f.t.Context(), firewalldName+iface+"."+method, 0, args...)
	if answer == nil {
		return call.Err
	}
	return call.Store(answer)
}

func (f *Firewalld) must(iface, method string, answer any, args ...any) {
	f.t.Helper()
	if err := f.try(iface, method, answer, args...); err != nil {
		f.t.Fatalf("firewalld: %s: %v", method, err)
	}
}

// ZoneOf returns the zone that somebody has put an interface into.
func (f *Firewalld) ZoneOf(ifname string) (zone string) {
	f.t.Helper()
	f.must(".zone", "getZoneOfInterface", &zone, ifname)
	return zone
}

// Put puts an interface into a zone until the next reload, or takes it out of it.
func (f *Firewalld) Put(zone, ifname string, in bool) {
	f.t.Helper()
	f.must(".zone", map[bool]string{true: "addInterface", false: "removeInterface"}[in], new(string), zone, ifname)
}

// File writes into firewalld's files that an interface is in a zone.
func (f *Firewalld) File(zone, ifname string) {
	f.t.Helper()
	var path dbus.ObjectPath
	f.must(".config", "getZoneByName", &path, zone)
	f.must("@"+string(path), "addInterface", nil, ifname)
}

// Reload has firewalld forget what is not in its files.
func (f *Firewalld) Reload() {
	f.t.Helper()
	f.must("", "reload", nil)
}

// Stop ends firewalld, whose rules go with it.
func (f *Firewalld) Stop() { f.end() }

// rules are those of firewalld 1.3 that decide what is forwarded, and what is let to
// the host, as far as IPv4 is concerned. Zones are in others.
const firewalldRules = `table inet firewalld {
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		jump filter_INPUT_ZONES
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		jump filter_FORWARD_ZONES
		reject with icmpx admin-prohibited
	}
	chain filter_INPUT_ZONES { goto filter_IN_public; }
	chain filter_FORWARD_ZONES { goto filter_FWD_public; }
	chain filter_IN_public {
		tcp dport 22 accept
		meta l4proto icmp accept
		reject with icmpx admin-prohibited
	}
	chain filter_FWD_public { reject with icmpx admin-prohibited; }
	chain filter_IN_trusted { accept; }
	chain filter_FWD_trusted { accept; }
}
`

// zones renders which interfaces are in which zones.
func firewalldZones(zones map[string]string) string {
	var b strings.Builder
	for hook, short := range map[string]string{"INPUT": "IN", "FORWARD": "FWD"} {
		fmt.Fprintf(&b, "flush chain inet firewalld filter_%s_ZONES\n", hook)
		for ifname, zone := range zones {
			if zone != "trusted" { // the others are alike here
				zone = "public"
			}
			fmt.Fprintf(&b, "add rule inet firewalld filter_%s_ZONES iifname %q goto filter_%s_%s\n", hook, ifname, short, zone)
		}
		fmt.Fprintf(&b, "add rule inet firewalld filter_%s_ZONES goto filter_%s_public\n", hook, short)
	}
	return b.String()
}
