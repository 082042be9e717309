package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest"
)

// rtnl is a NETLINK_ROUTE socket. The handful of requests that a static address
// needs is smaller by hand than a netlink library in every guest's memory.
type rtnl struct {
	fd  int
	seq uint32
}

func openRtnl() (*rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	tv := unix.Timeval{Sec: 5}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	return &rtnl{fd: fd}, nil
}

func (n *rtnl) close() { _ = unix.Close(n.fd) }

// attr appends one rtattr (rtnetlink(7)), padded to four bytes.
func attr(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// do sends a request and waits for its acknowledgement.
func (n *rtnl) do(kind, flags uint16, body []byte) error {
	n.seq++
	msg := u32(uint32(unix.SizeofNlMsghdr + len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg = append(msg, u32(n.seq)...)
	msg = append(msg, u32(0)...)
	msg = append(msg, body...)
	if err := unix.Sendto(n.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 8192)
	for {
		c, _, err := unix.Recvfrom(n.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if c < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint32(buf[8:]) != n.seq {
			continue
		}
		if binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
			continue
		}
		if code := int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); code != 0 {
			return unix.Errno(-code)
		}
		return nil
	}
}

// linkUp sets an interface up, with the MTU when it is not 0.
func (n *rtnl) linkUp(index, mtu int) error {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(b[12:], unix.IFF_UP)
	if mtu > 0 {
		b = attr(b, unix.IFLA_MTU, u32(uint32(mtu)))
	}
	return n.do(unix.RTM_NEWLINK, 0, b)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (n *rtnl) addAddress(index int, p netip.Prefix) error {
	a := p.Addr()
	b := []byte{family(a), byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	if a.Is6() {
		b[2] = unix.IFA_F_NODAD // the host gave this address; a second of waiting proves nothing
	}
	b = append(b, u32(uint32(index))...)
	b = attr(b, unix.IFA_LOCAL, a.AsSlice())
	b = attr(b, unix.IFA_ADDRESS, a.AsSlice())
	if a.Is4() && p.Bits() < 31 {
		b = attr(b, unix.IFA_BROADCAST, broadcast(p))
	}
	return n.do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
}

func broadcast(p netip.Prefix) []byte {
	b := p.Addr().As4()
	v := binary.BigEndian.Uint32(b[:]) | (1<<(32-p.Bits()) - 1)
	return binary.BigEndian.AppendUint32(nil, v)
}

// addRoute adds a route through via (or a route on the link without one);
// an invalid dst is the default route.
func (n *rtnl) addRoute(index int, dst netip.Prefix, via netip.Addr) error {
	b := make([]byte, unix.SizeofRtMsg)
	fam, scope := family(via), byte(unix.RT_SCOPE_UNIVERSE)
	if dst.IsValid() {
		fam, scope, b[1] = family(dst.Addr()), unix.RT_SCOPE_LINK, byte(dst.Bits())
	}
	b[0], b[4], b[5], b[6], b[7] = fam, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, scope, unix.RTN_UNICAST
	if dst.IsValid() {
		b = attr(b, unix.RTA_DST, dst.Addr().AsSlice())
	} else {
		b = attr(b, unix.RTA_GATEWAY, via.AsSlice())
	}
	b = attr(b, unix.RTA_OIF, u32(uint32(index)))
	return n.do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
}

// interfaceByMAC waits for the interface that has this address; the driver was
// loaded just before.
func interfaceByMAC(mac string, limit time.Duration) (name string, index int, err error) {
	want, err := net.ParseMAC(mac)
	if err != nil {
		return "", 0, err
	}
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		dirs, _ := filepath.Glob("/sys/class/net/*/address")
		for _, f := range dirs {
			text, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			have, err := net.ParseMAC(strings.TrimSpace(string(text)))
			if err != nil || !bytes.Equal(have, want) {
				continue
			}
			dir := filepath.Dir(f)
			text, err = os.ReadFile(dir + "/ifindex")
			if err != nil {
				return "", 0, err
			}
			index, err = strconv.Atoi(strings.TrimSpace(string(text)))
			return filepath.Base(dir), index, err
		}
		if time.Now().After(end) {
			return "", 0, fmt.Errorf("no network interface has the address %s", mac)
		}
	}
}

// SetupLoopback sets lo up.
func SetupLoopback() error {
	n, err := openRtnl()
	if err != nil {
		return err
	}
	defer n.close()
	return n.linkUp(1, 0) // lo has index 1 in every network namespace
}

// SetupNetwork gives the interface with cfg's MAC its static address and route.
// Applied twice it changes nothing.
func SetupNetwork(cfg *guest.NetConfig, limit time.Duration) error {
	p, err := netip.ParsePrefix(cfg.Address)
	if err != nil {
		return err
	}
	_, index, err := interfaceByMAC(cfg.MAC, limit)
	if err != nil {
		return err
	}
	n, err := openRtnl()
	if err != nil {
		return err
	}
	defer n.close()
	if err := n.linkUp(index, cfg.MTU); err != nil {
		return fmt.Errorf("set the interface up: %w", err)
	}
	if err := n.addAddress(index, p); err != nil {
		return fmt.Errorf("add the address %s: %w", cfg.Address, err)
	}
	if cfg.Gateway == "" {
		return nil
	}
	gw, err := netip.ParseAddr(cfg.Gateway)
	if err != nil {
		return err
	}
	if !p.Masked().Contains(gw) { // a routed tap: the gateway is on the link all the same
		if err := n.addRoute(index, netip.PrefixFrom(gw, gw.BitLen()), netip.Addr{}); err != nil {
			return fmt.Errorf("add the route to the gateway: %w", err)
		}
	}
	if err := n.addRoute(index, netip.Prefix{}, gw); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return nil
}

// MoveNetwork makes another interface, to the outside, of the one with the
// address oldMAC: MAC address, IP address and route become cfg's. One that was
// moved already is set up again.
func MoveNetwork(oldMAC, oldAddr string, cfg *guest.NetConfig) error {
	if !strings.EqualFold(oldMAC, cfg.MAC) {
		if _, index, err := interfaceByMAC(oldMAC, 0); err == nil {
			if err := readdress(index, oldAddr, cfg.MAC); err != nil {
				return err
			}
		}
	}
	return SetupNetwork(cfg, netWait)
}

// readdress takes an address from an interface and gives it another MAC address.
// A virtio-net device takes that while it is up.
func readdress(index int, oldAddr, mac string) error {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	n, err := openRtnl()
	if err != nil {
		return err
	}
	defer n.close()
	if p, err := netip.ParsePrefix(oldAddr); err == nil {
		if err := n.removeAddress(index, p); err != nil && err != unix.EADDRNOTAVAIL {
			return fmt.Errorf("remove the address %s: %w", oldAddr, err)
		}
	}
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	if err := n.do(unix.RTM_NEWLINK, 0, attr(b, unix.IFLA_ADDRESS, hw)); err != nil {
		return fmt.Errorf("set the MAC address %s: %w", mac, err)
	}
	return nil
}

func (n *rtnl) removeAddress(index int, p netip.Prefix) error {
	b := []byte{family(p.Addr()), byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	b = append(b, u32(uint32(index))...)
	return n.do(unix.RTM_DELADDR, 0, attr(b, unix.IFA_LOCAL, p.Addr().AsSlice()))
}
