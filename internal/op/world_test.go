package op_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

// fileStep makes a file that says whose it is.
type fileStep struct {
	Path  string
	Owner string
	Fail  bool   // Apply fails
	Stuck string // a file; while it exists, Revert fails
}

func (s *fileStep) Kind() string { return "file" }

func (s *fileStep) Apply(ctx context.Context) error {
	if s.Fail {
		return errors.New("this step always fails")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	tmp := s.Path + ".tmp"
	if err := os.WriteFile(tmp, []byte(s.Owner), 0o600); err != nil {
		return err
	}
	return errors.Join(os.Link(tmp, s.Path), os.Remove(tmp))
}

func (s *fileStep) Revert(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := os.Stat(s.Stuck); s.Stuck != "" && err == nil {
		return fmt.Errorf("%s cannot be removed", filepath.Base(s.Path))
	}
	_ = os.Remove(s.Path + ".tmp") // half-way
	data, err := os.ReadFile(s.Path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && string(data) != s.Owner {
		return nil
	}
	return errors.Join(err, os.Remove(s.Path))
}

// world is a host with files and a database.
type world struct {
	dir string
	st  *store.Store
	j   *op.Journal
}

const vmID = "00000000000000aa"

func newWorld(t *testing.T, dir string) *world {
	t.Helper()
	w, err := enter(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.st.Close() })
	return w
}

// enter opens a world as a command does.
func enter(ctx context.Context, dir string) (*world, error) {
	if err := os.MkdirAll(filepath.Join(dir, "host"), 0o700); err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, filepath.Join(dir, "mvm.db"))
	if err != nil {
		return nil, err
	}
	j := op.New(st, filepath.Join(dir, "ops"), map[string]op.Decoder{"file": op.Decode[fileStep]})
	j.OnUndo("vm.create", func(tx *store.Tx, id string, data []byte) error {
		if string(data) != `"undo data"` {
			return fmt.Errorf("undo data is %q", data)
		}
		return tx.DeleteVM(tx.Context(), id)
	})
	j.OnFinish("vm.remove", func(tx *store.Tx, id string, _ []byte) error { return tx.DeleteVM(tx.Context(), id) })
	stuck := func(tx *store.Tx, id string, _ []byte, reason string) error {
		_, err := tx.SetVMStatus(tx.Context(), id, mvm.StatusError, reason)
		return err
	}
	j.OnStuck("vm.create", stuck)
	j.OnStuck("vm.remove", stuck)
	return &world{dir, st, j}, nil
}

func (w *world) file(i int) string { return filepath.Join(w.dir, "host", fmt.Sprint("file", i)) }

const steps = 4

// create is the plan of the tests: a VM's row, four files, a lease.
func (w *world) create() op.Op {
	ctx := context.Background()
	undo, _ := json.Marshal("undo data")
	o := op.Op{
		Kind: "vm.create", Subject: "web", SubjectID: vmID, UndoData: undo,
		Reserve: func(tx *store.Tx) error {
			return tx.InsertVM(ctx, &mvm.VMInstanceItem{ID: vmID, Name: "web", Status: mvm.StatusStarting})
		},
		Commit: func(tx *store.Tx) error {
			_, err := tx.SetVMStatus(ctx, vmID, mvm.StatusRunning, "")
			return err
		},
	}
	for i := range steps {
		o.Steps = append(o.Steps, &fileStep{Path: w.file(i), Owner: "web", Stuck: filepath.Join(w.dir, "stuck")})
	}
	return o
}

// remove takes away what create has made.
func (w *world) remove() op.Op {
	o := w.create()
	o.Kind, o.Reserve, o.Commit, o.UndoData = "vm.remove", nil, nil, nil
	o.Reserve = func(tx *store.Tx) error {
		_, err := tx.ClaimVM(tx.Context(), vmID, mvm.VerbRemove)
		return err
	}
	return o
}

// state describes everything there is, one thing a line.
func (w *world) state(t *testing.T) string {
	t.Helper()
	var lines []string
	for _, pattern := range []string{"host/*", "ops/*"} {
		names, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			rel, _ := filepath.Rel(w.dir, name)
			lines = append(lines, rel+" "+string(data))
		}
	}
	vms, err := w.st.ListVMs(t.Context())
	must(t, err)
	for _, v := range vms {
		lines = append(lines, fmt.Sprint("vm ", v.Name, " ", v.Status))
	}
	rows, err := w.st.ListOps(t.Context(), "")
	must(t, err)
	for _, r := range rows {
		lines = append(lines, fmt.Sprint("op ", r.Kind, " ", r.State))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

const (
	nothing = ""
	created = "host/file0 web\nhost/file1 web\nhost/file2 web\nhost/file3 web\nvm web running"
)

func (w *world) want(t *testing.T, want string) {
	t.Helper()
	if got := w.state(t); got != want {
		t.Errorf("the world is\n%s\nwant\n%s", got, want)
	}
}

// recovered runs Recover and checks how many operations it took care of.
func (w *world) recovered(t *testing.T, want int) []op.Recovered {
	t.Helper()
	done, err := w.j.Recover(t.Context())
	if err != nil || len(done) != want {
		t.Errorf("recovered %+v, %v; want %d", done, err, want)
	}
	return done
}

// Variables that make the test binary a command of its own in a world.
const (
	dirVariable  = "MVM_OP_TEST_DIR"
	verbVariable = "MVM_OP_TEST_VERB"
)

func TestMain(m *testing.M) {
	dir := os.Getenv(dirVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := command(dir, os.Getenv(verbVariable)); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func command(dir, verb string) error {
	ctx := context.Background()
	w, err := enter(ctx, dir)
	if err != nil {
		return err
	}
	switch verb {
	case "create":
		return w.j.Run(ctx, w.create())
	case "create, and fail":
		o := w.create()
		o.Steps = append(o.Steps, &fileStep{Fail: true})
		return w.j.Run(ctx, o)
	case "create, keep":
		o := w.create()
		o.KeepOnFailure = true
		return w.j.Run(ctx, o)
	case "remove":
		return w.j.Forward(ctx, w.remove())
	case "recover":
		_, err := w.j.Recover(ctx)
		return err
	}
	return errors.New("unknown verb")
}

// spawn runs a verb in a process of its own.
func spawn(t *testing.T, dir, verb, fault string) error {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), dirVariable+"="+dir, verbVariable+"="+verb, op.FaultVariable+"="+fault)
	out, err := c.CombinedOutput()
	if len(out) > 0 && err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
