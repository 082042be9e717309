package image

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/partition"
)

// The detectors that look for the root partition, in the order in which they are
// asked. Each can be switched off.
const (
	ByType       = "type"       // the partition type for a root of the image's architecture
	ByLabel      = "label"      // the only one labelled like a root, in the table or in the file system
	BySize       = "size"       // the largest one
	ByFilesystem = "filesystem" // the only one with a file system that can be a root
)

// Detectors are the names that users switch off.
var Detectors = []string{ByType, ByLabel, BySize, ByFilesystem}

// CheckDetectors refuses names that are none.
func CheckDetectors(disabled []string) error {
	for _, d := range disabled {
		if !slices.Contains(Detectors, d) {
			return mvm.Errorf(mvm.ErrInvalid, "there is no detector %s", mvm.Quote(d)).WithHint("the detectors are %s", strings.Join(Detectors, ", "))
		}
	}
	return nil
}

// rootTypes are the partition types of root file systems (Discoverable Partitions
// Specification), by architecture as uname -m says it.
var rootTypes = map[string]string{
	"x86_64":  "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
	"aarch64": "b921b045-1df0-41c3-af44-4c6f280d3fae",
}

// notRoots are types of partitions that are something else for certain: what boots,
// swap, parts of larger things.
var notRoots = map[string]string{
	"c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
	"21686148-6449-6e6f-744e-656564454649": "BIOS boot",
	"bc13c2ff-59e6-4262-a352-b275fd6f7172": "boot",
	"0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "swap",
	"9e1a2d38-c612-4316-aa26-8b49521e5a8b": "PReP boot",
	"933ac7e1-2eb4-4f13-b844-0e14e2aef915": "home",
	"e6d6d379-f507-44c2-a23c-238f2a3df928": "LVM",
	"ef":                                   "EFI system", "82": "swap", "8e": "LVM", "ee": "GPT",
}

// rootLabels are what distributions call their root besides names with "root" in them.
var rootLabels = []string{"/", "linux", "system", "rocky", "fedora", "debian", "ubuntu", "alpine"}

// found is where the root file system is on a disk.
type found struct {
	off, size int64
	number    int // of the partition; 0 for the whole disk
	info      disk.Info
}

// candidate is a partition with what is in it.
type candidate struct {
	partition.Entry
	info disk.Info
}

// String is a line about it for a person.
func (c candidate) String() string {
	what := c.info.FS
	if what == "" {
		what = notRoots[c.Type]
	}
	if what == "" {
		what = "type " + c.Type
	}
	s := fmt.Sprintf("%d: %s, %d MiB", c.Number, what, c.Size>>20)
	for _, l := range []string{c.Label, c.info.Label} {
		if l != "" {
			s += ", " + mvm.Quote(l)
		}
	}
	return s
}

// canBeRoot tells which file systems are kept or converted.
func canBeRoot(info disk.Info) bool {
	return slices.Contains([]string{"ext4", "ext3", "ext2", "xfs", "btrfs", "squashfs"}, info.FS)
}

// findRoot finds the root file system on a disk of size bytes: on a bare one, or
// in the partition with the given number, or else in the one that the detectors
// that are not disabled find.
func findRoot(r io.ReaderAt, size int64, arch string, number int, disabled []string) (found, error) {
	info, err := disk.ProbeAt(r)
	if err != nil {
		return found{}, err
	}
	if canBeRoot(info) {
		if number > 0 {
			return found{}, mvm.Errorf(mvm.ErrInvalid, "it has no partitions: all of it is one %s file system", info.FS).WithHint("leave --root-partition out")
		}
		return found{size: size, info: info}, whole(info, size)
	}
	table, err := partition.Read(r, size)
	if errors.Is(err, partition.ErrNone) {
		return found{}, mvm.Errorf(mvm.ErrInvalid, "there is neither a partition table nor a file system that can be a root in it").
			WithHint("import an image with an ext4, xfs or btrfs root, or a tar archive of one")
	}
	if err != nil {
		return found{}, err
	}
	all := make([]candidate, len(table.Entries))
	for i, e := range table.Entries {
		info, err := disk.ProbeAt(io.NewSectionReader(r, e.Start, e.Size))
		if err != nil {
			return found{}, err
		}
		all[i] = candidate{e, info}
	}
	c, err := choose(all, arch, number, disabled)
	if err != nil {
		return found{}, err
	}
	return found{c.Start, c.Size, c.Number, c.info}, whole(c.info, c.Size)
}

