package dns

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
)

// A server is a process that outlives who started it, follows its zone, is started once,
// and again when it was killed, and ends when its directory does.
func TestServerProcess(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The way to its directory is closed to it.
	dir := filepath.Join(t.TempDir(), "closed", "dns")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(hosts ...Host) {
		t.Helper()
		if err := zoneOf(hosts...).Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	write(plain)
	id := "test-" + filepath.Base(filepath.Dir(filepath.Dir(dir)))
	s := Server{NetworkID: id, Exe: exe, Dir: dir, Listen: freePort(t)}
	t.Cleanup(func() { _ = Stop(context.Background(), id, dir) })
	ensure := func(want bool) proc.Identity {
		t.Helper()
		started, err := s.Ensure(ctx)
		if err != nil || started != want {
			t.Fatalf("started %v, want %v: %v", started, want, err)
		}
		p, err := Running(dir)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	ask := func(name string) (*dns.Msg, error) {
		c := &dns.Client{Timeout: patience, Net: "tcp", Dialer: dialerFrom(plain.Addr.String())}
		m, _, err := c.ExchangeContext(ctx, new(dns.Msg).SetQuestion(name, dns.TypeA), s.Listen.String())
		return m, err
	}
	first := ensure(true)
	if again := ensure(false); again != first {
		t.Error("it was started twice")
	}
	if m, err := ask("web.mvm."); err != nil || len(m.Answer) != 1 {
		t.Errorf("answered is %v, %v", m, err)
	}
	if os.Geteuid() == 0 {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(first.PID) + "/status")
		for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "CapEff:\t0000000000001000", "CapPrm:\t0000000000001000", "NoNewPrivs:\t1", "Groups:\t \n"} {
			if err != nil || !strings.Contains(string(status), want) {
				t.Errorf("no %q in:\n%s", want, status)
			}
		}
	}
	write(plain, Host{VMID: "id-new", Name: "new", Addr: netip.MustParseAddr("127.0.0.9")})
	for {
		m, err := ask("new.mvm.")
		if err != nil {
			t.Fatalf("a new VM: %v", err)
		}
		if len(m.Answer) == 1 {
			break
		}
	}
	if err := PortFree(ctx, s.Listen); mvm.KindOf(err) != mvm.ErrExists || mvm.HintOf(err) == "" {
		t.Errorf("its port is free: %v", err)
	}
	other := Server{NetworkID: id + "-other", Exe: exe, Dir: dir, Listen: s.Listen}
	if _, err := other.start(ctx); mvm.KindOf(err) != mvm.ErrExists {
		t.Errorf("two servers at one address: %v", err)
	}
	// One that was killed, and one that nobody knows of.
	if err := proc.Kill(ctx, first, 0); err != nil {
		t.Fatal(err)
	}
	second := ensure(true)
	if err := os.Remove(filepath.Join(dir, stateFile)); err != nil {
		t.Fatal(err)
	}
	third := ensure(true)
	if proc.Alive(second) {
		t.Error("one that nobody knew of goes on")
	}
	for range 2 {
		if err := Stop(ctx, id, dir); err != nil || proc.Alive(third) {
			t.Errorf("stopped: %v, alive %v", err, proc.Alive(third))
		}
	}
	if err := PortFree(ctx, s.Listen); err != nil {
		t.Errorf("stopped, and %v", err)
	}
	last := ensure(true)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := proc.WaitExit(ctx, last); err != nil {
		t.Errorf("its directory is gone, and it runs: %v", err)
	}
	if _, err := s.Ensure(ctx); err == nil {
		t.Error("a server without a directory")
	}
	missing := s
	missing.Device = "mvm-nosuch"
	if _, err := missing.Ensure(ctx); mvm.KindOf(err) != mvm.ErrNotFound {
		t.Errorf("a bridge that is not there: %v", err)
	}
}

// freePort is an address of the loopback that nobody listens on.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	udp, tcp, err := (Server{Listen: netip.MustParseAddrPort("127.0.0.1:0")}).listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = udp.Close(), tcp.Close() }()
	l, err := netFileAddr(tcp)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
