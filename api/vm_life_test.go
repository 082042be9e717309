package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

func sel(names ...string) VMInput { return VMInput{Identifiers: names, Timeout: 10 * time.Second} }

func statusOf(t *testing.T, m *Client, name string) mvm.VMStatus {
	t.Helper()
	v, err := m.VM.Get(t.Context(), sel(name))
	if err != nil {
		t.Fatal(err)
	}
	return v.Status
}

func TestLifeOfAVM(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	res, err := m.VM.Create(ctx, VMCreateInput{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	vm := res.VMs[0]
	if vm.Status != mvm.StatusRunning || vm.IPv4 != "172.27.0.2" || vm.PID == 0 || vm.Hypervisor != "qemu" {
		t.Errorf("made %+v", vm)
	}
	for _, step := range []struct {
		verb string
		do   func(*Client) error
		want mvm.VMStatus
	}{
		{"pause", func(m *Client) error { _, err := m.VM.Pause(ctx, sel("web")); return err }, mvm.StatusPaused},
		{"resume", func(m *Client) error { _, err := m.VM.Resume(ctx, sel("web")); return err }, mvm.StatusRunning},
		{"stop", func(m *Client) error { _, err := m.VM.Stop(ctx, sel(vm.IPv4)); return err }, mvm.StatusStopped},
		{"start", func(m *Client) error { _, err := m.VM.Start(ctx, sel(strings.ToLower(vm.MAC))); return err }, mvm.StatusRunning},
		{"reboot", func(m *Client) error { _, err := m.VM.Reboot(ctx, sel(vm.ID[:6])); return err }, mvm.StatusRunning},
		{"forced stop", func(m *Client) error {
			_, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true})
			return err
		}, mvm.StatusStopped},
		{"start again", func(m *Client) error { _, err := m.VM.Start(ctx, sel("web")); return err }, mvm.StatusRunning},
	} {
		m := w.open() // another command each time
		if err := step.do(m); err != nil {
			t.Fatalf("%s: %v", step.verb, err)
		}
		if got := statusOf(t, m, "web"); got != step.want {
			t.Fatalf("after %s it is %s, want %s", step.verb, got, step.want)
		}
	}
	again, err := m.VM.Get(ctx, sel("web"))
	if err != nil || again.ID != vm.ID || again.IPv4 != vm.IPv4 || again.MAC != vm.MAC {
		t.Errorf("it is not the same VM any more: %+v, %v", again, err)
	}
	if _, err := m.VM.Remove(ctx, sel("web")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{}, w.state()); diff != "" {
		t.Errorf("something is left:\n%s", diff)
	}
	if _, err := m.VM.Get(ctx, sel("web")); !errors.Is(err, mvm.ErrNotFound) {
		t.Errorf("it can still be found: %v", err)
	}
}

// A paused guest is asked to power off as one that runs is.
func TestStopPaused(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", NoAgent: true}); err != nil {
		t.Fatal(err)
	}
	_, err1 := m.VM.Pause(t.Context(), sel("web"))
	_, err2 := m.VM.Stop(t.Context(), VMInput{Identifiers: []string{"web"}, Timeout: time.Minute})
	v, err3 := m.VM.Get(t.Context(), sel("web"))
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if v.Status != mvm.StatusStopped || v.ExitCode == nil || *v.ExitCode != 0 {
		t.Errorf("it is %s, exit code %v: its guest did not power off", v.Status, v.ExitCode)
	}
}

