// Package e2e boots real guests through the built binary, each test in a network
// namespace and a cache directory of its own.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/testenv"
)

// patience bounds every wait of these tests. Guests boot in seconds; a busy
// machine without KVM may take a minute.
const patience = 4 * time.Minute

// machine is a host for the built binary: a network namespace and a cache that
// has a kernel and the tiny image.
type machine struct {
	t      *testing.T
	ns     *nettest.Namespace
	bin    string
	cache  string
	config string
	env    []string
}

// newMachine makes a machine, with more images if some are named; the test is
// skipped where no VM can run.
func newMachine(t *testing.T, images ...string) *machine {
	t.Helper()
	testenv.Require(t, "root", "netns", "qemu", "apt", "e2fsprogs")
	m := &machine{t: t, bin: binary(t), cache: t.TempDir(), config: t.TempDir()}
	from := assets(t)
	for _, ref := range images {
		buildImage(t, from, ref)
	}
	m.ns = nettest.NewNamespace(t)
	copyTree(t, from, m.cache)
	t.Cleanup(func() { // whatever the test left running
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, v := range m.vms() {
			_ = m.command(ctx, nil, "vm", "rm", "--force", v.Name).Run()
		}
	})
	return m
}

// debian is the image with systemd. It has what is talked to by programs of the host
// besides; cloud-init does nothing unless it is asked for.
const (
	debian         = "debian:12"
	debianPackages = "cloud-init,rsync"
)

// buildImage makes an image in the shared cache, once.
var buildImage = func() func(t *testing.T, cache, ref string) {
	built := map[string]bool{}
	return func(t *testing.T, cache, ref string) {
		t.Helper()
		if built[ref] {
			return
		}
		args := []string{"image", "build", ref}
		if ref == debian {
			args = append(args, "--include", debianPackages)
		}
		prepare(t, cache, args...)
		built[ref] = true
	}
}()

// binary returns the built mvm: the one that `make` built, or one made now.
var binary = func() func(*testing.T) string {
	var once sync.Once
	var path string
	return func(t *testing.T) string {
		t.Helper()
		once.Do(func() {
			if path = os.Getenv("MVM_TEST_MVM"); path != "" {
				return
			}
			path = filepath.Join(shared, "mvm")
			build := exec.Command("go", "build", "-o", path, "github.com/mvmctl/mvm/cmd/mvm")
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build mvm: %v\n%s", err, out)
			}
		})
		return path
	}
}()

// shared is where this run keeps what all tests use.
var shared string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "mvm-e2e-")
	if err != nil {
		panic(err)
	}
	shared = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// assets returns a cache with a kernel and the tiny image, made once by the
// built binary as a user would.
var assets = func() func(*testing.T) string {
	var once sync.Once
	var dir string
	return func(t *testing.T) string {
		t.Helper()
		once.Do(func() {
			dir = filepath.Join(shared, "cache")
			prepare(t, dir, "kernel", "pull", "debian")
			prepare(t, dir, "image", "build", "tiny")
		})
		return dir
	}
}()

