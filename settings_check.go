package mvm

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// limits are the smallest and largest values of int settings, by CATEGORY.KEY.
var limits = map[string][2]int{
	"settings.vm.max_vms":                         {1, 100_000},
	"settings.vm.log_lines":                       {1, 1_000_000},
	"settings.vm.ssh_timeout_sec":                 {1, 3600},
	"settings.vm.stop_timeout_sec":                {1, 3600},
	"settings.vm.term_timeout_sec":                {0, 600},
	"settings.vm.kill_timeout_sec":                {1, 3600},
	"settings.vm.ready_timeout_sec":               {1, 86400},
	"defaults.vm.vcpu_count":                      {1, MaxVCPUs},
	"defaults.vm.mem_size_mib":                    {MinMemMiB, 16 << 20},
	"defaults.vm.vsock_port":                      {1, math.MaxInt32},
	"defaults.image.remote_list_limit":            {1, 1000},
	"defaults.image.remote_list_cache_ttl":        {0, 365 * 86400},
	"defaults.kernel.build_jobs":                  {0, 1024},
	"defaults.kernel.remote_list_limit":           {1, 1000},
	"defaults.kernel.remote_list_cache_ttl":       {0, 365 * 86400},
	"defaults.cloudinit.nocloud_port_range_start": {1, 65535},
	"defaults.cloudinit.nocloud_port_range_end":   {1, 65535},
	"defaults.binary.remote_version_limit":        {1, 1000},
	"defaults.binary.remote_list_cache_ttl":       {0, 365 * 86400},
}

// choices are all values of string settings that take only some, by CATEGORY.KEY.
var choices = map[string][]string{
	"settings.firewall_backend":      {"nftables", "iptables"},
	"settings.vm.hypervisor":         {"auto", "firecracker", "qemu"},
	"defaults.image.import_format":   {"auto", "qcow2", "raw", "tar-rootfs"},
	"defaults.image.warm_in":         {"disk", "tmpfs"},
	"defaults.firecracker.log_level": {"Off", "Error", "Warn", "Info", "Debug", "Trace"},
}

// Name is CATEGORY.KEY.
func (s Setting) Name() string { return s.Category + "." + s.Key }

// Range returns the smallest and largest value of an int setting; ok is false
// for other types.
func (s Setting) Range() (least, most int, ok bool) {
	l, ok := limits[s.Name()]
	return l[0], l[1], ok
}

// Choices returns the values that a string setting is limited to, or nil.
func (s Setting) Choices() []string { return slices.Clone(choices[s.Name()]) }

// Parse checks a value that a user typed against the setting's type, range and
// choices, and returns it as it is stored: "yes" becomes "true", "INFO" "Info".
// mvm.ErrInvalid says what is accepted.
func (s Setting) Parse(value string) (string, error) {
	refuse := func(hint string, args ...any) (string, error) {
		return "", Errorf(ErrInvalid, "%s cannot be %s", s.Name(), Quote(clip(value))).WithHint(hint, args...)
	}
	v := strings.TrimSpace(value)
	switch s.Type {
	case "int":
		least, most, _ := s.Range()
		n, err := strconv.Atoi(v)
		if err != nil || n < least || n > most {
			return refuse("set it to a whole number from %d to %d", least, most)
		}
		return strconv.Itoa(n), nil
	case "bool":
		switch strings.ToLower(v) {
		case "true", "yes", "on", "1":
			return "true", nil
		case "false", "no", "off", "0":
			return "false", nil
		}
		return refuse("set it to true or false")
	}
	if allowed := s.Choices(); allowed != nil {
		for _, c := range allowed {
			if strings.EqualFold(c, v) {
				return c, nil
			}
		}
		return refuse("set it to one of %s", strings.Join(allowed, ", "))
	}
	if err := ValidateBootArgs(v); err != nil { // printable, on one line, and not endless
		return refuse("write it on one line of at most 1400 ASCII characters")
	}
	return v, nil
}
