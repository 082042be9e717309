package host

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// PortTaken reports whether a program listens on a TCP or UDP port of this network
// namespace, and which; an invalid address means any. A port that this process may
// not ask for is not reported: whoever makes rules for it finds out.
func PortTaken(protocol string, addr netip.Addr, port int) (owner string, taken bool) {
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	at := netip.AddrPortFrom(addr, uint16(port)).String() //nolint:gosec // a port
	var err error
	var closer interface{ Close() error }
	if protocol == "udp" {
		closer, err = net.ListenPacket("udp4", at)
	} else {
		closer, err = net.Listen("tcp4", at)
	}
	if err == nil {
		_ = closer.Close()
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return "", false
	}
	return PortOwner(protocol, port), true
}

// PortOwner names the program that listens on a TCP or UDP port of this network
// namespace, "another program" where that cannot be told: the sockets of other
// users show their owner to root alone.
func PortOwner(protocol string, port int) string { return portOwner("/proc", protocol, port) }

func portOwner(proc, protocol string, port int) string {
	inodes := map[string]bool{}
	for _, file := range []string{protocol, protocol + "6"} {
		listening(filepath.Join(proc, "net", file), protocol, port, inodes)
	}
	if len(inodes) == 0 {
		return "another program"
	}
	links, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*")) // fails on a bad pattern only
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil || !inodes[to] {
			continue
		}
		dir := filepath.Dir(filepath.Dir(l))
		if name := firstLine(filepath.Join(dir, "comm")); name != "" {
			return fmt.Sprintf("%s (process %s)", name, filepath.Base(dir))
		}
	}
	return "another program"
}

// tcpListen is TCP_LISTEN as /proc/net/tcp writes it (net/tcp_states.h).
const tcpListen = "0A"

// listening collects the sockets of a table of /proc/net that are bound to a port,
// and in the case of TCP listen, as their descriptors link to them.
func listening(path, protocol string, port int, inodes map[string]bool) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 10 {
			continue
		}
		_, hex, _ := strings.Cut(fields[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); err != nil || int(n) != port || protocol == "tcp" && fields[3] != tcpListen {
			continue
		}
		inodes["socket:["+fields[9]+"]"] = true
	}
}
