package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// cgroupParent is the cgroup below which each VM has its own.
const cgroupParent = "mvm"

// limit is a file of a cgroup and what is written to it.
type limit struct{ File, Value string }

// cgroupLimits are the limits that a launch asks for and the host can hold. CPU
// time is not bounded.
func cgroupLimits(l vmm.Launch) []limit {
	var limits []limit
	c := l.Jail.Cgroup
	if c.Version == 0 {
		return nil
	}
	if c.Memory {
		file := "memory.max"
		if c.Version == 1 {
			file = "memory.limit_in_bytes"
		}
		mib := int64(orDefault(l.Jail.CgroupMiB, l.MemMiB+l.MemMiB/overheadShare+overheadMiB))
		limits = append(limits, limit{file, strconv.FormatInt(mib<<20, 10)})
	}
	if c.PIDs {
		limits = append(limits, limit{"pids.max", strconv.Itoa(maxThreads)})
	}
	return limits
}

// HostCgroup says which limits the host's cgroups can hold, as far as that can be
// seen without trying.
func HostCgroup() vmm.Cgroup {
	m := mountedCgroups()
	c := vmm.Cgroup{Memory: m.base(m.version, "memory") != "", PIDs: m.base(m.version, "pids") != ""}
	if c.Memory || c.PIDs {
		c.Version = m.version
	}
	return c
}

// cgroupMounts is where control groups are mounted.
type cgroupMounts struct {
	version     int               // that holds memory or pids; 0 when neither is there
	unified     string            // version 2
	controllers []string          // of version 2, at its top
	v1          map[string]string // by controller
}

func mountedCgroups() cgroupMounts {
	data, _ := os.ReadFile("/proc/self/mounts") // no mounts, no limits
	return parseCgroupMounts(string(data), func(dir string) string {
		data, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		return string(data)
	})
}

// parseCgroupMounts reads a table of mounts (fstab(5)) as the jailer does: of
// version 2 and of each controller the first one counts.
func parseCgroupMounts(table string, controllers func(dir string) string) cgroupMounts {
	m := cgroupMounts{v1: map[string]string{}}
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		switch {
		case len(f) != 6:
		case f[2] == "cgroup2" && m.unified == "":
			m.unified = f[1]
			m.controllers = strings.Fields(controllers(f[1]))
		case f[2] == "cgroup":
			for _, name := range []string{"memory", "pids"} {
				if m.v1[name] == "" && slices.Contains(strings.Split(f[3], ","), name) {
					m.v1[name] = f[1]
				}
			}
		}
	}
	switch {
	case slices.Contains(m.controllers, "memory") || slices.Contains(m.controllers, "pids"):
		m.version = 2
	case len(m.v1) > 0:
		m.version = 1
	}
	return m
}

// base returns where a controller's cgroups are; "" when it is not there.
func (m cgroupMounts) base(version int, controller string) string {
	switch {
	case version == 1:
		return m.v1[controller]
	case version == 2 && slices.Contains(m.controllers, controller):
		return m.unified
	}
	return ""
}

// dirs returns all the places where a VM could have a cgroup.
func (m cgroupMounts) dirs(id string) []string {
	var dirs []string
	for _, base := range []string{m.unified, m.v1["memory"], m.v1["pids"]} {
		if base != "" {
			dirs = append(dirs, filepath.Join(base, cgroupParent, supervisor.Token(id)))
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// makeCgroups makes a VM's cgroups with the limits that the launch asks for; the
// jailer then puts itself there. A limit that the host refuses is taken out of the
// launch and said of it: the VM runs all the same.
func makeCgroups(l *vmm.Launch) (dirs, without []string) {
	m := mountedCgroups()
	wanted := l.Jail.Cgroup
	got := vmm.Cgroup{}
	for _, c := range []struct {
		name, what string
		wanted     bool
		got        *bool
	}{
		{"memory", "a limit of memory", wanted.Memory, &got.Memory},
		{"pids", "a limit of threads", wanted.PIDs, &got.PIDs},
	} {
		base := m.base(wanted.Version, c.name)
		if wanted.Version == 0 || !c.wanted || base == "" {
			without = append(without, c.what+": the host has no cgroup controller "+c.name)
			continue
		}
		dir := filepath.Join(base, cgroupParent, supervisor.Token(l.ID))
		if err := makeCgroup(base, dir, wanted.Version, c.name, *l); err != nil {
			without = append(without, c.what+": "+err.Error())
			continue
		}
		*c.got, got.Version = true, wanted.Version
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	jail := *l.Jail
	jail.Cgroup, l.Jail = got, &jail
	return dirs, without
}

// makeCgroup makes one and writes the limits of one controller.
func makeCgroup(base, dir string, version int, controller string, l vmm.Launch) error {
	parent := filepath.Dir(dir)
	var err error
	for range 10 { // who removes the last VM removes the parent, perhaps just now
		if err = os.Mkdir(parent, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err = os.Mkdir(dir, 0o755); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if version == 2 {
		for _, d := range []string{base, parent} {
			if err := writeKernel(filepath.Join(d, "cgroup.subtree_control"), "+"+controller); err != nil {
				return err
			}
		}
	}
	for _, limit := range cgroupLimits(l) {
		if strings.HasPrefix(limit.File, controller+".") {
			if err := writeKernel(filepath.Join(dir, limit.File), limit.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeKernel writes to a file that is the kernel's: it is there or it is not.
func writeKernel(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

const (
	cgroupPatience = 5 * time.Second // for dead processes to leave their cgroup
	cgroupPoll     = 5 * time.Millisecond
)

// removeCgroups removes a VM's cgroups, and the parent with the last VM's.
// Processes in them are ended where the kernel can do that (version 2); it is for
// the caller to have ended them.
func removeCgroups(ctx context.Context, id string) error {
	var errs []error
	for _, dir := range mountedCgroups().dirs(id) {
		errs = append(errs, removeCgroup(ctx, dir))
	}
	return errors.Join(errs...)
}

func removeCgroup(ctx context.Context, dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_ = writeKernel(filepath.Join(dir, "cgroup.kill"), "1") // since Linux 5.14
	end := time.Now().Add(cgroupPatience)
	for {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			_ = unix.Rmdir(filepath.Dir(dir)) // other VMs may have cgroups there
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(end):
			return fmt.Errorf("remove the cgroup %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(cgroupPoll):
		}
	}
}
