package image

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// buildForReal builds an image, or skips where no mirror can be reached.
func buildForReal(t *testing.T, ref Ref) Built {
	t.Helper()
	o := Options{Runner: &run.Host{}, Cache: t.TempDir(), Dest: filepath.Join(t.TempDir(), "images", "one")}
	start := time.Now()
	b, err := Build(t.Context(), ref, o)
	if errors.Is(err, mvm.ErrUnavailable) && strings.Contains(err.Error(), "mirror does not answer") {
		t.Skipf("needs a package mirror: %v", err)
	}
	if err != nil {
		t.Fatalf("%v (hint: %s)", err, mvm.HintOf(err))
	}
	t.Logf("%s: %d packages, %d of %d MiB in %v", b.Distro, b.Packages, b.AllocatedBytes>>20, b.SizeBytes>>20, time.Since(start).Round(time.Millisecond))
	if b.Path != filepath.Join(o.Dest, rootFile) || b.FSType != "ext4" || b.UUID == "" || b.Packages == 0 || b.MinimumMiB != int(b.SizeBytes>>20) {
		t.Errorf("%+v", b)
	}
	if st, err := os.Stat(b.Path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	info, err := disk.Probe(b.Path)
	if d := cmp.Diff(disk.Info{FS: "ext4", UUID: b.UUID, Label: RootLabel, SizeBytes: b.SizeBytes}, info); err != nil || d != "" {
		t.Error(err, d)
	}
	if d := cmp.Diff([]string{".build.lock", "one"}, list(t, filepath.Dir(o.Dest))); d != "" {
		t.Error(d)
	}
	if _, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: hostTool("e2fsck"), Args: []string{"-fn", b.Path}}); err != nil {
		t.Error(err)
	}
	if _, err := Build(t.Context(), ref, o); !errors.Is(err, mvm.ErrExists) || mvm.HintOf(err) == "" {
		t.Errorf("over an image that is there: %v", err)
	}
	return b
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// inImage asks debugfs(8), which reads the image without mounting it.
func inImage(t *testing.T, path, request string) string {
	t.Helper()
	res, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: hostTool("debugfs"), Args: []string{"-R", request, path}})
	if err != nil {
		t.Fatal(err)
	}
	return string(res.Stdout)
}

// wantNodes checks type, mode and owner of files: "stat" prints them over several lines.
func wantNodes(t *testing.T, path string, want map[string]string) {
	t.Helper()
	for name, w := range want {
		got := strings.Join(strings.Fields(inImage(t, path, "stat "+name)), " ")
		for _, part := range strings.Split(w, ", ") {
			if !strings.Contains(got, part) {
				t.Errorf("%s lacks %q: %s", name, part, got)
			}
		}
	}
}

func TestBuildTiny(t *testing.T) {
	testenv.Require(t, "root", "apt", "e2fsprogs")
	b := buildForReal(t, Ref{Type: Tiny})
	if b.SizeBytes > 64<<20 || b.AllocatedBytes > 24<<20 {
		t.Errorf("%d bytes, %d allocated", b.SizeBytes, b.AllocatedBytes)
	}
	wantNodes(t, b.Path, map[string]string{
		"/":                    "Type: directory, Mode: 0755, User: 0 Group: 0",
		"/root/.ssh":           "Type: directory, Mode: 0700, User: 0 Group: 0",
		"/etc/dropbear":        "Type: directory, Mode: 0700",
		"/etc/shadow":          "Type: regular, Mode: 0600, User: 0 Group: 0",
		"/tmp":                 "Mode: 01777",
		"/sbin":                `Fast link dest: "usr/sbin"`,
		"/usr/sbin/init":       `Fast link dest: "/bin/busybox"`,
		"/usr/sbin/ip":         `Fast link dest: "/bin/busybox"`,
		"/usr/bin/wget":        `Fast link dest: "/bin/busybox"`,
		"/usr/bin/nc":          `Fast link dest: "/bin/busybox"`,
		"/usr/bin/ping":        `Fast link dest: "/bin/busybox"`,
		"/usr/bin/busybox":     "Type: regular, Mode: 0755, User: 0 Group: 0",
		"/usr/sbin/dropbear":   "Type: regular, Mode: 0755, User: 0 Group: 0",
		"/etc/init.d/rcS":      "Type: regular, Mode: 0755",
		"/usr/bin/dropbearkey": "Type: regular",
	})
	if s := inImage(t, b.Path, "cat /etc/shadow"); !strings.HasPrefix(s, "root:*:") {
		t.Errorf("root has a password: %q", s)
	}
	if s := inImage(t, b.Path, "cat /etc/inittab"); !strings.Contains(s, "dropbear -F -s ") || strings.Contains(s, "getty") || strings.Contains(s, "askfirst") {
		t.Errorf("inittab: %q", s)
	}
	if s := inImage(t, b.Path, "show_super_stats -h"); !strings.Contains(s, "Reserved GDT blocks:      127") || strings.Contains(s, "orphan_file") {
		t.Errorf("the file system cannot grow to a TiB, or is too new: %s", s)
	}
}

