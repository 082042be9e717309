package qemu

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/image"
	"github.com/mvmctl/mvm/internal/initramfs"
	"github.com/mvmctl/mvm/internal/kernel"
	"github.com/mvmctl/mvm/internal/key"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest"
)

// patience bounds what a test with a real guest waits for: emulated, and beside
// others, it takes its time.
const patience = 2 * time.Minute

// linux is what real guests are made of: Debian's kernel, the tiny image, and the
// agent. It is made once, in a directory that ends with the tests.
type linux struct {
	dir, vmlinux, image, initramfs string
	err                            error
}

// linuxMade is that directory, once there is one.
var linuxMade string

var linuxOnce = sync.OnceValue(func() *linux {
	l := &linux{}
	l.dir, l.err = os.MkdirTemp("", "mvm-qemu-test-")
	linuxMade = l.dir
	if l.err == nil {
		l.err = l.make()
	}
	return l
})

func (l *linux) make() error {
	ctx := context.Background()
	downloads := os.Getenv("MVM_TEST_CACHE") // keeps them between runs
	if downloads == "" {
		downloads = filepath.Join(l.dir, "downloads")
	}
	k, err := kernel.Debian(ctx, kernel.DebianOptions{Runner: &run.Host{}, WorkDir: downloads, DestDir: filepath.Join(l.dir, "kernels")})
	if err != nil {
		return err
	}
	built, err := image.BuildTiny(ctx, image.Options{Runner: &run.Host{}, Cache: downloads, Dest: filepath.Join(l.dir, "image")})
	if err != nil {
		return err
	}
	agent := filepath.Join(l.dir, "mvm-agent")
	build := exec.Command("go", "build", "-o", agent, "github.com/mvmctl/mvm/cmd/mvm-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return err
	}
	modules, err := kernel.BootModules(k.ModulesDir, built.FSType)
	if err != nil {
		return err
	}
	l.vmlinux, l.image = k.Vmlinux, built.Path
	l.initramfs, err = initramfs.Base(ctx, initramfs.BaseSpec{Agent: agent, Modules: modules, Dir: filepath.Join(l.dir, "initramfs")})
	return err
}

// guestVM is a VM with a real guest, and how to log in there.
type guestVM struct {
	t      *testing.T
	launch vmm.Launch
	login  guest.Login
	vmm.Machine
}

// linuxLaunch is a VM whose guest is Linux with the agent.
func linuxLaunch(t *testing.T) *guestVM {
	t.Helper()
	testenv.Require(t, "root", "qemu", "apt", "e2fsprogs")
	files := linuxOnce()
	if files.err != nil {
		t.Fatal(files.err)
	}
	hostKey, client := newKey(t), newKey(t)
	l := vmmtest.NewLaunch(t, host.Find(program), "tcg", files.vmlinux)
	l.MemMiB, l.Cmdline, l.Initrd = 192, "net.ifnames=0 quiet", filepath.Join(l.Dir, "initrd")
	l.Disks = []vmm.Disk{cloneOf(t, files.image, l.Dir)}
	err := initramfs.ForVM(files.initramfs, l.Initrd, guest.BootConfig{
		Version: 1, InstanceID: l.ID, Hostname: "vm", PowerOff: "acpi", MachineID: l.ID + l.ID, Entropy: make([]byte, 64),
		Root:  guest.RootConfig{Device: "/dev/vda", FSType: "ext4"},
		SSH:   guest.SSHConfig{User: "root", HostKey: string(newKey(t).Private)},
		Agent: &guest.AgentParams{Transport: "virtio-serial", SerialName: agentPort, Port: 1024, HostKey: string(hostKey.Private), AuthorizedKey: client.Public.Line(), PowerOff: "acpi"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &guestVM{t: t, launch: l, login: guest.Login{HostKey: hostKey.Public.Key, Signers: []ssh.Signer{client.Signer}}}
}

func newKey(t *testing.T) *key.Pair {
	t.Helper()
	k, err := key.Generate(key.ED25519, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// cloneOf makes a root disk of a file.
func cloneOf(t *testing.T, from, dir string) vmm.Disk {
	t.Helper()
	d := vmm.Disk{ID: "rootfs", Path: filepath.Join(dir, "rootfs.raw"), Format: "raw"}
	if err := disk.Clone(t.Context(), from, d.Path); err != nil {
		t.Fatal(err)
	}
	return d
}

// start starts the VM, which ends with the test.
func (g *guestVM) start() *guestVM {
	g.t.Helper()
	m, err := newDriver(g.t).Start(g.within(), g.launch)
	if err != nil {
		g.t.Fatalf("Start: %v", err)
	}
	g.Machine = m
	g.t.Cleanup(func() {
		if g.t.Failed() {
			console, _ := os.ReadFile(filepath.Join(g.launch.Dir, g.launch.Files.Console))
			g.t.Logf("console of %s: %s", g.launch.Name, console)
		}
		if err := m.Kill(context.Background(), 0); err != nil {
			g.t.Error(err)
		}
	})
	return g
}

// restored is another VM that goes on from a snapshot of this one.
func (g *guestVM) restored(from vmm.SnapshotFiles, resume bool) *guestVM {
	g.t.Helper()
	l := vmmtest.NewLaunch(g.t, g.launch.Binary, g.launch.Accel, g.launch.Kernel)
	l.MemMiB, l.Cmdline, l.Initrd, l.Balloon = g.launch.MemMiB, g.launch.Cmdline, g.launch.Initrd, g.launch.Balloon
	l.Disks = slices.Clone(g.launch.Disks)
	l.Disks[0] = cloneOf(g.t, filepath.Join(filepath.Dir(from.State), "rootfs.raw"), l.Dir)
	l.Restore = &vmm.Restore{State: from.State, Mem: from.Mem, Resume: resume}
	return &guestVM{t: g.t, launch: l, login: g.login}
}

func (g *guestVM) within() context.Context {
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	g.t.Cleanup(cancel)
	return ctx
}

func (g *guestVM) dial(ctx context.Context) (net.Conn, error) { return g.DialGuest(ctx, 1024) }

// client waits for the agent.
func (g *guestVM) client() *guest.Client {
	g.t.Helper()
	c, _, err := guest.WaitReady(g.within(), g.dial, g.login)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

// sh runs a line in the guest and returns what it prints.
func (g *guestVM) sh(c *guest.Client, line string) string {
	g.t.Helper()
	var out, errs bytes.Buffer
	st, err := c.Exec(g.within(), guest.Cmd{Shell: line, Stdout: &out, Stderr: &errs})
	if err != nil || st.Code != 0 {
		g.t.Fatalf("%s: %+v, %v %s", line, st, err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// snapshot pauses the VM, writes it, copies its root disk to the same directory,
// and has it go on.
func (g *guestVM) snapshot() vmm.SnapshotFiles {
	g.t.Helper()
	dir := g.t.TempDir()
	to := vmm.SnapshotFiles{State: filepath.Join(dir, "state"), Mem: filepath.Join(dir, "mem")}
	p := g.Machine.(vmm.Pauser)
	if err := p.Pause(g.within()); err != nil {
		g.t.Fatal(err)
	}
	if err := g.Machine.(vmm.Snapshotter).Snapshot(g.within(), to); err != nil {
		g.t.Fatalf("Snapshot: %v", err)
	}
	cloneOf(g.t, g.launch.Disks[0].Path, dir)
	if err := p.Resume(g.within()); err != nil {
		g.t.Fatal(err)
	}
	return to
}

// tick paces the looks at something that has no other way to be waited for.
func tick() <-chan time.Time { return time.After(10 * time.Millisecond) }
