// Package guest is the channel into a guest and the vocabulary that host and
// guest share. The guest-side program is in guest/agent and guest/boot.
package guest

import "github.com/mvmctl/mvm/internal/guest/wire"

// Paths inside our initramfs and, after the root was switched, inside /run.
const (
	InitPath      = "/init"             // mvm-agent in the role of PID 1
	ConfigPath    = "/mvm/config.json"  // BootConfig, in the initramfs
	ModulesDir    = "/mvm/modules"      // *.ko files, in the initramfs
	ModulesList   = "/mvm/modules.list" // file names in load order, one a line
	RuntimeDir    = "/run/mvm"          // in the guest's root: agent binary, agent.json
	AgentPath     = RuntimeDir + "/mvm-agent"
	ContainerPID1 = RuntimeDir + "/mvm-init"   // the agent's program as PID 1 of a container image
	AgentConfig   = RuntimeDir + "/agent.json" // AgentParams, mode 0600
	InstanceFile  = "/var/lib/mvm/instance-id" // on the root disk: whose first boot was done
)

// BootConfig is all that a guest is told at boot. It travels as ConfigPath in
// the last cpio segment of the VM's own initrd file (mode 0600 on the host),
// because that works for every image, file system and VMM, without writing
// into the image and without cloud-init.
type BootConfig struct {
	Version    int          `json:"version"`     // 1
	InstanceID string       `json:"instance_id"` // the VM's id; a change means first boot: identity is made anew
	Hostname   string       `json:"hostname"`
	Root       RootConfig   `json:"root"`
	Network    *NetConfig   `json:"network,omitempty"`
	SSH        SSHConfig    `json:"ssh"`
	Agent      *AgentParams `json:"agent,omitempty"` // nil leaves the agent out
	PowerOff   string       `json:"power_off"`       // "acpi": power off; "reboot": the VMM ends on reboot (Firecracker)
	MachineID  string       `json:"machine_id"`      // 32 hex digits
	Entropy    []byte       `json:"entropy"`         // mixed into the guest's random pool
	Deblob     bool         `json:"deblob"`          // at first boot, remove what package managers have cached

	Volumes   []wire.Volume `json:"volumes,omitempty"`    // to be mounted before the init starts
	CloudInit *CloudInit    `json:"cloud_init,omitempty"` // nil: cloud-init does not run
	Container *Container    `json:"container,omitempty"`  // the image's own init, if it has one, is not run
}

// Container makes the guest of a container image, which has no init: PID 1 is ours.
type Container struct {
	Main       *wire.Exec `json:"main,omitempty"` // whose end powers the guest off; nil runs until it is asked to stop
	StopSignal string     `json:"stop_signal"`    // what asks Main to end: a name without SIG or a number; "" is TERM
	Dir        string     `json:"dir"`            // made if it is not there
	PowerOff   string     `json:"power_off"`      // as in BootConfig
	Agent      bool       `json:"agent"`          // the agent is started too
}

// CloudInit is what is done for the image's own cloud-init, which runs later.
type CloudInit struct {
	Seed    map[string][]byte `json:"seed,omitempty"` // files of CloudInitSeed by name; nil where the documents come from elsewhere
	Network bool              `json:"network"`        // it is told how to configure the interface
}

// CloudInitSeed is where cloud-init's NoCloud looks for its documents.
const CloudInitSeed = "/var/lib/cloud/seed/nocloud"

// NewIdentity makes another machine of a guest that was restored from a snapshot
// of one: without it two guests would share name, address, keys and random
// numbers. It may be sent twice.
type NewIdentity struct {
	Config  BootConfig `json:"config"`   // what the guest would have been told at boot
	OldMAC  string     `json:"old_mac"`  // of the interface that Config.Network is for
	OldAddr string     `json:"old_addr"` // CIDR, taken from the interface
}

// RootConfig says what to boot from.
type RootConfig struct {
	Device string `json:"device"` // "/dev/vda"
	FSType string `json:"fs_type"`
	Flags  string `json:"flags"` // mount options
	Grow   bool   `json:"grow"`  // grow the file system to the device, online
	Init   string `json:"init"`  // "" tries /sbin/init, /usr/sbin/init, /lib/systemd/systemd, /etc/init, /bin/init, /bin/sh
}

// NetConfig is the static configuration of the guest's interface.
type NetConfig struct {
	MAC     string   `json:"mac"`     // which interface, whatever its name
	Address string   `json:"address"` // CIDR: "172.27.0.2/24"
	Gateway string   `json:"gateway"`
	DNS     []string `json:"dns"`
	MTU     int      `json:"mtu,omitempty"`
}

// SSHConfig is what the guest's SSH server needs.
type SSHConfig struct {
	User           string   `json:"user"`            // gets AuthorizedKeys
	AuthorizedKeys []string `json:"authorized_keys"` // lines of authorized_keys
	HostKey        string   `json:"host_key"`        // OpenSSH PEM, ed25519; the guest's identity, known to the host
}

// AgentParams is what the agent runs with.
type AgentParams struct {
	Transport     string `json:"transport"`      // "vsock" or "virtio-serial"
	Port          uint32 `json:"port"`           // vsock port
	SerialName    string `json:"serial_name"`    // "mvm.agent": the virtio-serial port's name
	HostKey       string `json:"host_key"`       // OpenSSH PEM, ed25519: the agent's identity
	AuthorizedKey string `json:"authorized_key"` // the only key that may log in
	PowerOff      string `json:"power_off"`
	Version       string `json:"version"` // of the mvm that made it
}
