package op

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// FaultVariable is the environment variable that makes operations fail, for
// tests of crash safety:
//
//	MVM_FAULT=ACTION:OPERATION:POINT:WHEN[,ACTION:…]
//
// ACTION is kill (SIGKILL to this process), stop (SIGSTOP, until somebody sends
// SIGCONT), error or cancel (the operation's context). OPERATION is a kind such as
// vm.create, or *. POINT is a step by number from 0 or by kind, or reserve (after
// the reserving transaction, with WHEN after), commit, undo (the transaction that
// drops a reverted operation), finish, or revert:STEP. WHEN is before or after the
// effect. In kinds and steps of kinds no colon may appear.
//
// The ACTION trace fails nothing: with a file as POINT, it appends a line to the
// file for each point that is passed, as OPERATION:POINT:WHEN. So a test takes the
// points to try from the plan itself.
const FaultVariable = "MVM_FAULT"

const trace = "trace"

type fault struct{ action, kind, point, when string }

// faults are all that the variable asks for.
type faults struct {
	all []fault
	err error // the variable cannot be read
}

func readFaults() faults {
	v := os.Getenv(FaultVariable)
	if v == "" {
		return faults{}
	}
	var fs faults
	for one := range strings.SplitSeq(v, ",") {
		p := strings.Split(one, ":")
		if len(p) < 4 {
			return faults{err: badFault(v)}
		}
		f := fault{action: p[0], kind: p[1], point: strings.Join(p[2:len(p)-1], ":"), when: p[len(p)-1]}
		switch f.action {
		case "kill", "stop", "error", "cancel", trace:
		default:
			fs.err = badFault(v)
		}
		if f.when != "before" && f.when != "after" {
			fs.err = badFault(v)
		}
		fs.all = append(fs.all, f)
	}
	return fs
}

func badFault(v string) error {
	return mvm.Errorf(mvm.ErrInvalid, "%s=%s cannot be read", FaultVariable, mvm.Quote(v)).
		WithHint("unset it, or write ACTION:OPERATION:POINT:before|after")
}

// at fires what is to happen at a point.
func (fs faults) at(opKind, point, when string, cancel context.CancelFunc) error {
	return fs.atAny(opKind, []string{point}, when, cancel)
}

// atStep is at for step n, prefix being "" or "revert:". A step is known by number
// and by kind.
func (fs faults) atStep(opKind, prefix string, n int, stepKind, when string, cancel context.CancelFunc) error {
	return fs.atAny(opKind, []string{prefix + strconv.Itoa(n), prefix + stepKind}, when, cancel)
}

// atAny is at for a point with several names, of which a trace gets the first.
func (fs faults) atAny(opKind string, names []string, when string, cancel context.CancelFunc) error {
	for _, f := range fs.all {
		if f.kind != "*" && f.kind != opKind {
			continue
		}
		if f.action == trace {
			appendLine(f.point, opKind+":"+names[0]+":"+when)
			continue
		}
		for _, name := range names {
			if f.when != when || f.point != name {
				continue
			}
			if err := f.fire(opKind, when, cancel); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f fault) fire(opKind, when string, cancel context.CancelFunc) error {
	switch f.action {
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // until the signal arrives
	case "stop":
		runtime.LockOSThread() // this very thread stands still, before it does anything more
		_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
		runtime.UnlockOSThread()
		return nil
	case "cancel":
		cancel()
		return nil
	}
	return mvm.Errorf(mvm.ErrUnavailable, "injected by %s at %s of %s, %s", FaultVariable, f.point, opKind, when).WithHint("unset the variable")
}

// appendLine writes a line of a trace. A test that misses one fails by itself.
func appendLine(path, line string) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	_, _ = f.WriteString(line + "\n")
	_ = f.Close()
}
