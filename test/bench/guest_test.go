package bench

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/testenv"
)

// How much is copied, and how often in each way, unless MVM_BENCH_MIB, MVM_BENCH_FILES
// and MVM_BENCH_PAIRS say otherwise. An emulated guest takes a minute for some 500 MiB.
const (
	guestMiB  = 128
	treeFiles = 2000
	pairs     = 3
)

// BenchmarkGuest measures exec and cp against ssh and scp of OpenSSH, over the network
// to the SSH server of the same VM.
func BenchmarkGuest(tb *testing.B) {
	testenv.Require(tb, "ssh")
	b := newBench(tb)
	ns := b.ns
	b.ns = nil // packages come from the host's own network
	b.mvm("image", "build", "debian:12")
	b.ns = ns
	b.mvm("vm", "create", "bench", "--image", "debian:12", "--mem", "1024", "--disk-size", "8G", "--wait=ssh")
	dir := tb.TempDir()
	g := &guestBench{bench: b, dir: dir, host: "root@" + b.vm().IPv4, pairs: number("MVM_BENCH_PAIRS", pairs)}
	g.options = []string{"-F", "/dev/null", "-i", filepath.Join(b.cache, "config", "keys", "default"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=accept-new", "-o", "UserKnownHostsFile=" + filepath.Join(dir, "known_hosts"), "-o", "LogLevel=ERROR"}
	g.commands()
	g.files(number("MVM_BENCH_MIB", guestMiB))
	g.trees(number("MVM_BENCH_FILES", treeFiles))
}

func number(variable string, or int) int {
	if n, err := strconv.Atoi(os.Getenv(variable)); err == nil && n > 0 {
		return n
	}
	return or
}

type guestBench struct {
	*bench
	dir, host string
	options   []string
	pairs     int
}

func (g *guestBench) openSSH(program string, args ...string) {
	g.t.Helper()
	cmd := exec.Command(program, append(append([]string{}, g.options...), args...)...)
	cmd.Stderr = os.Stderr
	if err := g.do(cmd); err != nil {
		g.t.Fatalf("%s %q: %v", program, args, err)
	}
}

// ratio says how often theirs takes as long as ours.
func ratio(theirs, ours time.Duration) float64 { return float64(theirs) / float64(ours) }

func (g *guestBench) commands() {
	var ours, theirs []time.Duration
	for range 2*rounds + 1 {
		ours = append(ours, took(func() { g.mvm("exec", "bench", "--", "true") }))
		theirs = append(theirs, took(func() { g.openSSH("ssh", g.host, "true") }))
	}
	o, s := median(ours), median(theirs)
	fmt.Printf("exec true: %s; ssh true with a fresh connection: %s; ratio %.2f (limit 0.3)\n", o.Round(time.Millisecond), s.Round(time.Millisecond), ratio(o, s))
}

// transfers measures two ways of copying, in pairs, of which each begins with the other
// way; clean makes each find what the first did, and the host has nothing left to write
// out. Of the pairs' ratios the median counts.
func (g *guestBench) transfers(what, limit string, clean, ours, theirs func()) {
	var ratios []float64
	for i := range g.pairs {
		var o, s time.Duration
		first, second := func() { o = took(ours) }, func() { s = took(theirs) }
		if i%2 == 1 {
			first, second = second, first
		}
		for _, way := range []func(){first, second} {
			clean()
			unix.Sync()
			way()
		}
		ratios = append(ratios, ratio(s, o))
		fmt.Printf("%s: cp %s, scp %s: %.2f\n", what, o.Round(10*time.Millisecond), s.Round(10*time.Millisecond), ratio(s, o))
	}
	slices.Sort(ratios)
	fmt.Printf("%s: scp takes %.2f times as long, median of %d (limit %s)\n", what, ratios[len(ratios)/2], len(ratios), limit)
}

func (g *guestBench) files(mib int) {
	file, back := filepath.Join(g.dir, "file"), filepath.Join(g.dir, "back")
	f, err := os.Create(file)
	if err == nil {
		_, err = io.CopyN(f, rand.Reader, int64(mib)<<20)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		g.t.Fatal(err)
	}
	clean := func() {
		g.mvm("exec", "bench", "--", "sh", "-c", "rm -f /root/file; sync")
	}
	// Without --no-sync cp has the guest write its disks out as well, which scp does not.
	g.transfers(fmt.Sprintf("%d MiB into the VM", mib), "1.0", clean,
		func() { g.mvm("cp", "--no-sync", file, "bench:/root/file") }, func() { g.openSSH("scp", "-q", file, g.host+":/root/file") })
	g.mvm("cp", "-f", file, "bench:/root/file")
	g.transfers(fmt.Sprintf("%d MiB out of the VM", mib), "1.0", func() { _ = os.Remove(back) },
		func() { g.mvm("cp", "bench:/root/file", back) }, func() { g.openSSH("scp", "-q", g.host+":/root/file", back) })
	_ = errors.Join(os.Remove(file), os.Remove(back))
}

func (g *guestBench) trees(n int) {
	tree, back := filepath.Join(g.dir, "tree"), filepath.Join(g.dir, "backtree")
	for i := range n {
		dir := filepath.Join(tree, strconv.Itoa(i/100))
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), []byte(strconv.Itoa(i)), 0o600)); err != nil {
			g.t.Fatal(err)
		}
	}
	g.transfers(fmt.Sprintf("a tree of %d files into the VM", n), "2.0", func() { g.mvm("exec", "bench", "--", "sh", "-c", "rm -rf /root/tree; sync") },
		func() { g.mvm("cp", "--no-sync", tree, "bench:/root/tree") }, func() { g.openSSH("scp", "-q", "-r", tree, g.host+":/root/tree") })
	g.transfers(fmt.Sprintf("a tree of %d files out of the VM", n), "2.0", func() { _ = os.RemoveAll(back) },
		func() { g.mvm("cp", "bench:/root/tree", back) }, func() { g.openSSH("scp", "-q", "-r", g.host+":/root/tree", back) })
}
