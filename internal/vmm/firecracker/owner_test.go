package firecracker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/vmm"
)

// parent is an Owner that keeps VMMs as children of the test: what a supervisor
// does, less outliving us.
type parent struct {
	t *testing.T

	mu  sync.Mutex
	vms map[int]*child
}

type child struct {
	in      *os.File
	stderr  string
	console bytes.Buffer // guarded by mu
	mu      sync.Mutex
	ended   chan struct{}
	exit    vmm.Exit
}

func newParent(t *testing.T) *parent { return &parent{t: t, vms: map[int]*child{}} }

func (p *parent) Spawn(ctx context.Context, s Spawn) (proc.Identity, proc.Identity, error) {
	if err := ctx.Err(); err != nil {
		return proc.Identity{}, proc.Identity{}, err
	}
	c := &child{stderr: filepath.Join(p.t.TempDir(), "stderr"), ended: make(chan struct{})}
	stderr, err := os.Create(c.stderr)
	if err != nil {
		return proc.Identity{}, proc.Identity{}, err
	}
	defer func() { _ = stderr.Close() }()
	in, inW, err := os.Pipe()
	if err != nil {
		return proc.Identity{}, proc.Identity{}, err
	}
	defer func() { _ = in.Close() }()
	outR, out, err := os.Pipe()
	if err != nil {
		return proc.Identity{}, proc.Identity{}, err
	}
	defer func() { _ = out.Close() }()
	c.in = inW
	process, id, err := proc.StartDetached(proc.Spec{
		Path: s.Argv[0], Args: s.Argv[1:], Dir: s.Dir, Env: s.Env, Stdin: in, Stdout: out, Stderr: stderr,
	})
	if err != nil {
		return proc.Identity{}, proc.Identity{}, err
	}
	p.mu.Lock()
	p.vms[id.PID] = c
	p.mu.Unlock()
	go c.relay(outR)
	go c.reap(process)
	p.t.Cleanup(func() { _ = process.Kill(); <-c.ended })
	return id, proc.Self(), nil
}

func (c *child) relay(r *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		c.mu.Lock()
		c.console.Write(buf[:n])
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *child) reap(process *os.Process) {
	state, err := process.Wait()
	if err == nil {
		ws := state.Sys().(syscall.WaitStatus)
		c.exit = vmm.Exit{Code: ws.ExitStatus(), At: time.Now()}
		if ws.Signaled() {
			c.exit.Code, c.exit.Signal = 128+int(ws.Signal()), ws.Signal().String()
		}
	}
	text, _ := os.ReadFile(c.stderr)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	c.exit.Reason = lines[len(lines)-1]
	close(c.ended)
}

func (p *parent) of(h vmm.Handle) *child {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.vms[h.VMM.PID]
}

func (p *parent) Wait(ctx context.Context, h vmm.Handle) (vmm.Exit, error) {
	c := p.of(h)
	if c == nil {
		return vmm.Exit{}, fmt.Errorf("no child of ours")
	}
	select {
	case <-c.ended:
		return c.exit, nil
	case <-ctx.Done():
		return vmm.Exit{}, ctx.Err()
	}
}

// text returns what the console has shown.
func (c *child) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.console.String()
}

func (c *child) typeLine(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(c.in, line+"\n"); err != nil {
		t.Error(err)
	}
}
