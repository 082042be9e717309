package fakevmm

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PowerOffArg on the kernel's command line makes the guest end as soon as it is
// up.
const PowerOffArg = "fakevmm.poweroff"

// guest is what runs in the VM: it says on its console that it is up, repeats
// there each line that it reads, ends on Ctrl-Alt-Del or the line "poweroff",
// and echoes what comes on the vsock ports that it listens on.
type guest struct {
	in     io.Reader
	out    io.Writer
	ending chan struct{}

	mu     sync.Mutex
	cond   *sync.Cond
	paused bool
	ended  bool
	ports  map[string]bool
	gated  bool // Firecracker 1.16.0 and 1.16.1 pass nothing to the guest's vsock after a resume …
	reset  bool // … unless a reset was queued for it, as snapshots do
	epoch  int  // counts resets: connections from before are dead
}

func newGuest(in io.Reader, out io.Writer) *guest {
	g := &guest{in: in, out: out, ending: make(chan struct{}), ports: map[string]bool{}}
	g.cond = sync.NewCond(&g.mu)
	return g
}

// run waits until the vCPUs run and does f while they cannot be stopped.
func (g *guest) run(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.paused {
		g.cond.Wait()
	}
	f()
}

func (g *guest) print(text string) { g.run(func() { _, _ = io.WriteString(g.out, text) }) }

func (g *guest) pause() {
	g.mu.Lock()
	g.paused = true
	g.mu.Unlock()
}

// resume continues the vCPUs. Like the real one it "kicks" the devices even of
// a guest that was not paused, which closes the gate on the way to its vsock
// until it acknowledges a reset (firecracker pull request 6100).
func (g *guest) resume() {
	g.mu.Lock()
	g.paused = false
	g.gated = !g.reset
	if g.reset {
		g.reset = false
		g.epoch++
	}
	g.mu.Unlock()
	g.cond.Broadcast()
}

// queueReset is what the first part of a snapshot does to vsock, whether or not
// the snapshot is then written.
func (g *guest) queueReset() {
	g.mu.Lock()
	g.reset = true
	g.mu.Unlock()
}

// receive waits until data reaches the guest's vsock, does f then, and returns
// how many resets there were. f must not block.
func (g *guest) receive(f func()) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.paused || g.gated {
		g.cond.Wait()
	}
	f()
	return g.epoch
}

// ctrlAltDel presses the keys; a paused guest sees them once it runs again.
func (g *guest) ctrlAltDel() { go g.run(g.end) }

func (g *guest) end() {
	if !g.ended {
		g.ended = true
		close(g.ending)
	}
}

// boot runs the guest to its end and returns the VMM's exit code.
func (g *guest) boot(args string, c *config) int {
	runtime.LockOSThread() // and never unlocked: the thread is the vCPU's
	name := []byte("fc_vcpu 0\x00")
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
	g.print("Linux version 6.1.0-fakevmm\r\nCommand line: " + args + "\r\n")
	g.print(fmt.Sprintf("fakevmm: %d CPUs, %d MiB, %d disks, %d interfaces\r\n", c.Machine.VCPUs, c.Machine.Mem, len(c.Drives), len(c.NICs)))
	g.run(func() { g.ports["1024"] = c.Vsock != nil })
	g.print("fakevmm: ready\r\n")
	if strings.Contains(args, PowerOffArg) {
		g.run(g.end)
	}
	go g.console()
	<-g.ending
	g.print("reboot: Restarting system\r\n")
	return exitOK
}

func (g *guest) console() {
	lines := bufio.NewScanner(g.in)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		g.print(line + "\r\n")
		if line == "poweroff" {
			g.run(g.end)
		}
	}
}

// serveVsock is Firecracker's side of docs/vsock.md: "CONNECT PORT\n" is
// answered "OK HOSTPORT\n" once the guest accepts, else by closing.
func (g *guest) serveVsock(l net.Listener) {
	for port := 1 << 30; ; port++ {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go g.connect(conn, port)
	}
}

func (g *guest) connect(conn net.Conn, port int) {
	defer func() { _ = conn.Close() }()
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	want, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "CONNECT ")
	listening := false
	epoch := g.receive(func() { listening = ok && g.ports[want] })
	if !listening {
		return
	}
	_, _ = fmt.Fprintf(conn, "OK %d\n", port)
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			var werr error
			if now := g.receive(func() { _, werr = conn.Write(buf[:n]) }); werr != nil || now != epoch {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