// prepare runs mvm on the cache that all tests share, in the host's own network:
// packages come from there.
func prepare(t *testing.T, cache string, args ...string) {
	t.Helper()
	cmd := exec.Command(binary(t), args...)
	cmd.Env = append(os.Environ(), "MVM_CACHE_DIR="+cache, "MVM_CONFIG_DIR="+filepath.Join(shared, "config"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mvm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// copyTree copies a cache: large files as hard links, for they are never
// changed, and the database as a file of its own.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(dst, 0o700)
		case strings.HasPrefix(rel, "mvmdb"):
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(dst, data, 0o600)
		case d.Type().IsRegular():
			if err := os.Link(path, dst); err == nil {
				return nil
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(dst, data, 0o600)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (m *machine) command(ctx context.Context, stdin []byte, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, m.bin, args...)
	cmd.Env = append(append(os.Environ(), "MVM_CACHE_DIR="+m.cache, "MVM_CONFIG_DIR="+m.config, "HOME="+m.config), m.env...)
	cmd.Stdin = bytes.NewReader(stdin)
	return cmd
}

// result is what a command printed and how it ended.
type result struct {
	stdout, stderr string
	code           int
}

// run runs mvm on the machine.
func (m *machine) run(args ...string) result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := m.command(ctx, nil, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var err error
	m.ns.Do(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("mvm %s: %v", strings.Join(args, " "), err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs mvm and fails the test unless it succeeds.
func (m *machine) must(args ...string) string {
	m.t.Helper()
	r := m.run(args...)
	if r.code != 0 {
		m.t.Fatalf("mvm %s: exit %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// refused runs mvm and fails the test unless it fails with an error and a hint
// that contain the words.
func (m *machine) refused(words []string, args ...string) {
	m.t.Helper()
	r := m.run(args...)
	if r.code == 0 {
		m.t.Errorf("mvm %s succeeded:\n%s", strings.Join(args, " "), r.stdout)
		return
	}
	if !strings.HasPrefix(r.stderr, "error: ") || !strings.Contains(r.stderr, "\nhint: ") {
		m.t.Errorf("mvm %s: no error with a hint on stderr: %q", strings.Join(args, " "), r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			m.t.Errorf("mvm %s: stderr lacks %q: %q", strings.Join(args, " "), w, r.stderr)
		}
	}
}

// vm is what the tests read of `vm ls --json`.
type vm struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Status string `json:"status"`
	IPv4   string `json:"ipv4"`
	MAC    string `json:"mac"`
	PID    int    `json:"pid"`
}

func (m *machine) vms() []vm {
	m.t.Helper()
	r := m.run("vm", "ls", "--json")
	var all []vm
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil {
		m.t.Fatalf("vm ls --json: %v\n%s%s", err, r.stdout, r.stderr)
	}
	return all
}

func (m *machine) vm(name string) vm {
	m.t.Helper()
	for _, v := range m.vms() {
		if v.Name == name {
			return v
		}
	}
	m.t.Fatalf("vm ls has no %s", name)
	return vm{}
}

// ssh runs a command in a guest and returns what it printed, trimmed.
func (m *machine) ssh(name, command string) string {
	m.t.Helper()
	return strings.TrimSpace(m.must("ssh", name, "-c", command))
}

// listing is all that VMs can leave on a machine: processes, links, rules, files
// and rows.
func (m *machine) listing() map[string]bool {
	m.t.Helper()
	all := map[string]bool{}
	for _, v := range m.vms() { // first: any command cleans up after one that died
		all["row "+v.Name+" "+v.Status] = true
	}
	for _, line := range strings.Split(m.ns.Run("ip", "-o", "link"), "\n") {
		if f := strings.Fields(line); len(f) > 1 {
			all["link "+f[1]] = true
		}
	}
	for _, line := range strings.Split(m.ns.Run("nft", "list", "ruleset"), "\n") {
		all["rule "+strings.TrimSpace(line)] = true
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, p := range procs {
		if data, err := os.ReadFile(p); err == nil && bytes.Contains(data, []byte(m.cache)) {
			all["process "+strings.ReplaceAll(string(data), "\x00", " ")] = true
		}
	}
	err = filepath.WalkDir(m.cache, func(path string, _ fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil
		case path == filepath.Join(m.cache, "initramfs"), path == filepath.Join(m.cache, "bin"): // made once for all VMs, and kept
			return fs.SkipDir
		case path == filepath.Join(m.cache, "vms"), path == filepath.Join(m.cache, "snapshots"), path == filepath.Join(m.cache, "volumes"), strings.Contains(path, "mvmdb.db"),
			path == filepath.Join(m.cache, "dns"), path == filepath.Join(m.cache, "dns", "lock"):
			return nil
		}
		all["file "+path] = true
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, line := range strings.Split(m.must("network", "inspect", "default", "--json"), "\n") {
		if strings.Contains(line, `"ipv4"`) || strings.Contains(line, `"vm_id"`) {
			all["lease "+strings.TrimSpace(line)] = true
		}
	}
	return all
}

// sameListing fails the test where something is there that was not before, or
// the other way round.
func (m *machine) sameListing(before map[string]bool) {
	m.t.Helper()
	after := m.listing()
	for x := range after {
		if !before[x] {
			m.t.Errorf("left behind: %s", x)
		}
	}
	for x := range before {
		if !after[x] {
			m.t.Errorf("gone: %s", x)
		}
	}
}

// until polls until something holds.
func (m *machine) until(what string, holds func() bool) {
	m.t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
