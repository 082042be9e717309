package proc

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/testenv"
)

// limit bounds what should take no time.
const limit = 2 * time.Minute

// child starts a shell that says when it is ready, and reaps it with the test.
func child(t *testing.T, script string, args ...string) (*os.Process, Identity) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, id, err := StartDetached(Spec{Path: "/bin/sh", Args: append([]string{"-c", script, "sh"}, args...), Stdout: w})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Kill()
		_, _ = p.Wait()
		_ = r.Close()
	})
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatalf("the child did not get ready: %v", err)
	}
	return p, id
}

// ready is a script that runs until it is ended by a signal.
const ready = "echo; while :; do sleep 1 & wait $!; done"

// still is a script that stops itself. It starts nothing: a child has its parent's
// arguments until it executes a program of its own.
const still = "echo; kill -STOP $$"

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func TestIdentity(t *testing.T) {
	self := Self()
	if self.PID != os.Getpid() || self.StartTime == 0 || self.BootID == "" || !Alive(self) {
		t.Fatalf("we are %+v, alive %v", self, Alive(self))
	}
	_, id := child(t, ready)
	if !Alive(id) || id == self {
		t.Errorf("the child is %+v, alive %v", id, Alive(id))
	}
	if now, err := Of(id.PID); err != nil || now != id {
		t.Errorf("Of says %+v, %v; want %+v", now, err, id)
	}
	if _, err := Of(1 << 30); !errors.Is(err, ErrGone) {
		t.Errorf("a pid that cannot be: %v", err)
	}
}

// A pid that was given to another process, or had its process before a reboot,
// is nobody's: neither found nor hurt.
func TestReusedPID(t *testing.T) {
	_, id := child(t, ready)
	earlier, before, none := id, id, Identity{}
	earlier.StartTime--
	before.BootID = "another boot"
	for _, old := range []Identity{earlier, before, none, {PID: -id.PID, StartTime: id.StartTime, BootID: id.BootID}} {
		if Alive(old) {
			t.Errorf("%+v is alive", old)
		}
		if err := Signal(old, unix.SIGKILL); !errors.Is(err, ErrGone) {
			t.Errorf("Signal(%+v): %v", old, err)
		}
		if err := Kill(within(t), old, 0); err != nil {
			t.Errorf("Kill(%+v): %v", old, err)
		}
		if err := WaitExit(within(t), old); err != nil {
			t.Errorf("WaitExit(%+v): %v", old, err)
		}
	}
	if !Alive(id) {
		t.Error("the process that has the pid now was hurt")
	}
}

// pidfd_open refuses a pid that is no process's first thread, as it does one whose
// process is being reaped.
func TestReaped(t *testing.T) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		id, err := Of(tid)
		if tid == os.Getpid() || err != nil {
			continue
		}
		if err := Signal(id, 0); err == nil || errors.Is(err, ErrGone) {
			t.Errorf("Signal to a thread that is there: %v", err)
		}
		id.StartTime--
		if err := Signal(id, 0); !errors.Is(err, ErrGone) {
			t.Errorf("Signal: %v", err)
		}
		return
	}
	t.Fatal("there is no second thread")
}

// A process that cannot be looked at is not held for dead, and gets no signal.
func TestUnknown(t *testing.T) {
	_, id := child(t, ready)
	earlier := id
	earlier.StartTime--
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, errOf := Of(id.PID)
	alive, errSignal, errWait := Alive(id), Signal(earlier, unix.SIGKILL), WaitExit(within(t), id)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !alive {
		t.Error("a process is held for dead because no file can be opened")
	}
	for what, err := range map[string]error{"Of": errOf, "Signal": errSignal, "WaitExit": errWait} {
		if err == nil || errors.Is(err, ErrGone) {
			t.Errorf("%s: %v, want an error that is not ErrGone", what, err)
		}
	}
	if !Alive(id) || Alive(earlier) {
		t.Error("with files again it is not told who lives")
	}
}

