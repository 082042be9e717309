package image

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/partition"
)

func part(number int, typ, label string, mib int64, fs, fsLabel string) candidate {
	return candidate{partition.Entry{Number: number, Type: typ, Label: label, Size: mib << 20}, disk.Info{FS: fs, Label: fsLabel, SizeBytes: mib << 20}}
}

const (
	typeLinux = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	typeESP   = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	typeSwap  = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"
	typeLVM   = "e6d6d379-f507-44c2-a23c-238f2a3df928"
)

// Tables as distributions have them, and such where detectors differ.
func TestChooseRoot(t *testing.T) {
	typed := []candidate{part(1, typeESP, "", 100, "", ""), part(2, typeLinux, "root", 500, "ext4", ""), part(3, rootTypes["x86_64"], "", 300, "ext4", "")}
	labelled := []candidate{part(1, typeLinux, "cloudimg-rootfs", 200, "ext4", ""), part(2, typeLinux, "data", 900, "ext4", ""), part(3, typeLinux, "swap", 300, "", "")}
	twins := []candidate{part(1, typeLinux, "", 300, "xfs", ""), part(2, typeLinux, "", 300, "", ""), part(3, typeLinux, "", 100, "", "")}
	for name, c := range map[string]struct {
		all      []candidate
		number   int
		disabled string
		want     int
	}{
		"type first":                       {typed, 0, "", 3},
		"type off: label":                  {typed, 0, "type", 2},
		"type and label off: size":         {typed, 0, "type label", 2},
		"a number beats all":               {typed, 2, "", 2},
		"another architecture's type":      {[]candidate{part(1, rootTypes["aarch64"], "", 100, "ext4", ""), part(2, typeLinux, "", 400, "ext4", "")}, 0, "", 2},
		"label":                            {labelled, 0, "", 1},
		"label off: size":                  {labelled, 0, "label", 2},
		"the file system's label":          {[]candidate{part(1, "83", "", 100, "ext4", "rootfs"), part(2, "83", "", 900, "ext4", "srv")}, 0, "", 1},
		"size":                             {[]candidate{part(1, "83", "", 100, "ext4", ""), part(5, "83", "", 900, "xfs", "")}, 0, "", 5},
		"boot and root by size":            {[]candidate{part(1, "83", "", 500, "xfs", "boot"), part(2, "83", "", 900, "btrfs", "")}, 0, "", 2},
		"swap is large":                    {[]candidate{part(1, typeSwap, "", 4000, "", ""), part(2, typeLinux, "", 900, "ext4", "")}, 0, "", 2},
		"equal sizes: file system":         {twins, 0, "", 1},
		"a squashfs":                       {[]candidate{part(1, typeESP, "", 9000, "", ""), part(2, typeLinux, "", 100, "squashfs", "")}, 0, "", 2},
		"size finds none: file system":     {[]candidate{part(1, "07", "", 4000, "", ""), part(2, "83", "", 900, "ext4", "")}, 0, "", 2},
		"two labels like a root: size":     {[]candidate{part(1, "83", "", 1, "ext4", "root-a"), part(2, "83", "", 2, "ext4", "root-b")}, 0, "", 2},
		"all off":                          {typed, 0, "type label size filesystem", 0},
		"no such number":                   {typed, 9, "", 0},
		"a number without file system":     {typed, 1, "", 0},
		"equal with file systems":          {[]candidate{part(1, "83", "", 9, "ext4", ""), part(2, "83", "", 9, "ext4", "")}, 0, "", 0},
		"only file system, when size lies": {[]candidate{part(1, "83", "", 9, "ext4", ""), part(2, "83", "", 19, "", "")}, 0, "size", 1},
		"nothing that can be read":         {[]candidate{part(1, "07", "", 9, "", "")}, 0, "", 0},
		"no partitions":                    {nil, 0, "", 0},
		"LVM":                              {[]candidate{part(1, typeESP, "", 9, "", ""), part(2, typeLVM, "", 900, "", "")}, 0, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := choose(c.all, "x86_64", c.number, strings.Fields(c.disabled))
			if got.Number != c.want && err == nil || (err == nil) != (c.want > 0) || err != nil && mvm.HintOf(err) == "" {
				t.Errorf("%v, %v (hint %q)", got, err, mvm.HintOf(err))
			}
			if name == "nothing that can be read" && !strings.Contains(mvm.HintOf(err), "encrypted") {
				t.Error(mvm.HintOf(err)) // a number would be no help
			}
			if name == "LVM" && !errors.Is(err, mvm.ErrUnsupported) {
				t.Error(err)
			}
		})
	}
}

func TestFindRootRefuses(t *testing.T) {
	for name, d := range map[string][]byte{
		"zeros": make([]byte, 1<<20), "text": []byte("not a disk"),
		"an ext4 cut short": append(make([]byte, 1024), extSuper()...),
	} {
		if got, err := findRoot(bytes.NewReader(d), int64(len(d)), "x86_64", 0, nil); err == nil || mvm.HintOf(err) == "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// extSuper is the superblock of an ext4 of 4 GiB.
func extSuper() []byte {
	b := make([]byte, 1024)
	b[0x38], b[0x39], b[0x60] = 0x53, 0xef, 0x40
	b[0x18], b[0x6] = 2, 0x10
	return b
}

func TestCheckDetectors(t *testing.T) {
	if err := CheckDetectors(Detectors); err != nil {
		t.Error(err)
	}
	if err := CheckDetectors([]string{"luck"}); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
		t.Error(err)
	}
}
