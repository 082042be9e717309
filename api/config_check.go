package api

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/vmm"
)

// settingChecks are what string settings have to fulfil beyond being text on one
// line, by CATEGORY.KEY.
var settingChecks = map[string]func(string) error{
	"defaults.vm.ssh_user":         validateUser,
	"defaults.vm.dns_server":       checkDNS,
	"defaults.vm.lsm_flags":        checkLSM,
	"defaults.vm.guest_mac_prefix": func(v string) error { _, err := network.GuestMAC(v, "0000000000000000", 0); return err },
	"defaults.network.name":        func(v string) error { return mvm.ValidateName("network", v) },
	"defaults.network.subnet":      func(v string) error { _, _, err := network.ValidateSubnet(v); return err },
	"defaults.kernel.version":      checkVersion,
	"defaults.firecracker.version": checkVersion,
	"defaults.cloudinit.iso_name":  checkFileName,

	"defaults.firecracker.log_filename":            checkFileName,
	"defaults.firecracker.serial_output_filename":  checkFileName,
	"defaults.firecracker.metrics_filename":        checkFileName,
	"defaults.firecracker.api_socket_filename":     checkFileName,
	"defaults.firecracker.pid_filename":            checkFileName,
	"defaults.firecracker.config_filename":         checkFileName,
	"defaults.firecracker.console_socket_filename": checkFileName,
}

// checkDNS accepts one or more addresses, with commas or blanks between them.
func checkDNS(v string) error {
	servers := serversOf(v)
	for _, s := range servers {
		if _, err := netip.ParseAddr(s); err != nil {
			return mvm.Errorf(mvm.ErrInvalid, "%s is not an IP address", mvm.Quote(s)).WithHint("write addresses such as 1.1.1.1,9.9.9.9")
		}
	}
	if len(servers) == 0 {
		return mvm.Errorf(mvm.ErrInvalid, "no DNS server was named").WithHint("write addresses such as 1.1.1.1,9.9.9.9")
	}
	return nil
}

var lsmRE = regexp.MustCompile(`^([a-z0-9_]+(,[a-z0-9_]+)*)?$`)

func checkLSM(v string) error {
	if !lsmRE.MatchString(v) {
		return mvm.Errorf(mvm.ErrInvalid, "%s is not a list of security modules", mvm.Quote(v)).WithHint("write it like landlock,yama,bpf")
	}
	return nil
}

var versionRE = regexp.MustCompile(`^[0-9]+(\.[0-9]+)*([-+~.][A-Za-z0-9]+)*$`)

func checkVersion(v string) error {
	if !versionRE.MatchString(v) {
		return mvm.Errorf(mvm.ErrInvalid, "%s is not a version", mvm.Quote(v)).WithHint("write it like 1.16.1, without a v")
	}
	return nil
}

var fileNameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// checkFileName accepts a name that is one file of the VM's directory, and none
// that mvm uses there itself.
func checkFileName(v string) error {
	const hint = "use a plain name of letters, digits, '.', '-' and '_', such as vmm.log"
	own := []string{seedName, identityName, cloudInitDir, vmm.ExitFile, "agent.sock", "rootfs.raw", "rootfs.qcow2"}
	switch {
	case !fileNameRE.MatchString(v):
		return mvm.Errorf(mvm.ErrInvalid, "%s is not the name of a file", mvm.Quote(v)).WithHint(hint)
	case slices.Contains(own, v):
		return mvm.Errorf(mvm.ErrInvalid, "%s is a file of every VM already", mvm.Quote(v)).WithHint("choose another name")
	}
	return nil
}

// hangTogether checks the settings that limit each other.
func (o overridden) hangTogether() error {
	value := func(category, key string) any {
		s, _ := mvm.SettingOf(category, key)
		return o.entry(s).Value
	}
	first, _ := value("defaults.cloudinit", "nocloud_port_range_start").(int)
	last, _ := value("defaults.cloudinit", "nocloud_port_range_end").(int)
	if first > last {
		return mvm.Errorf(mvm.ErrInvalid, "the port range %d to %d is empty", first, last).
			WithHint("set nocloud_port_range_start and nocloud_port_range_end so that the start is not above the end")
	}
	users := map[any]string{}
	for _, s := range mvm.Settings() {
		if s.Category != "defaults.firecracker" || !strings.HasSuffix(s.Key, "_filename") {
			continue
		}
		name := o.entry(s).Value
		if other, taken := users[name]; taken {
			return mvm.Errorf(mvm.ErrInvalid, "%s and %s would be one file, %v", other, s.Key, name).WithHint("give each a name of its own")
		}
		users[name] = s.Key
	}
	return nil
}
