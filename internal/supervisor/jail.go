package supervisor

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/proc"
)

// Jail asks for a VMM that has a pid and a mount namespace of its own. What is
// mounted there is nowhere else, and is gone when the VMM is, whatever kills whom.
type Jail struct {
	Binds []Bind `json:"binds"`
}

// Bind is a file that appears in place of another one.
type Bind struct {
	From     string `json:"from"`
	To       string `json:"to"` // exists
	ReadOnly bool   `json:"read_only"`
}

// startVMM starts the VMM, in a jail if there is one to be. It is then the first
// process of its pid namespace and, unlike with the jailer's own --new-pid-ns,
// still our child.
func startVMM(s proc.Spec, jail *Jail) (p *os.Process, id proc.Identity, err error) {
	if jail == nil {
		return proc.StartDetached(s)
	}
	s.OwnPIDs = true
	done := make(chan struct{})
	go func() {
		defer close(done)
		// A child has the namespaces of the thread that starts it. This one is never
		// unlocked, and so ends with the goroutine.
		runtime.LockOSThread()
		if err = ownMounts(jail.Binds); err == nil {
			p, id, err = proc.StartDetached(s)
		}
	}()
	<-done
	return p, id, err
}

// ownMounts gives the calling thread a mount namespace, out of which nothing
// propagates, and makes the binds in it.
func ownMounts(binds []Bind) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	for _, b := range binds {
		if err := unix.Mount(b.From, b.To, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s to %s: %w", b.From, b.To, err)
		}
		flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
		if b.ReadOnly {
			flags |= unix.MS_RDONLY
		}
		if err := unix.Mount("", b.To, "", flags, ""); err != nil {
			return fmt.Errorf("restrict %s: %w", b.To, err)
		}
	}
	return nil
}
