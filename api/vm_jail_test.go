package api

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// jailer is the live driver under the name of Firecracker. It locks nobody up, but
// keeps which jail it was asked for.
type jailer struct {
	*liveDriver
	probe vmm.Probe
	jails map[string]*vmm.Jail // by VM's id
}

func (d *jailer) Name() string                    { return "firecracker" }
func (d *jailer) Probe(context.Context) vmm.Probe { return d.probe }

func (d *jailer) Render(l vmm.Launch) (vmm.Rendered, error) {
	if l.Jail != nil && l.Jail.UID < vmm.FirstJailUID {
		return vmm.Rendered{}, errors.New("a jail without a user")
	}
	l.Jail = nil
	return d.liveDriver.Render(l)
}

func (d *jailer) Start(ctx context.Context, l vmm.Launch) (vmm.Machine, error) {
	d.jails[l.ID] = l.Jail
	jail := l.Jail
	l.Jail = nil
	m, err := d.liveDriver.Start(ctx, l)
	if live, ok := m.(liveMachine); ok && jail != nil {
		live.outer.Jail = &vmm.Jailed{UID: jail.UID, GID: jail.GID, Root: "/jail", Cgroups: []string{}, Without: []string{"a limit of memory: none"}}
		return live, err
	}
	return m, err
}

// withJailer gives the world a Firecracker with a jailer beside it, which says that
// it is of a version; "" leaves the jailer out.
func (w *world) withJailer(m *Client, version string) *jailer {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), "bin")
	program := filepath.Join(dir, "firecracker")
	w.file(program, 1)
	if version != "" {
		if err := os.WriteFile(filepath.Join(dir, "jailer"), []byte("#!/bin/sh\necho Jailer v"+version+"\n"), 0o700); err != nil { //nolint:gosec // it is executed
			w.t.Fatal(err)
		}
	}
	d := &jailer{liveDriver: w.driver, jails: map[string]*vmm.Jail{}, probe: w.driver.Probe(w.t.Context())}
	d.probe.Path, d.probe.Version, d.probe.Capabilities.Jail = program, "1.16.1", true
	m.core.firecracker = func(string) vmm.Driver { return d }
	m.core.checkJail = func(string) error { return nil }
	return d
}

func TestJailIsChosen(t *testing.T) {
	for name, tt := range map[string]struct {
		version string // of the jailer
		in      VMCreateInput
		change  func(*Client, *jailer)
		want    bool
		notice  string
	}{
		"by default":       {version: "1.16.1", want: true},
		"not asked for":    {version: "1.16.1", in: VMCreateInput{NoJailer: true}},
		"no jailer":        {notice: "no jailer 1.16.1"},
		"another version":  {version: "1.15.0", notice: "is version 1.15.0, and Firecracker is 1.16.1"},
		"no jailer at all": {version: "1.16.1; exit 1", notice: "does not run"},
		"another program":  {version: "", change: func(_ *Client, d *jailer) { plant(d, "#!/bin/sh\necho hello\n") }, notice: "no jailer"},
		"nodev": {version: "1.16.1", change: func(m *Client, _ *jailer) {
			m.core.checkJail = func(string) error { return errors.New("it is mounted nodev") }
		}, notice: "mounted nodev"},
		"a driver without": {version: "1.16.1", change: func(_ *Client, d *jailer) { d.probe.Capabilities.Jail = false }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := w.open()
			w.stock(m)
			notices := []string{}
			m.core.cfg.Notice = func(s string) { notices = append(notices, s) }
			d := w.withJailer(m, tt.version)
			if tt.change != nil {
				tt.change(m, d)
			}
			tt.in.Hypervisor = "firecracker"
			for range 2 {
				p, err := w.plan(m, tt.in)
				if err != nil {
					t.Fatal(err)
				}
				if (p.jail != nil) != tt.want || p.item.Options.Jailed != tt.want {
					t.Errorf("jail %+v, options %+v", p.jail, p.item.Options)
				}
				if tt.want && (p.jail.Jailer != filepath.Join(filepath.Dir(d.probe.Path), "jailer") || p.jail.FileMiB < p.item.DiskSizeMiB) {
					t.Errorf("jail %+v", p.jail)
				}
			}
			if all := strings.Join(notices, "\n"); strings.Contains(all, "without a jail") != (tt.notice != "") || !strings.Contains(all, tt.notice) || strings.Count(all, "without a jail") > 1 {
				t.Errorf("the notices are %q, want %q once", notices, tt.notice)
			}
		})
	}
}

func plant(d *jailer, script string) {
	_ = os.WriteFile(filepath.Join(filepath.Dir(d.probe.Path), "jailer"), []byte(script), 0o700) //nolint:gosec // it is executed
}

