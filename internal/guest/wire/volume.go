package wire

// Names of the requests about volumes.
const (
	ReqVolumeTake    = "mvm-volume-take@mvm"    // <- Volume -> VolumeTaken
	ReqVolumeRelease = "mvm-volume-release@mvm" // <- VolumeRelease
)

// Volume is a disk that the guest is to use, and where.
type Volume struct {
	Serials  []string `json:"serials"`   // what the disk calls itself: one of these, by VMM
	Nth      int      `json:"nth"`       // which of the disks that call themselves so, from 0, in the order of their names
	Mount    string   `json:"mount"`     // absolute path, made when missing; "" only looks for the disk
	FSType   string   `json:"fs_type"`   // tried first; "" when it is not known
	ReadOnly bool     `json:"read_only"` // mount it so
}

// VolumeTaken says where the guest has a volume.
type VolumeTaken struct {
	Device string `json:"device"` // "/dev/vdb"
}

// VolumeRelease asks the guest to let go of a disk: it is unmounted, and what is in
// the way is an error. A disk that is not there is let go of.
type VolumeRelease struct {
	Serials []string `json:"serials"`
	Eject   bool     `json:"eject"` // also take its device out, for a VMM that does not ask the guest
}
