package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"unsafe"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/network"
)

// wouldMake says what iptables would make for a group, so that it can go with the
// last one. iptables-legacy cannot unmake its tables.
func (x iptables) wouldMake(g group) (made, error) {
	m := made{}
	if isLegacy() {
		return m, nil
	}
	for _, c := range usedChains(g) {
		table := network.TableOf(c)
		_, err := x.fw.ListTableOfFamily(table, nftables.TableFamilyIPv4)
		if errors.Is(err, os.ErrNotExist) {
			m[c] = madeTable
			continue
		}
		if err != nil {
			return nil, explain(err, "read nftables table %s", table)
		}
		there, err := x.fw.hasChain(table, builtin[c])
		if err != nil {
			return nil, err
		}
		if !there {
			m[c] = madeChain
		}
	}
	return m, nil
}

// tidy removes what iptables once made for us and nobody needs any more. before are
// the rules as they were before the last change.
func (x iptables) tidy(ctx context.Context, before saved) error {
	for _, name := range []string{"filter", "nat"} {
		t, gone := before[name], false
		for _, c := range network.Chains() {
			from := builtin[c]
			comment := t.comment(from, c)
			if network.TableOf(c) != name || comment != jumpTag+madeChain && comment != jumpTag+madeTable {
				continue
			}
			there, err := x.fw.hasChain(name, c)
			if err != nil {
				return err
			}
			if there || t.policy[from] != "ACCEPT" {
				continue
			}
			if err := deleteEmpty(unix.NFT_MSG_DELCHAIN, unix.NFTA_CHAIN_TABLE, name, unix.NFTA_CHAIN_NAME, from); err != nil {
				return explain(err, "remove the empty chain %s of iptables", from)
			}
			gone = true
		}
		if gone && t.wasMade() {
			if err := deleteEmpty(unix.NFT_MSG_DELTABLE, unix.NFTA_TABLE_NAME, name, 0, ""); err != nil {
				return explain(err, "remove the empty table %s of iptables", name)
			}
		}
	}
	return ctx.Err()
}

// comment is that of the rule that leads from a chain of iptables to ours.
func (t *savedTable) comment(from, to string) string {
	for _, r := range t.rules[from] {
		if isJump(r, to) {
			return xtParse(r).comment
		}
	}
	return ""
}

// deleteEmpty deletes a chain or table of nftables that holds nothing; one that
// somebody uses by now stays. The library has no way to say NLM_F_NONREC, without
// which all that it holds would go too (nf_tables_api.c, nf_tables_deltable).
func deleteEmpty(message, tableAttr uint16, table string, chainAttr uint16, chain string) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	attrs := []netlink.Attribute{{Type: tableAttr, Data: append([]byte(table), 0)}}
	if chain != "" {
		attrs = append(attrs, netlink.Attribute{Type: chainAttr, Data: append([]byte(chain), 0)})
	}
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	header := func(family byte, resource uint16) []byte { // struct nfgenmsg
		return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
	}
	batch := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: header(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)}
	}
	msgs, err := c.SendMessages([]netlink.Message{
		batch(unix.NFNL_MSG_BATCH_BEGIN),
		{
			Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message), Flags: netlink.Request | netlink.Acknowledge | unix.NLM_F_NONREC},
			Data:   append(header(unix.NFPROTO_IPV4, 0), data...),
		},
		batch(unix.NFNL_MSG_BATCH_END),
	})
	if err != nil {
		return err
	}
	for {
		replies, err := c.Receive()
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, r := range replies {
			if r.Header.Sequence == msgs[1].Header.Sequence {
				return nil
			}
		}
	}
}

// isMissing says whether nothing has the name that was asked for. The library wraps
// what the kernel says without keeping it.
func isMissing(err error) bool {
	return errors.Is(err, unix.ENOENT) || strings.Contains(err.Error(), unix.ENOENT.Error())
}

// legacyTables are the tables of iptables-legacy that are in use. Looking at others
// would make them.
func legacyTables() []string {
	data, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if err != nil {
		return nil // a kernel without it
	}
	return strings.Fields(string(data))
}

// Options of getsockopt by which iptables-legacy reads a table
// (linux/netfilter_ipv4/ip_tables.h), and the sizes of their structures.
const (
	iptGetInfo    = 64
	iptGetEntries = 65
	iptNameLen    = 32
	iptInfoLen    = 84
	iptEntriesAt  = 40
)

// legacyTable returns what the kernel says of a table (struct ipt_getinfo), and its
// rules, in which the names of chains and comments stand.
func legacyTable(name string) (info, entries []byte, err error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = unix.Close(s) }()
	info = make([]byte, iptInfoLen)
	copy(info[:iptNameLen-1], name)
	if err := getsockopt(s, iptGetInfo, info); err != nil {
		return nil, nil, err
	}
	size := binary.NativeEndian.Uint32(info[iptInfoLen-4:])
	all := make([]byte, iptEntriesAt+size)
	copy(all[:iptNameLen-1], name)
	binary.NativeEndian.PutUint32(all[iptNameLen:], size)
	return info, all[iptEntriesAt:], getsockopt(s, iptGetEntries, all)
}

func getsockopt(s, option int, buf []byte) error {
	n := uint32(len(buf)) //nolint:gosec // a table's size
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s), unix.SOL_IP, uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return e
	}
	return nil
}
