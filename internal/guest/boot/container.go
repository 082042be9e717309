package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest"
)

// prepareContainer makes what a container image expects of the runtime that starts it,
// and puts our PID 1 into /run.
func prepareContainer(root, run *Rootfs, cfg *guest.BootConfig) error {
	if cfg.Agent == nil {
		if err := run.MkdirAll(inRun(guest.RuntimeDir), 0o755); err != nil {
			return err
		}
		if err := copySelf(run, inRun(guest.ContainerPID1)); err != nil {
			return fmt.Errorf("install the init: %w", err)
		}
	} else if err := linkInit(run); err != nil {
		return fmt.Errorf("install the init: %w", err)
	}
	if err := root.EnsureDir("/tmp", 0o777|os.ModeSticky, Owner{}); err != nil {
		return err
	}
	if cfg.Container.Dir == "" {
		return nil
	}
	return root.MkdirAll(cfg.Container.Dir, 0o755)
}

// linkInit gives the agent's program its second name, by which it is told as PID 1.
func linkInit(run *Rootfs) error {
	d, err := run.OpenDir(inRun(guest.RuntimeDir))
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	fd := int(d.Fd())
	return unix.Linkat(fd, "mvm-agent", fd, "mvm-init", 0)
}

// execContainerInit becomes the init of a container image, in the root that was
// switched to. It returns only on failure.
func execContainerInit(con console, cfg *guest.BootConfig) error {
	mountContainer(func(err error) { con.say("%v", err) })
	c := *cfg.Container
	c.PowerOff, c.Agent = cfg.PowerOff, cfg.Agent != nil
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("container.json", 0)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "container.json")
	if _, err := f.Write(data); err != nil {
		return err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	return unix.Exec(guest.ContainerPID1, []string{"mvm-agent", "init", "--config-fd", strconv.Itoa(fd)}, initEnv())
}

// mountContainer mounts what an init would, as container runtimes do (OCI runtime
// specification, "config-linux.md", default file systems). All of it lies on our own
// /dev and /sys. A guest can live without any.
func mountContainer(report func(error)) {
	for _, m := range []struct {
		fs, dir string
		flags   uintptr
		data    string
	}{
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "/dev/mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"cgroup2", "/sys/fs/cgroup", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	} {
		if err := os.Mkdir(m.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			continue // the kernel has no such thing
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, m.flags, m.data); err != nil && err != unix.EBUSY && err != unix.ENODEV {
			report(fmt.Errorf("mount %s: %w", m.dir, err))
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, "/dev/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			report(err)
		}
	}
}
