// Package lab runs the real Firecracker on hosts without usable KVM: in a QEMU
// guest under TCG whose emulated CPU has SVM, so that kvm-amd loads in it and
// virtualises for real. Programs are brought along in an initramfs, other files
// on a disk; the lab guest has no network.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/apt"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/initramfs"
	"github.com/mvmctl/mvm/internal/kernel"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

const (
	// labTime bounds a run of the lab guest, which takes two to three minutes
	// where nothing else runs.
	labTime = 30 * time.Minute
	// silence is how long the console may say nothing. All that the tests in the
	// lab wait for ends sooner, so then the lab guest itself stands still: in one
	// of about ten runs emulated SVM hangs with all its CPUs busy.
	silence = 8 * time.Minute
	boots   = 2 // a lab guest that stood still is booted again
)

// tailLines is how much of the console is shown again when a run did not end.
const tailLines = 40

// labRoot is /init of the lab guest. It makes the root directory a mount like any
// other: out of the initramfs as it is nothing can pivot, as the jailer does.
const labRoot = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp
mount -o bind / /top
cd /top
mount -o move . /
exec chroot . /lab/init
`

// labInit says how the tests ended in a line of its own, because QEMU's exit
// status does not.
const labInit = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs tmp /dev/shm
%s
for m in $(cat /modules/list); do insmod /modules/$m || echo "lab: module $m failed"; done
ip link set lo up
cd /tmp
%s
echo "lab: exit $?"
poweroff -f
`

// How control groups are mounted, by version.
const (
	cgroups2 = "mount -t cgroup2 cgroup /sys/fs/cgroup"
	cgroups1 = "mount -t tmpfs cgroup /sys/fs/cgroup\n" +
		"for c in memory pids; do mkdir /sys/fs/cgroup/$c && mount -t cgroup -o $c cgroup /sys/fs/cgroup/$c; done"
)

// TestFirecrackerSuite runs the driver's own tests and the conformance suite, each
// in a lab guest of its own.
func TestFirecrackerSuite(t *testing.T) {
	t.Run("Driver", func(t *testing.T) { suite(t, "^TestReal$", "") })
	t.Run("Conformance", func(t *testing.T) { suite(t, "^TestRealConformance$", "") })
}

// TestFirecrackerSuiteJailed does so in jails that the real jailer makes.
func TestFirecrackerSuiteJailed(t *testing.T) {
	if jailer() == "" {
		t.Skip("there is no jailer beside Firecracker")
	}
	t.Run("Driver", func(t *testing.T) { suite(t, "^TestRealJailed$", "") })
	t.Run("Conformance", func(t *testing.T) { suite(t, "^TestRealJailedConformance$", "") })
	t.Run("Cgroups1", func(t *testing.T) { suite(t, "^TestRealJailedConformance$/^(Start|Kill|Snapshot)$", cgroups1) })
}

// onlyVariable narrows down, below a suite's test, what runs in the lab.
const onlyVariable = "MVM_TEST_LAB_ONLY"

func suite(t *testing.T, tests, cgroups string) {
	t.Helper()
	testenv.Require(t, "root", "qemu", "apt", "firecracker", "qemu-disks")
	if only := os.Getenv(onlyVariable); only != "" {
		tests += "/" + only
	}
	l := newLab(t)
	test := filepath.Join(l.dir, "firecracker.test")
	compile(l.ctx, t, test, "internal/vmm/firecracker")
	nested := filepath.Join(l.dir, "nested.cpio")
	nestedInitrd(t, nested, test, l.modules)
	files := map[string]string{"/lab/vmlinux": l.vmlinux, "/lab/initrd": nested, "/lab/test": test}
	l.diskServer(t, files)
	l.run(t, guest{
		cgroups: cgroups,
		modules: []string{"kvm_amd", "tun", "vhost_vsock"},
		files:   files,
		script: "for n in 0 1 2; do tunctl -t lab$n && ip link set lab$n up; done\necho 140 >/proc/sys/vm/nr_hugepages\n" +
			"MVM_TEST_FIRECRACKER=/bin/firecracker MVM_TEST_KERNEL=/lab/vmlinux MVM_TEST_INITRD=/lab/initrd " +
			"MVM_TEST_TAPS=\"lab0 lab1 lab2\" MVM_TEST_REQUIRE=root,kvm,firecracker /lab/test -test.v -test.count=1 -test.run '" + tests + "' -test.timeout 28m",
	})
}