// whole refuses a file system that says to be larger than where it is.
func whole(info disk.Info, size int64) error {
	if info.SizeBytes <= size && info.SizeBytes > 0 {
		return nil
	}
	return mvm.Errorf(mvm.ErrBroken, "its %s file system has %d bytes by its own account, and there are %d: it is cut short, or damaged", info.FS, info.SizeBytes, size).
		WithHint("get the image again")
}

func choose(all []candidate, arch string, number int, disabled []string) (candidate, error) {
	if number > 0 {
		for _, c := range all {
			if c.Number == number {
				return c, c.usable()
			}
		}
		return candidate{}, none(all, fmt.Sprintf("it has no partition %d", number))
	}
	for _, d := range []struct {
		name string
		find func() []candidate
	}{
		{ByType, func() []candidate {
			return pickAll(all, func(c candidate) bool { return c.Type == rootTypes[arch] })
		}},
		{ByLabel, func() []candidate { return pickAll(all, candidate.labelled) }},
		{BySize, func() []candidate { return largest(all) }},
		{ByFilesystem, func() []candidate { return all }},
	} {
		if slices.Contains(disabled, d.name) {
			continue
		}
		if got := pickAll(d.find(), func(c candidate) bool { return canBeRoot(c.info) }); len(got) == 1 {
			return got[0], nil
		}
	}
	if slices.ContainsFunc(all, func(c candidate) bool { return notRoots[c.Type] == "LVM" }) {
		return candidate{}, mvm.Errorf(mvm.ErrUnsupported, "its root is in an LVM volume, and those are not read (%s)", listed(all)).
			WithHint("get the image without LVM; distributions have both")
	}
	if len(all) > 0 && len(pickAll(all, func(c candidate) bool { return canBeRoot(c.info) })) == 0 {
		return candidate{}, mvm.Errorf(mvm.ErrInvalid, "none of its partitions has a file system that can be a root (%s)", listed(all)).
			WithHint("import an image with an ext4, xfs or btrfs root that is not encrypted")
	}
	return candidate{}, none(all, "it cannot be told which partition is the root")
}

func (c candidate) usable() error {
	if canBeRoot(c.info) {
		return nil
	}
	return mvm.Errorf(mvm.ErrInvalid, "partition %s has no file system that can be a root", c).WithHint("choose one with ext4, xfs, btrfs or squashfs")
}

func none(all []candidate, why string) error {
	return mvm.Errorf(mvm.ErrInvalid, "%s (%s)", why, listed(all)).WithHint("name it with --root-partition")
}

func listed(all []candidate) string {
	if len(all) == 0 {
		return "there are no partitions"
	}
	var lines []string
	for _, c := range all {
		lines = append(lines, c.String())
	}
	return strings.Join(lines, "; ")
}

func pickAll(all []candidate, f func(candidate) bool) []candidate {
	var out []candidate
	for _, c := range all {
		if f(c) {
			out = append(out, c)
		}
	}
	return out
}

// labelled tells whether one of the labels is that of a root.
func (c candidate) labelled() bool {
	if notRoots[c.Type] != "" {
		return false
	}
	return slices.ContainsFunc([]string{c.Label, c.info.Label}, func(l string) bool {
		l = strings.ToLower(l)
		return strings.Contains(l, "root") || slices.Contains(rootLabels, l)
	})
}

// largest returns the largest partition that may be a root by its type, or several
// that are equally large.
func largest(all []candidate) []candidate {
	some := pickAll(all, func(c candidate) bool { return notRoots[c.Type] == "" })
	var most int64
	for _, c := range some {
		most = max(most, c.Size)
	}
	return pickAll(some, func(c candidate) bool { return c.Size == most })
}
