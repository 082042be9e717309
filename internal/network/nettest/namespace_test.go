package nettest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// threadsElsewhere counts our threads that are in another network namespace
// than the one given.
func threadsElsewhere(t *testing.T, home string) int {
	t.Helper()
	links, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range links {
		if ns, err := os.Readlink(l); err == nil && ns != home {
			n++
		}
	}
	return n
}

func namespaceOf(t *testing.T, pid int) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func TestNamespacesLeaveNothing(t *testing.T) {
	home := namespaceOf(t, os.Getpid())
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	earlier := threadsElsewhere(t, home)
	for range 20 {
		ns := NewNamespace(t)
		ns.Run("ip", "link", "add", "x0", "type", "bridge")
		second := ns.Thread()
		second.Close()
		ns.Close()
		ns.Close()
	}
	for end := time.Now().Add(10 * time.Second); threadsElsewhere(t, home) > earlier; {
		if time.Now().After(end) {
			t.Fatalf("%d threads are still in a namespace", threadsElsewhere(t, home))
		}
		time.Sleep(time.Millisecond) // a thread ends a little after its goroutine
	}
	if now := namespaceOf(t, os.Getpid()); now != home {
		t.Errorf("the process is in namespace %s, was in %s", now, home)
	}
	after, err := net.Interfaces()
	if err != nil || !slices.EqualFunc(before, after, func(a, b net.Interface) bool { return a.Name == b.Name }) {
		t.Errorf("interfaces before: %v, after: %v, %v", before, after, err)
	}
}

func TestChildProcessesInherit(t *testing.T) {
	ns := NewNamespace(t)
	inside := ns.Run("readlink", "/proc/self/ns/net")
	if inside != ns.Thread().Run("readlink", "/proc/self/ns/net") {
		t.Error("two threads of a namespace are not in the same one")
	}
	if inside == namespaceOf(t, os.Getpid())+"\n" {
		t.Error("a child process is in the host's namespace")
	}
	Netns(t, func() {
		own, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil || own+"\n" == inside {
			t.Errorf("Netns ran in %s, %v", own, err)
		}
	})
}

func TestOutsideHasNoWayBack(t *testing.T) {
	host := NewNamespace(t)
	out := Outside(t, host)
	addr := out.ServePeer(netip.AddrPortFrom(OutsideAddr, 8080).String())
	c, err := host.Dial(t.Context(), "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if seen, err := io.ReadAll(c); err != nil || string(seen) != HostAddr.String() {
		t.Errorf("the server saw %q, %v", seen, err)
	}
	if routes := out.Run("ip", "route"); routes != "198.51.100.0/24 dev eth0 proto kernel scope link src 198.51.100.2 \n" {
		t.Errorf("routes outside: %q", routes)
	}
}
