package boot

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of the kernel's file systems: fs/ext4/ext4.h, include/uapi/linux/btrfs.h,
// fs/xfs/libxfs/xfs_fs.h. The numbers are the same on amd64 and arm64.
const (
	ext4IocResizeFS  = 0x40086610 // _IOW('f', 16, __u64)
	btrfsIocResize   = 0x50009403 // _IOW(0x94, 3, struct btrfs_ioctl_vol_args), 4096 bytes
	xfsIocGeometryV1 = 0x80705864 // _IOR('X', 100, struct xfs_fsop_geom_v1), 112 bytes
	xfsIocGrowFSData = 0x4010586e // _IOW('X', 110, struct xfs_growfs_data), 16 bytes
	xfsSuperMagic    = 0x58465342
)

// ioctlBytes passes buf to the request and lets the kernel write into it.
func ioctlBytes(fd uintptr, req uint, buf []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(req), uintptr(unsafe.Pointer(&buf[0])))
	if errno != 0 {
		return errno
	}
	return nil
}

// deviceBytes is the size of a block device.
func deviceBytes(device string) (uint64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	var size [8]byte
	if err := ioctlBytes(f.Fd(), unix.BLKGETSIZE64, size[:]); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(size[:]), nil
}

// Grow makes the file system mounted at dir as large as its device, online. One
// that is as large already is left alone.
func Grow(dir, device string) error {
	size, err := deviceBytes(device)
	if err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return err
	}
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return ioctlBytes(f.Fd(), ext4IocResizeFS, binary.NativeEndian.AppendUint64(nil, size/uint64(st.Bsize)))
	case unix.BTRFS_SUPER_MAGIC:
		arg := make([]byte, 4096) // __s64 fd; char name[4088]
		copy(arg[8:], "max")
		return ioctlBytes(f.Fd(), btrfsIocResize, arg)
	case xfsSuperMagic:
		return growXFS(f, size)
	}
	return fmt.Errorf("do not know how to grow a file system of type %#x", st.Type)
}

// growXFS grows the data section and keeps the share that inodes may take.
func growXFS(f *os.File, size uint64) error {
	geo := make([]byte, 112)
	if err := ioctlBytes(f.Fd(), xfsIocGeometryV1, geo); err != nil {
		return err
	}
	block := binary.NativeEndian.Uint32(geo[0:])
	imaxpct := binary.NativeEndian.Uint32(geo[28:])
	have := binary.NativeEndian.Uint64(geo[32:])
	if block == 0 || size/uint64(block) <= have {
		return nil
	}
	arg := binary.NativeEndian.AppendUint64(nil, size/uint64(block))
	arg = binary.NativeEndian.AppendUint32(arg, imaxpct)
	arg = binary.NativeEndian.AppendUint32(arg, 0) // padding
	return ioctlBytes(f.Fd(), xfsIocGrowFSData, arg)
}
