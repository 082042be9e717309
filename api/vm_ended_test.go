package api

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// row is the VM "web" as it is stored, without a look at its process.
func (w *hosted) row() *mvm.VMInstanceItem {
	w.t.Helper()
	v := w.find("web")
	if v == nil {
		w.t.Fatal("there is no VM web")
	}
	return v
}

func (w *hosted) find(name string) *mvm.VMInstanceItem {
	w.t.Helper()
	st, err := store.Open(w.t.Context(), filepath.Join(w.dir, worldCache, "mvmdb.db"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	vms, err := st.ListVMs(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if i := slices.IndexFunc(vms, func(v *mvm.VMInstanceItem) bool { return v.Name == name }); i >= 0 {
		return vms[i]
	}
	return nil
}

// handle is that of the VM "web".
func (w *hosted) handle() vmm.Handle {
	w.t.Helper()
	h, err := handleOf(w.row())
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// events are those of the VM "web", each as "from > to: cause".
func (w *hosted) events() []string {
	w.t.Helper()
	v, err := w.open().VM.Inspect(w.t.Context(), VMInput{Identifiers: []string{"web"}})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range v.Events {
		out = append(out, e.From+" > "+e.To+": "+e.Cause)
	}
	return out
}

func kill(t *testing.T, id proc.Identity) {
	t.Helper()
	if err := proc.Signal(id, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// tell types a line on the console of a VM.
func tell(t *testing.T, h vmm.Handle, line string) {
	t.Helper()
	var err error
	eventually(t, "its console", func() bool {
		c, derr := fsx.DialUnix(t.Context(), filepath.Join(h.Dir, "console.sock"))
		if derr != nil {
			return false
		}
		_, err = c.Write([]byte(line + "\n"))
		return errors.Join(err, c.Close()) == nil
	})
}

// The end of a VMM is written down when it happens, and what the VM had on the
// host goes with it.
func TestTheEndIsWrittenDown(t *testing.T) {
	for _, tc := range []struct {
		name   string
		end    func(*testing.T, vmm.Handle)
		status mvm.VMStatus
		code   int
		reason string
	}{
		{"crash", func(t *testing.T, h vmm.Handle) { kill(t, h.VMM) }, mvm.StatusCrashed, 137, "SIGKILL"},
		{"power off", func(t *testing.T, h vmm.Handle) { tell(t, h, "poweroff") }, mvm.StatusStopped, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newHosted(t)
			w.must("create")
			tc.end(t, w.handle())
			eventually(t, "somebody writes it down", func() bool { return w.row().Status != mvm.StatusRunning })
			v := w.row()
			if v.Status != tc.status || v.ExitCode == nil || *v.ExitCode != tc.code || !strings.Contains(v.StatusReason, tc.reason) || v.PID != 0 || len(v.Handle) > 0 {
				t.Errorf("%s, %v, %q, pid %d", v.Status, v.ExitCode, v.StatusReason, v.PID)
			}
			for _, l := range w.settled() {
				if strings.HasPrefix(l, "tap") || strings.HasPrefix(l, "process") || strings.HasSuffix(l, ".sock") {
					t.Errorf("left behind: %s", l)
				}
			}
			if e := w.events(); len(e) != 3 || !strings.HasPrefix(e[2], "running > "+string(tc.status)) {
				t.Errorf("the events are %q", e)
			}
			w.must("start")
			if v := w.row(); v.ExitCode != nil || v.StatusReason != "" {
				t.Errorf("started again, it still ended with %v, %q", v.ExitCode, v.StatusReason)
			}
			w.must("rm")
		})
	}
}

// While the database is locked, or another command holds the VM, the end waits; a
// command that ends the VM has the last word.
func TestTheEndWaits(t *testing.T) {
	t.Run("for the database", func(t *testing.T) {
		t.Parallel()
		w := newHosted(t)
		w.must("create")
		db, err := sql.Open("sqlite", filepath.Join(w.dir, worldCache, "mvmdb.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		c, err := db.Conn(t.Context())
		if err == nil {
			_, err = c.ExecContext(t.Context(), "begin exclusive")
		}
		if err != nil {
			t.Fatal(err)
		}
		h := w.handle()
		kill(t, h.VMM)
		eventually(t, "the process that writes it down", func() bool {
			return slices.ContainsFunc(w.processes(), func(p process) bool { return strings.Contains(p.line, endedCommand) })
		})
		if v := w.row(); v.Status != mvm.StatusRunning {
			t.Errorf("it is %s while the database is locked", v.Status)
		}
		if _, err := c.ExecContext(t.Context(), "rollback"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is written down", func() bool { return w.row().Status == mvm.StatusCrashed })
	})
	t.Run("for a command", func(t *testing.T) {
		t.Parallel()
		w := newHosted(t)
		w.must("create")
		h := w.handle()
		held := w.command("stop:vm.stop:0:before", "stop") // stands still before it does anything
		if err := held.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the command holds it", func() bool { return stopped(held.Process.Pid) && w.row().Status == mvm.StatusStopping })
		kill(t, h.VMM)
		eventually(t, "the process that writes it down", func() bool {
			return slices.ContainsFunc(w.processes(), func(p process) bool { return strings.Contains(p.line, endedCommand) })
		})
		if err := held.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if err := held.Wait(); err != nil {
			t.Errorf("stop: %v", err)
		}
		w.settled()
		if v := w.row(); v.Status != mvm.StatusStopped || v.ExitCode == nil || *v.ExitCode != 137 {
			t.Errorf("it is %s, %v; the stop has the last word", v.Status, v.ExitCode)
		}
	})
}

// stopped reports whether a process stands still by SIGSTOP.
func stopped(pid int) bool {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, rest, _ := strings.Cut(string(data), ") ")
	return err == nil && strings.HasPrefix(rest, "T")
}

// With nobody there to write it down (the supervisor was killed before), the next
// command does.
func TestTheEndIsSeen(t *testing.T) {
	t.Parallel()
	w := newHosted(t)
	w.must("create")
	h := w.handle()
	kill(t, h.Supervisor)
	kill(t, h.VMM)
	if err := errors.Join(proc.WaitExit(t.Context(), h.Supervisor), proc.WaitExit(t.Context(), h.VMM)); err != nil {
		t.Fatal(err)
	}
	v, err := w.open().VM.Get(t.Context(), VMInput{Identifiers: []string{"web"}})
	if err != nil || v.Status != mvm.StatusCrashed || v.ExitCode != nil || !strings.Contains(v.StatusReason, "supervisor") {
		t.Errorf("%+v, %v", v, err)
	}
	if v := w.row(); v.Status != mvm.StatusCrashed {
		t.Errorf("it is stored as %s", v.Status)
	}
}

// After a reboot of the host, every VM that ran has crashed, and says why.
func TestReboot(t *testing.T) {
	t.Parallel()
	w := newHosted(t)
	w.must("create")
	w.reboot()
	v, err := w.open().VM.Get(t.Context(), VMInput{Identifiers: []string{"web"}})
	if err != nil || v.Status != mvm.StatusCrashed || !strings.Contains(v.StatusReason, "rebooted") {
		t.Errorf("%+v, %v", v, err)
	}
	w.must("start")
	if v := w.row(); v.Status != mvm.StatusRunning || v.StatusReason != "" {
		t.Errorf("it is %s, %q", v.Status, v.StatusReason)
	}
	w.must("rm")
}

// reboot does to the world what a reboot of its host does: processes and network
// are gone, and the identities in rows are of another boot.
func (w *hosted) reboot() {
	w.t.Helper()
	st, err := w.open().core.open(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	vms, err := st.ListVMs(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, v := range vms {
		h, err := handleOf(v)
		if err != nil {
			continue
		}
		h.VMM.BootID, h.Supervisor.BootID = "another", "another"
		if v.Handle, err = json.Marshal(h); err == nil {
			err = st.UpdateVM(w.t.Context(), v)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	for _, supervisors := range []bool{true, false} { // they would write the end down
		for _, p := range w.processes() {
			if strings.Contains(p.line, supervisor.Command) == supervisors {
				_ = proc.Kill(context.Background(), p.id, 0)
			}
		}
	}
	if err := os.Remove(w.net.File); err != nil {
		w.t.Fatal(err)
	}
}
