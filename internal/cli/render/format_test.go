package render

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
)

func TestFormat(t *testing.T) {
	server := "1.1.1.1\x1b[31m"
	vms := []*mvm.VMInstanceItem{
		{Name: "a", IPv4: "10.0.0.2", SSHKeys: []string{"x", "y"}, Status: mvm.StatusRunning, SSHUser: &server, CPUConfig: json.RawMessage(`{"kvm_capabilities":["1"]}`)},
		{Name: "b", IPv4: "10.0.0.3"},
	}
	for text, want := range map[string]string{
		`{{.name}}`:                             "a\nb\n",
		`{{.Name}}\t{{.IPv4}}`:                  "a\t10.0.0.2\nb\t10.0.0.3\n",
		`{{join .ssh_keys ","}}`:                "x,y\n\n",
		`{{upper .status}}`:                     "RUNNING\n\n",
		`{{.ssh_user}}`:                         "1.1.1.1\\x1b[31m\n<no value>\n",
		`{{with .cpu_config}}{{json .}}{{end}}`: "{\"kvm_capabilities\":[\"1\"]}\n\n",
	} {
		f, err := NewFormat(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		o, stdout, _, _ := testOutput(0)
		o.Format, o.JSON = f, true
		if err := List(o, vms); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if got := stdout.String(); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

func TestFormatJSONHasItsOwnNames(t *testing.T) {
	f, err := NewFormat("{{json .}}")
	if err != nil {
		t.Fatal(err)
	}
	text, err := f.print(&mvm.VMInstanceItem{IPv4: "10.0.0.2"})
	if err != nil || !strings.Contains(text, `"ipv4":"10.0.0.2"`) || strings.Contains(text, "IPv4") {
		t.Errorf("%s (%v)", text, err)
	}
}

func TestFormatThatDoesNotFit(t *testing.T) {
	if _, err := NewFormat("{{.name"); err == nil || !strings.Contains(err.Error(), "no Go template") {
		t.Errorf("half a template: %v", err)
	}
	f, err := NewFormat("{{.nmae}}")
	if err != nil {
		t.Fatal(err)
	}
	o, stdout, stderr, _ := testOutput(0)
	o.Format, o.JSON = f, true
	err = o.Object(&mvm.VolumeItem{Name: "data"})
	if !errors.Is(err, mvm.ErrInvalid) || !strings.Contains(err.Error(), "size_bytes") || stdout.Len() > 0 {
		t.Errorf("error %v, printed %q", err, stdout)
	}
	o.Failure(Failure{Message: "x"})
	if got := stderr.String(); got != "error: x\n" {
		t.Errorf("with a template, errors are for people: %q", got)
	}
}
