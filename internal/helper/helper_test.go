package helper

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

const alice, bob = 1000, 1001

// anID is an id of a user's object; the number tells several apart.
func anID(uid int, n uint64) string { return network.NewID(uid, n<<32) }

// netOf is a network of a user.
func netOf(uid int, name, subnet string, n uint64) network.Spec {
	p := netip.MustParsePrefix(subnet)
	return network.Spec{NetworkID: anID(uid, n), Name: name, Bridge: network.MemberBridge(uid, name), Subnet: p, Gateway: p.Addr().Next(), NAT: true}
}

// tapOf is the tap of a user's VM.
func tapOf(uid int, s network.Spec, ip string, n uint64) network.TapSpec {
	id := anID(uid, n)
	mac, _ := network.GuestMAC("02:FC", id, 0)
	return network.TapSpec{
		Name: network.TapName(id), Bridge: s.Bridge, NetworkID: s.NetworkID, MAC: mac, IP: netip.MustParseAddr(ip), VMID: id, VMName: "web", OwnerUID: uid,
	}
}

// listening is what programs of the host listen on.
func listening(protocol string, _ netip.Addr, port int) (string, bool) {
	return "postgres (process 7)", protocol == "tcp" && port == 5432
}

// serverOf answers a user on a host.
func serverOf(t testing.TB, h Host, uid int) *Server {
	return &Server{Host: h, UID: uid, Taken: listening, Lock: filepath.Join(t.TempDir(), "lock")}
}

