package e2e

import (
	"bufio"
	"errors"
	"io"
	"os/exec"
)

// underWay begins commands in a guest that would not end by themselves. When the VM has
// been stopped, end sees that they have ended with it, and failed.
func (m *machine) underWay(name string) (end func()) {
	m.t.Helper()
	var cmds []*exec.Cmd
	for _, args := range [][]string{
		{"exec", name, "--", "sh", "-c", "echo ready; exec sleep 600"},
		{"ssh", name, "-c", "echo ready; exec sleep 600"},
		{"forward", name, "0:22"},
	} {
		r, w := io.Pipe()
		cmds = append(cmds, m.begin(nil, w, args...))
		if lines := bufio.NewScanner(r); !lines.Scan() {
			m.t.Fatalf("mvm %q said nothing: %v", args, lines.Err())
		}
		go func() { _, _ = io.Copy(io.Discard, r) }()
	}
	return func() {
		m.t.Helper()
		for _, cmd := range cmds {
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
				m.t.Errorf("%q in a VM that was stopped: %v, want exit status 1", cmd.Args[1:], err)
			}
		}
	}
}
