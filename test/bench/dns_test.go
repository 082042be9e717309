package bench

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/dns"
	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/testenv"
)

// BenchmarkNameServer measures what the start of a network's DNS server adds to the
// create of its first VM: until it says that it answers.
func BenchmarkNameServer(tb *testing.B) {
	testenv.Require(tb, "root", "netns")
	b := &bench{t: tb, bin: os.Getenv("MVM_TEST_MVM"), cache: tb.TempDir()}
	if b.bin == "" {
		b.bin = "../../bin/mvm"
	}
	var err error
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		tb.Fatal(err)
	}
	b.ns = nettest.NewNamespace(tb)
	dir := tb.TempDir()
	gateway := netip.MustParseAddr("127.0.0.1")
	s := dns.Server{NetworkID: "bench", Exe: b.bin, Dir: dir, Listen: netip.AddrPortFrom(gateway, dns.Port), Device: "lo"}
	if err := (dns.Zone{Network: "bench", Gateway: gateway, Subnet: netip.MustParsePrefix("127.0.0.0/24"), Hosts: []dns.Host{}}).Write(dir); err != nil {
		tb.Fatal(err)
	}
	for _, d := range []string{filepath.Dir(dir), dir} { // the server is nobody
		if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // nothing secret is in it
			tb.Fatal(err)
		}
	}
	var start []time.Duration
	var cpu []int
	for range 3 * rounds {
		b.ns.Do(func() {
			start = append(start, took(func() { _, err = s.Ensure(tb.Context()) }))
		})
		if err != nil {
			tb.Fatal(err)
		}
		id, err := dns.Running(dir)
		if err != nil {
			tb.Fatal(err)
		}
		cpu = append(cpu, ticks(tb, id.PID))
		if err := dns.Stop(tb.Context(), s.NetworkID, dir); err != nil {
			tb.Fatal(err)
		}
	}
	version := b.median("version")
	slices.Sort(cpu)
	fmt.Printf("start of a DNS server: median %s, quickest %s; its CPU time about %d ms; version %s\n",
		median(start).Round(100*time.Microsecond), slices.Min(start).Round(100*time.Microsecond), 10*cpu[len(cpu)/2], version.Round(100*time.Microsecond))
}

// ticks is the CPU time of a process in hundredths of a second (proc(5): stat).
func ticks(t testing.TB, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err1 != nil || err2 != nil {
		t.Fatalf("stat of %d: %q", pid, fields)
	}
	return user + system
}
