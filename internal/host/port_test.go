package host

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPortOwner(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pc.Close() }()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	me := fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(comm)), os.Getpid())
	if got := PortOwner("tcp", l.Addr().(*net.TCPAddr).Port); got != me {
		t.Errorf("the TCP port is used by %q, want %q", got, me)
	}
	if got := PortOwner("udp", pc.LocalAddr().(*net.UDPAddr).Port); got != me {
		t.Errorf("the UDP port is used by %q, want %q", got, me)
	}
	// A connection that merely uses the number is no listener.
	proc := t.TempDir()
	table := "  sl  local_address rem_address   st\n   0: 0100007F:1F90 00000000:0000 01 0:0 00:0 0 0 0 4711 1\n"
	if err := os.MkdirAll(filepath.Join(proc, "net"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proc, "net", "tcp"), []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{proc, "/nonexistent"} {
		if got := portOwner(p, "tcp", 8080); got != "another program" {
			t.Errorf("%s: %q", p, got)
		}
	}
}
