package api

import (
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/mvmctl/mvm"
)

// volumeSpec is a volume as users name it on a VM: NAME[:ro|:rw][:/MOUNT/POINT].
type volumeSpec struct {
	volume   string // name or id prefix
	readOnly *bool  // nil was not said
	mount    string // "" mounts it nowhere
}

const volumeSpecHint = "write NAME, NAME:ro, NAME:/mnt/point or NAME:ro:/mnt/point"

func parseVolumeSpec(s string) (volumeSpec, error) {
	parts := strings.Split(s, ":")
	spec := volumeSpec{volume: parts[0]}
	refuse := func(format string, args ...any) (volumeSpec, error) {
		return spec, mvm.Errorf(mvm.ErrInvalid, "volume "+mvm.Quote(s)+" "+format, args...).WithHint(volumeSpecHint)
	}
	if spec.volume == "" {
		return refuse("has no name")
	}
	if strings.ContainsAny(spec.volume, "/~") || spec.volume == "." || spec.volume == ".." { // as docker takes it
		return spec, mvm.Errorf(mvm.ErrInvalid, "%s is a directory of the host, and a VM gets disks", mvm.Quote(spec.volume)).
			WithHint("make a disk with 'mvm volume create data 10G --mkfs ext4' and attach it as data:/mnt/point; 'mvm cp' copies files")
	}
	for _, p := range parts[1:] {
		switch {
		case p == "ro" || p == "rw":
			if spec.readOnly != nil {
				return refuse("says twice whether it is read-only")
			}
			readOnly := p == "ro"
			spec.readOnly = &readOnly
		case strings.HasPrefix(p, "/"):
			if spec.mount != "" {
				return refuse("has two mount points")
			}
			if err := validateMountPoint(p); err != nil {
				return spec, err
			}
			spec.mount = p
		default:
			return refuse("says %s, which is neither ro, rw nor an absolute path", mvm.Quote(p))
		}
	}
	return spec, nil
}

// validateMountPoint refuses directories that a guest cannot do without.
func validateMountPoint(p string) error {
	refuse := func(why string) error {
		return mvm.Errorf(mvm.ErrInvalid, "mount point %s %s", mvm.Quote(p), why).WithHint("use an absolute path such as /mnt/data")
	}
	top, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	switch {
	case !path.IsAbs(p):
		return refuse("is not absolute")
	case len(p) > 1024:
		return refuse("is longer than 1024 bytes")
	case strings.ContainsFunc(p, unicode.IsControl) || strings.ContainsRune(p, ':'):
		return refuse("contains a colon or a control character")
	case path.Clean(p) != p:
		return refuse("contains '.', '..' or a needless '/'")
	case p == "/", slices.Contains([]string{"proc", "sys", "dev"}, top), slices.Contains([]string{"/run", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/usr"}, p):
		return refuse("would hide what the guest runs from")
	}
	return nil
}

// attachment is the spec for one volume: what it leaves open follows from that.
func (s volumeSpec) attachment(v *mvm.VolumeItem, vmID string) (mvm.VolumeAttachment, error) {
	a := mvm.VolumeAttachment{VolumeID: v.ID, VMID: vmID, IsReadOnly: v.IsReadOnly, MountPoint: s.mount}
	if s.readOnly != nil {
		if v.IsReadOnly && !*s.readOnly {
			return a, mvm.Errorf(mvm.ErrInvalid, "volume %s was made read-only", mvm.Quote(v.Name)).WithHint("leave ':rw' out")
		}
		a.IsReadOnly = *s.readOnly
	}
	return a, nil
}

func volumeCandidates(volumes []*mvm.VolumeItem) []candidate[*mvm.VolumeItem] {
	out := make([]candidate[*mvm.VolumeItem], 0, len(volumes))
	for _, v := range volumes {
		out = append(out, candidate[*mvm.VolumeItem]{v, v.Name, [][]string{{v.Name}}, v.ID})
	}
	return out
}

func pickVolume(selector string, all []*mvm.VolumeItem) (*mvm.VolumeItem, error) {
	return pick("volume", selector, "see 'mvm volume ls', or make one with 'mvm volume create'", volumeCandidates(all))
}
