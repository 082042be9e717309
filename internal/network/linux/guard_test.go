package linux

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/nettest"
)

var broadcast = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ipFrame is a UDP datagram to everyone, with its name as payload.
func ipFrame(name string, mac []byte, ip netip.Addr) []byte {
	f := slices.Concat(broadcast, mac, []byte{0x08, 0x00})
	header := []byte{0x45, 0, 0, byte(28 + len(name)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	header = slices.Concat(header, ip.AsSlice(), []byte{172, 27, 0, 255})
	sum := uint32(0)
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	binary.BigEndian.PutUint16(header[10:], ^uint16(sum+sum>>16))
	udp := []byte{0x12, 0x34, 0x12, 0x34, 0, byte(8 + len(name)), 0, 0}
	return slices.Concat(f, header, udp, []byte(name))
}

// arpFrame is an ARP announcement.
func arpFrame(mac, senderMAC []byte, sender netip.Addr) []byte {
	return slices.Concat(broadcast, mac, []byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1}, senderMAC, sender.AsSlice(), make([]byte, 6), []byte{172, 27, 0, 77})
}

func openTap(t *testing.T, h *nettest.RealHost, name string, flags uint16) *os.File {
	t.Helper()
	f, err := h.OpenTap(name, flags)
	if err != nil {
		t.Fatalf("open tap %s: %v", name, err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// flood writes all frames again and again until the last one shows up at the
// reader, and returns which showed up there by then.
func flood(t *testing.T, from, to *os.File, frames map[string][]byte, last string) []string {
	t.Helper()
	var seen []string
	buf := make([]byte, 2048)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		for name, f := range frames {
			if name != last {
				write(t, from, f)
			}
		}
		write(t, from, frames[last])
		for {
			_ = to.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			n, err := to.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for name, f := range frames {
				if slices.Equal(buf[:n], f) && !slices.Contains(seen, name) {
					seen = append(seen, name)
				}
			}
		}
		if slices.Contains(seen, last) {
			slices.Sort(seen)
			return seen
		}
	}
	t.Fatalf("%s never arrived; there came %v", last, seen)
	return nil
}

func write(t *testing.T, f *os.File, frame []byte) {
	t.Helper()
	if _, err := f.Write(frame); err != nil {
		t.Fatal(err)
	}
}

func TestForgedFramesAreDropped(t *testing.T) {
	h := nettest.NewHost(t, New())
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	one, two := nettest.TapOf("vm1", red, "172.27.0.2"), nettest.TapOf("vm2", red, "172.27.0.3")
	for _, tap := range []network.TapSpec{one, two} {
		if err := h.AddTap(t.Context(), tap); err != nil {
			t.Fatal(err)
		}
	}
	from, to := openTap(t, h, one.Name, 0), openTap(t, h, two.Name, 0)
	nobody := netip.IPv4Unspecified()
	frames := map[string][]byte{
		"forged MAC":         ipFrame("forged MAC", two.MAC, one.IP),
		"forged IP":          ipFrame("forged IP", one.MAC, two.IP),
		"gateway's IP":       ipFrame("gateway's IP", one.MAC, red.Gateway),
		"no IP":              ipFrame("no IP", one.MAC, nobody),
		"ARP for neighbour":  arpFrame(one.MAC, one.MAC, two.IP),
		"ARP for gateway":    arpFrame(one.MAC, one.MAC, red.Gateway),
		"ARP of neighbour":   arpFrame(one.MAC, two.MAC, one.IP),
		"ARP, all forged":    arpFrame(two.MAC, two.MAC, two.IP),
		"IPv6":               slices.Concat(broadcast, one.MAC, []byte{0x86, 0xdd, 0x60}, make([]byte, 60)),
		"VLAN, forged IP":    vlan(ipFrame("VLAN, forged IP", one.MAC, two.IP)),
		"nested VLANs":       vlan(vlan(ipFrame("nested VLANs", one.MAC, two.IP))),
		"spanning tree":      slices.Concat(broadcast, one.MAC, []byte{0, 38, 0x42, 0x42, 3}, make([]byte, 35)),
		"ok: own address":    ipFrame("ok: own address", one.MAC, one.IP),
		"ok: own ARP":        arpFrame(one.MAC, one.MAC, one.IP),
		"ok: probing by ARP": arpFrame(one.MAC, one.MAC, nobody),
	}
	want := []string{"ok: own ARP", "ok: own address", "ok: probing by ARP"}
	if got := flood(t, from, to, frames, "ok: own address"); !slices.Equal(got, want) {
		t.Errorf("frames that passed: %q, want %q", got, want)
	}

	// The guard follows the VM's address.
	one.IP = netip.MustParseAddr("172.27.0.9")
	if err := h.AddTap(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	frames = map[string][]byte{
		"old address": ipFrame("old address", one.MAC, netip.MustParseAddr("172.27.0.2")),
		"new address": ipFrame("new address", one.MAC, one.IP),
	}
	if got := flood(t, from, to, frames, "new address"); !slices.Equal(got, []string{"new address"}) {
		t.Errorf("frames that passed after the address changed: %q", got)
	}
}

// vlan gives a frame a tag of VLAN 7 (IEEE 802.1Q).
func vlan(frame []byte) []byte {
	return slices.Concat(frame[:12], []byte{0x81, 0x00, 0, 7}, frame[12:])
}

// Firecracker and QEMU both open taps with IFF_VNET_HDR where the kernel has it,
// and others without; a second VMM on the same tap is refused.
func TestTapOpensLikeAVMM(t *testing.T) {
	h := nettest.NewHost(t, New())
	red := nettest.SpecOf("red", "172.27.0.0/24")
	mustEnsure(t, h, red)
	tap := nettest.TapOf("vm1", red, "172.27.0.2")
	tap.OwnerUID = 12345
	if err := h.AddTap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	for _, flags := range []uint16{unix.IFF_VNET_HDR, 0} {
		f, err := h.OpenTap(tap.Name, flags)
		if err != nil {
			t.Fatalf("open with flags %#x: %v", flags, err)
		}
		if second, err := h.OpenTap(tap.Name, flags); !errors.Is(err, unix.EBUSY) {
			t.Errorf("a second opener got %v, %v", second, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for uid, want := range map[int]error{12345: nil, 12346: unix.EPERM} {
		if err := openAs(h, tap.Name, uid); !errors.Is(err, want) {
			t.Errorf("opened by user %d: %v, want %v", uid, err, want)
		}
	}
}

// openAs attaches to a tap as another user, on a thread that ends with the
// test. The device file is opened before, for its mode is the host's matter.
func openAs(h *nettest.RealHost, name string, uid int) (err error) {
	h.Thread().Do(func() {
		fd, openErr := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
		ifr, nameErr := unix.NewIfreq(name)
		if err = errors.Join(openErr, nameErr); err != nil {
			return
		}
		ifr.SetUint16(tapFlags)
		becomeUser(uid)
		err = errors.Join(unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr), unix.Close(fd))
	})
	return err
}

// becomeUser gives up root on the calling thread alone: the package functions
// would change all threads.
func becomeUser(uid int) {
	id := uintptr(uid)
	_, _, _ = unix.RawSyscall(unix.SYS_SETRESUID, id, id, id)
}
