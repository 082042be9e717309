package fakevmm

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// jailerName is the name under which the test binary becomes the jailer's double.
// It does what the real one does, in the same order, and refuses what that does
// (src/jailer in Firecracker's source); beside that it lets a test binary that is
// linked dynamically find its libraries, and the fake its description.
const jailerName = "jailer"

// InstallJailed makes a directory with the fake and the jailer's double, and
// returns the programs' paths. The fake is no symlink here: the jailer would
// follow it and name the jail after what it finds.
func InstallJailed(t testing.TB) (program, jailer string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program = Install(t)
	jailer = filepath.Join(filepath.Dir(program), jailerName)
	if err := errors.Join(os.Remove(program), os.Symlink(self, jailer)); err != nil {
		t.Fatal(err)
	}
	if os.Link(self, program) != nil { // on another file system
		if err := copyFile(self, program, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return program, jailer
}

// jailerFlags are the jailer's options; true takes a value.
var jailerFlags = map[string]bool{
	"cgroup": true, "cgroup-version": true, "chroot-base-dir": true, "daemonize": false, "exec-file": true, "gid": true, "help": false,
	"id": true, "netns": true, "new-pid-ns": false, "parent-cgroup": true, "resource-limit": true, "uid": true, "version": false,
}

// jail is what the jailer was told.
type jail struct {
	one       map[string]string
	cgroups   []string
	limits    []string
	extra     []string
	uid, gid  int
	exec, dir string // the program, and its root directory
}

// runJailer is the process; it returns only when it fails.
func runJailer(args []string, stdout, stderr io.Writer) int {
	runtime.LockOSThread() // namespaces and users are a thread's
	_ = unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC)
	os.Clearenv()
	j, err := parseJailer(args)
	if err == nil && j.one["version"] != "" {
		_, _ = fmt.Fprintf(stdout, "Jailer v%s\n\n", Version)
		return exitOK
	}
	if err == nil {
		err = j.run()
	}
	_, _ = fmt.Fprintf(stderr, "%v\nError: %v\n", err, err)
	return exitError
}

func parseJailer(args []string) (*jail, error) {
	j := &jail{one: map[string]string{"cgroup-version": "1", "chroot-base-dir": "/srv/jailer"}}
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			j.extra = args[i+1:]
			break
		}
		name, isFlag := strings.CutPrefix(args[i], "--")
		value, known := jailerFlags[name]
		switch {
		case !isFlag || !known:
			return nil, fmt.Errorf("ArgumentParsing(UnexpectedArgument(%q))", name)
		case !value:
			j.one[name] = "true"
			continue
		case i+1 == len(args) || strings.HasPrefix(args[i+1], "--"):
			return nil, fmt.Errorf("ArgumentParsing(MissingValue(%q))", name)
		}
		i++
		switch {
		case name == "cgroup":
			j.cgroups = append(j.cgroups, args[i])
		case name == "resource-limit":
			j.limits = append(j.limits, args[i])
		default:
			j.one[name] = args[i]
		}
	}
	if j.one["version"] != "" {
		return j, nil
	}
	return j, j.check()
}

func (j *jail) check() error {
	for _, name := range []string{"id", "exec-file", "uid", "gid"} {
		if j.one[name] == "" {
			return fmt.Errorf("ArgumentParsing(MissingArgument(%q))", name)
		}
	}
	var err error
	if j.exec, err = filepath.EvalSymlinks(j.one["exec-file"]); err != nil {
		return fmt.Errorf("Failed to canonicalize path %s: %w", j.one["exec-file"], err) //nolint:staticcheck // the jailer's words
	}
	base, err := filepath.EvalSymlinks(j.one["chroot-base-dir"])
	if err != nil {
		return fmt.Errorf("Failed to canonicalize path %s: %w", j.one["chroot-base-dir"], err) //nolint:staticcheck // the jailer's words
	}
	j.dir = filepath.Join(base, filepath.Base(j.exec), j.one["id"], "root")
	for name, to := range map[string]*int{"uid": &j.uid, "gid": &j.gid} {
		n, err := strconv.ParseUint(j.one[name], 10, 32)
		if err != nil {
			return fmt.Errorf("Invalid %s: %s", name, j.one[name]) //nolint:staticcheck // the jailer's words
		}
		*to = int(n)
	}
	return nil
}

