package api

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

func TestPruneVMs(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	for _, name := range []string{"runs", "pauses", "stopped"} {
		if _, err := m.VM.Create(ctx, VMCreateInput{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	_, err1 := m.VM.Pause(ctx, sel("pauses"))
	_, err2 := m.VM.Stop(ctx, VMInput{Identifiers: []string{"stopped"}, Force: true})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	w.root = false
	dry, err := m.Cache.PruneVMs(ctx, PruneInput{DryRun: true})
	if diff := cmp.Diff([]string{"pauses", "stopped"}, dry.Removed); err != nil || diff != "" || dry.Bytes == 0 {
		t.Errorf("%v, %d bytes\n%s", err, dry.Bytes, diff)
	}
	_, err = m.VM.Prune(ctx, PruneInput{})
	refused(t, err, mvm.ErrPrivilege, "sudo mvm host init")
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("a dry run, or one without root, changed something:\n%s", diff)
	}
	w.root = true
	res, err := m.VM.Prune(ctx, PruneInput{})
	if diff := cmp.Diff(dry, res); err != nil || diff != "" {
		t.Errorf("%v; the dry run said something else:\n%s", err, diff)
	}
	if got := statusOf(t, m, "runs"); got != mvm.StatusRunning {
		t.Errorf("the one that runs is %s", got)
	}
	if res, err := m.VM.Prune(ctx, PruneInput{}); err != nil || len(res.Removed) != 0 || res.Removed == nil {
		t.Errorf("again: %+v, %v", res, err)
	}
	if res, err := m.VM.Prune(ctx, PruneInput{All: true}); err != nil || len(res.Removed) != 1 {
		t.Errorf("all: %+v, %v", res, err)
	}
	if diff := cmp.Diff([]string{}, w.state()); diff != "" {
		t.Errorf("something is left:\n%s", diff)
	}
}

// A VM that was started after pruning looked at it is left alone.
func TestPruneSparesWhatStartedMeanwhile(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	res, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	before := w.state()
	stale := *res.VMs[0]
	stale.Status = mvm.StatusStopped
	err = m.core.removeVM(t.Context(), &stale, []mvm.VMStatus{mvm.StatusRunning, mvm.StatusStarting})
	refused(t, err, mvm.ErrConflict, "it is running by now")
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("it was touched:\n%s", diff)
	}
}

func TestPruneAssets(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	image, kernel := w.stock(m)
	ctx := t.Context()
	// A second image and kernel, which nobody uses and which are no defaults.
	i, k := *image, *kernel
	i.ID, i.Version, i.Path, i.IsDefault = newID(), "2", "images/two/disk.raw", false
	k.ID, k.Version, k.Name, k.Path, k.IsDefault = newID(), "6.2", "vmlinux-tiny-6.2", "kernels/two/vmlinux", false
	if err := errors.Join(m.core.st.InsertImage(ctx, &i), m.core.st.InsertKernel(ctx, &k)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{i.Path, k.Path} {
		path := m.core.paths.abs(p)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(strings.Repeat("x", 9000)), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	prune := func(in PruneInput) [2][]string {
		t.Helper()
		images, err1 := m.Cache.PruneImages(ctx, in)
		kernels, err2 := m.Cache.PruneKernels(ctx, in)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(images.Removed, "tiny:2") && images.Bytes < 9000 {
			t.Errorf("%d bytes were freed", images.Bytes)
		}
		return [2][]string{images.Removed, kernels.Removed}
	}
	none := [2][]string{{}, {}}
	for _, step := range []struct {
		name string
		in   PruneInput
		want [2][]string
	}{
		{"dry", PruneInput{DryRun: true}, [2][]string{{"tiny:2"}, {"tiny:6.2"}}},
		{"for real", PruneInput{}, [2][]string{{"tiny:2"}, {"tiny:6.2"}}},
		{"again", PruneInput{}, none},
		{"the defaults, while a VM uses them", PruneInput{All: true}, none},
	} {
		if diff := cmp.Diff(step.want, prune(step.in)); diff != "" {
			t.Errorf("%s:\n%s", step.name, diff)
		}
	}
	if exists(filepath.Dir(m.core.paths.abs(i.Path))) || exists(filepath.Dir(m.core.paths.abs(k.Path))) {
		t.Error("files of what was pruned are left")
	}
	if _, err := m.VM.Prune(ctx, PruneInput{All: true}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(none, prune(PruneInput{})); diff != "" {
		t.Errorf("the defaults went unasked:\n%s", diff)
	}
	if diff := cmp.Diff([2][]string{{"tiny:1"}, {"tiny:6.1"}}, prune(PruneInput{All: true})); diff != "" {
		t.Error(diff)
	}
}