func TestZombie(t *testing.T) {
	_, id := child(t, ready, "mvm-proc-test-zombie") // reaped by Cleanup, not before
	if err := Kill(within(t), id, 0); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(id.PID) + "/stat")
	if err != nil || !strings.Contains(string(data), ") Z ") {
		t.Fatalf("it is no zombie: %s, %v", data, err)
	}
	if Alive(id) {
		t.Error("a zombie is alive")
	}
	if _, err := Of(id.PID); !errors.Is(err, ErrGone) {
		t.Errorf("Of a zombie: %v", err)
	}
	if err := WaitExit(within(t), id); err != nil {
		t.Errorf("waiting for a zombie: %v", err)
	}
	if err := Kill(within(t), id, time.Minute); err != nil {
		t.Errorf("killing a zombie: %v", err)
	}
	if found, err := FindByArg("mvm-proc-test-zombie"); err != nil || len(found) != 0 {
		t.Errorf("a zombie was found: %v, %v", found, err)
	}
}

func TestKill(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		grace        time.Duration
		want         unix.Signal
	}{
		{"obeys SIGTERM", ready, limit, unix.SIGTERM},
		{"ignores SIGTERM", "trap '' TERM; " + ready, 50 * time.Millisecond, unix.SIGKILL},
		{"at once", ready, 0, unix.SIGKILL},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, id := child(t, tc.script)
			if err := Kill(within(t), id, tc.grace); err != nil {
				t.Fatal(err)
			}
			if Alive(id) {
				t.Error("it is alive")
			}
			st, err := p.Wait()
			if err != nil {
				t.Fatal(err)
			}
			if ws, ok := st.Sys().(syscall.WaitStatus); !ok || ws.Signal() != tc.want {
				t.Errorf("it ended by %v, want %v", st, tc.want)
			}
		})
	}
}

// The first process of a pid namespace that has no handler for SIGTERM is not
// waited for: it does not get the signal.
func TestKillFirstOfNamespace(t *testing.T) {
	testenv.Require(t, "root", "netns")
	for name, tc := range map[string]struct {
		script string
		want   unix.Signal
		code   int
	}{
		"no handler": {ready, unix.SIGKILL, -1},
		"handler":    {"trap 'exit 7' TERM; " + ready, -1, 7},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			p, id, err := StartDetached(Spec{Path: "/bin/sh", Args: []string{"-c", tc.script}, Stdout: w, OwnPIDs: true})
			_ = w.Close()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if err := Kill(within(t), id, time.Hour); err != nil {
				t.Fatal(err)
			}
			st, err := p.Wait()
			if err != nil {
				t.Fatal(err)
			}
			if ws, ok := st.Sys().(syscall.WaitStatus); !ok || ws.Signal() != tc.want || st.ExitCode() != tc.code {
				t.Errorf("it ended by %v", st)
			}
		})
	}
}

func TestDropsTerm(t *testing.T) {
	for status, want := range map[string]bool{
		"NSpid:\t12\t1\nSigCgt:\t0000000000000000\n":  true,
		"NSpid:\t12\t1\nSigCgt:\t0000000000004000\n":  false,
		"NSpid:\t12\t2\nSigCgt:\t0000000000000000\n":  false,
		"NSpid:\t1\nSigCgt:\t0000000000000000\n":      false, // in our own namespace
		"NSpid:\t9\t4\t1\nSigCgt:\tfffffffffffbfff\n": true,
		"NSpid:\t12\t1\n": false, "NSpid:\t12\t1\nSigCgt:\t?\n": false, "": false,
	} {
		if got := dropsTerm(status); got != want {
			t.Errorf("%q: %v", status, got)
		}
	}
}

func TestKillCancelled(t *testing.T) {
	_, id := child(t, "trap '' TERM; "+ready)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Kill(ctx, id, limit); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if !Alive(id) {
		t.Error("it was killed although nobody waits any more")
	}
}

