package store_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// childVariable makes the test binary one of several processes that work on one
// database; its value is the database's path.
const childVariable = "MVM_STORE_TEST_DB"

func TestMain(m *testing.M) {
	if path := os.Getenv(childVariable); path != "" {
		os.Exit(child(path, os.Args[1]))
	}
	os.Exit(m.Run())
}

// child opens the database once its standard input ends, so that all children
// do so at once, and tries to get what its siblings want too.
func child(path, number string) int {
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	st, err := store.Open(context.Background(), path)
	if err != nil {
		fmt.Println("open:", mvm.KindOf(err), err)
		return 1
	}
	defer func() { _ = st.Close() }()
	for _, line := range grabAll(context.Background(), st, number) {
		fmt.Println(line)
	}
	return 0
}

// processes runs n children at once and returns what each printed.
func processes(t *testing.T, path string, n int) []string {
	t.Helper()
	out := make([]string, n)
	cmds := make([]*exec.Cmd, n)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	bufs := make([]strings.Builder, n)
	for i := range cmds {
		cmds[i] = exec.CommandContext(t.Context(), os.Args[0], fmt.Sprint(i))
		cmds[i].Env = append(os.Environ(), childVariable+"="+path)
		cmds[i].Stdin, cmds[i].Stdout, cmds[i].Stderr = r, &bufs[i], &bufs[i]
		if err := cmds[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = r.Close(), w.Close() // the signal to start
	for i, c := range cmds {
		err := c.Wait()
		out[i] = bufs[i].String()
		if err != nil {
			t.Errorf("process %d: %v\n%s", i, err, out[i])
		}
	}
	return out
}

func open(t *testing.T) *store.Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "cache", "mvm.db"))
}

func openAt(t *testing.T, path string) *store.Store {
	t.Helper()
	st, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

// wantError checks kind and text of an error, and that it has a hint and one line.
func wantError(t *testing.T, err error, kind mvm.Kind, text string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s: %s", kind, text)
	}
	if mvm.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("error is %s: %v\nwant %s: %s", mvm.KindOf(err), err, kind, text)
	}
	if mvm.HintOf(err) == "" {
		t.Errorf("error %q has no hint", err)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q is not on one line", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