func TestBuildDebian(t *testing.T) {
	if testing.Short() {
		t.Skip("takes about a minute; run without -short")
	}
	testenv.Require(t, "root", "apt", "e2fsprogs", "mmdebstrap", "userns")
	host := hostRelease()
	if _, err := host.entry(); err != nil {
		t.Skipf("needs Debian or Ubuntu: %v", err)
	}
	b := buildForReal(t, host)
	if b.Type != host.Type || b.Version != host.Version || b.SizeBytes > 1<<30 {
		t.Errorf("%+v", b)
	}
	wantNodes(t, b.Path, map[string]string{
		"/":               "Type: directory, Mode: 0755, User: 0 Group: 0",
		"/etc/shadow":     "Type: regular, Mode: 0640, User: 0 Group: 42",
		"/etc/machine-id": "Type: regular, Mode: 0444, Size: 0",
		"/usr/bin/passwd": "Type: regular, Mode: 04755, User: 0 Group: 0",
		"/root/.ssh":      "Type: directory, Mode: 0700",
		"/usr/sbin/init":  "Type: symlink",
		"/usr/sbin/sshd":  "Type: regular",
		"/etc/hostname":   "Type: regular",
		"/etc/.updated":   "Type: regular",
		"/usr/bin/ping":   "security.capability",
		"/etc/systemd/system/multi-user.target.wants/ssh.service": "Type: symlink",
		"/etc/systemd/system/apt-daily.timer":                     `Fast link dest: "/dev/null"`,
	})
	if s := inImage(t, b.Path, "ls -p /etc/ssh"); strings.Contains(s, "ssh_host_") {
		t.Errorf("the image has host keys: %s", s)
	}
	if s := inImage(t, b.Path, "cat /etc/shadow"); strings.Contains(s, "$") {
		t.Errorf("somebody has a password: %q", s)
	}
	if s := inImage(t, b.Path, "cat /etc/apt/sources.list"); !strings.Contains(s, "signed-by=") || strings.Contains(s, "@") {
		t.Errorf("sources: %q", s)
	}
	if name, err := os.Hostname(); err == nil && name != "localhost" && strings.Contains(inImage(t, b.Path, "cat /etc/hostname"), name) {
		t.Error("the host's name is in the image")
	}
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	testenv.Require(t, "root", "apt", "e2fsprogs")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	parent := t.TempDir()
	o := Options{Runner: &run.Host{}, Cache: t.TempDir(), Dest: filepath.Join(parent, "one")}
	o.Progress = func(e mvm.ProgressEvent) {
		if e.Phase == "build" || e.Phase == "download" {
			cancel()
		}
	}
	if _, err := Build(ctx, Ref{Type: Tiny}, o); err == nil {
		t.Fatal("a cancelled build succeeded")
	}
	if d := cmp.Diff([]string{".build.lock"}, list(t, parent)); d != "" {
		t.Error(d)
	}
}

