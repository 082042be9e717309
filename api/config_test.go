package api

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

func TestConfigDefaults(t *testing.T) {
	m := newWorld(t).open()
	all, err := m.Config.ListAll(t.Context())
	if err != nil || len(all) != len(mvm.Settings()) {
		t.Fatalf("%d settings, %v", len(all), err)
	}
	for i, s := range mvm.Settings() {
		e := all[i]
		if e.Category != s.Category || e.Key != s.Key || e.Type != s.Type || e.Text() != s.Default || e.Source != SourceDefault || e.Help == "" || !cmp.Equal(e.Value, e.Default) {
			t.Errorf("%s is %+v", s.Name(), e)
		}
		switch e.Value.(type) {
		case int:
			if s.Type != "int" || e.Min == nil || e.Max == nil {
				t.Errorf("%s is %+v", s.Name(), e)
			}
		case bool:
			if s.Type != "bool" {
				t.Errorf("%s is %+v", s.Name(), e)
			}
		case string:
			if s.Type != "string" || e.Min != nil {
				t.Errorf("%s is %+v", s.Name(), e)
			}
		}
	}
}

// Every default is one that the user could set, so none is lost for good by
// changing it.
func TestConfigDefaultsCanBeSet(t *testing.T) {
	m := newWorld(t).open()
	for _, s := range mvm.Settings() {
		e, err := m.Config.Set(t.Context(), s.Category, s.Key, s.Default)
		if err != nil || e.Text() != s.Default || e.Source != SourceDatabase {
			t.Errorf("%s = %q: %+v, %v", s.Name(), s.Default, e, err)
		}
	}
	if n, err := m.Config.Reset(t.Context(), ConfigResetInput{All: true}); err != nil || n != len(mvm.Settings()) {
		t.Errorf("%d went, %v", n, err)
	}
}

