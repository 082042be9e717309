package vmm

// Users of jailed VMMs have numbers from FirstJailUID on. systemd's list of users
// and groups (UIDS-GIDS) leaves that part of the range to nobody.
const (
	FirstJailUID = 0x70000000
	JailUIDs     = 1 << 16 // how many there are
)

// Cgroup says which limits the host's control groups can hold.
type Cgroup struct {
	Version int // 1 or 2; 0 holds none
	Memory  bool
	PIDs    bool // threads and processes
}

// Jailed says how a VMM that runs is locked up.
type Jailed struct {
	UID     int      `json:"uid"`
	GID     int      `json:"gid"`
	Root    string   `json:"root"`    // its root directory, as the host sees it
	Cgroups []string `json:"cgroups"` // directories of its cgroups
	Without []string `json:"without"` // what it goes without, and why: a sentence each
}
