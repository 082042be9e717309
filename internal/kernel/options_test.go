package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
)

func TestFragmentsAreRead(t *testing.T) {
	for _, arch := range []string{X86_64, ARM64} {
		for _, name := range []string{"guest", "minimal"} {
			if all := fragment(name, arch, "x"); len(all) < 20 {
				t.Errorf("%s for %s has %d options", name, arch, len(all))
			}
		}
		for _, f := range Features() {
			if all := fragment("feature-"+f, arch, "x"); len(all) == 0 {
				t.Errorf("feature %s has no options", f)
			}
		}
	}
	for _, want := range []string{"kvm", "nftables", "tuntap", "btrfs", "containers", "ebpf"} {
		if !slices.Contains(Features(), want) {
			t.Errorf("there is no feature %s among %v", want, Features())
		}
	}
	if err := CheckFeatures([]string{"kvm", "nftabels"}); !errors.Is(err, mvm.ErrInvalid) || !strings.Contains(mvm.HintOf(err), "nftables") {
		t.Errorf("a typing error: %v (hint %q)", err, mvm.HintOf(err))
	}
}

func TestParseOptions(t *testing.T) {
	all, err := parseOptions("# a comment\n\nCONFIG_A=y\r\n# CONFIG_B is not set\nCONFIG_C=\"a=b\"\nCONFIG_D=0x10\nCONFIG_E=y | CONFIG_F=y\n", "x")
	var got []string
	for _, o := range all {
		got = append(got, o.line())
	}
	want := "CONFIG_A=y|# CONFIG_B is not set|CONFIG_C=\"a=b\"|CONFIG_D=0x10|CONFIG_E=y"
	if err != nil || strings.Join(got, "|") != want || all[4].or == nil || all[4].or.name != "CONFIG_F" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{"KVM=y", "CONFIG_A", "CONFIG_A=", "CONFIG_A-B=y", "CONFIG_A=y | B=y", "CONFIG_A=\x01", "rm -rf /"} {
		_, err := parseOptions("CONFIG_OK=y\n"+bad+"\n", "my.config")
		if !errors.Is(err, mvm.ErrInvalid) || !strings.Contains(err.Error(), "line 2 of my.config") || mvm.HintOf(err) == "" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	f.Add("CONFIG_A=y\n# CONFIG_B is not set\n")
	f.Add("CONFIG_A=y | CONFIG_B=\"x\"")
	f.Add("\x00=\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseOptions(text, "x")
		if err != nil && len(all) > 0 {
			t.Fatal("options with an error")
		}
		for _, o := range all { // what is written is read again as it was
			again, err := parseOptions(o.line(), "x")
			if err != nil || len(again) != 1 || again[0].name != o.name || again[0].value != o.value {
				t.Fatalf("%q is read as %+v, %v", o.line(), again, err)
			}
		}
	})
}

const kconfigFile = `menu "x"
config NET
	bool "Networking"

if NET
menuconfig NETFILTER
	bool "Firewall"
	depends on INET && !UML
	help
	  config FAKE
	  depends on NOTHING
config NF_TABLES
	tristate "nf_tables"
	depends on NETFILTER
endif # NET

config HIDDEN
	bool
	select NET
config ONLY_MODULE
	tristate "x"
	depends on m
endmenu
`

func TestWhyOptionsAreMissing(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "net"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "net", "Kconfig.net"), []byte(kconfigFile), 0o600); err != nil {
		t.Fatal(err)
	}
	final := map[string]string{"CONFIG_NET": "y", "CONFIG_CHANGED": "m"}
	tests := []struct{ line, why string }{
		{"CONFIG_NF_TABLES=y", "CONFIG_NETFILTER"},
		{"CONFIG_NETFILTER=y", "CONFIG_INET"},
		{"CONFIG_FAKE=y", "no such option"},
		{"CONFIG_HIDDEN=y", "cannot be set directly"},
		{"CONFIG_ONLY_MODULE=y", "module only"},
		{"# CONFIG_NET is not set", "another option needs it"},
	}
	for _, tt := range tests {
		all, err := parseOptions(tt.line, "x")
		if err != nil {
			t.Fatal(err)
		}
		if off := missing(all, final); len(off) != 1 {
			t.Errorf("%s is not missing", tt.line)
			continue
		}
		name := all[0].name
		why := all[0].why(symbols(dir, []string{name})[strings.TrimPrefix(name, "CONFIG_")], final)
		if !strings.Contains(why, tt.why) || strings.Contains(why, "CONFIG_NET,") {
			t.Errorf("%s: %q, want %q", tt.line, why, tt.why)
		}
	}
}

func TestMissing(t *testing.T) {
	final := map[string]string{"CONFIG_A": "y", "CONFIG_NEW": "y", "CONFIG_S": `"x"`}
	for text, want := range map[string]int{
		"CONFIG_A=y": 0, "CONFIG_B=y": 1, "# CONFIG_B is not set": 0, "CONFIG_B=n": 0, "CONFIG_A=n": 1, `CONFIG_S="x"`: 0, `CONFIG_S="y"`: 1,
		"CONFIG_OLD=y | CONFIG_NEW=y": 0, "CONFIG_OLD=y | CONFIG_OLDER=y": 1,
		"CONFIG_B=y\nCONFIG_B=n": 0, // the last is meant
	} {
		all, err := parseOptions(text, "x")
		if err != nil {
			t.Fatal(err)
		}
		if got := missing(all, final); len(got) != want {
			t.Errorf("%q: %d missing, want %d", text, len(got), want)
		}
	}
}

func FuzzReadSymbols(f *testing.F) {
	f.Add([]byte(kconfigFile))
	f.Fuzz(func(t *testing.T, data []byte) {
		found := map[string]*symbol{}
		readSymbols(data, map[string]bool{"NF_TABLES": true}, found)
		if len(found) > 1 {
			t.Fatalf("more than was asked for: %v", found)
		}
	})
}

func TestBuildLog(t *testing.T) {
	var out strings.Builder
	var seen int64
	b := &buildLog{file: &out, progress: func(e mvm.ProgressEvent) { seen = e.Current }}
	for range 40 {
		_, _ = b.Write([]byte("  CC      init/main.o\n"))
	}
	_, _ = b.Write([]byte("init/x.c:1:2: error: no "))
	_, _ = b.Write([]byte("such thing\n"))
	for range 30 {
		_, _ = b.Write([]byte("make[1]: *** waiting for unfinished jobs\n"))
	}
	cause, tail := b.tail()
	if b.files != 40 || seen != 32 || len(tail) != tailLines+1 || cause != "init/x.c:1:2: error: no such thing" || tail[0] != cause {
		t.Errorf("%d files, %d seen, tail %q", b.files, seen, tail)
	}
	if !strings.Contains(out.String(), "init/main.o") || !strings.Contains(out.String(), "no such thing") {
		t.Error("the log is not whole")
	}
}

func TestPackageRelease(t *testing.T) {
	for version, want := range map[string]string{"6.1.192-2": "6.1.192", "1:6.8.0-45.45": "6.8.0", "6.12.9+bpo-1": "6.12.9", "6.1.1~rc1-1": "6.1.1"} {
		if got := packageRelease(version); got != want {
			t.Errorf("%s is %s, want %s", version, got, want)
		}
	}
}
