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
	"github.com/mvmctl/mvm/internal/testenv"
)

// deeds are what commands in a hosted world can do to the VM "web".
var deeds = map[string]func(context.Context, *Client) error{
	"create": func(ctx context.Context, m *Client) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true})
		return err
	},
	"create with agent": func(ctx context.Context, m *Client) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: "web"})
		return err
	},
	"make cow": func(ctx context.Context, m *Client) error {
		_, err := m.Volume.Create(ctx, VolumeCreateInput{Name: "cow", Size: "1M", Format: "qcow2"})
		if errors.Is(err, mvm.ErrExists) {
			return nil
		}
		return err
	},
	"create on cow": func(ctx context.Context, m *Client) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true, Volumes: []string{"cow"}})
		return err
	},
	"restore": func(ctx context.Context, m *Client) error {
		_, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: "kept", Name: "copy", Resume: true})
		return err
	},
	"restore paused": func(ctx context.Context, m *Client) error {
		_, err := m.Snapshot.Restore(ctx, SnapshotRestoreInput{Snapshot: "kept", Name: "copy"})
		return err
	},
	"create net": func(ctx context.Context, m *Client) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true, CloudInitMode: mvm.CloudInitNet})
		return err
	},
	"create iso": func(ctx context.Context, m *Client) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true, CloudInitMode: mvm.CloudInitISO})
		return err
	},
	"create other": func(ctx context.Context, m *Client) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: "other", NoAgent: true})
		return err
	},
	"create, on failure": func(ctx context.Context, m *Client) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true, RestartPolicy: mvm.RestartOnFailure})
		return err
	},
	"create, always": func(ctx context.Context, m *Client) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true, RestartPolicy: mvm.RestartAlways})
		return err
	},
	"start":  verb(func(m *Client) batchVerb { return m.VM.Start }),
	"stop":   verb(func(m *Client) batchVerb { return m.VM.Stop }),
	"pause":  verb(func(m *Client) batchVerb { return m.VM.Pause }),
	"resume": verb(func(m *Client) batchVerb { return m.VM.Resume }),
	"snapshot": func(ctx context.Context, m *Client) error {
		_, err := m.Snapshot.Create(ctx, SnapshotCreateInput{VM: "web", Name: "kept"})
		return err
	},
	"snapshot to files": func(ctx context.Context, m *Client) error {
		mem, state := outFiles(m)
		if err := os.MkdirAll(filepath.Dir(mem), 0o700); err != nil {
			return err
		}
		_, err := m.VM.Snapshot(ctx, VMInput{Identifiers: []string{"web"}}, mem, state)
		return err
	},
	"load": func(ctx context.Context, m *Client) error {
		mem, state := outFiles(m)
		_, err := m.VM.LoadSnapshot(ctx, VMInput{Identifiers: []string{"web"}}, mem, state, true)
		return err
	},
	"rm all": func(ctx context.Context, m *Client) error {
		mem, _ := outFiles(m)
		_, _ = m.Snapshot.Remove(ctx, SnapshotInput{[]string{"kept"}})
		_, _ = m.VM.Remove(ctx, VMInput{Identifiers: []string{"copy"}, Force: true})
		_, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"web"}, Force: true})
		return errors.Join(os.RemoveAll(filepath.Dir(mem)), err)
	},
	"rm": func(ctx context.Context, m *Client) error {
		_, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"web"}, Force: true})
		return err
	},
}

// outFiles are where a snapshot goes that is not kept in the cache; the listing of a
// world has them.
func outFiles(m *Client) (mem, state string) {
	return filepath.Join(m.CacheDir(), "out", "mem"), filepath.Join(m.CacheDir(), "out", "state")
}

type batchVerb = func(context.Context, VMInput, ...Option) (mvm.Batch[*mvm.VMInstanceItem], error)

func verb(of func(*Client) batchVerb) func(context.Context, *Client) error {
	return func(ctx context.Context, m *Client) error {
		_, err := of(m)(ctx, VMInput{Identifiers: []string{"web"}})
		return err
	}
}

// deedPlan is a deed that is tried at every step: with the kinds of its operations,
// and the deeds that lead from nothing to where it begins.
type deedPlan struct {
	deed  string
	kinds []string
	first []string
	vm    string // that it is about; "" is web
	near  int    // how many of its points it is tried at, those nearest to its end; 0 is all
}

func (p deedPlan) about() string { return firstOf(p.vm, "web") }

var plans = []deedPlan{
	{"create", []string{opCreate}, nil, "", 0},
	{"start", []string{opStart}, []string{"create", "stop"}, "", 0},
	{"stop", []string{"vm.stop"}, []string{"create"}, "", 0},
	{"pause", []string{"vm.pause"}, []string{"create"}, "", 0},
	{"resume", []string{"vm.resume"}, []string{"create", "pause"}, "", 0},
	{"snapshot", []string{opSnapshot}, []string{"create"}, "", 0},
	{"snapshot to files", []string{opSnapshot}, []string{"create"}, "", 0},
	{"restore", []string{opRestore}, []string{"create with agent", "snapshot"}, "copy", 0},
	{"restore paused", []string{opRestore}, []string{"create with agent", "snapshot"}, "copy", 0},
	{"load", []string{opLoad}, []string{"create", "snapshot to files", "stop"}, "", 0},
	{"rm", []string{opRemove}, []string{"create"}, "", 0},
}

