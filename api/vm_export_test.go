package api

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

// A VM that is described, removed and made again is the same but for its id.
func TestExportImport(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	two, mem := 2, 256
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", VCPUCount: &two, MemSizeMiB: &mem, BootArgs: "debug", User: "admin", RequestedGuestIP: "172.27.0.77", Egress: []string{"10.0.0.0/8"}}); err != nil {
		t.Fatal(err)
	}
	cfg, err := m.VM.Export(ctx, sel("web"))
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := MarshalVMExport(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(asYAML), "schema_version: \"1.0\"\nname: web\n") && !strings.Contains(string(asYAML), "name: web\n") {
		t.Errorf("as YAML:\n%s", asYAML)
	}
	vm, err := m.VM.Get(ctx, sel("web"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{vm.ID, vm.ImageID, vm.KernelID, vm.NetworkID, w.dir} {
		if strings.Contains(string(asYAML), secret) {
			t.Errorf("the description has %q of this host:\n%s", secret, asYAML)
		}
	}
	asJSON, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"vm.yaml": asYAML, "vm.json": asJSON} {
		path := filepath.Join(w.dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		res, err := m.VM.Import(ctx, VMImportInput{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Warnings) > 0 || res.VM.MAC != vm.MAC || res.VM.IPv4 != "172.27.0.77" || !slices.Equal(res.VM.Options.Egress, []string{"10.0.0.0/8"}) {
			t.Errorf("%s: made %s %s with %v", name, res.VM.IPv4, res.VM.MAC, res.Warnings)
		}
		again, err := m.VM.Export(ctx, sel("web"))
		if diff := cmp.Diff(cfg, again); err != nil || diff != "" {
			t.Errorf("%s: %v, the VM that was made differs (-want +got):\n%s", name, err, diff)
		}
		// Beside the first there can be a second, with addresses of its own.
		res, err = m.VM.Import(ctx, VMImportInput{Path: path, Name: "copy"})
		if err != nil || len(res.Warnings) != 2 || res.VM.MAC == vm.MAC || res.VM.IPv4 == "172.27.0.77" {
			t.Errorf("%s beside it: %+v, %v", name, res, err)
		}
		if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"web", "copy"}, Force: true}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestImportSaysAllThatIsMissing(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "first"}); err != nil {
		t.Fatal(err)
	}
	off := false
	_, err := m.VM.Import(t.Context(), VMImportInput{Config: &mvm.VMExportConfig{
		Name: "web", Image: &mvm.VMExportImageConfig{Type: "debian-12"},
		Network:   &mvm.VMExportNetworkConfig{Name: "lab", Subnet: "10.9.0.0/24", NATEnabled: &off},
		CloudInit: &mvm.VMExportCloudInitConfig{SSHKey: "work"},
	}})
	refused(t, err, mvm.ErrNotFound, `image "debian:12", network "lab", SSH key "work"`)
	want := "get it with 'mvm image pull debian:12 && mvm network create lab --subnet 10.9.0.0/24 --no-nat && mvm key create work'"
	if got := mvm.HintOf(err); got != want {
		t.Errorf("hint %q, want %q", got, want)
	}
}

func TestParseVMExportRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"nothing":       {"", "object"},
		"no YAML":       {"a: [", "neither YAML nor JSON"},
		"a list":        {"[1, 2]", "object"},
		"no name":       {"schema_version: '1.0'", "name"},
		"other version": {"schema_version: '2.0'\nname: web", "schema_version"},
		"unknown field": {"schema_version: '1.0'\nname: web\nsize: 3", "size"},
		"wrong type":    {"schema_version: '1.0'\nname: web\ncompute:\n  vcpus: many", "compute.vcpus"},
		"no vCPU":       {"schema_version: '1.0'\nname: web\ncompute: {vcpus: 0}", "compute.vcpus"},
		"unknown mode":  {"schema_version: '1.0'\nname: web\ncloud_init: {mode: magic}", "cloud_init.mode"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseVMExport([]byte(c.text))
			refused(t, err, mvm.ErrInvalid, c.says)
		})
	}
}

// What is published is what is read by.
func TestPublishedSchema(t *testing.T) {
	data, err := os.ReadFile("../docs/vm-export-1.0.schema.json")
	if diff := cmp.Diff(string(VMExportSchema), string(data)); err != nil || diff != "" {
		t.Errorf("docs/vm-export-1.0.schema.json: %v (-read by +published):\n%s", err, diff)
	}
}

func FuzzParseVMExport(f *testing.F) {
	f.Add([]byte("schema_version: '1.0'\nname: web\ncompute: {vcpus: 2}"))
	f.Add([]byte(`{"schema_version":"1.0","name":"web","network":{"ip":"10.0.0.2"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := ParseVMExport(data)
		if err == nil && (cfg.SchemaVersion != "1.0" || cfg.Name == "") {
			t.Errorf("taken: %+v", cfg)
		}
	})
}
