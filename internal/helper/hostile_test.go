package helper

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/linux"
	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/testenv"
)

func newPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r, w
}

// scene is a host on which root, alice and bob have a network with a VM each; bob
// publishes a port.
type scene struct {
	host    Host
	dump    func() []string // all that there is
	mine    network.Spec    // alice's
	tap     network.TapSpec
	theirs  network.Spec // bob's
	victim  network.TapSpec
	roots   network.Spec
	rootTap network.TapSpec
}

func newScene(t testing.TB, h Host, dump func() []string) *scene {
	t.Helper()
	s := &scene{host: h, dump: dump, mine: netOf(alice, "web", "172.28.0.0/24", 1), theirs: netOf(bob, "web", "172.29.0.0/24", 1)}
	s.roots = nettest.SpecOf("default", "172.27.0.0/24")
	s.roots.NetworkID = network.NewID(0, 7)
	s.tap, s.victim = tapOf(alice, s.mine, "172.28.0.2", 2), tapOf(bob, s.theirs, "172.29.0.2", 2)
	s.rootTap = tapOf(0, s.roots, "172.27.0.2", 3)
	s.theirs.Published = true
	s.victim.Publish = []network.Publish{{Protocol: "tcp", HostPort: 20080, GuestPort: 80}}
	for _, n := range []network.Spec{s.mine, s.theirs, s.roots} {
		_, err := h.EnsureNetwork(t.Context(), n)
		must(t, err)
	}
	for _, tap := range []network.TapSpec{s.tap, s.victim, s.rootTap} {
		must(t, h.AddTap(t.Context(), tap))
	}
	return s
}

// others are the lines of a dump that are about nothing of alice's.
func (s *scene) others() []string {
	return slices.DeleteFunc(s.dump(), func(line string) bool {
		return strings.Contains(line, fmt.Sprintf("%08x", alice)) || strings.Contains(line, "mvm-1000-") || strings.HasPrefix(line, "forwarding ")
	})
}

func (s *scene) fake(t testing.TB) *scene {
	fake := &nettest.Fake{
		Addresses: []network.Address{{Prefix: netip.MustParsePrefix("192.0.2.7/24"), Interface: "eth0"}},
		Routes:    []network.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Interface: "eth0"}, {Dst: netip.MustParsePrefix("192.0.2.0/24"), Interface: "eth0"}},
	}
	fake.AddLink("eth0")
	return newScene(t, fake, fake.Dump)
}

