package linux

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/network"
)

// tunPath is the tun driver's device.
const tunPath = "/dev/net/tun"

// tapFlags make an Ethernet device of one queue without packet information.
// Firecracker and QEMU both open a tap with IFF_VNET_HDR; the opener's flags
// replace these, but all openers have to agree on the number of queues
// (drivers/net/tun.c, tun_set_iff).
const tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// makeTap makes a persistent tap that only the owner and root can open. It
// becomes persistent after mark has run: one that we are killed over before it
// is marked as ours vanishes with us. A device that has the name already gives
// unix.EBUSY.
//
// The device lands in the network namespace of the calling thread.
func makeTap(t network.TapSpec, mark func() error) error {
	return withTun(t.Name, tapFlags|unix.IFF_TUN_EXCL, func(fd int) error {
		// A tap without an owner could be opened by every user.
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, t.OwnerUID); err != nil {
			return fmt.Errorf("set its owner: %w", err)
		}
		if err := mark(); err != nil {
			return fmt.Errorf("mark it: %w", err)
		}
		return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	})
}

// chownTap gives an existing tap another owner. One that a VMM has open gives
// unix.EBUSY.
func chownTap(t network.TapSpec) error {
	return withTun(t.Name, tapFlags, func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETOWNER, t.OwnerUID) })
}

func withTun(name string, flags uint16, fn func(fd int) error) error {
	// A child that another goroutine is just starting would hold the tap for a moment
	// longer than we do, and the VMM that comes next would find it busy.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", tunPath, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(flags)
		if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err == nil {
			err = fn(fd)
		}
	}
	return errors.Join(err, unix.Close(fd))
}
