package fakevmm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
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
// there each line that it reads, ends on Ctrl-Alt-Del or the line "poweroff", answers
// the lines that vmmtest.Fixture has, and echoes what comes on the vsock
// ports that it listens on. Where its initrd is one of mvm's, an agent answers there.
type guest struct {
	in     io.Reader
	out    io.Writer
	ending chan struct{}

	mu     sync.Mutex
	cond   *sync.Cond
	paused bool
	ended  bool
	gated  bool // Firecracker 1.16.0 and 1.16.1 pass nothing to the guest's vsock after a resume …
	reset  bool // … unless a reset was queued for it, as snapshots do
	epoch  int  // counts resets: connections from before are dead

	kept kept
	host host
}

// host is what a guest can ask.
type host interface {
	rescan() []string // drives on its bus
	ask() string      // the metadata service
}

// kept is what the guest has in its memory.
type kept struct {
	Up     bool            `json:"up"`
	Args   string          `json:"args"` // of its command line
	Count  int             `json:"count"`
	Drives []string        `json:"drives"` // that it knows of
	Ports  map[string]bool `json:"ports"`
	Agent  *agent          `json:"agent"` // nil echoes what comes
}

// memory is the page of the guest's memory that it changes.
func (g *guest) memory() ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	data, err := json.Marshal(g.kept)
	if err == nil && len(data) > pageSize {
		err = fmt.Errorf("the guest needs %d bytes of memory", len(data))
	}
	return append(data, make([]byte, max(0, pageSize-len(data)))...), err
}

// recall takes memory back.
func (g *guest) recall(page []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return json.Unmarshal(bytes.TrimRight(page, "\x00"), &g.kept)
}

func (g *guest) isUp() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.kept.Up
}

func newGuest(in io.Reader, out io.Writer) *guest {
	g := &guest{in: in, out: out, ending: make(chan struct{})}
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

// place puts into the guest's memory what a VMM puts there before the first
// instruction: kernel and initrd, and so all that the guest will be. One that is
// written to a snapshot while it boots boots on where it is loaded.
func (g *guest) place(args string, c *config, drives []string) {
	told, port := readAgent(c.Boot.Initrd), "1024"
	if told != nil {
		port = told.Port
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kept = kept{Args: args, Drives: drives, Ports: map[string]bool{port: c.Vsock != nil}, Agent: told}
}

// boot runs the guest to its end and returns the VMM's exit code.
func (g *guest) boot(args string, c *config, drives int) int {
	nameThread()
	g.print("Linux version 6.1.0-fakevmm\r\nCommand line: " + args + "\r\n")
	g.print(fmt.Sprintf("fakevmm: %d CPUs, %d MiB, %d disks, %d interfaces\r\n", c.Machine.VCPUs, c.Machine.Mem, drives, len(c.NICs)))
	for i, d := range c.Drives {
		sectors, readOnly := d.size()
		g.print(fmt.Sprintf("fakevmm: vd%c has %d sectors, read-only %d\r\n", 'a'+i, sectors, readOnly))
	}
	g.bootOn()
	return g.live()
}

// bootOn does the rest of the boot.
func (g *guest) bootOn() {
	powerOff := false
	g.run(func() { g.kept.Up, powerOff = true, strings.Contains(g.kept.Args, PowerOffArg) })
	g.print("fakevmm: ready\r\n")
	if powerOff {
		g.run(g.end)
	}
}

// goOn continues a guest whose memory was recalled.
func (g *guest) goOn() int {
	nameThread()
	if !g.isUp() {
		g.bootOn()
	}
	return g.live()
}

// nameThread makes this thread a vCPU's. It stays so.
func nameThread() {
	runtime.LockOSThread()
	name := []byte("fc_vcpu 0\x00")
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
}

func (g *guest) live() int {
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
		g.obey(line)
	}
}

func (g *guest) obey(line string) {
	switch line {
	case "poweroff":
		g.run(g.end)
	case "count":
		n := 0
		g.run(func() { g.kept.Count++; n = g.kept.Count })
		g.print(fmt.Sprintf("count %d\r\n", n))
	case "disks":
		found := g.host.rescan()
		g.run(func() { g.kept.Drives = found })
		g.print(fmt.Sprintf("disks %d\r\n", len(found)))
	case "drop":
		g.run(func() { g.kept.Drives = g.kept.Drives[:max(0, len(g.kept.Drives)-1)] })
		g.print("dropped\r\n")
	case "metadata":
		g.print("metadata " + g.host.ask() + "\r\n")
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
	var told *agent
	epoch := g.receive(func() { listening, told = ok && g.kept.Up && g.kept.Ports[want], g.kept.Agent })
	if !listening {
		return
	}
	_, _ = fmt.Fprintf(conn, "OK %d\n", port)
	stream := &vsockConn{Conn: conn, r: r, g: g, epoch: epoch}
	if told != nil {
		g.serveAgent(stream, *told)
		return
	}
	_, _ = io.Copy(stream, stream) // echoed
}
