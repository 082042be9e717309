package op_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

// points are all points of a plan at which an operation can be hit.
func points() []string {
	all := []string{"reserve:after"}
	for n := range steps {
		all = append(all, fmt.Sprint(n, ":before"), fmt.Sprint(n, ":after"))
	}
	return append(all, "file:before", "commit:before", "commit:after")
}

// The promise of the package: hit anywhere in any way, the world ends as it
// began; past the commit point it ends as it should.
func TestHitAnywhere(t *testing.T) {
	for _, action := range []string{"error", "cancel", "kill"} {
		for _, point := range points() {
			fault := action + ":vm.create:" + point
			t.Run(fault, func(t *testing.T) {
				dir := t.TempDir()
				err := hit(t, dir, "create", fault)
				w := newWorld(t, dir)
				want, toRecover := nothing, 0
				if point == "commit:after" {
					want = created
				} else if action == "kill" {
					toRecover = 1
				}
				if (err == nil) != (point == "commit:after" && action != "kill") {
					t.Errorf("the error is %v", err)
				}
				for _, done := range w.recovered(t, toRecover) {
					if done.Err != nil || done.Kind != "vm.create" || done.Subject != "web" || done.SubjectID != vmID || done.Forward {
						t.Errorf("recovered %+v", done)
					}
				}
				w.want(t, want)
				w.recovered(t, 0)
				if want == nothing { // name and files are free again
					must(t, w.j.Run(t.Context(), w.create()))
					w.want(t, created)
				}
			})
		}
	}
}

// hit runs a verb with a fault: a kill in a process of its own, the others here.
func hit(t *testing.T, dir, verb, fault string) error {
	t.Helper()
	if strings.HasPrefix(fault, "kill:") {
		err := spawn(t, dir, verb, fault)
		if err == nil || !strings.Contains(err.Error(), "signal: killed") {
			t.Fatalf("the process was not killed: %v", err)
		}
		return err
	}
	t.Setenv(op.FaultVariable, fault)
	err := command(dir, verb)
	t.Setenv(op.FaultVariable, "")
	return err
}

// Hit again while it takes back what a failure has left.
func TestHitWhileTakingBack(t *testing.T) {
	for _, action := range []string{"error", "cancel", "kill"} {
		for _, point := range []string{"revert:4:before", "revert:3:after", "revert:2:before", "revert:0:before", "revert:0:after", "undo:before", "undo:after"} {
			fault := action + ":*:" + point
			t.Run(fault, func(t *testing.T) {
				dir := t.TempDir()
				err := hit(t, dir, "create, and fail", fault)
				if err == nil {
					t.Error("no error")
				}
				if action != "kill" && !strings.HasPrefix(err.Error(), "this step always fails") {
					t.Errorf("the first error is not first: %v", err)
				}
				w := newWorld(t, dir)
				_, err = w.j.Recover(t.Context())
				must(t, err)
				w.want(t, nothing)
				w.recovered(t, 0)
			})
		}
	}
}

// Removing goes forward: hit anywhere, the next command finishes it.
func TestHitWhileRemoving(t *testing.T) {
	all := []string{"reserve:after", "finish:before", "finish:after"}
	for n := range steps {
		all = append(all, fmt.Sprint("revert:", n, ":before"), fmt.Sprint("revert:", n, ":after"))
	}
	for _, action := range []string{"error", "cancel", "kill"} {
		for _, point := range all {
			fault := action + ":vm.remove:" + point
			t.Run(fault, func(t *testing.T) {
				dir := t.TempDir()
				w := newWorld(t, dir)
				must(t, w.j.Run(t.Context(), w.create()))
				err := hit(t, dir, "remove", fault)
				if err == nil && w.state(t) != nothing {
					t.Errorf("no error, and yet there is\n%s", w.state(t))
				}
				if _, err := w.j.Recover(t.Context()); err != nil {
					t.Error(err)
				}
				w.want(t, nothing)
				w.recovered(t, 0)
			})
		}
	}
}

// A step that finds somebody else's object fails, and does not take it away.
func TestSomebodyElsesObject(t *testing.T) {
	w := newWorld(t, t.TempDir())
	must(t, os.WriteFile(w.file(2), []byte("else"), 0o600))
	if err := w.j.Run(t.Context(), w.create()); !errors.Is(err, os.ErrExist) {
		t.Errorf("error is %v", err)
	}
	w.want(t, "host/file2 else")
}

