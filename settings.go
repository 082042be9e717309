package mvm

import "slices"

// Setting is one value that users can override with `mvm config set`.
type Setting struct {
	Category string
	Key      string
	Type     string // "int", "bool", "string"
	Default  string // "" with Type string means unset
	Help     string
}

// Settings lists every setting with its default, grouped by category.
func Settings() []Setting { return slices.Clone(settings) }

// SettingOf returns one setting and whether it exists.
func SettingOf(category, key string) (Setting, bool) {
	for _, s := range settings {
		if s.Category == category && s.Key == key {
			return s, true
		}
	}
	return Setting{}, false
}

var settings = []Setting{
	{"settings", "firewall_backend", "string", "nftables", "nftables or iptables"},
	{"settings.update", "feed_url", "string", "https://api.github.com/repos/mvmctl/mvm/releases", "list of releases that self-update takes from"},
	{"settings.vm", "max_vms", "int", "1000", "how many VMs this cache may hold"},
	{"settings.vm", "log_lines", "int", "50", "lines that logs prints"},
	{"settings.vm", "log_follow", "bool", "false", "whether logs goes on"},
	{"settings.vm", "ssh_timeout_sec", "int", "10", "seconds to wait for an SSH connection"},
	{"settings.vm", "hypervisor", "string", "auto", "auto, firecracker or qemu"},
	{"settings.vm", "stop_timeout_sec", "int", "20", "seconds a guest has to shut down when asked"},
	{"settings.vm", "term_timeout_sec", "int", "3", "seconds a VMM has to end after SIGTERM"},
	{"settings.vm", "kill_timeout_sec", "int", "30", "seconds until a VMM that SIGKILL does not end is given up"},
	{"settings.vm", "ready_timeout_sec", "int", "120", "seconds to wait for a guest to be ready"},
	{"defaults.vm", "vcpu_count", "int", "1", "vCPUs"},
	{"defaults.vm", "mem_size_mib", "int", "512", "memory in MiB"},
	{"defaults.vm", "ssh_user", "string", "root", "user for ssh"},
	{"defaults.vm", "dns_server", "string", "1.1.1.1", "DNS servers that answer guests; as long as it is the default, where the network has DNS, this host's resolvers"},
	{"defaults.vm", "pci_enabled", "bool", "true", "virtio over PCI"},
	{"defaults.vm", "nested_virt", "bool", "false", "nested virtualisation"},
	{"defaults.vm", "enable_logging", "bool", "true", "keep the VMM's log"},
	{"defaults.vm", "enable_metrics", "bool", "false", "keep the VMM's metrics"},
	{"defaults.vm", "enable_console", "bool", "false", "interactive serial console, which every VM has in any case"},
	{"defaults.vm", "lsm_flags", "string", "", "value of lsm= on the kernel's command line"},
	{"defaults.vm", "boot_args", "string", "", "more kernel arguments"},
	{"defaults.vm", "guest_mac_prefix", "string", "02:FC", "first bytes of generated MAC addresses"},
	{"defaults.vm", "vsock_port", "int", "1024", "port of the guest agent"},
	{"defaults.network", "name", "string", "default", "the default network"},
	{"defaults.network", "subnet", "string", "172.27.0.0/24", "its subnet"},
	{"defaults.network", "nat_enabled", "bool", "true", "NAT for new networks"},
	{"defaults.network", "dns_enabled", "bool", "true", "DNS on the gateway of new networks"},
	{"defaults.image", "import_format", "string", "auto", "format of imported images"},
	{"defaults.image", "remote_list_limit", "int", "5", "versions listed per type"},
	{"defaults.image", "remote_list_cache_ttl", "int", "3600", "seconds a version listing is kept"},
	{"defaults.image", "warm_in", "string", "disk", "where image warm has images ready for raw disks: on disk, or also in tmpfs, where reading them waits for no disk"},
	{"defaults.kernel", "version", "string", "6.19.9", "official kernel"},
	{"defaults.kernel", "build_jobs", "int", "0", "build jobs; 0 means one per CPU"},
	{"defaults.kernel", "remote_list_limit", "int", "5", "versions listed"},
	{"defaults.kernel", "remote_list_cache_ttl", "int", "14400", "seconds a version listing is kept"},
	{"defaults.firecracker", "version", "string", "1.16.1", "release that init downloads"},
	{"defaults.firecracker", "log_level", "string", "Info", "Off, Error, Warn, Info, Debug or Trace"},
	{"defaults.firecracker", "log_filename", "string", "firecracker.log", "VMM log"},
	{"defaults.firecracker", "serial_output_filename", "string", "firecracker.console.log", "serial console log"},
	{"defaults.firecracker", "metrics_filename", "string", "firecracker.metrics", "VMM metrics"},
	{"defaults.firecracker", "api_socket_filename", "string", "firecracker.api.socket", "API socket"},
	{"defaults.firecracker", "pid_filename", "string", "firecracker.pid", "PID file"},
	{"defaults.firecracker", "config_filename", "string", "firecracker.json", "VMM configuration"},
	{"defaults.firecracker", "console_socket_filename", "string", "console.sock", "console socket"},
	{"defaults.cloudinit", "iso_name", "string", "cloud-init.iso", "cloud-init ISO"},
	{"defaults.cloudinit", "nocloud_port_range_start", "int", "8000", "first port of the NoCloud servers"},
	{"defaults.cloudinit", "nocloud_port_range_end", "int", "9000", "last port of the NoCloud servers"},
	{"defaults.binary", "remote_version_limit", "int", "5", "versions listed"},
	{"defaults.binary", "remote_list_cache_ttl", "int", "14400", "seconds a version listing is kept"},
	{"defaults.binary", "repository", "string", "https://github.com/firecracker-microvm/firecracker.git", "git repository that binary pull --git-ref builds from"},
}
