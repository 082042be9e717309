package supervisor

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// A VMM whose supervisor was killed gets another one: the console goes on, nothing
// of it is lost, and its end is written down.
func TestAdopt(t *testing.T) {
	s := spec(t, `echo booted; n=0; while read line; do echo "heard $line"; [ "$line" = end ] && exit 7; done`)
	l := Launcher{Exe: os.Args[0]}
	st := spawn(t, s)
	eventually(t, "boot message in the log", contains(s.Console, "booted"))
	if err := proc.Kill(t.Context(), st.Supervisor, 0); err != nil {
		t.Fatal(err)
	}
	in, err := os.OpenFile(s.Dir+"/"+consoleIn, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(in, "between\n") // it goes on meanwhile
	_ = in.Close()
	if err != nil {
		t.Fatal(err)
	}
	// Of several that want to, one does.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { _, _ = Adopt(context.Background(), l, s.ID, s.Dir, st.VMM) })
	}
	wg.Wait()
	var found []proc.Identity
	eventually(t, "one supervisor", func() bool {
		found, err = find(s.ID)
		return err == nil && len(found) == 1
	})
	if again, err := Adopt(t.Context(), l, s.ID, s.Dir, st.VMM); again != found[0] || err != nil {
		t.Errorf("%v, %v; there is %v", again, err, found[0])
	}
	eventually(t, "what was said meanwhile", contains(s.Console, "heard between"))
	if data, _ := os.ReadFile(s.Console); !strings.HasPrefix(string(data), "booted\n") {
		t.Errorf("the log has %q", data)
	}
	viewer := attach(t, s, "heard between\n")
	if _, err := io.WriteString(viewer, "end\n"); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(viewer); !strings.Contains(string(got), "heard end") {
		t.Errorf("the viewer sees %q", got)
	}
	exit, err := vmm.WaitExit(t.Context(), vmm.Handle{Dir: s.Dir, VMM: st.VMM, Supervisor: found[0]})
	if err != nil || exit.Code != 7 && (exit.Code != -1 || exit.Reason == "") {
		t.Errorf("exit is %+v, %v", exit, err)
	}
	if _, err := Adopt(t.Context(), l, s.ID, s.Dir, st.VMM); err == nil {
		t.Error("a VMM that has ended was taken over")
	}
}

// What a supervisor says when it fails is kept, until the VM starts anew.
func TestFailure(t *testing.T) {
	s := spec(t, "exec sleep 1000")
	l := Launcher{Exe: os.Args[0]}
	st := spawn(t, s)
	if got := Failure(s.Dir); got != "" {
		t.Errorf("a supervisor that runs has failed: %q", got)
	}
	self := st.Supervisor
	for range 2 {
		if err := proc.Signal(self, unix.SIGABRT); err != nil {
			t.Fatal(err)
		}
		eventually(t, "its end", func() bool { return !proc.Alive(self) })
		if got := Failure(s.Dir); got != "SIGABRT: abort" {
			t.Errorf("it has failed: %q", got)
		}
		var err error
		if self, err = Adopt(t.Context(), l, s.ID, s.Dir, st.VMM); err != nil {
			t.Fatal(err)
		}
		if got := Failure(s.Dir); got != "" {
			t.Errorf("its successor has failed: %q", got)
		}
		if data, err := os.ReadFile(filepath.Join(s.Dir, crashFile+oldCrash)); err != nil || !strings.Contains(string(data), "goroutine") {
			t.Errorf("of it is kept %.100q, %v", data, err)
		}
	}
}
