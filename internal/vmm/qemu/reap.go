package qemu

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/proc"
)

// extra is what the driver adds to a handle. Names are of files in the VM's directory.
type extra struct {
	Log           string `json:"log"` // of QEMU
	ConsoleSocket string `json:"console_socket"`
	Disk          string `json:"disk"`            // path of the root disk
	Facts         *facts `json:"facts,omitempty"` // of the launch; nil in a VM that an older mvm has started
}

// extra returns what the handle has of it; one that cannot be read has nothing.
func (m *machine) extra() extra {
	var e extra
	if json.Unmarshal(m.handle.Extra, &e) != nil {
		return extra{}
	}
	return e
}

// reapEvery is the pause between looks at a QEMU that does not answer.
const reapEvery = time.Second

// reap ends a QEMU that hangs in its own end. A request that arrives while QEMU
// cleans up can make monitor_cleanup wait for ever (seen with 7.2: the monitor's
// thread marks the dispatcher busy when it has ended already). By then the disks
// are flushed and closed, so that SIGKILL takes nothing from the guest. reap
// looks, while a request is under way, whether they are, and twice, because a
// healthy QEMU passes through that state too.
func (m *machine) reap(ctx context.Context) {
	disk := m.extra().Disk
	if disk == "" {
		return // nothing tells
	}
	ticker := time.NewTicker(reapEvery)
	defer ticker.Stop()
	for closed := 0; closed < 2; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		has, err := holds(m.handle.VMM, disk)
		switch {
		case err != nil:
			return // it is gone, or not ours
		case has:
			closed = 0
		default:
			closed++
		}
	}
	_ = proc.Signal(m.handle.VMM, unix.SIGKILL)
}

// holds reports whether a process has a file open.
func holds(id proc.Identity, path string) (bool, error) {
	if !proc.Alive(id) {
		return false, proc.ErrGone
	}
	want, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	dir := filepath.Join("/proc", strconv.Itoa(id.PID), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, fd := range fds {
		if fi, err := os.Stat(filepath.Join(dir, fd.Name())); err == nil && os.SameFile(want, fi) {
			return true, nil
		}
	}
	return false, nil
}
