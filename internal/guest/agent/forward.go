package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/crypto/ssh"
)

type directTCP struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// forward connects a channel with a port of the guest itself. Other hosts are
// refused: the channel is a way into this guest, not a gateway to its network.
func (s *Server) forward(ctx context.Context, nc ssh.NewChannel) {
	var d directTCP
	if err := ssh.Unmarshal(nc.ExtraData(), &d); err != nil || d.Port == 0 || d.Port > 65535 {
		_ = nc.Reject(ssh.ConnectionFailed, "the request names no port")
		return
	}
	c, err := dialOwn(ctx, d.Host, int(d.Port))
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer func() { _ = c.Close() }()
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(reqs)
	splice(ch, c)
}

// splice copies both ways, passing on each side's end of stream.
func splice(ch ssh.Channel, c net.Conn) {
	var both sync.WaitGroup
	both.Add(2)
	go func() {
		defer both.Done()
		_, err := io.Copy(c, ch)
		if t, ok := c.(*net.TCPConn); ok && err == nil {
			_ = t.CloseWrite()
		} else {
			_ = c.Close()
		}
	}()
	go func() {
		defer both.Done()
		_, _ = io.Copy(ch, c)
		_ = ch.CloseWrite()
	}()
	both.Wait()
	_ = ch.Close()
}

// dialOwn connects to host if that is this guest.
func dialOwn(ctx context.Context, host string, port int) (net.Conn, error) {
	addrs, err := ownAddresses(host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, portDialTimeout)
	defer cancel()
	var errs []error
	for _, a := range addrs {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(a, strconv.Itoa(port)))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, why(errs)
}

// why says on a line why none of a host's addresses could be connected to: in the
// kernel's words, once.
func why(errs []error) error {
	var errno syscall.Errno
	if errors.As(errs[0], &errno) {
		return errno
	}
	return errs[0]
}

func ownAddresses(host string) ([]string, error) {
	name, _ := os.Hostname()
	if host == "" || host == "localhost" || (name != "" && strings.EqualFold(host, name)) {
		return []string{"127.0.0.1", "::1"}, nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return nil, fmt.Errorf("%q is not an address of this guest", host)
	}
	if a.Unmap().IsLoopback() {
		return []string{host}, nil
	}
	ifs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, i := range ifs {
		if p, err := netip.ParsePrefix(i.String()); err == nil && p.Addr().WithZone("") == a.Unmap().WithZone("") {
			return []string{host}, nil
		}
	}
	return nil, fmt.Errorf("%q is not an address of this guest", host)
}