// clientOf is a client whose requests go to a server as they would by sudo.
func clientOf(t testing.TB, h Host, uid int) *Client {
	s := serverOf(t, h, uid)
	return &Client{Kernel: h, UID: uid, Ask: func(ctx context.Context, request []byte) ([]byte, error) {
		var out bytes.Buffer
		if code := s.Serve(ctx, bytes.NewReader(request), &out); code != 0 {
			t.Errorf("the helper exits with %d", code)
		}
		return out.Bytes(), nil
	}}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A member makes and removes what it needs, and is refused nothing of that.
func TestAMembersNetworkAndVM(t *testing.T) {
	fake := &nettest.Fake{Addresses: []network.Address{{Prefix: netip.MustParsePrefix("192.0.2.7/24"), Interface: "eth0"}}}
	before := strings.Join(fake.Dump(), "\n")
	c, ctx := clientOf(t, fake, alice), t.Context()
	n := netOf(alice, "web", "172.28.0.0/24", 1)
	n.Published = true
	tap := tapOf(alice, n, "172.28.0.2", 2)
	tap.Publish = []network.Publish{
		{Protocol: "tcp", HostPort: 18080, GuestPort: 80},
		{Protocol: "tcp", HostAddr: netip.MustParseAddr("192.0.2.7"), HostPort: 8443, GuestPort: 443},
		{Protocol: "udp", HostAddr: netip.MustParseAddr("127.0.0.1"), HostPort: 8053, GuestPort: 53},
	}
	tap.Egress = &network.Egress{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	tap.Limit = network.Limit{BytesPerSec: 10 << 20, PacketsPerSec: 500}
	cloud := network.NoCloudSpec{VMID: tap.VMID, Bridge: n.Bridge, Gateway: n.Gateway, IP: tap.IP, Port: 8000}
	for range 2 { // all of it may be repeated
		changes, err := c.EnsureNetwork(ctx, n)
		must(t, err)
		if seen, err := c.Observe(WithRules(ctx), n); err != nil || !seen.Right {
			t.Errorf("after %v it is %+v, %v", changes, seen, err)
		}
		must(t, c.AddTap(ctx, tap))
		must(t, c.AllowNoCloud(ctx, cloud))
	}
	if seen, err := c.ObserveTap(ctx, tap); err != nil || !seen.Right || len(seen.Rules) == 0 {
		t.Errorf("the tap is %+v, %v", seen, err)
	}
	fake.Deny(tap.VMID, network.Denial{Addr: netip.MustParseAddr("192.0.2.1"), Protocol: 6, Port: 443, Packets: 2, Bytes: 120})
	if d, err := c.Denials(ctx, tap); err != nil || d.Packets != 2 || len(d.To) != 1 {
		t.Errorf("denied was %+v, %v", d, err)
	}
	if _, err := clientOf(t, fake, bob).Denials(ctx, tap); mvm.KindOf(err) != mvm.ErrPrivilege {
		t.Errorf("another user reads what was denied: %v", err)
	}
	if err := c.OpenEgress(ctx, tap, []network.OpenAddr{{}}); mvm.KindOf(err) != mvm.ErrUnsupported {
		t.Errorf("a member opens addresses: %v", err)
	}
	named := tap
	named.Egress = &network.Egress{Names: true}
	if err := c.AddTap(ctx, named); mvm.KindOf(err) != mvm.ErrUnsupported {
		t.Errorf("a member's VM has names: %v", err)
	}
	if taps, err := c.Taps(ctx); err != nil || len(taps) != 1 || taps[0].Name != tap.Name {
		t.Errorf("the taps are %v, %v", taps, err)
	}
	if taps, err := clientOf(t, fake, bob).Taps(ctx); err != nil || len(taps) != 0 {
		t.Errorf("another user has the taps %v, %v", taps, err)
	}
	for range 2 {
		must(t, c.RemoveNoCloud(ctx, cloud))
		must(t, c.RemoveTap(ctx, tap))
		must(t, c.RemoveNetwork(ctx, n))
	}
	if after := strings.ReplaceAll(strings.Join(fake.Dump(), "\n"), "forwarding true", "forwarding false"); after != before {
		t.Errorf("left is\n%s", after)
	}
}

// What a request cannot say is refused by the client, and not left out.
func TestNothingIsLeftOut(t *testing.T) {
	fake := &nettest.Fake{}
	c := clientOf(t, fake, alice)
	n := netOf(alice, "web", "172.28.0.0/24", 1)
	tap := tapOf(alice, n, "172.28.0.2", 2)
	fill := func(v any, sayable map[string]bool, whole func(any) bool) {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			changed := reflect.New(typ).Elem()
			changed.Set(reflect.ValueOf(v))
			f := changed.Field(i)
			switch f.Kind() {
			case reflect.Bool:
				f.SetBool(!f.Bool())
			case reflect.String:
				f.SetString("x")
			case reflect.Int:
				f.SetInt(77)
			case reflect.Slice:
				f.Set(reflect.MakeSlice(f.Type(), 1, 1))
			case reflect.Struct:
				if f.NumField() > 0 && f.Field(0).CanInt() {
					f.Field(0).SetInt(77)
				}
			case reflect.Pointer:
				f.Set(reflect.New(f.Type().Elem()))
			}
			if name := typ.Field(i).Name; whole(changed.Interface()) != sayable[name] {
				t.Errorf("%s.%s can be said: %v. Decide what a member may ask for, check it in check.go, and name it here.", typ.Name(), name, !sayable[name])
			}
		}
	}
	names := func(s string) map[string]bool {
		m := map[string]bool{}
		for _, n := range strings.Fields(s) {
			m[n] = true
		}
		return m
	}
	fill(n, names("NetworkID Name Bridge Subnet Gateway NAT NATGateways Published Loopback Backend"), func(v any) bool { _, all := ofSpec(v.(network.Spec)); return all })
	fill(tap, names("Name Bridge NetworkID IP VMID VMName Isolated Publish Backend Egress Limit"), func(v any) bool { _, all := ofTap(v.(network.TapSpec), alice); return all })
	n.DNS = true
	if _, err := c.EnsureNetwork(t.Context(), n); mvm.KindOf(err) != mvm.ErrUnsupported || mvm.HintOf(err) == "" {
		t.Errorf("a network with DNS: %v", err)
	}
	tap.OwnerUID = bob
	if err := c.AddTap(t.Context(), tap); mvm.KindOf(err) != mvm.ErrUnsupported {
		t.Errorf("a tap for somebody else: %v", err)
	}
}

func TestRequestsAreReadStrictly(t *testing.T) {
	good, err := json.Marshal(Request{Version: version, Do: Taps})
	must(t, err)
	if _, err := parse(good); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing":          "",
		"no JSON":          "taps",
		"an array":         "[" + string(good) + "]",
		"two":              string(good) + string(good),
		"a field too many": `{"version":1,"do":"taps","path":"/etc/shadow"}`,
		"a wrong type":     `{"version":1,"do":"remove-tap","tap":{"name":["a"],"vm_id":"b"}}`,
		"another version":  `{"version":2,"do":"taps"}`,
		"no version":       `{"do":"taps"}`,
		"a bad address":    `{"version":1,"do":"remove-network","network":{"subnet":"$(id)"}}`,
	} {
		if _, err := parse([]byte(text)); err == nil {
			t.Errorf("%s is read", name)
		}
	}
	if _, err := readRequest(strings.NewReader(string(good) + strings.Repeat(" ", maxRequest))); mvm.KindOf(err) != mvm.ErrInvalid {
		t.Errorf("a request without end: %v", err)
	}
}

// A caller who never sends a request does not keep the helper for ever.
func TestASilentCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, w := newPipe(t)
	defer func() { _ = w.Close() }()
	if _, err := readRequest(deadline{ctx, r}); err == nil {
		t.Error("a request came out of nothing")
	}
}