func TestRunTells(t *testing.T) {
	w := newWorld(t, t.TempDir())
	o := w.create()
	var told []string
	o.OnStep = func(kind string) { told = append(told, kind) }
	o.Commit = func(tx *store.Tx) error {
		if n := strings.Count(w.state(t), "host/file"); n != steps {
			t.Errorf("commit comes after %d steps", n)
		}
		_, err := tx.SetVMStatus(tx.Context(), vmID, mvm.StatusRunning, "")
		return err
	}
	must(t, w.j.Run(t.Context(), o))
	w.want(t, created)
	if len(told) != steps {
		t.Errorf("told of %v", told)
	}
}

func TestRefusedBeforeAnyEffect(t *testing.T) {
	boom := errors.New("boom")
	for _, tt := range []struct {
		name string
		set  func(*op.Op)
		want error
	}{
		{"reserve", func(o *op.Op) { o.Reserve = func(*store.Tx) error { return boom } }, boom},
		{"plan", func(o *op.Op) { o.Plan = func() ([]op.Step, error) { return nil, boom } }, boom},
		{"unknown step", func(o *op.Op) { o.Steps = append(o.Steps, &odd{}) }, mvm.ErrInvalid},
		{"unknown planned step", func(o *op.Op) { o.Plan = func() ([]op.Step, error) { return []op.Step{&odd{}}, nil } }, mvm.ErrInvalid},
		{"commit", func(o *op.Op) { o.Commit = func(*store.Tx) error { return boom } }, boom},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, t.TempDir())
			o := w.create()
			tt.set(&o)
			if err := w.j.Run(t.Context(), o); !errors.Is(err, tt.want) {
				t.Errorf("error is %v", err)
			}
			w.want(t, nothing)
		})
	}
	t.Run("fault that cannot be read", func(t *testing.T) {
		t.Setenv(op.FaultVariable, "explode:*:0:before")
		w := newWorld(t, t.TempDir())
		if err := w.j.Run(t.Context(), w.create()); !errors.Is(err, mvm.ErrInvalid) {
			t.Errorf("error is %v", err)
		}
		w.want(t, nothing)
	})
}

type odd struct{ fileStep }

func (*odd) Kind() string { return "odd" }

// What cannot be reverted is kept, with the reason, until it can.
func TestStuck(t *testing.T) {
	w := newWorld(t, t.TempDir())
	stuck := filepath.Join(w.dir, "stuck")
	must(t, os.WriteFile(stuck, nil, 0o600))
	o := w.create()
	o.Steps = append(o.Steps[:2:2], &fileStep{Fail: true})
	err := w.j.Run(t.Context(), o)
	want := "this step always fails (cleaning up failed, the next command tries again: file1 cannot be removed; file0 cannot be removed)"
	var undo *op.UndoError
	if !errors.As(err, &undo) || err.Error() != want {
		t.Errorf("error is %v\nwant %s", err, want)
	}
	lock := w.lockFile(t)
	kept := "host/file0 web\nhost/file1 web\nop vm.create failed\n" + lock + " \nvm web error"
	w.want(t, kept)
	if v, err := w.st.GetVM(t.Context(), vmID); err != nil || !strings.Contains(v.StatusReason, "this step always fails") {
		t.Errorf("VM is %+v, %v", v, err)
	}
	if err := w.j.Run(t.Context(), w.create()); !errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "" {
		t.Errorf("run on what is stuck: %v", err)
	}
	if done := w.recovered(t, 1); len(done) == 1 && done[0].Err == nil {
		t.Error("recovered what is stuck")
	}
	w.want(t, kept)
	must(t, os.Remove(stuck))
	if done := w.recovered(t, 1); len(done) == 1 && done[0].Err != nil {
		t.Error(done[0].Err)
	}
	w.want(t, nothing)
}

func (w *world) lockFile(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(w.dir, "ops", "*.lock"))
	if err != nil || len(names) != 1 {
		t.Fatalf("lock files are %v, %v", names, err)
	}
	return "ops/" + filepath.Base(names[0])
}

