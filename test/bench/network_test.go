package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/testenv"
)

// BenchmarkNetwork measures commands on networks, start of the process included,
// against the same network made by hand with ip and nft.
func BenchmarkNetwork(tb *testing.B) {
	testenv.Require(tb, "root", "netns", "nft", "ip")
	b := &bench{t: tb, bin: os.Getenv("MVM_TEST_MVM"), cache: tb.TempDir()}
	if b.bin == "" {
		b.bin = "../../bin/mvm"
	}
	var err error
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		tb.Fatal(err)
	}
	b.ns = nettest.NewNamespace(tb)
	nettest.Outside(tb, b.ns)
	b.mvm("network", "create", "first") // makes the database
	var create, remove, hand, handGone []time.Duration
	for range 3 * rounds {
		create = append(create, took(func() { b.mvm("network", "create", "bench", "--subnet", "10.77.0.0/24") }))
		remove = append(remove, took(func() { b.mvm("network", "rm", "bench") }))
		hand = append(hand, took(b.networkByHand))
		handGone = append(handGone, took(func() { b.ns.Run("ip", "link", "del", "hand0") }))
		b.ns.Run("nft", "delete", "table", "ip", "hand0")
	}
	version := b.median("version")
	ms := func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
	both := func(d []time.Duration) string {
		return fmt.Sprintf("median %s, quickest %s", ms(median(d)), ms(slices.Min(d)))
	}
	fmt.Printf("network create with NAT: %s (limit 20ms), by hand with ip and nft: %s; version %s\n", both(create), both(hand), ms(version))
	fmt.Printf("network rm: %s (limit 20ms), a bridge alone by ip: %s; ratio of the medians %.2f: the kernel waits for readers (RCU) in both\n",
		both(remove), both(handGone), float64(median(remove))/float64(median(handGone)))
	for i := range 19 {
		b.mvm("network", "create", fmt.Sprint("n", i))
	}
	fmt.Printf("network sync of 20: %s when nothing is wrong", ms(b.median("network", "sync")))
	var mend []time.Duration
	for range rounds {
		for i := range 19 {
			b.ns.Run("nft", "flush", "table", "ip", fmt.Sprint("mvm-n", i))
		}
		mend = append(mend, took(func() { b.mvm("network", "sync") }))
	}
	fmt.Printf(", %s when 19 have lost their rules (limit 60ms)\n", ms(median(mend)))
	b.networkChildren()
	b.besideDocker()
}

// besideDocker measures the same where Docker's rules drop, and with the backend of
// iptables; both run programs of iptables.
func (b *bench) besideDocker() {
	if _, err := exec.LookPath("iptables-restore"); err != nil {
		fmt.Println("nothing was measured beside Docker: iptables is not installed")
		return
	}
	round := func(what string) {
		var create, remove []time.Duration
		for range rounds {
			create = append(create, took(func() { b.mvm("network", "create", "bench", "--subnet", "10.77.0.0/24") }))
			remove = append(remove, took(func() { b.mvm("network", "rm", "bench") }))
		}
		fmt.Printf("%s: create %s, rm %s\n", what, median(create).Round(100*time.Microsecond), median(remove).Round(100*time.Microsecond))
	}
	b.ns.Restore(nettest.DockerRules)
	round("beside Docker")
	b.ns.Run("iptables", "-P", "FORWARD", "ACCEPT")
	b.mvm("config", "set", "settings", "firewall_backend", "iptables")
	round("with iptables")
}

func took(f func()) time.Duration {
	begin := time.Now()
	f()
	return time.Since(begin)
}

// networkByHand makes what a network of ours is made of: bridge, address, rules.
func (b *bench) networkByHand() {
	b.ns.Run("ip", "link", "add", "hand0", "type", "bridge")
	b.ns.Run("ip", "address", "add", "10.78.0.1/24", "dev", "hand0")
	b.ns.Run("ip", "link", "set", "hand0", "up")
	b.ns.Run("nft", `add table ip hand0
add chain ip hand0 forward { type filter hook forward priority 0; }
add rule ip hand0 forward oifname "hand0" ct state established,related accept
add rule ip hand0 forward iifname "hand0" oifname != "hand0" accept
add rule ip hand0 forward oifname "hand0" iifname != "hand0" drop
add chain ip hand0 postrouting { type nat hook postrouting priority 100; }
add rule ip hand0 postrouting ip saddr 10.78.0.0/24 oifname != "hand0" masquerade`)
}

// networkChildren counts by strace what creating and removing a network execute.
func (b *bench) networkChildren() {
	if _, err := exec.LookPath("strace"); err != nil {
		fmt.Println("child processes were not counted: strace is not installed")
		return
	}
	for _, args := range [][]string{{"network", "create", "traced"}, {"network", "rm", "traced"}} {
		trace := filepath.Join(b.t.TempDir(), "trace")
		cmd := exec.Command("strace", append([]string{"-f", "-qq", "-e", "trace=execve", "-o", trace, b.bin}, args...)...)
		cmd.Env = append(os.Environ(), "MVM_CACHE_DIR="+b.cache, "MVM_CONFIG_DIR="+b.cache+"/config")
		if err := b.do(cmd); err != nil {
			b.t.Fatal(err)
		}
		data, err := os.ReadFile(trace)
		if err != nil {
			b.t.Fatal(err)
		}
		fmt.Printf("%s executes %d child processes (limit 0)\n", strings.Join(args[:2], " "), strings.Count(string(data), "execve(")-1)
	}
}
