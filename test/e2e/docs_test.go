package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// runnable are the pages whose marked commands are run.
var runnable = []string{"quick-start.md", "networking.md", "snapshots.md"}

var marked = regexp.MustCompile("(?ms)^<!-- run -->\n```console\n(.*?)^```")

// step is a command of a page, and what the page says that it prints.
type step struct {
	command string
	prints  []string
}

func stepsOf(t *testing.T, page string) []step {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../docs", page))
	if err != nil {
		t.Fatal(err)
	}
	var steps []step
	for _, block := range marked.FindAllStringSubmatch(string(data), -1) {
		for line := range strings.Lines(block[1]) {
			line = strings.TrimRight(line, "\n")
			if cmd, ok := strings.CutPrefix(line, "# "); ok {
				steps = append(steps, step{command: cmd})
			} else if len(steps) > 0 && line != "" {
				last := &steps[len(steps)-1]
				last.prints = append(last.prints, line)
			}
		}
	}
	return steps
}

// TestDocs does what the pages say, in order, as somebody who reads them would:
// each command succeeds, and where the page shows what it prints, prints that.
// Afterwards the machine is as it was.
func TestDocs(t *testing.T) {
	for _, page := range runnable {
		t.Run(strings.TrimSuffix(page, ".md"), func(t *testing.T) {
			m := newMachine(t)
			m.must("init", "--non-interactive", "--skip-host")
			steps, dir := stepsOf(t, page), t.TempDir()
			if len(steps) < 10 {
				t.Fatalf("the page has %d commands that are marked to be run", len(steps))
			}
			path := t.TempDir()
			if err := os.Symlink(m.bin, filepath.Join(path, "mvm")); err != nil {
				t.Fatal(err)
			}
			before := m.listing()
			for _, s := range steps {
				m.follow(t, dir, path, s)
			}
			m.sameListing(before)
		})
	}
}

// follow runs a step on the machine, with mvm in the PATH.
func (m *machine) follow(t *testing.T, dir, path string, s step) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "sh", "-c", s.command)
	cmd.Env = append(m.command(ctx, nil).Env, "PATH="+path+":"+os.Getenv("PATH"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	var err error
	m.ns.Do(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("# %s: %v\n%s%s", s.command, err, stdout.String(), stderr.String())
	}
	if want := strings.Join(s.prints, "\n"); want != "" && strings.TrimSpace(stdout.String()) != want {
		t.Errorf("# %s printed %q; the page says %q", s.command, stdout.String(), want)
	}
}
