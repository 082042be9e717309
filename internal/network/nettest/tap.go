package nettest

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/network"
)

// OpenTap opens an existing tap in the namespace, as a VMM does: what is written
// comes from the guest, what is read goes to it, one Ethernet frame at a time.
// flags are added to IFF_TAP and IFF_NO_PI; with IFF_VNET_HDR each frame begins
// with a virtio-net header of ten bytes. Deadlines work.
func (ns *Namespace) OpenTap(name string, flags uint16) (*os.File, error) {
	var f *os.File
	var err error
	ns.Do(func() { f, err = openTap(name, flags) })
	return f, err
}

func openTap(name string, flags uint16) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	// Only now: the runtime cannot poll a tun descriptor that has no device.
	return os.NewFile(uintptr(fd), name), nil
}

// VM makes a namespace that stands for a VM behind its tap, which AddTap has made:
// its eth0 has the MAC and the address of the spec, and frames go between the two as
// a VMM would carry them. Unlike Guest, it is held by the tap's guard.
func VM(t testing.TB, host *Namespace, tap network.TapSpec, s network.Spec) *Namespace {
	t.Helper()
	vm := NewNamespace(t)
	outer, err := host.OpenTap(tap.Name, 0)
	if err != nil {
		t.Fatalf("open tap %s: %v", tap.Name, err)
	}
	inner, err := vm.OpenTap("eth0", 0)
	if err != nil {
		t.Fatal(err)
	}
	vm.Run("ip", "link", "set", "eth0", "address", tap.MAC.String(), "up")
	vm.Run("ip", "address", "add", netip.PrefixFrom(tap.IP, s.Subnet.Bits()).String(), "dev", "eth0")
	vm.Run("ip", "route", "add", "default", "via", s.Gateway.String())
	var carriers sync.WaitGroup
	for _, way := range [][2]*os.File{{outer, inner}, {inner, outer}} {
		carriers.Go(func() { carry(way[0], way[1]) })
	}
	t.Cleanup(func() { // closing ends the readers
		_ = outer.Close()
		_ = inner.Close()
		carriers.Wait()
	})
	return vm
}

// carry moves frames until one end is closed. A frame that cannot be delivered is
// lost, as on a wire.
func carry(from, to *os.File) {
	frame := make([]byte, 65536)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		_, _ = to.Write(frame[:n])
	}
}
