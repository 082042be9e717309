package api

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
)

func TestPick(t *testing.T) {
	vms := []*mvm.VMInstanceItem{
		{ID: "aaaa000000000001", Name: "web", IPv4: "172.27.0.2", MAC: "02:FC:00:00:00:01"},
		{ID: "aaaa000000000002", Name: "db", IPv4: "172.27.0.3", MAC: "02:FC:00:00:00:02"},
		{ID: "bbbb000000000003", Name: "aaaa", IPv4: "172.27.0.4", MAC: "02:FC:00:00:00:03"},
		{ID: "cccc000000000004", Name: "cccc0000", IPv4: "", MAC: ""},
	}
	for _, tc := range []struct {
		selector, want string
		kind           mvm.Kind
		says           string
	}{
		{"web", "web", "", ""},
		{"172.27.0.3", "db", "", ""},
		{"02:FC:00:00:00:02", "db", "", ""},
		{"02:fc:00:00:00:02", "db", "", ""},
		{"aaaa", "aaaa", "", ""}, // a name goes before the beginning of an id
		{"bbbb", "aaaa", "", ""},
		{"BBBB0000", "aaaa", "", ""},
		{"aaaa00000000000", "", mvm.ErrAmbiguous, "web (aaaa00000000), db (aaaa00000000)"},
		{"aaaa000000000002", "db", "", ""},
		{"cccc0000", "cccc0000", "", ""},
		{"bbb", "", mvm.ErrNotFound, "there is no VM"}, // too short for an id
		{"wbe", "", mvm.ErrNotFound, `"wbe"`},
		{"", "", mvm.ErrNotFound, "there is no VM"}, // does not mean the one without an address
	} {
		t.Run(tc.selector, func(t *testing.T) {
			got, err := pick("VM", tc.selector, "see 'mvm vm ls'", vmCandidates(vms))
			if tc.want != "" {
				if err != nil || got.Name != tc.want {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			refused(t, err, tc.kind, tc.says)
		})
	}
	_, err := pick("VM", "wbe", "see 'mvm vm ls'", vmCandidates(vms))
	if got := mvm.HintOf(err); got != "did you mean web?" {
		t.Errorf("near: %q", got)
	}
	_, err = pick("VM", "zzzzzz", "see 'mvm vm ls'", vmCandidates(vms))
	if got := mvm.HintOf(err); !strings.HasPrefix(got, "there is web, db, ") || !strings.HasSuffix(got, "; see 'mvm vm ls'") {
		t.Errorf("nothing near, but few to name: %q", got)
	}
	many := vms
	for range fewEnoughToList {
		many = append(many, &mvm.VMInstanceItem{Name: "another"})
	}
	_, err = pick("VM", "zzzzzz", "see 'mvm vm ls'", vmCandidates(many))
	if got := mvm.HintOf(err); got != "see 'mvm vm ls'" {
		t.Errorf("nothing near: %q", got)
	}
}

func TestPickAssets(t *testing.T) {
	images := []*mvm.ImageItem{ // newest first
		{ID: "1111000000000001", Type: "debian", Version: "13", Name: "Debian 13"},
		{ID: "1111000000000002", Type: "debian", Version: "12", Name: "Debian 12"},
		{ID: "2222000000000003", Type: "tiny", Version: "1", Name: "debian"},
	}
	for selector, want := range map[string]string{
		"debian:12": "Debian 12", "debian": "Debian 13", "Debian 12": "Debian 12", "2222": "debian", "tiny": "debian",
	} {
		if got, err := pick("image", selector, "x", imageCandidates(images)); err != nil || got.Name != want {
			t.Errorf("image %s: %v, %v", selector, got, err)
		}
	}
	p := paths{cache: "/c"}
	kernels := []*mvm.KernelItem{
		{ID: "3333000000000001", Type: "debian", Version: "6.12", Name: "vmlinux-6.12", Path: "kernels/b/vmlinux-6.12"},
		{ID: "3333000000000002", Type: "debian", Version: "6.1", Name: "vmlinux-6.1", Path: "kernels/a/vmlinux-6.1"},
	}
	for selector, want := range map[string]string{
		"debian:6.1": "6.1", "debian": "6.12", "/c/kernels/a/vmlinux-6.1": "6.1", "kernels/a/vmlinux-6.1": "6.1", "vmlinux-6.1": "6.1", "3333000000000002": "6.1",
	} {
		if got, err := pick("kernel", selector, "x", kernelCandidates(kernels, p)); err != nil || got.Version != want {
			t.Errorf("kernel %s: %v, %v", selector, got, err)
		}
	}
	refusedPick(t, images)
}

func refusedPick(t *testing.T, images []*mvm.ImageItem) {
	t.Helper()
	_, err := pick("image", "1111", "x", imageCandidates(images))
	refused(t, err, mvm.ErrAmbiguous, "debian:13")
	_, err = pick("image", "debian:14", "x", imageCandidates(images))
	refused(t, err, mvm.ErrNotFound, "debian:14")
}

func TestCompareVersions(t *testing.T) {
	ascending := []string{"1", "1.0", "1.2", "1.10", "1.10.1", "2", "6.1.9", "6.1.10", "6.1.10-1", "6.1.10-2", "24.04", "24.10"}
	for i, a := range ascending {
		for j, b := range ascending {
			got := compareVersions(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compareVersions(%s, %s) = %d", a, b, got)
			}
		}
	}
	for _, odd := range []string{"", "rolling", "edge-2", "99999999999999999999.1", "6.1.0+deb12u1"} {
		if compareVersions(odd, odd) != 0 || (compareVersions(odd, "1.2") < 0) == (compareVersions("1.2", odd) < 0) {
			t.Errorf("%q has no place among versions", odd)
		}
	}
	versions := []string{"6.10", "6.9", "6.1"}
	slices.SortFunc(versions, compareVersions)
	if strings.Join(versions, " ") != "6.1 6.9 6.10" {
		t.Errorf("sorted: %q", versions)
	}
}

func TestChooseIP(t *testing.T) {
	n := &mvm.NetworkItem{Name: "small", Subnet: "10.0.0.0/29", IPv4Gateway: "10.0.0.1"}
	leases := func(ips ...string) []*mvm.NetworkLeaseItem {
		var out []*mvm.NetworkLeaseItem
		for _, ip := range ips {
			out = append(out, &mvm.NetworkLeaseItem{IPv4: ip})
		}
		return out
	}
	for _, tc := range []struct {
		name   string
		leases []*mvm.NetworkLeaseItem
		want   string // asked for
		ip     string
		kind   mvm.Kind
	}{
		{"the first", nil, "", "10.0.0.2", ""},
		{"a gap", leases("10.0.0.2", "10.0.0.4"), "", "10.0.0.3", ""},
		{"as asked", leases("10.0.0.2"), "10.0.0.6", "10.0.0.6", ""},
		{"taken", leases("10.0.0.2"), "10.0.0.2", "", mvm.ErrExists},
		{"the gateway", nil, "10.0.0.1", "", mvm.ErrInvalid},
		{"the network", nil, "10.0.0.0", "", mvm.ErrInvalid},
		{"the broadcast", nil, "10.0.0.7", "", mvm.ErrInvalid},
		{"elsewhere", nil, "10.0.1.2", "", mvm.ErrInvalid},
		{"not IPv4", nil, "fe80::1", "", mvm.ErrInvalid},
		{"full", leases("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"), "", "", mvm.ErrUnavailable},
		{"damaged leases are skipped", leases("nonsense"), "", "10.0.0.2", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var want netip.Addr
			if tc.want != "" {
				want = netip.MustParseAddr(tc.want)
			}
			ip, err := chooseIP(n, tc.leases, want)
			if tc.kind != "" {
				refused(t, err, tc.kind, "")
				return
			}
			if err != nil || ip.String() != tc.ip {
				t.Errorf("got %v, %v", ip, err)
			}
		})
	}
	_, err := chooseIP(&mvm.NetworkItem{Name: "odd", Subnet: "?"}, nil, netip.Addr{})
	if !errors.Is(err, mvm.ErrBroken) {
		t.Errorf("a damaged network: %v", err)
	}
}

func TestValidID(t *testing.T) {
	for s, want := range map[string]bool{
		"0123456789abcdef": true, newID(): true, "": false, "0123456789abcde": false, "0123456789abcdef0": false, "0123456789abcdeg": false,
		"0123456789ABCDEF": false, "../../etc/passwd": false,
	} {
		if validID(s) != want {
			t.Errorf("validID(%q) is not %v", s, want)
		}
	}
}
