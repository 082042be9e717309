package network

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
)

// maxIfName is how long an interface's name may be: IFNAMSIZ without the final
// zero (linux/if.h).
const maxIfName = 15

// MaxPorts is how many taps a bridge has room for: BR_MAX_PORTS less the one that the
// bridge keeps (net/bridge/br_private.h, br_if.c).
const MaxPorts = 1023

// BridgePrefix begins the name of every bridge of ours.
const BridgePrefix = "mvm-"

// BridgeName returns the name of a network's bridge: "mvm-" and the network's
// name, which is cut and ends in a hash of the whole where that is longer than
// the 15 characters of an interface name. A network's nftables table has the
// same name.
func BridgeName(network string) string {
	name := BridgePrefix + network
	if len(name) <= maxIfName {
		return name
	}
	return name[:8] + "-" + hash(network)[:6]
}

// TapName returns the name of a VM's tap device: "mvm" and 12 hex digits of the
// hash of its id. It cannot be a bridge's name, for it has no hyphen.
func TapName(vmID string) string { return "mvm" + hash("tap\x00" + vmID)[:12] }

// BridgeMAC returns the address that a network's bridge is made with. It is
// fixed so that the guests' ARP entries outlive a rebuilt bridge, and it marks
// the bridge as ours from the very first system call: a link cannot be given
// its alias in the call that makes it.
func BridgeMAC(networkID string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("bridge\x00" + networkID))
	return append(net.HardwareAddr{0x02, 0xFD}, sum[:4]...)
}

// GuestMAC returns the address of a VM's n-th interface: the prefix, one to
// four bytes such as "02:FC", and a hash of id and n. A prefix that is not
// hexadecimal bytes, multicast, or too long gives mvm.ErrInvalid.
func GuestMAC(prefix, vmID string, n int) (net.HardwareAddr, error) {
	const hint = "use one to four bytes of a unicast address, such as 02:FC"
	raw, err := hex.DecodeString(strings.ReplaceAll(prefix, ":", ""))
	wellFormed := err == nil && len(prefix) == 3*len(raw)-1
	for i := 2; wellFormed && i < len(prefix); i += 3 {
		wellFormed = prefix[i] == ':'
	}
	switch {
	case !wellFormed || len(raw) > 4:
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s is not a prefix of a MAC address", mvm.Quote(clip(prefix))).WithHint(hint)
	case raw[0]&1 != 0:
		return nil, mvm.Errorf(mvm.ErrInvalid, "MAC prefix %s is multicast", mvm.Quote(prefix)).WithHint(hint)
	}
	sum := sha256.Sum256([]byte("mac\x00" + strconv.Itoa(n) + "\x00" + vmID))
	mac := append(net.HardwareAddr(raw), sum[:6-len(raw)]...)
	mac[5] |= 1 // never all zero, whatever the prefix
	return mac, nil
}

// aliasPrefix begins the interface alias of everything that is ours.
const aliasPrefix = "mvm:"

// Alias returns the interface alias that marks a bridge or tap as ours: "mvm:"
// and the id of the network or VM.
func Alias(id string) string { return aliasPrefix + id }

// AliasID returns the id in an alias of ours, and whether it is one.
func AliasID(alias string) (string, bool) {
	id, ok := strings.CutPrefix(alias, aliasPrefix)
	return id, ok && id != ""
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:77] + "..."
	}
	return s
}
