package run

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
)

func sh(script string) Cmd { return Cmd{Name: "sh", Args: []string{"-c", script}} }

func TestRun(t *testing.T) {
	var h Host
	c := sh(`read line; echo "got $line in $(pwd) as $WHO"; echo warning >&2`)
	c.Dir, c.Env, c.Stdin = "/", []string{"WHO=me", "PATH=" + os.Getenv("PATH")}, strings.NewReader("input\n")
	res, err := h.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(res.Stdout); got != "got input in / as me\n" {
		t.Errorf("stdout %q", got)
	}
	if got := string(res.Stderr); got != "warning\n" {
		t.Errorf("stderr %q", got)
	}
	if h.Started() != 1 {
		t.Errorf("Started() = %d", h.Started())
	}
}

func TestRunWriters(t *testing.T) {
	var h Host
	var out, log bytes.Buffer
	c := sh("echo out; echo log >&2")
	c.Stdout, c.Stderr = &out, &log
	res, err := h.Run(t.Context(), c)
	if err != nil || out.String() != "out\n" || log.String() != "log\n" || len(res.Stdout) != 0 || string(res.Stderr) != "log\n" {
		t.Errorf("out %q, log %q, result %q %q, %v", &out, &log, res.Stdout, res.Stderr, err)
	}
}

// An argument is never read by a shell.
func TestRunArguments(t *testing.T) {
	var h Host
	res, err := h.Run(t.Context(), Cmd{Name: "printf", Args: []string{"%s|", "$HOME", "a b", ";id", "`id`"}})
	if err != nil || string(res.Stdout) != "$HOME|a b|;id|`id`|" {
		t.Errorf("%q, %v", res.Stdout, err)
	}
}

func TestRunFails(t *testing.T) {
	var h Host
	_, err := h.Run(t.Context(), sh("echo first >&2; echo the reason >&2; exit 3"))
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || err.Error() != "sh failed with status 3: the reason" {
		t.Errorf("err = %v", err)
	}
	_, err = h.Run(t.Context(), sh("kill -9 $$"))
	if !errors.As(err, &exit) || exit.Code != -1 || err.Error() != "sh was ended by a signal" {
		t.Errorf("err = %v", err)
	}
	_, err = h.Run(t.Context(), sh("yes x | head -c 100000 >&2; echo end >&2; exit 1"))
	if !errors.As(err, &exit) || len(exit.Stderr) != 4096 || !strings.HasSuffix(exit.Stderr, "end\n") {
		t.Errorf("kept %d bytes of stderr: %v", len(exit.Stderr), err)
	}
}

func TestRunMissingTool(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var h Host
	_, err := h.Run(t.Context(), Cmd{Name: "qemu-img"})
	if !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) != "apt-get install qemu-utils" {
		t.Errorf("err = %v, hint %q", err, mvm.HintOf(err))
	}
	if _, err = h.Run(t.Context(), Cmd{Name: "no-such-tool"}); !errors.Is(err, mvm.ErrUnavailable) {
		t.Errorf("err = %v", err)
	}
	if h.Started() != 0 {
		t.Errorf("Started() = %d", h.Started())
	}
}

// The PATH of an ordinary user lacks the directories of mkfs and its like.
func TestRunToolOfRoot(t *testing.T) {
	if _, err := os.Stat("/sbin/mke2fs"); err != nil {
		t.Skip("needs mke2fs in /sbin")
	}
	t.Setenv("PATH", "/usr/bin:/bin")
	if _, err := (&Host{}).Run(t.Context(), Cmd{Name: "mke2fs", Args: []string{"-V"}}); err != nil {
		t.Error(err)
	}
}

// Cancelling ends the tool and what it started, also what ignores SIGTERM.
func TestRunCancelled(t *testing.T) {
	for name, script := range map[string]string{
		"child":           "sleep 1000 & echo $! > PIDFILE; wait",
		"ignores SIGTERM": "trap '' TERM; sleep 1000 & echo $! > PIDFILE; wait; wait",
		"leader ends":     "(trap '' TERM; echo $(exec sh -c 'echo $PPID') > PIDFILE; sleep 1000; sleep 1000) & wait",
	} {
		t.Run(name, func(t *testing.T) {
			pidFile := filepath.Join(t.TempDir(), "pid")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			result := make(chan error, 1)
			var h Host
			go func() {
				_, err := h.Run(ctx, sh(strings.ReplaceAll(script, "PIDFILE", pidFile)))
				result <- err
			}()
			pid := 0
			eventually(t, "the child starts", func() bool {
				data, _ := os.ReadFile(pidFile)
				pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
				return pid > 0
			})
			cancel()
			if err := <-result; !errors.Is(err, context.Canceled) {
				t.Errorf("err = %v", err)
			}
			eventually(t, "the child is gone", func() bool { return gone(pid) })
		})
	}
}

func TestRunCancelledBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var h Host
	if _, err := h.Run(ctx, sh("true")); !errors.Is(err, context.Canceled) || errors.Is(err, mvm.ErrUnavailable) || h.Started() != 0 {
		t.Errorf("err = %v, started %d", err, h.Started())
	}
}

// gone reports whether a process has ended; a dead one that nobody has reaped
// yet has ended too.
func gone(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
