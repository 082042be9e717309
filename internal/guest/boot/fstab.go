package boot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/disk"
)

const fstabPath = "/etc/fstab"

// adaptFstab has fstab(5) name the disk that the root is on, and no disks that are not
// there: an image was cut out of one with more partitions, such as for /boot, for which
// systemd waits a minute and a half, and then boots no further.
func adaptFstab(r *Rootfs, device string) error {
	have, err := r.ReadFile(fstabPath)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotRegular) || len(have) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	text := fstabFor(string(have), device, newDisks())
	if text == string(have) {
		return nil
	}
	return r.WriteFile(fstabPath, []byte(text), 0o644, Owner{})
}

// disks is what a guest has of disks.
type disks struct {
	nodes       []string // "/dev/vda", …
	uuids       []string // of file systems
	labels      []string
	partitioned bool // some have partitions, whose names are not known here
}

// newDisks looks at all disks that are there.
func newDisks() disks {
	var d disks
	entries, err := os.ReadDir("/sys/class/block")
	if err != nil {
		return d
	}
	for _, e := range entries {
		node := "/dev/" + e.Name()
		d.nodes = append(d.nodes, node)
		if _, err := os.Stat(filepath.Join("/sys/class/block", e.Name(), "partition")); err == nil {
			d.partitioned = true
		}
		if info, err := disk.Probe(node); err == nil {
			d.uuids, d.labels = append(d.uuids, info.UUID), append(d.labels, info.Label)
		}
	}
	return d
}

// fstabFor returns an fstab with the root's line for device, where that names a disk that
// is not there, and with other lines of such disks as comments. Those that may be missing
// stay, and so does what is no disk.
func fstabFor(text, device string, have disks) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") || have.may(f[0]) {
			out.WriteString(line)
			continue
		}
		if f[1] == "/" {
			out.WriteString(strings.Replace(line, f[0], device, 1))
			continue
		}
		if len(f) > 3 && optional(f[3]) {
			out.WriteString(line)
			continue
		}
		out.WriteString("# mvm: not a disk of this VM: " + line)
	}
	return out.String()
}

// optional tells whether the options of a line have a boot go on without its disk.
func optional(options string) bool {
	return slices.ContainsFunc(strings.Split(options, ","), func(o string) bool {
		return o == "nofail" || o == "noauto" || o == "_netdev" || o == "x-systemd.automount"
	})
}

// byLinks are the directories in which udev names disks as tags do.
var byLinks = map[string]string{"/dev/disk/by-uuid/": "UUID", "/dev/disk/by-label/": "LABEL", "/dev/disk/by-partuuid/": "PARTUUID", "/dev/disk/by-partlabel/": "PARTLABEL"}

// may tells whether the first field of a line can be mounted: it is no disk, or one that
// is there, or one of which that cannot be told.
func (d disks) may(spec string) bool {
	if d.has(spec) {
		return true
	}
	switch tag, _ := tagOf(spec); tag {
	case "":
		return !strings.HasPrefix(spec, "/dev/") || strings.HasPrefix(spec, "/dev/disk/") || exists(spec)
	case "UUID", "LABEL":
		return false
	case "PARTUUID", "PARTLABEL":
		return d.partitioned
	}
	return true
}

// has tells whether the first field of a line is one of the disks.
func (d disks) has(spec string) bool {
	switch tag, value := tagOf(spec); tag {
	case "":
		return slices.Contains(d.nodes, spec)
	case "UUID":
		return value != "" && slices.ContainsFunc(d.uuids, func(s string) bool { return strings.EqualFold(s, value) })
	case "LABEL":
		return value != "" && slices.Contains(d.labels, value)
	}
	return false
}

// tagOf takes UUID="x" and its like apart; tag is "" for what is none.
func tagOf(spec string) (tag, value string) {
	for dir, tag := range byLinks {
		if name, ok := strings.CutPrefix(spec, dir); ok {
			return tag, unescape(name)
		}
	}
	tag, value, ok := strings.Cut(spec, "=")
	if !ok || strings.Contains(tag, "/") {
		return "", ""
	}
	return tag, unescape(strings.Trim(value, `"'`))
}

// exists tells whether there is a device that is no disk, such as /dev/zram0 or /dev/fuse.
func exists(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil
}
