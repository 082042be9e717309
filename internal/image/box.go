package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// builder runs what makes an image. Where programs of the image take part, it
// does so in a box: a user namespace whose ids mean nobody on the host, with
// mounts and processes of its own (user_namespaces(7)).
type builder struct {
	runner run.Runner
	root   bool // we are root; else the box is made by unshare(1)
	single bool // an ordinary user's box has no id but root's, who is that user; else it has those of /etc/subuid too
}

func newBuilder(r run.Runner) builder { return builder{runner: r, root: os.Geteuid() == 0} }

// boxIDs is how many ids a box has: those that packages use.
const boxIDs = 65536

// boxStarts are the candidates for the first host id of root's box: above what
// systemd gives to containers (systemd.io/UIDS-GIDS), and for hosts that are
// containers themselves, above the ids of people.
var boxStarts = []int{0x70000000, 100000}

// boxStart returns the first host id for root's boxes, which has to exist in the
// namespace that we are in.
func boxStart() (int, error) {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return 0, err
	}
	for _, start := range boxStarts {
		for line := range strings.Lines(string(b)) {
			var inside, outside, count int
			if _, err := fmt.Sscan(line, &inside, &outside, &count); err == nil && inside <= start && start+boxIDs <= inside+count {
				return start, nil
			}
		}
	}
	return 0, mvm.Errorf(mvm.ErrUnsupported, "this host is a container with too few user ids for a sandbox").
		WithHint("build the image on another host, or import one")
}

// enter makes the current directory visible at $1 to the box's root, who cannot
// walk down a private cache directory, and goes on with the command there. The
// mount lives in the box only.
const enter = `mount -c --bind . "$1" && cd "$1" && shift && export TMPDIR="$PWD" && mount -t proc -o nosuid,nodev,noexec proc /proc && exec "$@"`

// inBox runs a command in a box with dir as its current directory, which the
// box's root owns. Everything in the box is killed when we die, however that is.
func (b builder) inBox(ctx context.Context, dir string, c run.Cmd) (run.Result, error) {
	at, err := bindPoint()
	if err != nil {
		return run.Result{}, err
	}
	inner := append([]string{"sh", "-c", enter, "sh", at, c.Name}, c.Args...)
	c.Dir = dir
	if c.Env == nil {
		c.Env = boxEnv()
	}
	if !b.root {
		c.Name = "unshare"
		ids := []string{"--map-root-user"}
		if !b.single {
			ids = append(ids, "--map-auto")
		}
		c.Args = append(append(ids, "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"), inner...)
		c.Attr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return b.runner.Run(ctx, c)
	}
	start, err := boxStart()
	if err != nil {
		return run.Result{}, err
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: start, Size: boxIDs}}
	const capSetgid, capSetuid = 6, 7 // capabilities(7): to become the box's root after the exec
	c.Attr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		AmbientCaps: []uintptr{capSetgid, capSetuid},
	}
	// The first becomes the box's root, which clears the death signal, so a second sets it.
	c.Name = "setpriv"
	c.Args = append([]string{"--reuid=0", "--regid=0", "--clear-groups", "--ambient-caps=-all", "--inh-caps=-all", "setpriv", "--pdeathsig=KILL"}, inner...)
	return b.runner.Run(ctx, c)
}

// boxEnv keeps what reaches mirrors, and nothing else of ours.
func boxEnv() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SOURCE_DATE_EPOCH"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// bindPoint returns a directory that every host has for such purposes.
func bindPoint() (string, error) {
	for _, dir := range []string{"/mnt", "/media", "/srv", "/opt"} {
		if st, err := os.Lstat(dir); err == nil && st.IsDir() {
			return dir, nil
		}
	}
	return "", mvm.Errorf(mvm.ErrUnsupported, "this host has no directory /mnt").WithHint("mkdir /mnt")
}

// check says why there can be no box here.
func (b builder) check(ctx context.Context, dir string) error {
	_, err := b.inBox(ctx, dir, run.Cmd{Name: "true"})
	var exit *run.ExitError
	if err == nil || ctx.Err() != nil || errors.Is(err, mvm.ErrUnsupported) {
		return err
	}
	hint := "allow user namespaces (sysctl user.max_user_namespaces), or build the image on another host"
	switch {
	case b.single:
		hint = "allow user namespaces (sysctl user.max_user_namespaces), or run as root"
	case !b.root:
		hint = "give your user an entry in /etc/subuid and /etc/subgid, install the package uidmap, or run as root"
	}
	if errors.As(err, &exit) || mvm.HintOf(err) == "" {
		return mvm.Errorf(mvm.ErrUnsupported, "this host cannot make the sandbox that an image is built in: %w", err).WithHint("%s", hint)
	}
	return err
}

// workdir makes a directory in the stage that belongs to the box's root.
func (b builder) workdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if !b.root {
		return nil
	}
	start, err := boxStart()
	if err != nil {
		return err
	}
	return os.Chown(dir, start, start)
}

// collect takes a file that was made in a box. Nothing there can be trusted: it
// has to be a plain file without a second name before it becomes ours.
func collect(from, to string) error {
	f, err := os.OpenFile(from, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !st.Mode().IsRegular() || !ok || sys.Nlink != 1 {
		return mvm.Errorf(mvm.ErrBroken, "the build left something else than an image").WithHint("check the package sources of this host")
	}
	if err := errors.Join(f.Chown(os.Geteuid(), os.Getegid()), f.Chmod(0o600), f.Sync()); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// removeAll removes a directory that may hold files of a box's users.
func (b builder) removeAll(ctx context.Context, dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || b.root || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if _, err := b.inBox(ctx, dir, run.Cmd{Name: "sh", Args: []string{"-c", "rm -rf --one-file-system -- * .[!.]*"}}); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
