package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// fakeRoot makes a root directory with files, and returns it as checkKVM takes it.
func fakeRoot(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir() + "/"
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(root+name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func cpuinfo(flags string) string {
	return "processor\t: 0\nmodel name\t: Some CPU with vmx in its name\nflags\t\t: " + flags + "\n\nprocessor\t: 1\nflags\t\t: " + flags + "\n"
}

func TestCheckKVM(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the CPU flags are those of x86")
	}
	const pvm = "sys/module/kvm_pvm/refcnt"
	for _, tc := range []struct {
		name        string
		files       map[string]string
		usable      bool
		paravirtual bool
		what        string
	}{
		{"nothing", map[string]string{}, false, false, "there is no /dev/kvm, and the CPU shows no"},
		{"no device, no flags", map[string]string{"proc/cpuinfo": cpuinfo("fpu sse vmxfoo")}, false, false, "there is no /dev/kvm, and the CPU shows no"},
		{"no device, Intel", map[string]string{"proc/cpuinfo": cpuinfo("fpu vmx sse")}, false, false, "there is no /dev/kvm"},
		{"device, no flags", map[string]string{"dev/kvm": "", "proc/cpuinfo": cpuinfo("fpu sse")}, false, false, "/dev/kvm is there, but the CPU shows no"},
		{"device, no cpuinfo", map[string]string{"dev/kvm": ""}, false, false, "/dev/kvm is there, but the CPU shows no"},
		{"device and PVM", map[string]string{"dev/kvm": "", pvm: "0", "proc/cpuinfo": cpuinfo("fpu sse")}, false, true, "paravirtual"},
		{"PVM with flags shown", map[string]string{"dev/kvm": "", pvm: "0", "proc/cpuinfo": cpuinfo("fpu vmx")}, false, true, "paravirtual"},
		{"Intel", map[string]string{"dev/kvm": "", "proc/cpuinfo": cpuinfo("fpu vmx sse")}, true, false, ""},
		{"AMD", map[string]string{"dev/kvm": "", "proc/cpuinfo": cpuinfo("fpu svm")}, true, false, ""},
		{"a very long line", map[string]string{"dev/kvm": "", "proc/cpuinfo": cpuinfo(strings.Repeat("flag ", 30000) + "svm")}, true, false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := checkKVM(fakeRoot(t, tc.files))
			if k.Usable != tc.usable || k.Paravirtual != tc.paravirtual {
				t.Errorf("got %+v", k)
			}
			if (k.Problem.What == "") != tc.usable || !strings.Contains(k.Problem.What, tc.what) {
				t.Errorf("it says %q, want %q", k.Problem.What, tc.what)
			}
			if !tc.usable && k.Problem.Hint == "" {
				t.Error("no hint")
			}
		})
	}
}

// A directory in place of the device opens for nobody.
func TestCheckKVMOddDevice(t *testing.T) {
	root := fakeRoot(t, map[string]string{"dev/kvm/x": ""})
	if k := checkKVM(root); k.Usable || !strings.Contains(k.Problem.What, "cannot be opened") {
		t.Errorf("got %+v", k)
	}
}

func TestClosedKVM(t *testing.T) {
	denied := &fs.PathError{Op: "open", Path: "/dev/kvm", Err: fs.ErrPermission}
	missing := &fs.PathError{Op: "open", Path: "/dev/kvm", Err: fs.ErrNotExist}
	for _, tc := range []struct {
		err         error
		virtualises bool
		what, hint  string
	}{
		{denied, true, "may not be opened by this user", "group kvm"},
		{denied, false, "may not be opened by this user", "group kvm"},
		{missing, true, "there is no /dev/kvm", "modprobe"},
		{missing, false, "no hardware virtualisation", "firmware"},
		{errors.New("it is odd"), true, "it is odd", "dmesg"},
	} {
		p := closedKVM(tc.err, tc.virtualises)
		if !strings.Contains(p.What, tc.what) || !strings.Contains(p.Hint, tc.hint) {
			t.Errorf("%v, %v: %+v", tc.err, tc.virtualises, p)
		}
	}
}

// Who may not open the device hears of what no permission would mend.
func TestCheckKVMDenied(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("skipped: root may open anything")
	}
	for flags, want := range map[string]string{"fpu vmx": "may not be opened", "fpu": "no hardware virtualisation"} {
		root := fakeRoot(t, map[string]string{"dev/kvm": "", "proc/cpuinfo": cpuinfo(flags)})
		if err := os.Chmod(root+"dev/kvm", 0); err != nil {
			t.Fatal(err)
		}
		if k := checkKVM(root); k.Usable || !strings.Contains(k.Problem.What, want) {
			t.Errorf("flags %q: %+v, want %q", flags, k, want)
		}
	}
}

// What the host says of itself is the same each time, and never half an answer.
func TestTheRealHost(t *testing.T) {
	k := CheckKVM()
	if k.Usable == (k.Problem.What != "") {
		t.Errorf("KVM is usable and has a problem, or neither: %+v", k)
	}
	if total, free := MemTotalMiB(), MemAvailableMiB(); total <= 0 || free <= 0 || free > total {
		t.Errorf("%d MiB of %d are available", free, total)
	}
	if meminfo("NoSuchLine:") != 0 {
		t.Error("a line that is not there has a value")
	}
	if v := IPForward(); v != "0" && v != "1" && v != "" {
		t.Errorf("ip_forward is %q", v)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"mvm-test-tool": 0o755, "mvm-test-data": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "mvm-test-dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/nonexistent:"+dir)
	for name, want := range map[string]string{
		"mvm-test-tool": filepath.Join(dir, "mvm-test-tool"), "mvm-test-data": "", "mvm-test-dir": "", "mvm-test-none": "",
	} {
		if got := Find(name); got != want || Has(name) != (want != "") {
			t.Errorf("Find(%s) is %q, want %q", name, got, want)
		}
	}
}

func TestMissingBinaries(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	missing := MissingBinaries()
	for _, tool := range tools {
		named := slices.Contains(missing, fmt.Sprintf("%s (package %s)", tool.Name, tool.Package))
		if named == Has(tool.Name) {
			t.Errorf("%s: missing %v, found at %q", tool.Name, named, Find(tool.Name))
		}
		if err := os.WriteFile(filepath.Join(dir, tool.Name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got := MissingBinaries(); got == nil || len(got) != 0 {
		t.Errorf("all are there, but %q are missing", got)
	}
}
