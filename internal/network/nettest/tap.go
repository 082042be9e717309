package nettest

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
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