func TestWaitExit(t *testing.T) {
	_, id := child(t, ready)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := WaitExit(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for one that runs: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- WaitExit(within(t), id) }()
	if err := Signal(id, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || Alive(id) {
		t.Errorf("%v, alive %v", err, Alive(id))
	}
}

// A process is found also while it executes a program, when it has no arguments.
func TestFindByArgWhileExecuting(t *testing.T) {
	token := "mvm-proc-test-exec-" + strconv.Itoa(os.Getpid())
	script := filepath.Join(t.TempDir(), "again")
	if err := os.WriteFile(script, []byte("[ -n \"$2\" ] && echo\nexec /bin/sh \"$0\" \"$1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, id := child(t, "exec /bin/sh \"$1\" \"$2\" first", script, token)
	for range 60 {
		found, err := FindByArg(token)
		if err != nil || len(found) != 1 || found[0].PID != id.PID {
			t.Fatalf("found %v, %v; want %v", found, err, id)
		}
	}
}

func TestFindByArg(t *testing.T) {
	token := "mvm-proc-test-" + strconv.Itoa(os.Getpid())
	_, one := child(t, still, "id="+token+"-one,rest")
	_, two := child(t, still, token+"-two")
	find := func(tokens ...string) []int {
		ids, err := FindByArg(tokens...)
		if err != nil {
			t.Fatal(err)
		}
		var pids []int
		for _, id := range ids {
			pids = append(pids, id.PID)
		}
		slices.Sort(pids)
		return pids
	}
	both := []int{one.PID, two.PID}
	slices.Sort(both)
	for _, tc := range []struct {
		name   string
		tokens []string
		want   []int
	}{
		{"inside an argument", []string{token + "-one"}, []int{one.PID}},
		{"one of several", []string{"nobody-has-this", token + "-two"}, []int{two.PID}},
		{"both", []string{token + "-one", token + "-two"}, both},
		{"nobody", []string{token + "-three"}, nil},
		{"nothing", nil, nil},
		{"an empty token names nobody", []string{""}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := find(tc.tokens...); !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	if slices.Contains(find(filepath.Base(os.Args[0])), os.Getpid()) {
		t.Error("we found ourselves")
	}
}

// The name of a program may look like the rest of /proc/PID/stat.
func TestHostileProgramName(t *testing.T) {
	link := filepath.Join(t.TempDir(), "x) Z 1 (y")
	if err := os.Symlink("/bin/sleep", link); err != nil {
		t.Fatal(err)
	}
	p, id, err := StartDetached(Spec{Path: link, Args: []string{"60"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = p.Wait() }()
	if !Alive(id) || id.StartTime < Self().StartTime {
		t.Errorf("%+v, alive %v", id, Alive(id))
	}
	if err := Kill(within(t), id, 0); err != nil {
		t.Error(err)
	}
}

func TestStartDetached(t *testing.T) {
	t.Setenv("MVM_PROC_TEST", "inherited")
	before := Started()
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	extra, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := StartDetached(Spec{
		Path: "/bin/sh", Args: []string{"-c", `pwd; echo "[$MVM_PROC_TEST]"; readlink /proc/$$/fd/0 /proc/$$/fd/2 /proc/$$/fd/3; cut -d' ' -f6 /proc/$$/stat; echo $$`},
		Dir: dir, Stdout: out, ExtraFiles: []*os.File{extra},
	})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(); err != nil || !st.Success() {
		t.Fatalf("%v, %v", st, err)
	}
	_ = errors.Join(out.Close(), extra.Close())
	data, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(p.Pid)
	want := []string{dir, "[]", "/dev/null", "/dev/null", "/dev/zero", pid, pid}
	if got := strings.Fields(string(data)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q (directory, environment, three files, session, pid)", got, want)
	}
	if Started() != before+1 {
		t.Errorf("%d were counted", Started()-before)
	}
	if _, _, err := StartDetached(Spec{Path: filepath.Join(dir, "missing")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing program: %v", err)
	}
	if Started() != before+1 {
		t.Error("a process that was not started was counted")
	}
}

// How a process ended that is nobody's child of ours is told, whether its parent has
// reaped it or not.
func TestWaitStatus(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		reap         bool
		want         unix.WaitStatus
	}{
		{"exit", "read x; exit 7", true, 7 << 8}, {"signal", "read x; kill -KILL $$", true, 9},
		{"exit, not reaped", "read x; exit 7", false, 7 << 8}, {"signal, not reaped", "read x; kill -KILL $$", false, 9},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			p, id, err := StartDetached(Spec{Path: "/bin/sh", Args: []string{"-c", tc.script}, Stdin: r})
			_ = r.Close()
			if err != nil {
				t.Fatal(err)
			}
			reaped := make(chan struct{})
			reap := func() { _, _ = p.Wait(); close(reaped) }
			if tc.reap {
				go reap()
			}
			time.AfterFunc(50*time.Millisecond, func() { _ = w.Close() }) // while it is waited for
			status, known, err := WaitStatus(within(t), id)
			if err != nil || known && status != tc.want || !known && !tc.reap {
				t.Errorf("%v, %v, %v; want %v", status, known, err, tc.want)
			}
			if !known {
				t.Log("this kernel does not tell of one that was reaped")
			}
			if !tc.reap {
				reap()
			}
			<-reaped
		})
	}
}