func (j *jail) run() error {
	name := filepath.Base(j.exec)
	libraries := []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64"}
	for _, step := range []func() error{
		func() error { return os.MkdirAll(j.dir, 0o755) },
		func() error { return j.copyProgram(name) },
		j.setLimits,
		j.enterCgroups,
		func() error { return bindLibraries(j.dir, libraries) },
		func() error { return pivot(j.dir) },
		j.ownFolders,
		j.makeDevices,
		func() error { return writeNew("/"+name+".pid", strconv.Itoa(os.Getpid())) },
		j.dropRoot,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	argv := append([]string{"/" + name, "--id", j.one["id"], "--start-time-us", "1", "--start-time-cpu-us", "1", "--parent-cpu-time-us", "1"}, j.extra...)
	return fmt.Errorf("Failed to exec into Firecracker: %w", syscall.Exec(argv[0], argv, nil)) //nolint:staticcheck // the jailer's words
}

func (j *jail) copyProgram(name string) error {
	dest := filepath.Join(j.dir, name)
	if err := copyFile(j.exec, dest, 0o755); err != nil {
		return err
	}
	if spec := filepath.Join(filepath.Dir(j.one["exec-file"]), specName); existing(spec) != "" {
		if err := copyFile(spec, filepath.Join(j.dir, specName), 0o644); err != nil {
			return err
		}
	}
	return os.Chown(dest, j.uid, j.gid)
}

func copyFile(from, to string, perm fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (j *jail) setLimits() error {
	limits := map[string]uint64{"no-file": 2048}
	for _, l := range j.limits {
		name, value, _ := strings.Cut(l, "=")
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || name != "no-file" && name != "fsize" {
			return fmt.Errorf("Invalid resource argument: %s", l) //nolint:staticcheck // the jailer's words
		}
		limits[name] = n
	}
	for name, n := range limits {
		what := syscall.RLIMIT_NOFILE
		if name == "fsize" {
			what = syscall.RLIMIT_FSIZE
		}
		if err := syscall.Setrlimit(what, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			return err
		}
	}
	return nil
}

// enterCgroups writes the values and then the process, as the jailer does for
// either version.
func (j *jail) enterCgroups() error {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return err
	}
	procs := map[string]bool{}
	for _, c := range j.cgroups {
		file, value, ok := strings.Cut(c, "=")
		controller, _, dotted := strings.Cut(file, ".")
		if !ok || !dotted || value == "" {
			return fmt.Errorf("Invalid format for cgroups: %s", c) //nolint:staticcheck // the jailer's words
		}
		base, v2 := "", j.one["cgroup-version"] == "2"
		for line := range strings.Lines(string(mounts)) {
			f := strings.Fields(line)
			if base == "" && (v2 && f[2] == "cgroup2" || !v2 && f[2] == "cgroup" && strings.Contains(","+f[3]+",", ","+controller+",")) {
				base = f[1]
			}
		}
		if base == "" {
			return fmt.Errorf("Could not find the cgroup controller %s", controller) //nolint:staticcheck // the jailer's words
		}
		parent := filepath.Join(base, j.one["parent-cgroup"])
		dir := filepath.Join(parent, j.one["id"])
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if v2 {
			for _, d := range []string{base, parent} {
				if err := os.WriteFile(filepath.Join(d, "cgroup.subtree_control"), []byte("+"+controller+"\n"), 0); err != nil {
					return err
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value+"\n"), 0); err != nil {
			return err
		}
		procs[filepath.Join(dir, "cgroup.procs")] = true
	}
	for path := range procs { // for version 1 the jailer uses tasks, but has one thread only
		if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
			return err
		}
	}
	return nil
}

// Dynamic reports whether this test binary needs libraries to run.
func Dynamic() bool {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// bindLibraries shows a dynamic test binary its libraries, read-only. It takes the
// mount namespace that pivot goes on with.
func bindLibraries(root string, dirs []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	if !Dynamic() {
		return nil
	}
	for _, dir := range dirs {
		st, err := os.Lstat(dir)
		to := filepath.Join(root, dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		case st.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(dir)
			if err != nil {
				return err
			}
			if err := os.Symlink(target, to); err != nil {
				return err
			}
			continue
		}
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	return nil
}

// pivot makes a directory the root of the mount namespace.
func pivot(dir string) error {
	for _, step := range []func() error{
		func() error { return unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, "") },
		func() error { return unix.Chdir(dir) },
		func() error { return unix.Mkdir("old_root", 0o600) },
		func() error { return unix.PivotRoot(".", "old_root") },
		func() error { return unix.Chdir("/") },
		func() error { return unix.Unmount("old_root", unix.MNT_DETACH) },
		func() error { return unix.Rmdir("old_root") },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("Failed to change the root directory: %w", err) //nolint:staticcheck // the jailer's words
		}
	}
	return nil
}

func (j *jail) ownFolders() error {
	for _, dir := range []string{"/", "/dev", "/dev/net", "/run"} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o700), os.Chown(dir, j.uid, j.gid)); err != nil {
			return err
		}
	}
	return nil
}

func (j *jail) makeDevices() error {
	for path, dev := range map[string]uint64{"/dev/net/tun": unix.Mkdev(10, 200), "/dev/kvm": unix.Mkdev(10, 232), "/dev/urandom": unix.Mkdev(1, 9)} {
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(dev)); err != nil { //nolint:gosec // small
			return fmt.Errorf("Failed to create %s via mknod inside the jail: %w", path, err) //nolint:staticcheck // the jailer's words
		}
		if err := os.Chown(path, j.uid, j.gid); err != nil {
			return err
		}
	}
	return nil
}

func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// dropRoot changes the users of the thread, which is all that is left after exec.
func (j *jail) dropRoot() error {
	for _, call := range [][]uintptr{
		{unix.SYS_SETGROUPS, 0, 0, 0},
		{unix.SYS_SETRESGID, uintptr(j.gid), uintptr(j.gid), uintptr(j.gid)},
		{unix.SYS_SETRESUID, uintptr(j.uid), uintptr(j.uid), uintptr(j.uid)},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return fmt.Errorf("Failed to become user %d: %w", j.uid, errno) //nolint:staticcheck // the jailer's words
		}
	}
	return nil
}