// Removing drops what a stuck creation has left, which it removes itself.
func TestRemoveWhatIsStuck(t *testing.T) {
	w := newWorld(t, t.TempDir())
	stuck := filepath.Join(w.dir, "stuck")
	must(t, os.WriteFile(stuck, nil, 0o600))
	o := w.create()
	o.Steps = append(o.Steps, &fileStep{Fail: true})
	if err := w.j.Run(t.Context(), o); err == nil {
		t.Error("no error")
	}
	if err := w.j.Forward(t.Context(), w.remove()); err == nil || err.Error() != "file0 cannot be removed" {
		t.Errorf("remove while stuck: %v", err)
	}
	must(t, os.Remove(stuck))
	must(t, w.j.Forward(t.Context(), w.remove()))
	w.recovered(t, 0)
	w.want(t, nothing)
}

func TestKeepOnFailure(t *testing.T) {
	for _, action := range []string{"error", "cancel", "kill"} {
		t.Run(action, func(t *testing.T) {
			dir := t.TempDir()
			if err := hit(t, dir, "create, keep", action+":*:2:after"); err == nil {
				t.Error("no error")
			}
			w := newWorld(t, dir)
			_, err := w.j.Recover(t.Context())
			must(t, err)
			w.want(t, "host/file0 web\nhost/file1 web\nhost/file2 web\nvm web error")
			must(t, w.j.Forward(t.Context(), w.remove()))
			w.want(t, nothing)
		})
	}
}

// While an operation runs nobody recovers it, and no other may work on its VM.
func TestLiveOperationIsLeftAlone(t *testing.T) {
	w := newWorld(t, t.TempDir())
	o := w.create()
	o.OnStep = func(string) {
		before := w.state(t)
		must(t, spawn(t, w.dir, "recover", ""))
		w.recovered(t, 0)
		err := w.j.Forward(t.Context(), w.remove())
		if !errors.Is(err, mvm.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("another command (vm.create, pid %d) is working on %q", os.Getpid(), "web")) {
			t.Errorf("error is %v", err)
		}
		w.want(t, before)
	}
	must(t, w.j.Run(t.Context(), o))
	w.want(t, created)
}

// Ten commands find the same dead operations: all are reverted, once.
func TestTenRecoverAtOnce(t *testing.T) {
	dir := t.TempDir()
	_ = hit(t, dir, "create", "kill:*:3:after")
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for range 10 {
		w := newWorld(t, dir)
		wg.Go(func() {
			done, err := w.j.Recover(context.Background())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			total += len(done)
		})
	}
	wg.Wait()
	if total != 1 {
		t.Errorf("recovered %d times", total)
	}
	newWorld(t, dir).want(t, nothing)
}

// Ten commands create the same VM, while others recover: one wins.
func TestTenCreateAtOnce(t *testing.T) {
	dir := t.TempDir()
	errs := make([]error, 10)
	var wg sync.WaitGroup
	for i := range errs {
		w := newWorld(t, dir)
		wg.Go(func() {
			_, err := w.j.Recover(context.Background())
			if err != nil {
				t.Error(err)
			}
			errs[i] = w.j.Run(context.Background(), w.create())
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch kind := mvm.KindOf(err); {
		case err == nil:
			won++
		case kind != mvm.ErrExists && kind != mvm.ErrBusy:
			t.Errorf("%s: %v", kind, err)
		}
	}
	if won != 1 {
		t.Errorf("%d won", won)
	}
	newWorld(t, dir).want(t, created)
}

func TestOrphanLocksAreRemoved(t *testing.T) {
	w := newWorld(t, t.TempDir())
	must(t, os.Mkdir(filepath.Join(w.dir, "ops"), 0o700))
	for _, name := range []string{"0123456789abcdef.lock", "note.txt"} {
		must(t, os.WriteFile(filepath.Join(w.dir, "ops", name), nil, 0o600))
	}
	w.recovered(t, 0)
	w.want(t, "ops/note.txt ")
}

// An older mvm must not drop what it does not understand.
func TestUnknownStepIsKept(t *testing.T) {
	dir := t.TempDir()
	_ = hit(t, dir, "create", "kill:*:1:after")
	w := newWorld(t, dir)
	old := op.New(w.st, filepath.Join(dir, "ops"), nil)
	done, err := old.Recover(t.Context())
	if err != nil || len(done) != 1 || !errors.Is(done[0].Err, mvm.ErrUnsupported) {
		t.Errorf("recovered %+v, %v", done, err)
	}
	w.recovered(t, 1)
	w.want(t, nothing)
}
