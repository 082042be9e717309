package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/testenv"
)

// insideVariable names the test that is executed again in namespaces of its own.
const insideVariable = "MVM_TEST_INSIDE"

// inside runs a test in a process of its own, with a network and a file system of its
// own: /etc is a copy without what 'mvm host init' has put there, /usr/local, /run, /root and /home are empty, and the built mvm
// is installed. It returns false to the process that only started it. Nothing that
// the test does to its /etc reaches the machine's.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVariable) == t.Name() {
		furnish(t)
		return true
	}
	testenv.Require(t, "root", "netns", "nft", "ip", "sudo")
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), insideVariable+"="+t.Name(), "MVM_TEST_MVM="+binary(t), "MVM_TEST_LANES=", "MVM_TEST_INSIDE_DIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("inside: %v", err)
	}
	if !strings.Contains(out.String(), "--- PASS: "+t.Name()) {
		t.Error("the test did not pass inside")
	}
	t.Log(out.String())
	return false
}

// furnish makes this process's file system what inside says. Mounts go with the
// process.
func furnish(t *testing.T) {
	t.Helper()
	dir := os.Getenv("MVM_TEST_INSIDE_DIR")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	shell(t, "cp", "-a", "/etc", dir+"/etc")
	check(withoutMVM(dir + "/etc"))
	for name, mode := range map[string]fs.FileMode{"local/bin": 0o755, "local/lib": 0o755, "run/systemd/system": 0o755, "root": 0o700, "home": 0o755, "net": 0o755} {
		check(os.MkdirAll(filepath.Join(dir, name), mode))
	}
	check(os.Chmod(dir, 0o755))
	check(unix.Mknod(dir+"/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200)))) //nolint:gosec // Documentation/admin-guide/devices.txt
	check(os.Chmod(dir+"/net/tun", 0o666))                                          // as udev has it; the umask took some
	shell(t, "cp", os.Getenv("MVM_TEST_MVM"), dir+"/local/bin/mvm")
	for from, to := range map[string]string{"etc": "/etc", "local": "/usr/local", "run": "/run", "root": "/root", "home": "/home", "net": "/dev/net"} {
		check(unix.Mount(filepath.Join(dir, from), to, "", unix.MS_BIND, ""))
	}
	check(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0))
	shell(t, "ip", "link", "set", "lo", "up")
	for _, name := range []string{"MVM_CACHE_DIR", "MVM_CONFIG_DIR", "MVM_TEST_MVM"} {
		check(os.Unsetenv(name))
	}
	t.Setenv("HOME", "/root")
	t.Setenv("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

// madeByInit are the files that 'mvm host init' makes in /etc.
var madeByInit = []string{
	"sudoers.d/mvm", "sysctl.d/99-mvm.conf", "modules-load.d/mvm.conf", "systemd/system/mvm.service", "systemd/system/multi-user.target.wants/mvm.service",
}

// withoutMVM takes what 'mvm host init' has made out of a copy of /etc: the machine that
// runs the tests may be one that mvm is used on.
func withoutMVM(etc string) error {
	for _, name := range madeByInit {
		if err := os.Remove(filepath.Join(etc, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, name := range []string{"group", "gshadow"} {
		path := filepath.Join(etc, name)
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		var kept strings.Builder
		for line := range strings.Lines(string(data)) {
			if !strings.HasPrefix(line, "mvm:") {
				kept.WriteString(line)
			}
		}
		if err := os.WriteFile(path, []byte(kept.String()), 0o600); err != nil { // which keeps the mode it has
			return err
		}
	}
	return nil
}

// A machine that mvm was set up on is one that it was not, for the tests inside.
func TestInsideWithoutMVM(t *testing.T) {
	etc := t.TempDir()
	write := func(name, data string) {
		t.Helper()
		path := filepath.Join(etc, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o640)); err != nil { //nolint:gosec // read by this test
			t.Fatal(err)
		}
	}
	const others = "root:x:0:\nmvmother:x:998:\nnogroup:x:65534:\n"
	for _, name := range madeByInit[:4] {
		write(name, "x")
		write(filepath.Join(filepath.Dir(name), "theirs"), "x")
	}
	wants := filepath.Join(etc, madeByInit[4])
	if err := errors.Join(os.MkdirAll(filepath.Dir(wants), 0o755), os.Symlink("/etc/systemd/system/mvm.service", wants)); err != nil { //nolint:gosec // read by this test
		t.Fatal(err)
	}
	write("group", strings.Replace(others, "nogroup", "mvm:x:999:alice\nnogroup", 1))
	for range 2 { // the second time there is nothing to take out, and no gshadow either time
		if err := withoutMVM(etc); err != nil {
			t.Fatal(err)
		}
	}
	var left []string
	err := filepath.WalkDir(etc, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, strings.TrimPrefix(path, etc+"/"))
		}
		return err
	})
	if want := []string{"group", "modules-load.d/theirs", "sudoers.d/theirs", "sysctl.d/theirs", "systemd/system/theirs"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q, %v", left, want, err)
	}
	group := filepath.Join(etc, "group")
	if data, err := os.ReadFile(group); err != nil || string(data) != others {
		t.Errorf("group is %q, %v", data, err)
	}
	if info, err := os.Stat(group); err != nil || info.Mode() != 0o640 {
		t.Errorf("group is %v, %v", info.Mode(), err)
	}
}

// shell runs a tool, which has to succeed, and returns what it printed.
func shell(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// user is somebody who types commands: root, or somebody else.
type user struct {
	t    *testing.T
	name string
	env  []string
}

func (u *user) run(args ...string) result {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if u.name != "" { // as a login does: setpriv takes the groups from /etc/group
		args = append([]string{"setpriv", "--reuid", u.name, "--regid", u.name, "--init-groups", "--reset-env"}, args...)
	}
	if len(u.env) > 0 {
		args = append(append([]string{"env"}, u.env...), args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &stdout, &stderr, "/"
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		u.t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func (u *user) must(args ...string) string {
	u.t.Helper()
	r := u.run(args...)
	if r.code != 0 {
		u.t.Fatalf("%s: exit %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout + r.stderr
}

// says fails the test unless a text has all the words.
func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
}

// hostLines is all of a host that setting it up may change, a line each: rules,
// addresses, sysctls of the network, and every file in /etc and /usr/local.
func hostLines(t *testing.T) []string {
	t.Helper()
	var lines []string
	add := func(what, text string) {
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, what+" | "+line)
			}
		}
	}
	add("nft", shell(t, "nft", "list", "ruleset"))
	add("address", shell(t, "ip", "-o", "address"))
	add("link", shell(t, "ip", "-o", "link"))
	add("route", shell(t, "ip", "route"))
	if _, err := exec.LookPath("iptables-save"); err == nil {
		add("iptables", shell(t, "iptables-save"))
	}
	walk := func(root string, each func(path string, info fs.FileInfo)) {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil {
				each(path, info)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	walk("/proc/sys/net/ipv4", func(path string, info fs.FileInfo) {
		if data, err := os.ReadFile(path); err == nil && info.Mode().IsRegular() {
			lines = append(lines, fmt.Sprintf("sysctl | %s = %q", path, data))
		}
	})
	for _, root := range []string{"/etc", "/usr/local"} {
		walk(root, func(path string, info fs.FileInfo) {
			st := info.Sys().(*syscall.Stat_t)
			line := fmt.Sprintf("file | %s %s %d:%d", path, info.Mode(), st.Uid, st.Gid)
			switch {
			case info.Mode().IsRegular():
				data, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				line += fmt.Sprintf(" %d %q", len(data), data[:min(len(data), 4096)])
			case info.Mode()&fs.ModeSymlink != 0:
				to, _ := os.Readlink(path)
				line += " -> " + to
			}
			lines = append(lines, line)
		})
	}
	slices.Sort(lines)
	return lines
}

// sameHost fails the test where a host is not as it was.
func sameHost(t *testing.T, when string, before []string) {
	t.Helper()
	after := hostLines(t)
	for _, l := range after {
		if !slices.Contains(before, l) {
			t.Errorf("%s: new: %.300s", when, l)
		}
	}
	for _, l := range before {
		if !slices.Contains(after, l) {
			t.Errorf("%s: gone: %.300s", when, l)
		}
	}
}
