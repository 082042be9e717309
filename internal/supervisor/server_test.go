package supervisor

import (
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
)

// serve is a server that does nothing but end when it is asked to.
func serve() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	<-asked
}

// served is a VMM's task with a server: a shell script too, or serve.
func served(t *testing.T, vmm, server string) Spec {
	t.Helper()
	s := spec(t, vmm)
	file := filepath.Join(s.Dir, "content")
	if err := os.WriteFile(file, []byte("content\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Servers = []Server{{
		Name: "disk one", Argv: []string{"/bin/sh", "-c", server, ServerToken(s.ID)}, Env: []string{"PATH=/usr/bin:/bin"},
		Socket: filepath.Join(s.Dir, "disk.sock"), File: file,
	}}
	if server == "" {
		s.Servers[0].Argv = []string{os.Args[0], "serve", ServerToken(s.ID)}
	}
	return s
}

// servers are those of a VM that run.
func servers(t *testing.T, s Spec) []proc.Identity {
	t.Helper()
	ids, err := proc.FindByArg(ServerToken(s.ID))
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// wantNone fails the test when a server runs, or its socket is there.
func wantNone(t *testing.T, s Spec) {
	t.Helper()
	if left := servers(t, s); len(left) > 0 {
		t.Errorf("servers are left: %v", left)
	}
	if _, err := os.Lstat(s.Servers[0].Socket); !os.IsNotExist(err) {
		t.Errorf("its socket is left: %v", err)
	}
}

func TestServerEndsWithVMM(t *testing.T) {
	s := served(t, "exec sleep 1000", `trap 'echo written >>flushed; exit 0' TERM; cat <&4 >/dev/null; readlink /proc/$$/fd/3 >seen; while :; do sleep 0.05; done`)
	s.Servers[0].Argv[2] = "cd " + s.Dir + "; " + s.Servers[0].Argv[2]
	st := spawn(t, s)
	conn, err := fsx.DialUnix(t.Context(), s.Servers[0].Socket) // before anybody accepts
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	eventually(t, "the server has its socket", contains(filepath.Join(s.Dir, "seen"), "socket:"))
	if len(servers(t, s)) != 1 {
		t.Errorf("servers: %v", servers(t, s))
	}
	if fi, err := os.Stat(s.Servers[0].Socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("its socket: %v, %v", fi, err)
	}
	if err := proc.Signal(st.VMM, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "exit.json", contains(filepath.Join(s.Dir, vmm.ExitFile), "SIGKILL"))
	if !contains(filepath.Join(s.Dir, "flushed"), "written")() {
		t.Error("the server was not asked to end, or not waited for")
	}
	if contains(s.Log, "has ended")() {
		t.Error("the log tells of a server that was ended with its VMM")
	}
	if err := proc.WaitExit(t.Context(), st.Supervisor); err != nil {
		t.Fatal(err)
	}
	wantNone(t, s)
}

// A server whose supervisor was killed is ended by the one that takes over, or by End.
func TestServerOfLostSupervisor(t *testing.T) {
	for name, end := range map[string]func(Spec, Started) error{
		"adopted": func(s Spec, st Started) error {
			id, err := Adopt(t.Context(), Launcher{Exe: os.Args[0]}, s.ID, s.Dir, st.VMM)
			if err == nil {
				err = proc.Signal(st.VMM, unix.SIGKILL)
			}
			if err == nil {
				err = proc.WaitExit(t.Context(), id)
			}
			return err
		},
		"ended": func(s Spec, _ Started) error {
			return unix.Unlink(s.Servers[0].Socket) // as whoever calls it does
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := served(t, "exec sleep 1000", "")
			st := spawn(t, s)
			if err := proc.Kill(t.Context(), st.Supervisor, 0); err != nil {
				t.Fatal(err)
			}
			if len(servers(t, s)) != 1 || !proc.Alive(st.VMM) {
				t.Fatal("VMM or server ended with the supervisor")
			}
			if err := end(s, st); err != nil {
				t.Fatal(err)
			}
			if name == "ended" {
				if err := End(t.Context(), s.ID, 0); err != nil {
					t.Fatal(err)
				}
			}
			wantNone(t, s)
		})
	}
}

