package mvm

import (
	"math"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Limits of what a VM may be asked to have.
const (
	MaxNameLen = 63       // a hostname label, RFC 1123
	MinMemMiB  = 64       // less does not boot a distribution's kernel
	MaxVCPUs   = 32       // Firecracker's limit (docs/api: MachineConfiguration)
	MaxDiskMiB = 16 << 20 // 16 TiB, the ext4 limit with 4 KiB blocks
)

var nameRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$`)

// ValidateName checks the name of a VM, network, volume or key. It has to be a
// hostname label (RFC 1123): 1 to 63 letters, digits and inner hyphens.
func ValidateName(what, name string) error {
	refuse := func(why string) error {
		return Errorf(ErrInvalid, "%s name %s %s", what, Quote(clip(name)), why).
			WithHint("use 1 to %d letters, digits and hyphens, such as %q", MaxNameLen, "web-1")
	}
	switch {
	case name == "":
		return refuse("is empty")
	case len(name) > MaxNameLen:
		return refuse("has " + strconv.Itoa(len(name)) + " characters; at most " + strconv.Itoa(MaxNameLen) + " are allowed")
	case strings.ContainsFunc(name, unicode.IsControl):
		return refuse("contains a control character")
	case !nameRE.MatchString(name):
		return refuse("is not a valid hostname")
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:77] + "..."
	}
	return s
}

// ParseSize reads a size such as "512M", "10G", "1.5GiB" or "2048" (MiB) and
// returns bytes. Units are powers of 1024.
func ParseSize(s string) (int64, error) {
	t := strings.ToUpper(strings.TrimSpace(s))
	number := strings.TrimRight(t, "KMGTIB")
	shift, known := map[string]uint{
		"": 20, "K": 10, "KB": 10, "KIB": 10, "M": 20, "MB": 20, "MIB": 20, "G": 30, "GB": 30, "GIB": 30, "T": 40, "TB": 40, "TIB": 40,
	}[t[len(number):]]
	f, err := strconv.ParseFloat(number, 64)
	bytes := f * float64(int64(1)<<shift)
	if !known || err != nil || math.IsNaN(f) || bytes < 1 || bytes >= math.MaxInt64 {
		return 0, Errorf(ErrInvalid, "%s is not a size", Quote(clip(s))).WithHint("write a number and a unit, such as 512M or 10G")
	}
	return int64(bytes), nil
}

// ParseGuestMAC reads a MAC address for a guest: six bytes, unicast, not zero.
func ParseGuestMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	const hint = "use a unicast address such as 02:FC:00:00:00:01"
	switch {
	case err != nil || len(mac) != 6:
		return nil, Errorf(ErrInvalid, "%s is not a MAC address", Quote(clip(s))).WithHint(hint)
	case mac[0]&1 != 0:
		return nil, Errorf(ErrInvalid, "MAC address %s is multicast", mac).WithHint(hint)
	case slices.Max(mac) == 0:
		return nil, Errorf(ErrInvalid, "MAC address %s is all zero", mac).WithHint(hint)
	}
	return mac, nil
}

// ValidateVCPUs checks a number of vCPUs.
func ValidateVCPUs(n int) error {
	if n < 1 || n > MaxVCPUs {
		return Errorf(ErrInvalid, "%d vCPUs asked for; a VM has 1 to %d", n, MaxVCPUs).WithHint("set --vcpu to a number from 1 to %d", MaxVCPUs)
	}
	return nil
}

// ValidateMem checks a memory size in MiB against what the host has.
func ValidateMem(mib, hostMiB int) error {
	if mib < MinMemMiB {
		return Errorf(ErrInvalid, "%d MiB of memory asked for; a guest needs at least %d", mib, MinMemMiB).WithHint("set --mem to %d or more", MinMemMiB)
	}
	if hostMiB > 0 && mib > hostMiB {
		return Errorf(ErrInvalid, "%d MiB of memory asked for; this host has %d", mib, hostMiB).WithHint("set --mem to less than %d", hostMiB)
	}
	return nil
}

// ValidateBootArgs checks kernel arguments given by a user: printable, on one
// line, and short enough for the x86 boot protocol (2,048 bytes in all, of
// which mvm needs some).
func ValidateBootArgs(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r > unicode.MaxASCII }) {
		return Errorf(ErrInvalid, "boot arguments %s contain a control or non-ASCII character", Quote(clip(s))).WithHint("write them on one line, separated by spaces")
	}
	if len(s) > 1400 {
		return Errorf(ErrInvalid, "boot arguments are %d bytes long; at most 1400 fit the kernel's command line", len(s)).WithHint("shorten --boot-args")
	}
	return nil
}

// Nearest returns those of the names that are most like what was typed, at
// most three, for "did you mean".
func Nearest(typed string, names []string) []string {
	type scored struct {
		name string
		d    int
	}
	var near []scored
	for _, n := range names {
		d := distance(strings.ToLower(typed), strings.ToLower(n))
		if strings.HasPrefix(n, typed) || d <= max(1, (len(typed)+1)/3) {
			near = append(near, scored{n, d})
		}
	}
	slices.SortStableFunc(near, func(a, b scored) int { return a.d - b.d })
	var out []string
	for i := 0; i < len(near) && len(out) < 3; i++ {
		if !slices.Contains(out, near[i].name) {
			out = append(out, near[i].name)
		}
	}
	return out
}

// distance is how many bytes have to be inserted, removed, replaced or swapped
// with their neighbour to make a of b (optimal string alignment).
func distance(a, b string) int {
	var before []int // the row before prev
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
