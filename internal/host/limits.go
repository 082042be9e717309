package host

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CPUModel returns the name of the host's first CPU, "" where it is not told.
func CPUModel() string { return cpuModel("/") }

func cpuModel(root string) string {
	data, _ := os.ReadFile(root + "proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name", "Model", "Hardware": // x86; arm64
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// NUMANodes returns how many NUMA nodes the host has, at least one.
func NUMANodes() int { return numaNodes("/") }

func numaNodes(root string) int {
	nodes, _ := filepath.Glob(root + "sys/devices/system/node/node[0-9]*") // fails on a bad pattern only
	return max(len(nodes), 1)
}

// Release returns the version of the running kernel.
func Release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// Use is how much of something the host allows, and how much is in use.
type Use struct{ Max, Used int64 }

// Free is what is left.
func (u Use) Free() int64 { return max(u.Max-u.Used, 0) }

// Tasks tells how many processes and threads there may be, and are: by kernel.pid_max,
// kernel.threads-max and the limits of the cgroups that this process is in.
func Tasks() Use { return tasks("/") }

func tasks(root string) Use {
	u := Use{Max: number(root + "proc/sys/kernel/pid_max")}
	if threads := number(root + "proc/sys/kernel/threads-max"); threads > 0 {
		u.Max = min(u.Max, threads)
	}
	// The fourth field of /proc/loadavg is RUNNABLE/EXISTING (proc(5)).
	if f := strings.Fields(firstLine(root + "proc/loadavg")); len(f) > 3 {
		_, all, _ := strings.Cut(f[3], "/")
		u.Used, _ = strconv.ParseInt(all, 10, 64)
	}
	for _, dir := range pidsCgroups(root) {
		limit, err := strconv.ParseInt(firstLine(dir+"/pids.max"), 10, 64) // "max" is no number
		if err != nil {
			continue
		}
		if used := number(dir + "/pids.current"); limit-used < u.Free() {
			u = Use{Max: limit, Used: used}
		}
	}
	return u
}

// pidsCgroups are the cgroup of this process that counts tasks, and those above it
// (cgroups(7): /proc/PID/cgroup).
func pidsCgroups(root string) []string {
	data, _ := os.ReadFile(root + "proc/self/cgroup")
	var dirs []string
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		base := ""
		switch {
		case f[1] == "":
			base = root + "sys/fs/cgroup"
		case strings.Contains(","+f[1]+",", ",pids,"):
			base = root + "sys/fs/cgroup/pids"
		default:
			continue
		}
		for at := filepath.Clean("/" + f[2]); ; at = filepath.Dir(at) {
			dirs = append(dirs, filepath.Join(base, at))
			if at == "/" {
				break
			}
		}
	}
	return dirs
}

// Files tells how many open files there may be on the host, and are
// (Documentation/admin-guide/sysctl/fs.rst: file-nr).
func Files() Use { return openFiles("/") }

func openFiles(root string) Use {
	f := strings.Fields(firstLine(root + "proc/sys/fs/file-nr"))
	if len(f) < 3 {
		return Use{}
	}
	used, _ := strconv.ParseInt(f[0], 10, 64)
	most, _ := strconv.ParseInt(f[2], 10, 64)
	return Use{Max: most, Used: used}
}

// DiskFreeMiB returns the room on the file system that a directory is on, or will be.
func DiskFreeMiB(dir string) int64 {
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil {
			return int64(st.Bavail) * st.Bsize >> 20 //nolint:gosec // fewer than 2^63 bytes
		}
		up := filepath.Dir(dir)
		if up == dir {
			return 0
		}
		dir = up
	}
}

func number(path string) int64 {
	n, _ := strconv.ParseInt(firstLine(path), 10, 64)
	return n
}