func TestServerThatFails(t *testing.T) {
	s := served(t, "exec sleep 1000", "echo server: no such format >&2; exit 3")
	spawn(t, s) // its words go to the VMM's log, or to another
	eventually(t, "the log tells", contains(s.Log, "mvm: the server of disk one has ended (exit status 3)"))
	if !contains(s.Log, "server: no such format")() {
		t.Error("the log has not what the server said")
	}

	// It is why a VMM fails that needs it.
	s = served(t, `while [ ! -s gone ]; do sleep 0.01; done; echo "cannot connect" >&2; exit 5`, "echo sh: no such format >&2; exit 3")
	st := spawn(t, s)
	eventually(t, "the log tells", contains(s.Log, "has ended"))
	if err := os.WriteFile(filepath.Join(s.Dir, "gone"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := proc.WaitExit(t.Context(), st.Supervisor); err != nil {
		t.Fatal(err)
	}
	if exit, err := vmm.ReadExit(s.Dir); err != nil || exit.Code != 5 || !strings.Contains(exit.Reason, "the server of disk one has ended (exit status 3): no such format") {
		t.Errorf("it ended by %+v, %v", exit, err)
	}
	wantNone(t, s)
}

// What cannot be started leaves neither VMM nor server.
func TestServerThatCannotStart(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"no program": func(s *Spec) { s.Servers[0].Argv[0] = "/none" },
		"no file":    func(s *Spec) { s.Servers[0].File = filepath.Join(s.Dir, "none") },
		"a symlink": func(s *Spec) {
			link := filepath.Join(s.Dir, "link")
			if err := os.Symlink(s.Servers[0].File, link); err != nil {
				t.Fatal(err)
			}
			s.Servers[0].File = link
		},
		"the second": func(s *Spec) {
			second := s.Servers[0]
			second.Socket, second.Argv = filepath.Join(s.Dir, "second.sock"), []string{"/none"}
			s.Servers = append(s.Servers, second)
		},
		"no VMM": func(s *Spec) { s.Argv[0] = "/none" },
	} {
		s := served(t, "exec sleep 1000", "")
		change(&s)
		_, err := Spawn(t.Context(), Launcher{Exe: os.Args[0]}, s)
		if err == nil {
			t.Errorf("%s: it started", name)
		}
		wantNone(t, s)
		if left, err := proc.FindByArg(Token(s.ID)); err != nil || len(left) > 0 {
			t.Errorf("%s: processes are left: %v, %v", name, left, err)
		}
	}
}

// A server has no rights that it does not need, and as another user none at all.
func TestServerRights(t *testing.T) {
	testenv.Require(t, "root", "netns")
	const uid = 0x70000123
	for name, want := range map[string]struct {
		uid          int
		script, caps string
	}{
		"ours":           {0, "", "0000000000000002"}, // CAP_DAC_OVERRIDE is 1
		"another user's": {uid, "while :; do sleep 0.1; done", "0000000000000000"},
	} {
		t.Run(name, func(t *testing.T) {
			s := served(t, "exec sleep 1000", want.script)
			s.Servers[0].UID, s.Servers[0].GID = want.uid, want.uid
			spawn(t, s)
			ids := servers(t, s)
			if len(ids) != 1 {
				t.Fatalf("servers: %v", ids)
			}
			dir := "/proc/" + strconv.Itoa(ids[0].PID)
			data, err := os.ReadFile(dir + "/status")
			if err != nil {
				t.Fatal(err)
			}
			id := strconv.Itoa(want.uid)
			for _, line := range []string{"NoNewPrivs:\t1", "CapPrm:\t" + want.caps, "CapEff:\t" + want.caps, "Uid:\t" + id + "\t" + id + "\t" + id, "Gid:\t" + id + "\t" + id} {
				if !strings.Contains(string(data), line) {
					t.Errorf("its status has no %q:\n%s", line, data)
				}
			}
			if fi, err := os.Stat(s.Servers[0].Socket); err != nil || int(fi.Sys().(*syscall.Stat_t).Uid) != want.uid {
				t.Errorf("its socket: %v, %v", fi, err)
			}
			for _, ns := range []string{"net", "pid", "ipc"} {
				ours, err1 := os.Readlink("/proc/self/ns/" + ns)
				its, err2 := os.Readlink(dir + "/ns/" + ns)
				if err1 != nil || err2 != nil || (ours != its) != (want.uid != 0) {
					t.Errorf("its namespace %s is %s, ours %s: %v, %v", ns, its, ours, err1, err2)
				}
			}
		})
	}
}
