package network

import (
	"fmt"
	"strconv"
)

// Objects of ordinary users. Bridges and taps carry the id of their network or VM
// (Alias), and the id says in its last eight hexadecimal digits whose it is: the
// user's number, or for root any number from firstRootMark on, which no user has.
// So the kernel's objects tell their owner without a record beside them, and nobody
// can make an object that looks like another's.

const (
	idDigits      = 16
	ownerDigits   = 8
	firstRootMark = 1 << 31
)

// NewID makes the id of an object of a user, from 64 random bits.
func NewID(uid int, random uint64) string {
	owner := uint32(random) | firstRootMark
	if IsMember(uid) {
		owner = uint32(uid) //nolint:gosec // IsMember has seen that it fits
	}
	return fmt.Sprintf("%08x%08x", uint32(random>>32), owner)
}

// IsMember reports whether objects of a user can be told from those of others: not
// for root, and not for the numbers from 2^31 on, which user namespaces use.
func IsMember(uid int) bool { return uid > 0 && uid < firstRootMark }

// OwnerOf returns whose object has an id; false for root's, and for what is no id.
func OwnerOf(id string) (uid int, member bool) {
	if len(id) != idDigits {
		return 0, false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(id[idDigits-ownerDigits:], 16, 32)
	return int(n), err == nil && IsMember(int(n)) //nolint:gosec // 32 bits
}

// MemberBridge returns the name of the bridge of a user's network. It names the user,
// for two of them may call their networks alike: "mvm-1000-web", or the user and a
// hash where that is longer than an interface name may be. For root it is BridgeName.
func MemberBridge(uid int, name string) string {
	if !IsMember(uid) {
		return BridgeName(name)
	}
	prefix := BridgePrefix + strconv.Itoa(uid) + "-"
	whole := prefix + name
	const leastHash = 5
	switch {
	case len(whole) <= maxIfName:
		return whole
	case len(prefix)+leastHash <= maxIfName:
		return prefix + hash(whole)[:maxIfName-len(prefix)]
	}
	return BridgePrefix + hash(whole)[:maxIfName-len(BridgePrefix)]
}

// Owned is a bridge or tap with an alias of ours.
type Owned struct {
	Name   string
	ID     string // of the network or VM
	Bridge bool   // else it is a tap
}

// Taken is a port of the host that leads to a VM.
type Taken struct {
	Publish
	VMID string
}
