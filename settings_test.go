package mvm_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
)

func TestSettingsAreWellFormed(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range mvm.Settings() {
		name := s.Category + "." + s.Key
		if seen[name] {
			t.Errorf("%s stands there twice", name)
		}
		seen[name] = true
		if s.Help == "" || s.Key == "" || s.Category == "" {
			t.Errorf("%s lacks something: %+v", name, s)
		}
		switch s.Type {
		case "int":
			if _, err := strconv.Atoi(s.Default); err != nil {
				t.Errorf("%s: default %q is no number", name, s.Default)
			}
		case "bool":
			if s.Default != "true" && s.Default != "false" {
				t.Errorf("%s: default %q is no truth value", name, s.Default)
			}
		case "string":
		default:
			t.Errorf("%s has type %q", name, s.Type)
		}
		if got, ok := mvm.SettingOf(s.Category, s.Key); !ok || got.Default != s.Default || got.Type != s.Type {
			t.Errorf("SettingOf finds %+v, %v for %s", got, ok, name)
		}
	}
	for _, pair := range [][2]string{{"settings.vm", "nope"}, {"nope", "max_vms"}, {"", ""}} {
		if _, ok := mvm.SettingOf(pair[0], pair[1]); ok {
			t.Errorf("%q exists", pair)
		}
	}
}

// TestSettingsOfTheReference holds names and defaults against the list that
// users of the existing tool know, where it is.
func TestSettingsOfTheReference(t *testing.T) {
	dir := os.Getenv("MVM_REFERENCE_DIR")
	if dir == "" {
		dir = "../shared/reference"
	}
	data, err := os.ReadFile(filepath.Join(dir, "cli.md"))
	if err != nil {
		t.Skipf("skipped: the reference is not here: %v", err)
	}
	_, list, found := strings.Cut(string(data), "Settings and their defaults")
	list, _, ended := strings.Cut(list, "What scripts read")
	if !found || !ended {
		t.Fatal("the list of settings was not found")
	}
	list = regexp.MustCompile(`\([^)]*\)`).ReplaceAllString(list, "")
	parts := regexp.MustCompile("`([a-z.]+)`:").FindAllStringSubmatchIndex(list, -1)
	count := 0
	for i, p := range parts {
		end := len(list)
		if i+1 < len(parts) {
			end = parts[i+1][0]
		}
		category := list[p[2]:p[3]]
		for _, entry := range regexp.MustCompile(`[a-z_]+(=[^\s,;]+)?`).FindAllString(list[p[1]:end], -1) {
			key, value, given := strings.Cut(entry, "=")
			count++
			s, ok := mvm.SettingOf(category, key)
			switch {
			case !ok:
				t.Errorf("there is no %s.%s", category, key)
			case given && s.Default != value:
				t.Errorf("%s.%s is %q, want %q", category, key, s.Default, value)
			}
		}
	}
	if count < 35 {
		t.Errorf("only %d settings were read", count)
	}
}

func TestSettingsHaveRanges(t *testing.T) {
	for _, s := range mvm.Settings() {
		least, most, ok := s.Range()
		if ok != (s.Type == "int") || ok && least >= most {
			t.Errorf("%s (%s) has the range %d to %d, %v", s.Name(), s.Type, least, most, ok)
		}
		if s.Choices() != nil && s.Type != "string" {
			t.Errorf("%s (%s) has choices", s.Name(), s.Type)
		}
		if got, err := s.Parse(s.Default); err != nil || got != s.Default {
			t.Errorf("the default of %s would not be accepted: %q, %v", s.Name(), got, err)
		}
	}
}

func TestSettingParse(t *testing.T) {
	for _, tc := range []struct {
		category, key, value, want string
		ok                         bool
	}{
		{"settings.vm", "max_vms", "1", "1", true},
		{"settings.vm", "max_vms", " 007 ", "7", true},
		{"settings.vm", "max_vms", "100000", "100000", true},
		{"settings.vm", "max_vms", "100001", "", false},
		{"settings.vm", "max_vms", "0", "", false},
		{"settings.vm", "max_vms", "-1", "", false},
		{"settings.vm", "max_vms", "many", "", false},
		{"settings.vm", "max_vms", "1.5", "", false},
		{"settings.vm", "max_vms", "", "", false},
		{"settings.vm", "max_vms", "99999999999999999999", "", false},
		{"defaults.vm", "vcpu_count", "32", "32", true},
		{"defaults.vm", "vcpu_count", "33", "", false},
		{"defaults.vm", "mem_size_mib", "63", "", false},
		{"defaults.vm", "pci_enabled", "yes", "true", true},
		{"defaults.vm", "pci_enabled", "OFF", "false", true},
		{"defaults.vm", "pci_enabled", "0", "false", true},
		{"defaults.vm", "pci_enabled", "maybe", "", false},
		{"defaults.vm", "pci_enabled", "", "", false},
		{"defaults.firecracker", "log_level", "debug", "Debug", true},
		{"defaults.firecracker", "log_level", "loud", "", false},
		{"settings.vm", "hypervisor", "QEMU", "qemu", true},
		{"settings.vm", "hypervisor", "", "", false},
		{"defaults.vm", "boot_args", "", "", true},
		{"defaults.vm", "boot_args", "a=b c", "a=b c", true},
		{"defaults.vm", "boot_args", "a\nb", "", false},
		{"defaults.vm", "boot_args", "a\x1b[2J", "", false},
	} {
		t.Run(tc.key+"="+tc.value, func(t *testing.T) {
			s, known := mvm.SettingOf(tc.category, tc.key)
			if !known {
				t.Fatal("no such setting")
			}
			got, err := s.Parse(tc.value)
			wantRefusal(t, err, tc.ok)
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