// attacks are requests of alice's of which each has to be refused.
func (s *scene) attacks() map[string]Request {
	ensure := func(change func(*Network)) Request {
		n, _ := ofSpec(netOf(alice, "more", "172.30.0.0/24", 9))
		change(n)
		return Request{Do: EnsureNetwork, Network: n}
	}
	add := func(change func(*Tap)) Request {
		t, _ := ofTap(tapOf(alice, s.mine, "172.28.0.9", 9), alice)
		change(t)
		return Request{Do: AddTap, Tap: t}
	}
	publish := func(p Publish) Request { return add(func(t *Tap) { t.Publish = []Publish{p} }) }
	cloud := func(change func(*NoCloud)) Request {
		n := &NoCloud{VMID: s.tap.VMID, Bridge: s.mine.Bridge, Gateway: s.mine.Gateway, IP: s.tap.IP, Port: 8000}
		change(n)
		return Request{Do: AllowNoCloud, NoCloud: n}
	}
	theirs, _ := ofSpec(netOf(bob, "web", "172.29.0.0/24", 1))
	roots, _ := ofSpec(s.roots)
	renamed := *theirs
	renamed.ID = s.mine.NetworkID
	victim, _ := ofTap(network.TapSpec{Name: s.victim.Name, VMID: s.victim.VMID}, alice)
	all := map[string]Request{
		"another's network removed":             {Do: RemoveNetwork, Network: theirs},
		"another's network under an id of mine": {Do: RemoveNetwork, Network: &renamed},
		"another's network observed":            {Do: Observe, Network: theirs},
		"root's network removed":                {Do: RemoveNetwork, Network: roots},
		"root's network taken over":             {Do: EnsureNetwork, Network: roots},
		"another's tap removed":                 {Do: RemoveTap, Tap: victim},
		"another's tap under an id of mine":     {Do: RemoveTap, Tap: &Tap{Name: s.victim.Name, VMID: s.tap.VMID}},
		"another's tap observed":                {Do: ObserveTap, Tap: victim},
		"another's server removed":              {Do: RemoveNoCloud, NoCloud: &NoCloud{VMID: s.victim.VMID}},
		"a network and a tap":                   {Do: Taps, Network: theirs},
		"a tap without one":                     {Do: AddTap},
		"a network without one":                 {Do: EnsureNetwork},
		"a verb of its own":                     {Do: "exec"},
		"an empty verb":                         {},

		"the bridge of the host":       ensure(func(n *Network) { n.Bridge = "eth0" }),
		"a bridge by a path":           ensure(func(n *Network) { n.Bridge = "../eth0" }),
		"a name that is an option":     ensure(func(n *Network) { n.Name, n.Bridge = "-rf", network.MemberBridge(alice, "-rf") }),
		"a name that is a path":        ensure(func(n *Network) { n.Name, n.Bridge = "../../x", network.MemberBridge(alice, "../../x") }),
		"an id that is a path":         ensure(func(n *Network) { n.ID = "../../../../etc/p" }),
		"an id in capitals":            ensure(func(n *Network) { n.ID = strings.ToUpper(anID(alice, 0xabcdef)) }),
		"an empty id":                  ensure(func(n *Network) { n.ID = "" }),
		"the host's own subnet":        ensure(func(n *Network) { n.Subnet, n.Gateway = prefix("192.0.2.0/24"), addr("192.0.2.1") }),
		"a subnet around root's":       ensure(func(n *Network) { n.Subnet, n.Gateway = prefix("172.16.0.0/12"), addr("172.16.0.1") }),
		"another's subnet":             ensure(func(n *Network) { n.Subnet, n.Gateway = prefix("172.29.0.0/24"), addr("172.29.0.1") }),
		"a part of the internet":       ensure(func(n *Network) { n.Subnet, n.Gateway = prefix("8.8.8.0/24"), addr("8.8.8.8") }),
		"the metadata service":         ensure(func(n *Network) { n.Subnet, n.Gateway = prefix("169.254.169.0/24"), addr("169.254.169.254") }),
		"loopback":                     ensure(func(n *Network) { n.Subnet, n.Gateway = prefix("127.0.0.0/24"), addr("127.0.0.1") }),
		"everything":                   ensure(func(n *Network) { n.Subnet, n.Gateway = prefix("0.0.0.0/0"), addr("1.1.1.1") }),
		"IPv6":                         ensure(func(n *Network) { n.Subnet, n.Gateway = prefix("fd00::/64"), addr("fd00::1") }),
		"a gateway outside":            ensure(func(n *Network) { n.Gateway = addr("172.27.0.1") }),
		"no gateway":                   ensure(func(n *Network) { n.Gateway = netip.Addr{} }),
		"an uplink to root's guests":   ensure(func(n *Network) { n.Uplinks = []string{s.roots.Bridge} }),
		"an uplink that is not there":  ensure(func(n *Network) { n.Uplinks = []string{"ppp9"} }),
		"an uplink with a rule in it":  ensure(func(n *Network) { n.Uplinks = []string{`e" accept`} }),
		"loopback as an uplink":        ensure(func(n *Network) { n.Uplinks = []string{"lo"} }),
		"a hundred uplinks":            ensure(func(n *Network) { n.Uplinks = slices.Repeat([]string{"eth0"}, 100) }),
		"another subnet on my bridge":  {Do: EnsureNetwork, Network: other(s.mine, "172.31.0.0/24")},
		"a tap on root's bridge":       add(func(t *Tap) { t.Bridge = s.roots.Bridge }),
		"a tap on root's network":      add(func(t *Tap) { t.Bridge, t.NetworkID, t.IP = s.roots.Bridge, s.roots.NetworkID, addr("172.27.0.9") }),
		"a tap on another's bridge":    add(func(t *Tap) { t.Bridge, t.IP = s.theirs.Bridge, addr("172.29.0.9") }),
		"a tap on the host's device":   add(func(t *Tap) { t.Bridge = "eth0" }),
		"a tap called like another's":  add(func(t *Tap) { t.Name = s.victim.Name }),
		"a tap called like the host's": add(func(t *Tap) { t.Name = "eth0" }),
		"a tap of another's VM":        add(func(t *Tap) { t.VMID, t.Name = s.victim.VMID, s.victim.Name }),
		"a VM's name with a rule in it": add(func(t *Tap) {
			t.VMName = "x\"; drop"
		}),
		"the address of a neighbour network": add(func(t *Tap) { t.IP = addr("172.27.0.2") }),
		"the gateway's address":              add(func(t *Tap) { t.IP = s.mine.Gateway }),
		"the broadcast address":              add(func(t *Tap) { t.IP = addr("172.28.0.255") }),
		"no address":                         add(func(t *Tap) { t.IP = netip.Addr{} }),
		"a multicast MAC":                    add(func(t *Tap) { t.MAC = "01:00:5e:00:00:01" }),
		"a long MAC":                         add(func(t *Tap) { t.MAC = "02:00:5e:10:00:00:00:01" }),
		"no MAC":                             add(func(t *Tap) { t.MAC = "" }),
		"the port of sshd":                   publish(Publish{Protocol: "tcp", HostPort: 22, GuestPort: 22}),
		"the port of a database":             publish(Publish{Protocol: "tcp", HostPort: 5432, GuestPort: 22}),
		"a port of another's VM":             publish(Publish{Protocol: "tcp", HostPort: 20080, GuestPort: 22}),
		"that port on one address":           publish(Publish{Protocol: "tcp", HostAddr: addr("192.0.2.7"), HostPort: 20080, GuestPort: 22}),
		"a port of cloud-init":               publish(Publish{Protocol: "tcp", HostPort: 8000, GuestPort: 8000}),
		"a port of the internet":             publish(Publish{Protocol: "udp", HostAddr: addr("8.8.8.8"), HostPort: 5353, GuestPort: 53}),
		"a port of another's gateway":        publish(Publish{Protocol: "tcp", HostAddr: s.theirs.Gateway, HostPort: 8000, GuestPort: 53}),
		"a port by an odd protocol":          publish(Publish{Protocol: "tcp dport 22 accept", HostPort: 2222, GuestPort: 22}),
		"a port that is none":                publish(Publish{Protocol: "tcp", HostPort: 70000, GuestPort: 22}),
		"an IPv6 address":                    publish(Publish{Protocol: "tcp", HostAddr: addr("::1"), HostPort: 2222, GuestPort: 22}),
		"a server on another's bridge":       cloud(func(n *NoCloud) { n.Bridge, n.Gateway, n.IP = s.theirs.Bridge, s.theirs.Gateway, s.victim.IP }),
		"a server on another's gateway":      cloud(func(n *NoCloud) { n.Gateway = s.theirs.Gateway }),
		"a server on the host's address":     cloud(func(n *NoCloud) { n.Gateway = addr("192.0.2.7") }),
		"a server for another's guest":       cloud(func(n *NoCloud) { n.IP = s.victim.IP }),
		"a server of another's VM":           cloud(func(n *NoCloud) { n.VMID = s.victim.VMID }),
		"a server on the host's device":      cloud(func(n *NoCloud) { n.Bridge = "eth0" }),
		"a server on sshd's port":            cloud(func(n *NoCloud) { n.Port = 22 }),
	}
	for p := range maxPublish + 1 {
		r := all["too many ports"]
		if p == 0 {
			r = add(func(*Tap) {})
		}
		r.Tap.Publish = append(r.Tap.Publish, Publish{Protocol: "tcp", HostPort: 30000 + p, GuestPort: 80})
		all["too many ports"] = r
	}
	for name, r := range all {
		r.Version = version
		all[name] = r
	}
	return all
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func other(s network.Spec, subnet string) *Network {
	n, _ := ofSpec(s)
	n.Subnet = prefix(subnet)
	n.Gateway = n.Subnet.Addr().Next()
	return n
}

func (s *scene) refuseAll(t *testing.T) {
	server := serverOf(t, s.host, alice)
	for name, r := range s.attacks() {
		before := s.dump()
		res, err := server.Do(t.Context(), r)
		if err == nil {
			t.Errorf("%s: done: %+v", name, res)
		}
		if after := s.dump(); !slices.Equal(before, after) {
			t.Errorf("%s: the host changed from\n%s\nto\n%s", name, strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
	}
	// Nor may any of it be asked by who has no objects.
	for _, uid := range []int{0, -1, 1 << 31} {
		if _, err := serverOf(t, s.host, uid).Do(t.Context(), Request{Version: version, Do: Taps}); mvm.KindOf(err) != mvm.ErrPrivilege {
			t.Errorf("user %d: %v", uid, err)
		}
	}
}

func TestAHostileMember(t *testing.T) { (&scene{}).fake(t).refuseAll(t) }

// mutant is a request that is almost right: one of the attacks or of the good ones,
// with pieces from others, and bytes changed.
func (s *scene) mutant(rnd *rand.Rand, pool [][]byte) []byte {
	one := slices.Clone(pool[rnd.IntN(len(pool))])
	for range rnd.IntN(4) {
		other := pool[rnd.IntN(len(pool))]
		switch rnd.IntN(5) {
		case 0: // a value of another request in place of one of this
			mine, theirs := strings.Split(string(one), ","), strings.Split(string(other), ",")
			mine[rnd.IntN(len(mine))] = theirs[rnd.IntN(len(theirs))]
			one = []byte(strings.Join(mine, ","))
		case 1:
			if len(one) > 0 {
				one[rnd.IntN(len(one))] = byte(rnd.IntN(256))
			}
		case 2:
			names := []string{s.mine.Bridge, s.theirs.Bridge, s.roots.Bridge, s.victim.Name, s.tap.Name, "eth0", "lo"}
			from, to := names[rnd.IntN(len(names))], names[rnd.IntN(len(names))]
			one = bytes.ReplaceAll(one, []byte(from), []byte(to))
		case 3:
			ids := []string{s.mine.NetworkID, s.theirs.NetworkID, s.roots.NetworkID, s.victim.VMID, s.tap.VMID}
			one = bytes.ReplaceAll(one, []byte(ids[rnd.IntN(len(ids))]), []byte(ids[rnd.IntN(len(ids))]))
		case 4:
			one = one[:rnd.IntN(len(one)+1)]
		}
		if len(one) == 0 {
			return one
		}
	}
	return one
}

// pool are the attacks, and requests that are right.
func (s *scene) pool(t testing.TB) [][]byte {
	t.Helper()
	mine, _ := ofSpec(s.mine)
	tap, _ := ofTap(s.tap, alice)
	all := s.attacks()
	for name, r := range map[string]Request{
		"ensure": {Do: EnsureNetwork, Network: mine}, "remove": {Do: RemoveNetwork, Network: mine}, "observe": {Do: Observe, Network: mine},
		"add": {Do: AddTap, Tap: tap}, "drop": {Do: RemoveTap, Tap: tap}, "see": {Do: ObserveTap, Tap: tap}, "taps": {Do: Taps},
		"allow": {Do: AllowNoCloud, NoCloud: &NoCloud{VMID: s.tap.VMID, Bridge: s.mine.Bridge, Gateway: s.mine.Gateway, IP: s.tap.IP, Port: 8000}},
		"deny":  {Do: RemoveNoCloud, NoCloud: &NoCloud{VMID: s.tap.VMID}},
	} {
		r.Version = version
		all["good "+name] = r
	}
	var pool [][]byte
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names) // the same requests in each run
	for _, name := range names {
		data, err := json.Marshal(all[name])
		must(t, err)
		for range 1 + 9*strings.Count(name, "good ") { // what is right has to happen often enough
			pool = append(pool, data)
		}
	}
	return pool
}

// send has the helper answer alice, and returns whether it did what was asked.
func (s *scene) send(t testing.TB, server *Server, request []byte) bool {
	t.Helper()
	var out bytes.Buffer
	if code := server.Serve(context.Background(), bytes.NewReader(request), &out); code != 0 {
		t.Fatalf("exit status %d for %q", code, request)
	}
	var res Response
	must(t, json.Unmarshal(out.Bytes(), &res))
	return res.Error == nil
}

// storm sends many requests and sees that nobody else's objects change.
func (s *scene) storm(t *testing.T, requests int) {
	server, pool := serverOf(t, s.host, alice), s.pool(t)
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same requests in each run
	before := s.others()
	done := 0
	for n := range requests {
		request := s.mutant(rnd, pool)
		if s.send(t, server, request) {
			done++
		} else if n%50 != 0 { // what was refused is compared now and then, and at the end
			continue
		}
		if after := s.others(); !slices.Equal(before, after) {
			t.Fatalf("%s\nchanged the host from\n%s\nto\n%s", request, strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
	}
	if after := s.others(); !slices.Equal(before, after) {
		t.Errorf("the host changed from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if done < requests/20 || done == requests {
		t.Errorf("%d of %d requests were done: they try nothing", done, requests)
	}
	t.Logf("%d of %d requests were done", done, requests)
}

func TestTenThousandRequests(t *testing.T) { (&scene{}).fake(t).storm(t, 10_000) }

// The same in a real kernel: with the attacks, and with fewer requests, for each one
// that is done makes or removes devices.
func TestAHostileMemberInTheKernel(t *testing.T) {
	testenv.Require(t, "root", "netns", "nft", "ip")
	real := &realHost{RealHost: nettest.NewHost(t, linux.New())}
	real.Run("ip", "link", "add", "eth0", "type", "bridge")
	real.Run("ip", "address", "add", "192.0.2.7/24", "dev", "eth0")
	real.Run("ip", "link", "set", "eth0", "up")
	s := newScene(t, real, real.dump)
	s.refuseAll(t)
	s.storm(t, 600)
}

// realHost is a kernel that tells what the helper asks for besides.
type realHost struct{ *nettest.RealHost }

func (r *realHost) Owned(ctx context.Context) (o []network.Owned, err error) {
	r.Do(func() { o, err = linux.New().Owned(ctx) })
	return o, err
}

func (r *realHost) Taken(ctx context.Context) (p []network.Taken, err error) {
	r.Do(func() { p, err = linux.New().Taken(ctx) })
	return p, err
}

// dump is all of the network, without what counts and what is chosen anew.
func (r *realHost) dump() []string {
	var lines []string
	table := ""
	for _, line := range strings.Split(r.Run("nft", "list", "ruleset"), "\n") {
		if strings.HasPrefix(line, "table ") {
			table = line
		}
		if line == "" {
			continue
		}
		lines = append(lines, table+" | "+line)
	}
	for _, line := range strings.Split(strings.ReplaceAll(r.Run("ip", "-o", "-d", "link"), `\`, " "), "\n") {
		lines = append(lines, withoutClocks(line))
	}
	lines = append(lines, strings.Split(r.Run("ip", "-o", "-4", "address"), "\n")...)
	lines = append(lines, strings.Split(r.Run("ip", "-4", "route"), "\n")...)
	slices.Sort(lines)
	// Of what is alice's, tables and devices are told by their names.
	for i, line := range lines {
		if strings.Contains(line, network.TapName(anID(alice, 2))) || strings.Contains(line, network.TapName(anID(alice, 9))) {
			lines[i] = "mvm-1000-'s tap: " + line
		}
	}
	return lines
}

// withoutClocks leaves out timers, which run.
func withoutClocks(line string) string {
	fields := strings.Fields(line)
	for i := range fields {
		if i > 0 && strings.HasSuffix(fields[i-1], "_timer") {
			fields[i] = "-"
		}
	}
	return strings.Join(fields, " ")
}

func FuzzRequest(f *testing.F) {
	s := (&scene{}).fake(f)
	for _, data := range s.pool(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		s := (&scene{}).fake(t)
		before := s.others()
		s.send(t, serverOf(t, s.host, alice), request)
		if after := s.others(); !slices.Equal(before, after) {
			t.Errorf("the host changed from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
	})
}