// jailer is the real jailer, beside the real Firecracker; "" when there is none.
func jailer() string {
	path := filepath.Join(filepath.Dir(os.Getenv(testenv.FirecrackerVariable)), "jailer")
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// lab is what every run needs.
type lab struct {
	ctx              context.Context
	dir              string
	vmlinux, modules string
	busybox          string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	testenv.Require(t, "root", "qemu", "apt", "firecracker")
	end := time.Now().Add(labTime)
	if d, ok := t.Deadline(); ok && d.Add(-time.Minute).Before(end) {
		end = d.Add(-time.Minute) // go test's own end would show nothing
	}
	ctx, cancel := context.WithDeadline(t.Context(), end)
	t.Cleanup(cancel)
	l := &lab{ctx: ctx, dir: t.TempDir()}
	cache := os.Getenv("MVM_TEST_CACHE") // keeps downloads between runs
	if cache == "" {
		cache = filepath.Join(l.dir, "apt")
	}
	client := &apt.Client{Runner: &run.Host{}, Dir: cache}
	l.vmlinux, l.modules = debianKernel(ctx, t, client, l.dir)
	// The static one: there is no C library in the lab.
	l.busybox = only(t, filepath.Join(unpacked(ctx, t, client, "busybox-static", filepath.Join(l.dir, "tools")), "*bin", "busybox"),
		filepath.Join(l.dir, "tools", "usr", "*bin", "busybox"))
	return l
}

// guest is what one run of the lab guest is made of.
type guest struct {
	modules []string          // to be loaded, without those that they need
	files   map[string]string // in the initramfs, and where they come from
	disk    string            // raw, or ""
	cgroups string            // how they are mounted; "" is version 2
	script  string            // its last command's status is the outcome
}

// run boots the lab guest and fails the test unless its script succeeds.
func (l *lab) run(t *testing.T, g guest) {
	t.Helper()
	initrd := filepath.Join(l.dir, "lab.cpio")
	g.files["/bin/firecracker"] = os.Getenv(testenv.FirecrackerVariable)
	if path := jailer(); path != "" { // without it nothing is jailed
		g.files["/bin/jailer"] = path
	}
	l.initrd(t, initrd, g)
	for n := 1; ; n++ {
		console, err := l.boot(t, initrd, g.disk)
		exit := regexp.MustCompile(`(?m)^lab: exit (\d+)\r?$`).FindStringSubmatch(console)
		switch {
		case exit == nil && errors.Is(err, errSilent) && n < boots:
			t.Logf("the lab guest stands still and is booted again; its console ended:\n%s", tail(console))
			continue
		case exit == nil:
			t.Errorf("the lab guest did not come to its end (%v); its console ended:\n%s", err, tail(console))
		case exit[1] != "0":
			t.Errorf("the tests in the lab ended with status %s", exit[1])
		case err != nil:
			t.Errorf("qemu: %v", err)
		}
		return
	}
}

// tail returns the last lines, also one that was not ended.
func tail(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\r\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}

// unpacked downloads a package of Debian's and unpacks it to a new directory.
func unpacked(ctx context.Context, t *testing.T, client *apt.Client, pkg, dir string) string {
	t.Helper()
	debs, err := client.Download(ctx, pkg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := apt.Unpack(ctx, client.Runner, debs[0].Path, dir, apt.UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// debianKernel returns the ELF image and the modules' directory of Debian's
// cloud kernel.
func debianKernel(ctx context.Context, t *testing.T, client *apt.Client, dir string) (vmlinux, modules string) {
	t.Helper()
	deps, err := client.Depends(ctx, "linux-image-cloud-amd64")
	if err != nil {
		t.Fatal(err)
	}
	tree := unpacked(ctx, t, client, deps[0], filepath.Join(dir, "kernel"))
	image, err := os.Open(only(t, filepath.Join(tree, "boot", "vmlinuz-*")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = image.Close() }()
	vmlinux = filepath.Join(dir, "vmlinux")
	out, err := os.Create(vmlinux)
	if err != nil {
		t.Fatal(err)
	}
	if err := kernel.ExtractVmlinux(image, out); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return vmlinux, only(t, filepath.Join(tree, "*", "modules", "*"), filepath.Join(tree, "*", "*", "modules", "*"))
}

func only(t *testing.T, patterns ...string) string {
	t.Helper()
	for _, pattern := range patterns {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	t.Fatalf("nothing matches %s", patterns)
	return ""
}

// compile builds the tests of a package as one static program.
func compile(ctx context.Context, t *testing.T, dest, pkg string) {
	t.Helper()
	_, err := (&run.Host{}).Run(ctx, run.Cmd{
		Name: "go", Args: []string{"test", "-c", "-ldflags=-s -w", "-o", dest, "github.com/mvmctl/mvm/" + pkg},
		Env: append(os.Environ(), "CGO_ENABLED=0"),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// order returns the files of the wanted modules in load order.
func order(t *testing.T, dir string, want ...string) []kernel.Module {
	t.Helper()
	mods, err := kernel.ReadModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	found, err := kernel.LoadOrder(mods, want)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// nestedInitrd writes the initramfs of Firecracker's guest: the test binary
// itself, and virtio's modules.
func nestedInitrd(t *testing.T, dest, test, modules string) {
	t.Helper()
	archive(t, dest, func(w *initramfs.Writer) {
		w.Dir("/dev", 0o755)
		w.CharDevice("/dev/console", 0o600, 5, 1)
		w.Dir("/proc", 0o755)
		w.Dir("/sys", 0o755)
		addFile(t, w, "/init", test)
		addModules(t, w, order(t, modules, "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon", "vmw_vsock_virtio_transport"))
	})
}

func (l *lab) initrd(t *testing.T, dest string, g guest) {
	t.Helper()
	if g.cgroups == "" {
		g.cgroups = cgroups2
	}
	script := fmt.Sprintf(labInit, g.cgroups, g.script)
	archive(t, dest, func(w *initramfs.Writer) {
		for _, dir := range []string{"/bin", "/dev", "/proc", "/sys", "/tmp", "/top", "/lab"} {
			w.Dir(dir, 0o755)
		}
		w.CharDevice("/dev/console", 0o600, 5, 1)
		for name, text := range map[string]string{"/init": labRoot, "/lab/init": script} {
			w.File(name, 0o755, int64(len(text)), strings.NewReader(text))
		}
		addFile(t, w, "/bin/busybox", l.busybox)
		for _, dir := range parents(g.files) {
			w.Dir(dir, 0o755)
		}
		for name, path := range g.files {
			addFile(t, w, name, path)
		}
		addModules(t, w, order(t, l.modules, g.modules...))
	})
}

// parents are the directories of files that the lab has not in any case, each after
// its own.
func parents(files map[string]string) []string {
	have := map[string]bool{"/": true, "/bin": true, "/lab": true}
	var dirs []string
	for name := range files {
		for dir := filepath.Dir(name); !have[dir]; dir = filepath.Dir(dir) {
			have[dir] = true
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs
}

// diskServer adds qemu-storage-daemon to what the lab gets, with its libraries.
func (l *lab) diskServer(t *testing.T, files map[string]string) {
	t.Helper()
	program := host.Find("qemu-storage-daemon")
	res, err := (&run.Host{}).Run(l.ctx, run.Cmd{Name: "ldd", Args: []string{program}, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	files["/bin/qemu-storage-daemon"] = program
	for _, path := range regexp.MustCompile(`/\S+`).FindAllString(string(res.Stdout), -1) { // NAME => PATH (ADDRESS), or PATH (ADDRESS)
		files[path] = path
	}
}

func archive(t *testing.T, dest string, fill func(*initramfs.Writer)) {
	t.Helper()
	f, err := os.Create(dest)
	if err != nil {
		t.Fatal(err)
	}
	w := initramfs.NewWriter(f)
	fill(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func addFile(t *testing.T, w *initramfs.Writer, name, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w.File(name, 0o755, int64(len(data)), bytes.NewReader(data))
}

func addModules(t *testing.T, w *initramfs.Writer, mods []kernel.Module) {
	t.Helper()
	w.Dir("/modules", 0o755)
	var list []string
	for _, m := range mods {
		name := filepath.Base(m.Path)
		list = append(list, name)
		addFile(t, w, "/modules/"+name, m.Path)
	}
	text := strings.Join(list, "\n") + "\n"
	w.File("/modules/list", 0o644, int64(len(text)), strings.NewReader(text))
}

// boot runs the lab guest to its end and returns what it wrote to its console,
// which goes to the test's log line by line too.
func (l *lab) boot(t *testing.T, initrd, disk string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(l.ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()
	console := &lines{log: t.Log, heard: func() { watchdog.Reset(silence) }}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-M", "q35", "-accel", "tcg,thread=multi",
		"-cpu", "max,+svm", "-smp", "2", "-m", "4096", "-no-reboot", "-serial", "stdio",
		"-kernel", l.vmlinux, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 net.ifnames=0",
	}
	if disk != "" {
		args = append(args, "-snapshot", "-drive", "file="+disk+",if=virtio,format=raw,cache=unsafe")
	}
	_, err := (&run.Host{}).Run(ctx, run.Cmd{Name: "qemu-system-x86_64", Args: args, Env: os.Environ(), Stdout: console})
	if err != nil && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	return console.String(), err
}

var errSilent = fmt.Errorf("it said nothing for %s", silence)

// lines keeps what is written and passes each whole line on.
type lines struct {
	log   func(...any)
	heard func() // is called whenever something is written

	mu  sync.Mutex
	all bytes.Buffer
	at  int // what follows is no whole line yet
}

var _ io.Writer = (*lines)(nil)

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard()
	l.all.Write(p)
	for {
		rest := l.all.Bytes()[l.at:]
		n := bytes.IndexByte(rest, '\n')
		if n < 0 {
			return len(p), nil
		}
		l.log("| " + strings.TrimRight(string(rest[:n]), "\r"))
		l.at += n + 1
	}
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}
