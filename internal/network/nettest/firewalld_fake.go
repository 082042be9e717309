package nettest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/mvmctl/mvm/internal/run"
)

// FakeFirewalld is what NewFirewalld is where firewalld is not installed: its rules in
// the namespace, and its methods on a socket that speaks D-Bus.
func FakeFirewalld(t testing.TB, ns *Namespace) *Firewalld {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	d := &fakeDaemon{t: t, thread: ns.Thread(), zones: map[string]string{}, files: map[string]string{}}
	if err := d.nft(firewalldRules); err != nil {
		t.Skipf("needs nft: %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { d.serve(c) })
		}
	})
	end := sync.OnceFunc(func() {
		_ = l.Close()
		wg.Wait()
		if err := d.nft("delete table inet firewalld\n"); err != nil {
			t.Errorf("end the fake firewalld: %v", err)
		}
	})
	t.Cleanup(end)
	return &Firewalld{Bus: "unix:path=" + path, t: t, end: end}
}

type fakeDaemon struct {
	t      testing.TB
	thread *Namespace
	mu     sync.Mutex
	zones  map[string]string // of interfaces
	files  map[string]string // the same as it is after a reload
}

// nft loads rules.
func (d *fakeDaemon) nft(rules string) (err error) {
	d.thread.Do(func() {
		_, err = (&run.Host{}).Run(context.Background(), run.Cmd{Name: "nft", Args: []string{"-f", "-"}, Stdin: strings.NewReader(rules)})
	})
	return err
}

// serve speaks D-Bus with one client: the part of a bus and of firewalld (D-Bus
// specification: Authentication Protocol, Message Protocol).
func (d *fakeDaemon) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		answer := "ERROR"
		switch words := strings.Fields(strings.TrimLeft(line, "\x00")); {
		case len(words) == 1 && words[0] == "AUTH":
			answer = "REJECTED EXTERNAL"
		case words[0] == "AUTH":
			answer = "OK 0123456789abcdef0123456789abcdef"
		case words[0] == "BEGIN":
			d.messages(r, c)
			return
		}
		if _, err := io.WriteString(c, answer+"\r\n"); err != nil {
			return
		}
	}
}

func (d *fakeDaemon) messages(r io.Reader, w io.Writer) {
	for {
		m, err := dbus.DecodeMessage(r)
		if err != nil {
			return
		}
		if m.Type != dbus.TypeMethodCall {
			continue
		}
		iface, _ := m.Headers[dbus.FieldInterface].Value().(string)
		member, _ := m.Headers[dbus.FieldMember].Value().(string)
		body, err := d.call(strings.TrimPrefix(iface, firewalldName)+"."+member, m.Body)
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(m.Serial())}}
		if err != nil {
			reply.Type = dbus.TypeError
			reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant(firewalldName + ".Exception")
			body = err.Error()
		}
		if body != nil {
			reply.Body = []any{body}
			reply.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body))
		}
		if err := reply.EncodeTo(w, binary.LittleEndian); err != nil {
			return
		}
	}
}

// call is one method. firewalld refuses with a code and a sentence.
func (d *fakeDaemon) call(method string, args []any) (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	arg := func(i int) string {
		if i >= len(args) {
			return ""
		}
		s, _ := args[i].(string)
		return s
	}
	switch method {
	case "org.freedesktop.DBus.Hello":
		return ":1.1", nil
	case "org.freedesktop.DBus.NameHasOwner":
		return arg(0) == firewalldName, nil
	case ".getDefaultZone":
		return "public", nil
	case ".zone.getZoneOfInterface":
		return d.zones[arg(0)], nil
	case ".config.getZoneOfInterface":
		return d.files[arg(0)], nil
	case ".config.getZoneByName":
		return dbus.ObjectPath("/org/fedoraproject/FirewallD1/config/zone/" + arg(0)), nil
	case ".config.zone.addInterface": // the only zone that tests ask for
		d.files[arg(0)] = "trusted"
		return nil, nil
	case ".zone.getZoneSettings2":
		target := map[bool]string{true: "ACCEPT", false: "default"}[arg(0) == "trusted"]
		return map[string]dbus.Variant{"target": dbus.MakeVariant(target)}, nil
	case ".zone.addInterface":
		switch was := d.zones[arg(1)]; was {
		case "":
			d.zones[arg(1)] = arg(0)
		case arg(0):
			return nil, errors.New("ZONE_ALREADY_SET: '" + arg(1) + "' already bound to '" + was + "'")
		default:
			return nil, errors.New("ZONE_CONFLICT: '" + arg(1) + "' already bound to '" + was + "'")
		}
		return arg(0), d.nft(firewalldZones(d.zones))
	case ".zone.removeInterface":
		if d.zones[arg(1)] != arg(0) {
			return nil, errors.New("UNKNOWN_INTERFACE: '" + arg(1) + "' is not in any zone")
		}
		delete(d.zones, arg(1))
		return arg(0), d.nft(firewalldZones(d.zones))
	case ".reload":
		d.zones = maps.Clone(d.files)
		return nil, d.nft("delete table inet firewalld\n" + firewalldRules + firewalldZones(d.zones))
	}
	return nil, errors.New("UNKNOWN_METHOD: " + method)
}
