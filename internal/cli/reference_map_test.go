package cli

// elsewhere are operations of the reference that are named otherwise here.
var elsewhere = map[string]string{}

// renamed are parameters that have another name here, everywhere or in one method.
var renamed = map[string]string{
	"include_all": "all", "all_overrides": "all", "pub_key_path": "public_key_path", "network_id": "identifiers", "volume_name": "volume",
	"requested_guest_mac": "requested_mac", "status": "phases", "resume_after": "resume", "skip_host": "skip_host",
}

// flagNamed are parameters whose flag has another name.
var flagNamed = map[string]string{
	"vcpu_count": "vcpu", "mem_size_mib": "mem", "network_name": "network", "requested_guest_ip": "ip", "requested_guest_mac": "mac",
	"ssh_keys": "ssh-key", "kernel_id": "kernel", "custom_user_data": "cloudinit-config", "pci_enabled": "no-pci", "cpu_config": "cpu-template",
	"enable_console": "console", "binary_id": "binary", "volumes": "volume", "cloud_init_iso_path": "cloud-init-iso",
	"nat_enabled": "no-nat", "set_default": "default", "overwrite": "force", "include_all": "all", "disabled_detectors": "disable-detector",
	"kernel_type": "type", "kernel_config": "config", "output_dir": "out", "partition": "root-partition", "all_overrides": "all", "type_filter": "type",
	"resume_after": "resume", "download_override": "force",
}

// shapedOtherwise are parameters that Go says without one of their name.
var shapedOtherwise = map[string]string{
	"HostOperation.init cache_dir":       "api.Config.CacheDir",
	"HostOperation.clean cache_dir":      "api.Config.CacheDir",
	"HostOperation.reset cache_dir":      "api.Config.CacheDir",
	"InitOperation.setup_host cache_dir": "api.Config.CacheDir",

	"ImageOperation.list_all remote":                "Image.ListRemote",
	"ImageOperation.list_all no_cache":              "ImageRemoteInput.NoCache",
	"ImageOperation.list_all type_filter":           "ImageRemoteInput.Type",
	"KernelOperation.list_all remote":               "Kernel.ListRemote",
	"KernelOperation.list_all no_cache":             "KernelRemoteInput.NoCache",
	"BinaryOperation.list_all remote":               "Binary.ListRemote",
	"BinaryOperation.list_all limit":                "BinaryRemoteInput.Limit",
	"InitOperation.run non_interactive":             "the command asks, never the API: mvm init --non-interactive",
	"InitOperation.run sudo_completed":              "what is done is seen, so that a second run goes on: no parameter",
	"InitOperation.run host_setup_message":          "mvm.NeedsInteraction.What",
	"InitOperation.run guestfs_enabled":             "images are read and written without an appliance: no parameter",
	"BinaryOperation.pull inputs.download_override": "BinaryPullInput.Force",
}

// raised says what the exceptions of the reference are here, and which test has
// them happen.
var raised = map[string]struct{ goName, test string }{
	"VMCreateError":                  {"mvm.Error with Op \"create VM\"; the kind says why", "api TestPlanRefusals"},
	"NetworkError":                   {"mvm.Error of Network; the kind says why", "api TestNetworkCreateRefuses"},
	"FirecrackerSpawnError":          {"mvm.ErrUnavailable, with what the VMM has said", "internal/supervisor TestSpawnThatFailsLeavesNothing"},
	"PrivilegeError":                 {"mvm.ErrPrivilege; *mvm.NeedsInteraction has the command to run", "api TestWithoutRoot"},
	"VMNotFoundError":                {"mvm.ErrNotFound; mvm.ErrAmbiguous where several match", "api TestPick"},
	"VolumeError":                    {"mvm.Error of Volume; the kind says why", "api TestVolumeCreateRefuses"},
	"VolumeNotFoundError":            {"mvm.ErrNotFound; mvm.ErrAmbiguous where several match", "api TestVolumeCreateRefuses"},
	"HostError":                      {"mvm.Error of Host; the kind says why", "api TestHostNeedsRoot"},
	"CPError":                        {"api.CPError", "api TestCPErrors"},
	"CPSourceNotFoundError":          {"api.CPSourceNotFoundError", "api TestCPErrors"},
	"CPDestinationExistsError":       {"api.CPDestinationExistsError", "api TestCPErrors"},
	"CPDestinationNotDirectoryError": {"api.CPDestinationNotDirectoryError", "api TestCPErrors"},
	"SSHError":                       {"mvm.ErrUnavailable of SSH", "internal/guest TestOverPlainSSH"},
}
