package fsx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrNoACL says that a file system keeps no access control lists.
var ErrNoACL = errors.New("the file system has no access control lists")

// AllowRead lets one more user read a file, by an entry in its access control list
// (acl(5)); owner and the rights of others stay. Doing it twice is fine. Several
// processes may do it at once for several users.
func AllowRead(path string, uid int) error {
	return editACL(path, func(l acl) acl { return l.withReader(uint32(uid)) }) //nolint:gosec // a user's number
}

// DenyRead undoes AllowRead. A user who has no entry, or a file without a list, is
// fine.
func DenyRead(path string, uid int) error {
	return editACL(path, func(l acl) acl { return l.without(uint32(uid)) }) //nolint:gosec // a user's number
}

// aclName is the attribute that holds the list (xattr(7)).
const aclName = "system.posix_acl_access"

// editACL changes the list of a file, which must be no symlink. The lock is on the
// directory: users who may read the file could lock that itself for ever.
func editACL(path string, edit func(acl) acl) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	old, err := readACL(f)
	if err != nil {
		return err
	}
	list := edit(slices.Clone(old))
	switch {
	case slices.Equal(list, old):
		return nil
	case list.minimal(): // what is left is what the mode says
		err = unix.Fremovexattr(int(f.Fd()), aclName)
		if err == nil || errors.Is(err, unix.ENODATA) {
			return unix.Fchmod(int(f.Fd()), list.mode())
		}
	default:
		err = unix.Fsetxattr(int(f.Fd()), aclName, list.encode(), 0)
	}
	if errors.Is(err, unix.ENOTSUP) {
		return ErrNoACL
	}
	if err != nil {
		return fmt.Errorf("change the access control list of %s: %w", path, err)
	}
	return nil
}

// readACL returns the list of a file; that of one without says what its mode does.
func readACL(f *os.File) (acl, error) {
	buf := make([]byte, 4096)
	n, err := unix.Fgetxattr(int(f.Fd()), aclName, buf)
	switch {
	case errors.Is(err, unix.ENODATA):
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return nil, err
		}
		mode := func(shift int) uint16 { return uint16(st.Mode >> shift & 7) } //nolint:gosec // three bits
		return acl{{aclOwner, mode(6), aclNobody}, {aclGroup, mode(3), aclNobody}, {aclOther, mode(0), aclNobody}}, nil
	case errors.Is(err, unix.ENOTSUP):
		return nil, ErrNoACL
	case err != nil:
		return nil, fmt.Errorf("read the access control list of %s: %w", f.Name(), err)
	}
	return decodeACL(buf[:n])
}

// The kinds of entries, the version of the format, and the id of an entry that
// needs none (linux/posix_acl.h, linux/posix_acl_xattr.h).
const (
	aclOwner, aclUser, aclGroup, aclGroups, aclMask, aclOther = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

	aclVersion = 2
	aclNobody  = 0xffffffff
	aclRead    = 4
)

// acl is an access control list, ordered by kind and id as the kernel wants it.
type acl []aclEntry

type aclEntry struct {
	Tag, Perm uint16
	ID        uint32
}

func decodeACL(data []byte) (acl, error) {
	if len(data) < 4 || len(data)%8 != 4 || binary.LittleEndian.Uint32(data) != aclVersion {
		return nil, errors.New("an access control list of an unknown format")
	}
	var l acl
	for data = data[4:]; len(data) > 0; data = data[8:] {
		l = append(l, aclEntry{binary.LittleEndian.Uint16(data), binary.LittleEndian.Uint16(data[2:]), binary.LittleEndian.Uint32(data[4:])})
	}
	return l, nil
}

func (l acl) encode() []byte {
	data := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range l {
		data = binary.LittleEndian.AppendUint16(data, e.Tag)
		data = binary.LittleEndian.AppendUint16(data, e.Perm)
		data = binary.LittleEndian.AppendUint32(data, e.ID)
	}
	return data
}

// withReader adds an entry for a user, and to the mask, which bounds all entries
// that are not the owner's and others', the right to read.
func (l acl) withReader(uid uint32) acl {
	l = append(l.without(uid), aclEntry{aclUser, aclRead, uid})
	at := slices.IndexFunc(l, func(e aclEntry) bool { return e.Tag == aclMask })
	if at < 0 {
		// The group's rights, which the mask now bounds, keep their effect.
		l, at = append(l, aclEntry{aclMask, l.of(aclGroup), aclNobody}), len(l)
	}
	l[at].Perm |= aclRead
	slices.SortFunc(l, func(a, b aclEntry) int {
		if a.Tag != b.Tag {
			return int(a.Tag) - int(b.Tag)
		}
		return int(int64(a.ID) - int64(b.ID))
	})
	return l
}

// without removes a user's entry, and with the last one the mask.
func (l acl) without(uid uint32) acl {
	l = slices.DeleteFunc(l, func(e aclEntry) bool { return e.Tag == aclUser && e.ID == uid })
	if !slices.ContainsFunc(l, func(e aclEntry) bool { return e.Tag == aclUser || e.Tag == aclGroups }) {
		l = slices.DeleteFunc(l, func(e aclEntry) bool { return e.Tag == aclMask })
	}
	return l
}

// of returns the rights of the first entry of a kind.
func (l acl) of(tag uint16) uint16 {
	for _, e := range l {
		if e.Tag == tag {
			return e.Perm
		}
	}
	return 0
}

func (l acl) minimal() bool { return len(l) == 3 }

func (l acl) mode() uint32 {
	return uint32(l.of(aclOwner))<<6 | uint32(l.of(aclGroup))<<3 | uint32(l.of(aclOther))
}
