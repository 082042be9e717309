package mvm

import "encoding/json"

// VMOptions are what a VM can be besides what the reference has; the zero value
// is a VM without any of it.
type VMOptions struct {
	Restart  RestartPolicy   `json:"restart,omitempty"`   // "" is no
	NoJailer bool            `json:"no_jailer,omitempty"` // run the VMM unjailed though a jailer is there
	Jailed   bool            `json:"jailed,omitempty"`    // how the VM runs, or ran last
	JailUID  int             `json:"jail_uid,omitempty"`  // the VM's own user and group; 0 while it has none
	HugePg   bool            `json:"huge_pages,omitempty"`
	Metadata json.RawMessage `json:"metadata,omitempty"`
	Balloon  *VMBalloon      `json:"balloon,omitempty"`

	VsockPort      uint32 `json:"vsock_port,omitempty"`      // where the agent listens
	Writeback      bool   `json:"writeback,omitempty"`       // writes may stay in the host's cache until the guest flushes them, as in any case
	FirecrackerBin string `json:"firecracker_bin,omitempty"` // path given by the user

	CloudInit *VMCloudInit `json:"cloud_init,omitempty"` // nil with the mode off
	Container *VMContainer `json:"container,omitempty"`  // nil for a VM whose image has an init

	RestoredFrom string   `json:"restored_from,omitempty"` // id of the snapshot
	Isolate      bool     `json:"isolate,omitempty"`       // not reachable from other VMs on its network
	Egress       []string `json:"egress,omitzero"`         // nil allows all; else the networks and names that it may reach, [] none; see CheckEgress
	OwnDNS       bool     `json:"own_dns,omitempty"`       // DNSServer was chosen: it is asked in place of the host's resolvers
	NetLimit     *VMLimit `json:"net_limit,omitempty"`
	DiskLimit    *VMLimit `json:"disk_limit,omitempty"`
	Publish      []string `json:"publish,omitempty"` // [hostip:]port:port[/udp]

	// Where the restart policy is.
	RestartCount   int    `json:"restart_count,omitempty"`    // starts by the policy since a user started the VM
	RestartAt      string `json:"restart_at,omitempty"`       // when it starts the VM again; "" when the VM does not wait for that
	RestartDelayMS int    `json:"restart_delay_ms,omitempty"` // before the last restart
}

// VMCloudInit says how a VM's cloud-init is told what it is to do.
type VMCloudInit struct {
	NoNetwork bool   `json:"no_network,omitempty"` // it leaves the network alone
	ISO       string `json:"iso,omitempty"`        // name of the ISO in the VM's directory, in mode iso
	OwnISO    bool   `json:"own_iso,omitempty"`    // it is the user's
	KeepISO   bool   `json:"keep_iso,omitempty"`   // it stays when the VM has started
}

// VMBalloon is the balloon device of a VM.
type VMBalloon struct {
	MiB          int  `json:"mib"`
	DeflateOnOOM bool `json:"deflate_on_oom"`
	StatsSec     int  `json:"stats_sec"`
}

// VMLimit bounds a disk or an interface; 0 does not bound.
type VMLimit struct {
	BytesPerSec int64 `json:"bytes_per_sec,omitempty"`
	OpsPerSec   int64 `json:"ops_per_sec,omitempty"`
	BurstBytes  int64 `json:"burst_bytes,omitempty"`
}

// RestartPolicy says when a VM whose VMM ended is started again without being asked.
type RestartPolicy string

// Validate returns ErrInvalid for what is no restart policy.
func (p RestartPolicy) Validate() error {
	switch p {
	case "", RestartNo, RestartOnFailure, RestartAlways:
		return nil
	case "unless-stopped":
		return Errorf(ErrInvalid, "%s is not a restart policy", Quote(string(p))).WithHint("use always: a VM that was stopped by a command is not started again")
	}
	return Errorf(ErrInvalid, "%s is not a restart policy", Quote(clip(string(p)))).WithHint("use no, on-failure or always")
}

// The restart policies.
const (
	RestartNo        RestartPolicy = "no"
	RestartOnFailure RestartPolicy = "on-failure" // the VMM crashed
	RestartAlways    RestartPolicy = "always"     // also when the guest powered off, and after a reboot of the host
)