// cloudInitPlans have the steps of cloud-init besides.
var cloudInitPlans = []deedPlan{
	{"create net", []string{opCreate}, nil, "", 0},
	{"create iso", []string{opCreate}, nil, "", 0},
	{"start", []string{opStart}, []string{"create net", "stop"}, "", 0},
	{"stop", []string{"vm.stop"}, []string{"create net"}, "", 0},
	{"rm", []string{opRemove}, []string{"create net"}, "", 0},
}

// servedPlans have a disk that a server has. It is made with the VMM, last of all.
var servedPlans = []deedPlan{
	{"create on cow", []string{opCreate}, []string{"make cow"}, "", 4},
	{"rm", []string{opRemove}, []string{"make cow", "create on cow"}, "", 0},
}

// A command that fails, is cancelled or killed at any step of its plan, before or
// after the step's effect, and also while it takes back what it did, leaves the
// world as it began or as it was asked for. Which steps there are is asked of the
// plan itself.
func TestEveryStepOfEveryPlan(t *testing.T) {
	everyStep(t, newHosted, plans, "error", "cancel", "kill")
}

func TestEveryStepWithCloudInit(t *testing.T) {
	if testing.Short() {
		everyStep(t, newHosted, cloudInitPlans, "kill")
		return
	}
	everyStep(t, newHosted, cloudInitPlans, "error", "cancel", "kill")
}

// So it is with VMs in jails, of which the jail is a part of the world.
func TestEveryStepOfEveryPlanJailed(t *testing.T) {
	testenv.Require(t, "root", "netns")
	everyStep(t, newJailedHosted, append(plans, cloudInitPlans[1]), "kill")
}

// So it is with disks that a server has, which belongs to the VM.
func TestEveryStepWithServedDisk(t *testing.T) {
	testenv.Require(t, "qemu-disks")
	everyStep(t, newHosted, servedPlans, "kill")
}

func TestEveryStepWithServedDiskJailed(t *testing.T) {
	testenv.Require(t, "root", "netns", "qemu-disks")
	everyStep(t, newJailedHosted, servedPlans[:1], "kill")
}

func everyStep(t *testing.T, world func(*testing.T) *hosted, plans []deedPlan, actions ...string) {
	for _, p := range plans {
		t.Run(p.deed, func(t *testing.T) {
			t.Parallel()
			w := world(t)
			w.must("create other")
			begin := func() {
				for _, deed := range p.first {
					w.must(deed)
				}
			}
			begin()
			before := w.settled()
			points := w.points("", p.deed, p.kinds)
			after := w.settled()
			again := func() {
				if !slices.Equal(before, after) || p.deed != "rm" {
					_ = w.run("", "rm all")
				}
				begin()
				w.becomes("the beginning once more", before)
			}
			again()
			// Whatever is taken back is begun to be by a failure at the very end.
			last := "error:" + p.kinds[len(p.kinds)-1] + ":commit:before"
			var faults []string
			if p.near > 0 {
				points = points[len(points)-p.near:]
			}
			for _, point := range points {
				for _, action := range actions {
					if testing.Short() && action != "kill" {
						continue // they end in the same taking back, with less to overcome
					}
					faults = append(faults, action+":"+point)
				}
			}
			if p.deed != "rm" {
				near := 0
				for _, point := range w.points(last, p.deed, p.kinds) {
					if strings.Contains(point, ":revert:") || strings.Contains(point, ":undo:") {
						if near++; p.near > 0 && near > p.near {
							break
						}
						faults = append(faults, last+",error:"+point, last+",kill:"+point)
					}
				}
				if w.becomes("a failure at the end", before, after) == 1 {
					again()
				}
			}
			t.Logf("%d points of the plan, %d faults", len(points), len(faults))
			for _, f := range faults {
				err := w.run(f, p.deed)
				got := w.becomes(f, before, after)
				if got == 0 && err == nil {
					t.Errorf("%s: it failed without a word", f)
				}
				if got == 1 && !slices.Equal(before, after) {
					again()
				}
			}
		})
	}
}

// points does a deed with a fault and returns the points that its operations
// passed, in order.
func (w *hosted) points(fault, deed string, kinds []string) []string {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "trace")
	err := w.run(strings.TrimPrefix(fault+",trace:*:"+file+":after", ","), deed)
	if (err != nil) != (fault != "") {
		w.t.Fatalf("%s with %q: %v", deed, fault, err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		kind, _, _ := strings.Cut(line, ":")
		if slices.Contains(kinds, kind) {
			points = append(points, line)
		}
	}
	if len(points) < 4 {
		w.t.Fatalf("%s passed only %q", deed, points)
	}
	return points
}

// must does a deed that has to go well.
func (w *hosted) must(deed string) {
	w.t.Helper()
	if err := w.run("", deed); err != nil {
		w.t.Fatalf("%s: %v", deed, err)
	}
}
