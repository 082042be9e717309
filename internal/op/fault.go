package op

import (
	"context"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// FaultVariable is the environment variable that makes operations fail, for
// tests of crash safety:
//
//	MVM_FAULT=ACTION:OPERATION:POINT:WHEN
//
// ACTION is kill (SIGKILL to this process), error or cancel (the operation's
// context). OPERATION is a kind such as vm.create, or *. POINT is a step by
// number from 0 or by kind, or reserve (after the reserving transaction, with
// WHEN after), commit, undo (the transaction that drops a reverted operation),
// finish, or revert:STEP. WHEN is before or after the effect. In kinds and
// steps of kinds no colon may appear.
const FaultVariable = "MVM_FAULT"

type fault struct {
	action, kind, point, when string
	err                       error // the variable cannot be read
}

func readFault() fault {
	v := os.Getenv(FaultVariable)
	if v == "" {
		return fault{}
	}
	p := strings.Split(v, ":")
	if len(p) < 4 {
		return fault{err: badFault(v)}
	}
	f := fault{action: p[0], kind: p[1], point: strings.Join(p[2:len(p)-1], ":"), when: p[len(p)-1]}
	switch f.action {
	case "kill", "error", "cancel":
	default:
		f.err = badFault(v)
	}
	if f.when != "before" && f.when != "after" {
		f.err = badFault(v)
	}
	return f
}

func badFault(v string) error {
	return mvm.Errorf(mvm.ErrInvalid, "%s=%s cannot be read", FaultVariable, mvm.Quote(v)).
		WithHint("unset it, or write ACTION:OPERATION:POINT:before|after")
}

// at fires the fault if this is its point. A step is known by number and kind.
func (f fault) at(opKind, point, when string, cancel context.CancelFunc) error {
	if f.action == "" || f.when != when || f.point != point || f.kind != "*" && f.kind != opKind {
		return nil
	}
	switch f.action {
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // until the signal arrives
	case "cancel":
		cancel()
		return nil
	}
	return mvm.Errorf(mvm.ErrUnavailable, "injected by %s at %s of %s, %s", FaultVariable, point, opKind, when).WithHint("unset the variable")
}

// atStep is at for step n, prefix being "" or "revert:".
func (f fault) atStep(opKind, prefix string, n int, stepKind, when string, cancel context.CancelFunc) error {
	if err := f.at(opKind, prefix+strconv.Itoa(n), when, cancel); err != nil {
		return err
	}
	return f.at(opKind, prefix+stepKind, when, cancel)
}
