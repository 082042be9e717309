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