// Every verb from every phase that a user can bring a VM into.
func TestVerbsFromWrongPhases(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	verbs := map[mvm.Verb]func(context.Context, VMInput, ...Option) (mvm.Batch[*mvm.VMInstanceItem], error){
		mvm.VerbStart: m.VM.Start, mvm.VerbStop: m.VM.Stop, mvm.VerbPause: m.VM.Pause, mvm.VerbResume: m.VM.Resume, mvm.VerbReboot: m.VM.Reboot,
	}
	bring := map[mvm.VMStatus]func() error{
		mvm.StatusRunning: func() error { return nil },
		mvm.StatusPaused:  func() error { _, err := m.VM.Pause(ctx, sel("web")); return err },
		mvm.StatusStopped: func() error { _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); return err },
	}
	for phase, do := range bring {
		if _, err := m.VM.Create(ctx, VMCreateInput{Name: "web", NoAgent: true}); err != nil {
			t.Fatal(err)
		}
		if err := do(); err != nil {
			t.Fatal(err)
		}
		before := w.state()
		for verb, call := range verbs {
			if mvm.TransitionOf(verb).Allows(phase) {
				continue
			}
			_, err := call(ctx, sel("web"))
			refused(t, err, mvm.ErrConflict, "it is "+string(phase))
		}
		if diff := cmp.Diff(before, w.state()); diff != "" {
			t.Errorf("a refused verb changed something:\n%s", diff)
		}
		if _, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEndsByThemselves(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	res, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	w.driver.End(res.VMs[0].ID, vmm.Exit{Reason: "the guest powered off"}) // nothing writes exit.json: nobody knows
	eventually(t, "the VM counts as crashed", func() bool { return statusOf(t, m, "web") == mvm.StatusCrashed })
	v, err := m.VM.Get(t.Context(), sel("web"))
	if err != nil || v.StatusReason == "" || v.PID != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	_, err = m.VM.Stop(t.Context(), sel("web"))
	refused(t, err, mvm.ErrConflict, "it is crashed")
	if _, err := m.VM.Start(t.Context(), sel("web")); err != nil {
		t.Errorf("a crashed VM does not start: %v", err)
	}
}

// An operation that fails at any step, before or after the step's effect, leaves
// the world as it was, and goes through when it is tried again.
func TestFailureAtEveryStep(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	create := func(m *Client, name string) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: name, NoAgent: true})
		return err
	}
	if err := create(m, "other"); err != nil { // the network is up from here on, and somebody else's VM is there
		t.Fatal(err)
	}
	stop := func(m *Client, name string) error {
		_, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{name}, Force: true})
		return err
	}
	start := func(m *Client, name string) error { _, err := m.VM.Start(ctx, sel(name)); return err }
	for _, tc := range []struct {
		kind   string
		points []string
		do     func(*Client, string) error
		undo   func(*Client, string) error
		with   func() error // what has to be there
	}{
		{opCreate, []string{"reserve", "dir", "identity", "disk", "seed", "network", "tap", "vmm", "commit"}, create,
			func(m *Client, name string) error {
				_, err := m.VM.Remove(ctx, VMInput{Identifiers: []string{name}, Force: true})
				return err
			}, nil},
		{opStart, []string{"reserve", "clear", "seed", "network", "tap", "vmm", "commit"}, start, stop,
			func() error { return errors.Join(create(m, "web"), stop(m, "web")) }},
	} {
		if tc.with != nil {
			if err := tc.with(); err != nil {
				t.Fatal(err)
			}
		}
		before := w.state()
		for _, point := range tc.points {
			for _, action := range []string{"error", "cancel"} {
				for _, when := range []string{"before", "after"} {
					if point == "reserve" && when == "before" || point == "commit" && when == "after" {
						continue // no such point; past the commit nothing fails
					}
					fault := fmt.Sprintf("%s:%s:%s:%s", action, tc.kind, point, when)
					err := tc.do(w.faulty(fault), "web")
					if err == nil {
						t.Fatalf("%s: nothing failed", fault)
					}
					if want := map[string]string{"error": "injected", "cancel": "interrupted"}[action]; !strings.Contains(err.Error(), want) && !errors.Is(err, context.Canceled) {
						t.Errorf("%s: the error is %v", fault, err)
					}
					if diff := cmp.Diff(before, w.state()); diff != "" {
						t.Errorf("%s: the world changed:\n%s", fault, diff)
					}
				}
			}
		}
		if err := tc.do(w.open(), "web"); err != nil {
			t.Errorf("%s does not work afterwards: %v", tc.kind, err)
		}
		if err := tc.undo(w.open(), "web"); err != nil {
			t.Error(err)
		}
		if tc.with == nil {
			if diff := cmp.Diff(before, w.state()); diff != "" {
				t.Errorf("%s and back changed the world:\n%s", tc.kind, diff)
			}
		}
	}
}

// Removal is never taken back: what was begun is finished by the next command.
func TestRemovalIsFinished(t *testing.T) {
	w := newWorld(t)
	w.stock(w.open())
	if _, err := w.open().VM.Create(t.Context(), VMCreateInput{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	for _, point := range []string{"revert:vmm", "revert:tap", "revert:dir", "finish"} {
		for _, when := range []string{"before", "after"} {
			if point == "finish" && when == "after" {
				continue
			}
			if _, err := w.open().VM.Create(t.Context(), VMCreateInput{Name: "web"}); err != nil {
				t.Fatal(err)
			}
			broken := w.faulty("error:" + opRemove + ":" + point + ":" + when)
			if _, err := broken.VM.Remove(t.Context(), VMInput{Identifiers: []string{"web"}, Force: true}); err == nil {
				t.Fatalf("%s %s: nothing failed", point, when)
			}
			if diff := cmp.Diff(before, w.state()); diff != "" { // opens anew, as the next command does
				t.Errorf("%s %s: the removal was not finished:\n%s", point, when, diff)
			}
		}
	}
}

func TestCreateSeveral(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	n := 6
	res, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", Count: &n})
	if err != nil {
		t.Fatal(err)
	}
	ips, names := map[string]bool{}, map[string]bool{}
	for _, v := range res.VMs {
		ips[v.IPv4], names[v.Name] = true, true
	}
	if len(ips) != n || len(names) != n || !names["web-1"] || !names["web-6"] {
		t.Errorf("made %v with %v", names, ips)
	}
	before := w.state()
	n = 8 // the first six are taken
	res, err = m.VM.Create(t.Context(), VMCreateInput{Name: "web", Count: &n, Atomic: true})
	if !errors.Is(err, mvm.ErrExists) || len(res.VMs) != 0 {
		t.Errorf("made %d, %v", len(res.VMs), err)
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("an atomic batch left something:\n%s", diff)
	}
	if res, err = m.VM.Create(t.Context(), VMCreateInput{Name: "web", Count: &n}); !errors.Is(err, mvm.ErrExists) || len(res.VMs) != 2 {
		t.Errorf("made %d of the two free names, %v", len(res.VMs), err)
	}
	for _, bad := range []int{0, -1, maxBatch + 1} {
		_, err := m.VM.Create(t.Context(), VMCreateInput{Name: "x", Count: &bad})
		refused(t, err, mvm.ErrInvalid, "VMs asked for")
	}
}

func TestWithoutRoot(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	w.root = false
	before := w.state()
	_, err := m.VM.Create(t.Context(), VMCreateInput{Name: "new"})
	refused(t, err, mvm.ErrPrivilege, "sudo mvm host init")
	for _, call := range []func(context.Context, VMInput, ...Option) (mvm.Batch[*mvm.VMInstanceItem], error){
		m.VM.Stop, m.VM.Start, m.VM.Remove, m.VM.Pause, m.VM.Resume, m.VM.Reboot,
	} {
		_, err := call(t.Context(), sel("web"))
		refused(t, err, mvm.ErrPrivilege, "sudo mvm host init")
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("something changed:\n%s", diff)
	}
}