func TestConfigSetAndReset(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	ctx := t.Context()
	for _, s := range [][3]string{{"defaults.vm", "vcpu_count", "3"}, {"defaults.vm", "pci_enabled", "off"}, {"defaults.vm", "boot_args", "a=b"}, {"settings.vm", "log_lines", "7"}} {
		if _, err := m.Config.Set(ctx, s[0], s[1], s[2]); err != nil {
			t.Fatal(err)
		}
	}
	other := w.open() // another process sees it
	got, err := other.Config.Get(ctx, "defaults.vm", "vcpu_count")
	least, most := 1, mvm.MaxVCPUs
	want := []ConfigEntry{{Category: "defaults.vm", Key: "vcpu_count", Value: 3, Type: "int", Default: 1, Source: SourceDatabase, Min: &least, Max: &most, Help: "vCPUs"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	category, err := other.Config.Get(ctx, "defaults.vm", "")
	values := map[string]any{}
	for _, e := range category {
		values[e.Key] = e.Value
	}
	if err != nil || values["vcpu_count"] != 3 || values["pci_enabled"] != false || values["boot_args"] != "a=b" || values["mem_size_mib"] != 512 {
		t.Errorf("%v, %v", values, err)
	}
	for _, step := range []struct {
		in   ConfigResetInput
		want int
	}{
		{ConfigResetInput{Category: "defaults.vm", Key: "vcpu_count"}, 1},
		{ConfigResetInput{Category: "defaults.vm", Key: "vcpu_count"}, 0},
		{ConfigResetInput{Category: "defaults.vm"}, 2},
		{ConfigResetInput{All: true}, 1},
		{ConfigResetInput{All: true}, 0},
	} {
		if n, err := m.Config.Reset(ctx, step.in); err != nil || n != step.want {
			t.Errorf("%+v: %d went, want %d; %v", step.in, n, step.want, err)
		}
	}
	if e, err := m.Config.Get(ctx, "defaults.vm", "vcpu_count"); err != nil || e[0].Value != 1 || e[0].Source != SourceDefault {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestConfigRefuses(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	for _, tc := range []struct {
		category, key, value string
		kind                 mvm.Kind
		says, hint           string
	}{
		{"defaults.vmm", "vcpu_count", "1", mvm.ErrNotFound, "defaults.vmm", "did you mean defaults.vm"},
		{"nonsense", "x", "1", mvm.ErrNotFound, "nonsense", "mvm config ls"},
		{"defaults.vm", "vcpu_conut", "1", mvm.ErrNotFound, "vcpu_conut", "did you mean vcpu_count"},
		{"defaults.vm", "zzzzzzzzzzzz", "1", mvm.ErrNotFound, "zzzz", "mvm config get defaults.vm"},
		{"defaults.vm", "", "1", mvm.ErrInvalid, "no key", "mvm config get"},
		{"defaults.vm", "vcpu_count", "33", mvm.ErrInvalid, "33", "1 to 32"},
		{"defaults.vm", "vcpu_count", "two", mvm.ErrInvalid, "two", "1 to 32"},
		{"defaults.vm", "pci_enabled", "2", mvm.ErrInvalid, "2", "true or false"},
		{"settings.vm", "hypervisor", "xen", mvm.ErrInvalid, "xen", "auto, firecracker, qemu"},
		{"settings", "firewall_backend", "pf", mvm.ErrInvalid, "pf", "nftables, iptables"},
		{"defaults.vm", "ssh_user", "a b", mvm.ErrInvalid, "a b", "root"},
		{"defaults.vm", "ssh_user", "", mvm.ErrInvalid, "user name", "root"},
		{"defaults.vm", "dns_server", "1.1.1.1,nope", mvm.ErrInvalid, "nope", "1.1.1.1"},
		{"defaults.vm", "dns_server", " , ", mvm.ErrInvalid, "no DNS server", "1.1.1.1"},
		{"defaults.vm", "lsm_flags", "a b", mvm.ErrInvalid, "a b", "landlock"},
		{"defaults.vm", "boot_args", "a\nb", mvm.ErrInvalid, `a\nb`, "one line"},
		{"defaults.vm", "guest_mac_prefix", "01:00", mvm.ErrInvalid, "multicast", "02:FC"},
		{"defaults.vm", "guest_mac_prefix", "", mvm.ErrInvalid, "MAC", "02:FC"},
		{"defaults.network", "name", "a/b", mvm.ErrInvalid, "a/b", "letters"},
		{"defaults.network", "subnet", "10.0.0.0", mvm.ErrInvalid, "10.0.0.0", ""},
		{"defaults.kernel", "version", "latest", mvm.ErrInvalid, "latest", "1.16.1"},
		{"defaults.firecracker", "version", "v1.2", mvm.ErrInvalid, "v1.2", "without a v"},
		{"defaults.firecracker", "log_filename", "../x", mvm.ErrInvalid, "../x", "plain name"},
		{"defaults.firecracker", "log_filename", ".hidden", mvm.ErrInvalid, ".hidden", "plain name"},
		{"defaults.firecracker", "log_filename", "", mvm.ErrInvalid, `""`, "plain name"},
		{"defaults.firecracker", "log_filename", "initrd", mvm.ErrInvalid, "every VM", "another name"},
		{"defaults.firecracker", "log_filename", "firecracker.json", mvm.ErrInvalid, "would be one file", "own"},
		{"defaults.cloudinit", "nocloud_port_range_start", "9001", mvm.ErrInvalid, "9001 to 9000 is empty", "not above"},
		{"defaults.cloudinit", "nocloud_port_range_end", "70000", mvm.ErrInvalid, "70000", "65535"},
	} {
		t.Run(tc.category+"."+tc.key+"="+tc.value, func(t *testing.T) {
			_, err := m.Config.Set(t.Context(), tc.category, tc.key, tc.value)
			refused(t, err, tc.kind, tc.says)
			if !strings.Contains(mvm.HintOf(err), tc.hint) {
				t.Errorf("the hint is %q", mvm.HintOf(err))
			}
		})
	}
	for _, in := range []ConfigResetInput{{}, {Key: "vcpu_count"}, {All: true, Category: "defaults.vm"}} {
		_, err := m.Config.Reset(t.Context(), in)
		refused(t, err, mvm.ErrInvalid, "")
	}
	_, err := m.Config.Reset(t.Context(), ConfigResetInput{Category: "defaults.vm", Key: "nope"})
	refused(t, err, mvm.ErrNotFound, "nope")
	_, err = m.Config.Get(t.Context(), "nope", "")
	refused(t, err, mvm.ErrNotFound, "nope")
	if n, err := m.Config.Reset(t.Context(), ConfigResetInput{All: true}); err != nil || n != 0 {
		t.Errorf("refused values were stored: %d, %v", n, err)
	}
}

// A reset that would leave an impossible whole is refused, and nothing changes.
func TestConfigResetKeepsTheWholePossible(t *testing.T) {
	m := newWorld(t).open()
	ctx := t.Context()
	for _, kv := range [][2]string{{"nocloud_port_range_start", "100"}, {"nocloud_port_range_end", "200"}} {
		if _, err := m.Config.Set(ctx, "defaults.cloudinit", kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
	}
	_, err := m.Config.Reset(ctx, ConfigResetInput{Category: "defaults.cloudinit", Key: "nocloud_port_range_start"})
	refused(t, err, mvm.ErrInvalid, "8000 to 200 is empty")
	if e, err := m.Config.Get(ctx, "defaults.cloudinit", "nocloud_port_range_start"); err != nil || e[0].Value != 100 {
		t.Errorf("%+v, %v", e, err)
	}
	if n, err := m.Config.Reset(ctx, ConfigResetInput{Category: "defaults.cloudinit"}); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
}

// Rows that Set would never have written hurt nobody and can be got rid of.
func TestConfigDamagedRows(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.set(m, "defaults.vm", "vcpu_count", "many")
	w.set(m, "settings.future", "flux", "7")
	e, err := m.Config.Get(t.Context(), "defaults.vm", "vcpu_count")
	if err != nil || e[0].Value != 1 || e[0].Source != SourceDatabase {
		t.Errorf("%+v, %v", e, err)
	}
	if n, err := m.Config.Reset(t.Context(), ConfigResetInput{All: true}); err != nil || n != 2 {
		t.Errorf("%d went, %v", n, err)
	}
}

func TestConfigJSON(t *testing.T) {
	m := newWorld(t).open()
	e, err := m.Config.Get(t.Context(), "settings.vm", "hypervisor")
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(e[0])
	want := `{"category":"settings.vm","key":"hypervisor","value":"auto","type":"string","default":"auto","source":"default","min":null,"max":null,"choices":["auto","firecracker","qemu"],"help":"auto, firecracker or qemu"}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
}

func TestConfigNeedsItsDatabase(t *testing.T) {
	w := newWorld(t)
	w.file(filepath.Join(w.dir, "cache"), 0) // a file where the directory should be
	m := w.open()
	_, err1 := m.Config.ListAll(t.Context())
	_, err2 := m.Config.Set(t.Context(), "defaults.vm", "vcpu_count", "2")
	_, err3 := m.Config.Reset(t.Context(), ConfigResetInput{All: true})
	_, err4 := m.Key.ListAll(t.Context())
	for _, err := range []error{err1, err2, err3, err4} {
		if err == nil || errors.Is(err, mvm.ErrNotFound) || mvm.HintOf(err) == "" {
			t.Errorf("got %v", err)
		}
	}
}
