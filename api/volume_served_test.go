package api

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/wire"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/testenv"
)

// A qcow2 volume on Firecracker is served by a process of the VM's, for as long as the
// VM runs; what cannot be done with it meanwhile is refused by its name, or done later.
func TestServedVolumes(t *testing.T) {
	testenv.Require(t, "qemu-disks")
	t.Parallel()
	w := newHosted(t)
	m, ctx := w.open(), t.Context()
	for _, name := range []string{"cow", "other"} {
		if _, err := m.Volume.Create(ctx, VolumeCreateInput{Name: name, Size: "1M", Format: "qcow2"}); err != nil {
			t.Fatal(err)
		}
	}
	w.must("create on cow")
	web := w.find("web")
	servers := func() (of []string) {
		ids, err := proc.FindByArg(supervisor.ServerToken(web.ID))
		if err != nil {
			t.Fatal(err)
		}
		volumes, err := m.Volume.ListAll(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			for _, v := range volumes {
				if strings.Contains(strings.Join(cmdline(id.PID), " "), strings.ReplaceAll(volumeDiskID(v), "-", "_")) {
					of = append(of, v.Name)
				}
			}
		}
		slices.Sort(of)
		return of
	}
	want := func(what string, names ...string) {
		t.Helper()
		if d := cmp.Diff(names, servers()); d != "" {
			t.Errorf("%s, served are: %s", what, d)
		}
	}
	want("created", "cow")
	before := w.settled()
	_, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "web", Name: "kept"})
	refused(t, err, mvm.ErrUnsupported, `volume "cow" is qcow2, and firecracker takes no snapshot of a VM with such a volume`)
	if d := cmp.Diff(before, w.settled()); d != "" {
		t.Error(d)
	}
	for _, change := range []struct {
		do    func() (*VMVolumeChange, error)
		warns string
	}{
		{func() (*VMVolumeChange, error) { return m.VM.AttachVolume(ctx, sel("web"), "other:/srv") }, "web runs on without it and has it from its next start on: firecracker takes a qcow2 disk only when it starts"},
		{func() (*VMVolumeChange, error) { return m.VM.DetachVolume(ctx, sel("web"), "cow") }, "web has it until it ends: a qcow2 volume is served to firecracker for as long as the VM runs"},
	} {
		res, err := change.do()
		if err != nil || res.Live || len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], change.warns) {
			t.Errorf("%+v, %v; want %q", res, err, change.warns)
		}
	}
	want("while it runs on", "cow")
	w.must("stop")
	want("stopped")
	w.must("start")
	want("started", "other")

	// Whatever dies, the next command ends the server with the VM.
	for what, look := range map[string]func() error{
		"listed":    func() error { _, err := w.open().VM.ListAll(ctx); return err },
		"inspected": func() error { _, err := w.open().VM.Inspect(ctx, sel("web")); return err },
		"started":   func() error { return w.run("", "start") },
	} {
		h := w.handle()
		for _, id := range []proc.Identity{h.Supervisor, h.VMM} {
			if err := proc.Kill(ctx, id, 0); err != nil {
				t.Fatal(err)
			}
		}
		want("left by its supervisor", "other")
		if err := look(); err != nil {
			t.Fatal(err)
		}
		if what != "started" {
			want("found dead and " + what)
			w.must("start")
		}
		want("started again", "other")
	}
	w.must("rm")
	want("removed")
	for _, name := range []string{"cow", "other"} {
		if res, err := m.Volume.Remove(ctx, vol(name), false); err != nil {
			t.Errorf("%+v, %v", res, err)
		}
	}
}

// All disks that qemu-storage-daemon serves call themselves the same: a guest is told
// which of them a volume is. It does not pause where it could not be reached afterwards.
func TestServedVolumesInGuest(t *testing.T) {
	testenv.Require(t, "qemu-disks")
	t.Parallel()
	w := newHosted(t)
	m, ctx := w.open(), t.Context()
	in := VMCreateInput{Name: "web"}
	for i, format := range []string{"qcow2", "raw", "qcow2", "qcow2"} {
		name := fmt.Sprintf("v%d", i)
		if _, err := m.Volume.Create(ctx, VolumeCreateInput{Name: name, Size: "1M", Format: format}); err != nil {
			t.Fatal(err)
		}
		in.Volumes = append(in.Volumes, name+fmt.Sprintf(":/srv/%d", i))
	}
	in.Volumes[2] = "v2" // not mounted, but counted
	if _, err := m.VM.Create(ctx, in); err != nil {
		t.Fatal(err)
	}
	_, err := m.VM.Pause(ctx, sel("web"))
	refused(t, err, mvm.ErrUnsupported, "firecracker cannot pause a VM with a qcow2 disk")
	if got := w.find("web").Status; got != mvm.StatusRunning {
		t.Errorf("it is %s", got)
	}
	w.must("stop")
	p, err := (&world{t: t, dir: w.dir}).startPlan(m, "web")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := p.bootConfig()
	if err != nil || len(cfg.Volumes) != 3 {
		t.Fatalf("%+v, %v", cfg.Volumes, err)
	}
	served := []string{"vhost_user_blk"}
	want := []wire.Volume{{Serials: served, Mount: "/srv/0"}, {Serials: cfg.Volumes[1].Serials, Mount: "/srv/1"}, {Serials: served, Nth: 2, Mount: "/srv/3"}}
	if d := cmp.Diff(want, cfg.Volumes); d != "" || len(cfg.Volumes[1].Serials) != 2 {
		t.Errorf("its guest is told otherwise: %s", d)
	}
	if err := w.run("", "rm"); err != nil {
		t.Error(errors.Unwrap(err))
	}
}