func TestStageClearsUpBehindTheDead(t *testing.T) {
	parent := t.TempDir()
	b := newBuilder(&run.Host{})
	for _, d := range []string{".build-dead/work/tree", ".build-live/work", "image"} {
		if err := os.MkdirAll(filepath.Join(parent, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(t.TempDir(), "precious")
	if err := errors.Join(os.WriteFile(outside, nil, 0o600), os.Symlink(filepath.Dir(outside), filepath.Join(parent, ".build-dead/work/tree/link"))); err != nil {
		t.Fatal(err)
	}
	lock, err := fsx.TryLock(filepath.Join(parent, ".build-live/lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	s, err := newStage(t.Context(), b, filepath.Join(parent, "new"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Base(s.dir), ".build-live", ".build.lock", "image"}
	slices.Sort(want)
	if d := cmp.Diff(want, list(t, parent)); d != "" {
		t.Error(d)
	}
	s.close(t.Context(), b)
	if d := cmp.Diff([]string{".build-live", ".build.lock", "image"}, list(t, parent)); d != "" {
		t.Error(d)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

// TestBox holds what the box promises against what a hostile package would try.
func TestBox(t *testing.T) {
	testenv.Require(t, "root", "userns")
	secret := filepath.Join(t.TempDir(), "secret")
	stage := filepath.Join(t.TempDir(), "private")
	b := newBuilder(&run.Host{})
	work := filepath.Join(stage, "work")
	if err := errors.Join(os.WriteFile(secret, []byte("s"), 0o600), os.Mkdir(stage, 0o700), b.workdir(work)); err != nil {
		t.Fatal(err)
	}
	if err := b.check(t.Context(), work); err != nil {
		t.Skipf("needs user namespaces: %v", err)
	}
	ok := func(script string) string {
		t.Helper()
		res, err := b.inBox(t.Context(), work, run.Cmd{Name: "sh", Args: []string{"-euc", script, "sh", secret}})
		if err != nil {
			t.Errorf("%s: %v", script, err)
		}
		return strings.TrimSpace(string(res.Stdout))
	}
	if got := ok("id -u; id -g; echo > mine; stat -c %u mine"); got != "0\n0\n0" {
		t.Errorf("in the box: %q", got)
	}
	if got := ok("ps -e -o pid= | wc -l"); len(got) > 1 {
		t.Errorf("the box sees %s processes", got)
	}
	for _, script := range []string{`cat "$1"`, `echo x > "$1"`, `chown 0 "$1"`, `mknod dev b 1 1 && cat dev`, `echo 1 > /proc/sys/kernel/panic`, `touch /etc/mvm-test`, `hostname x && mount -o remount,rw /`} {
		if _, err := b.inBox(t.Context(), work, run.Cmd{Name: "sh", Args: []string{"-euc", script, "sh", secret}}); err == nil {
			t.Errorf("%s: allowed in the box", script)
		}
	}
	if _, err := os.Stat("/etc/mvm-test"); err == nil {
		t.Error("the box wrote to the host's /etc")
	}
	if err := b.removeAll(t.Context(), stage); err != nil {
		t.Error(err)
	}
}

// TestKilledBuild ends a builder by SIGKILL while programs run in its box: they
// have to end too, and the next build clears up.
func TestKilledBuild(t *testing.T) {
	if parent := os.Getenv("MVM_TEST_KILLED_BUILD"); parent != "" {
		b := newBuilder(&run.Host{})
		s, err := newStage(t.Context(), b, filepath.Join(parent, "one"))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.workdir(s.path("work")); err != nil {
			t.Fatal(err)
		}
		_, err = b.inBox(t.Context(), s.path("work"), run.Cmd{Name: "sh", Args: []string{"-c", "echo in the box; sleep 600 & wait"}, Stdout: os.Stdout})
		t.Fatal("the box ended by itself", err)
	}
	testenv.Require(t, "root", "userns")
	parent := t.TempDir()
	if err := newBuilder(&run.Host{}).check(t.Context(), t.TempDir()); err != nil {
		t.Skipf("needs user namespaces: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledBuild$")
	cmd.Env = append(os.Environ(), "MVM_TEST_KILLED_BUILD="+parent)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(out); s.Scan() && s.Text() != "in the box"; {
	}
	within(t, "a shell and a sleep in the box", func() bool { return len(boxed(t, parent)) >= 2 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	within(t, "the end of the box", func() bool { return len(boxed(t, parent)) == 0 })
	b := newBuilder(&run.Host{})
	s, err := newStage(t.Context(), b, filepath.Join(parent, "one"))
	if err != nil {
		t.Fatal(err)
	}
	s.close(t.Context(), b)
	if d := cmp.Diff([]string{".build.lock"}, list(t, parent)); d != "" {
		t.Error(d)
	}
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		runtime.Gosched()
	}
}

// boxed returns the processes that have a stage below parent mounted.
func boxed(t *testing.T, parent string) (pids []string) {
	t.Helper()
	// mountinfo has the path within the file system, of which the end is sure.
	marks := filepath.Join(filepath.Base(filepath.Dir(parent)), filepath.Base(parent), stagePrefix)
	files, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), marks) {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}