// A jailer among our own binaries goes before one that lies about.
func TestJailerOfOurs(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	w.withJailer(m, "1.16.1")
	st, err := m.core.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"1.15.0", "1.16.1"} {
		path := m.core.paths.abs("bin/jailer-v" + version)
		w.file(path, 0)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho Jailer v"+version+"\n"), 0o700); err != nil { //nolint:gosec // it is executed
			t.Fatal(err)
		}
		b := &mvm.BinaryItem{ID: newID(), Name: "jailer", Version: version, FullVersion: "v" + version, Path: "bin/jailer-v" + version, CreatedAt: now(), UpdatedAt: now()}
		if err := errors.Join(os.Chmod(path, 0o700), st.UpsertBinary(t.Context(), b)); err != nil { //nolint:gosec // it is executed
			t.Fatal(err)
		}
	}
	p, err := w.plan(m, VMCreateInput{Hypervisor: "firecracker"})
	if err != nil || p.jail == nil || p.jail.Jailer != m.core.paths.abs("bin/jailer-v1.16.1") {
		t.Errorf("jail %+v, %v", p.jail, err)
	}
}

// Each VM has a user of its own from when it is reserved until it is removed,
// whether it runs or not; inspect tells.
func TestJailUsers(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	d := w.withJailer(m, "1.16.1")
	four := 4
	res, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", Count: &four, Hypervisor: "firecracker"})
	if err != nil {
		t.Fatal(err)
	}
	users := map[int]string{}
	for _, vm := range res.VMs {
		uid, jail := vm.Options.JailUID, d.jails[vm.ID]
		if uid < vmm.FirstJailUID || uid >= vmm.FirstJailUID+vmm.JailUIDs || users[uid] != "" || jail == nil || jail.UID != uid || jail.GID != uid {
			t.Errorf("%s has user %d, its jail %+v", vm.Name, uid, jail)
		}
		users[uid] = vm.Name
	}
	v, err := m.VM.Inspect(t.Context(), VMInput{Identifiers: []string{"web-1"}})
	if err != nil || !v.Process.Jailed || v.Process.Jail.UID != res.VMs[0].Options.JailUID || v.Process.Jail.Root != "/jail" || len(v.Process.Jail.Without) != 1 {
		t.Errorf("inspect: %+v, %v", v.Process, err)
	}
	one := VMInput{Identifiers: []string{"web-1"}, Force: true}
	if _, err := m.VM.Stop(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if v, err := m.VM.Inspect(t.Context(), one); err != nil || v.Process.Jailed || v.Process.Jail != nil {
		t.Errorf("a VM that is stopped: %+v, %v", v.Process, err)
	}
	if _, err := m.VM.Start(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if vm, err := m.VM.Get(t.Context(), one); err != nil || vm.Options.JailUID != res.VMs[0].Options.JailUID || !vm.Options.Jailed {
		t.Errorf("started again it is %+v, %v", vm.Options, err)
	}
}

// A VM that was made before there was a jailer gets a user when it is started.
func TestJailForAnOldVM(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	d := w.withJailer(m, "")
	res, err := m.VM.Create(t.Context(), VMCreateInput{Name: "old", Hypervisor: "firecracker"})
	if err != nil || res.VMs[0].Options.Jailed || res.VMs[0].Options.JailUID != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	old := VMInput{Identifiers: []string{"old"}, Force: true}
	if _, err := m.VM.Stop(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	plant(d, "#!/bin/sh\necho Jailer v1.16.1\n")
	if _, err := m.VM.Start(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	vm, err := m.VM.Get(t.Context(), old)
	if err != nil || vm.Options.JailUID < vmm.FirstJailUID || d.jails[vm.ID].UID != vm.Options.JailUID {
		t.Errorf("it is %+v, %v", vm.Options, err)
	}
}

func TestFreeJailUID(t *testing.T) {
	vm := func(id string, uid int) *mvm.VMInstanceItem {
		return &mvm.VMInstanceItem{ID: id, Options: mvm.VMOptions{JailUID: uid}}
	}
	first, err := freeJailUID(nil, vm("a", 0))
	if err != nil || first < vmm.FirstJailUID || first >= vmm.FirstJailUID+vmm.JailUIDs {
		t.Fatalf("%d, %v", first, err)
	}
	for name, tt := range map[string]struct {
		others []*mvm.VMInstanceItem
		vm     *mvm.VMInstanceItem
		want   int
	}{
		"its own":                 {[]*mvm.VMInstanceItem{vm("a", first+5)}, vm("a", first+5), first + 5},
		"its own, of another too": {[]*mvm.VMInstanceItem{vm("b", first+5)}, vm("a", first+5), first},
		"taken":                   {[]*mvm.VMInstanceItem{vm("b", first), vm("c", first+1)}, vm("a", 0), first + 2},
		"no user of a jail":       {nil, vm("a", 1000), first},
	} {
		if got, err := freeJailUID(tt.others, tt.vm); err != nil || got != tt.want {
			t.Errorf("%s: %d, %v, want %d", name, got, err, tt.want)
		}
	}
	all := []*mvm.VMInstanceItem{}
	for n := range vmm.JailUIDs {
		all = append(all, vm("x", vmm.FirstJailUID+n))
	}
	if _, err := freeJailUID(all, vm("a", 0)); !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" {
		t.Errorf("with none left: %v", err)
	}
	if got, err := freeJailUID(slices.Delete(all, 7, 8), vm("a", 0)); err != nil || got != vmm.FirstJailUID+7 {
		t.Errorf("the last one: %d, %v", got, err)
	}
}
