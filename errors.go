package mvm

import (
	"errors"
	"fmt"
	"strings"
)

// Kind says what sort of failure an error is. Callers match it with errors.Is:
//
//	if errors.Is(err, mvm.ErrNotFound) { … }
type Kind string

// Error implements error, so that a Kind can be wrapped and matched.
func (k Kind) Error() string { return string(k) }

// The kinds of error. Every error that leaves the api package wraps exactly one.
const (
	ErrNotFound    Kind = "not found"                 // no object has that name or selector
	ErrExists      Kind = "already exists"            // the name, address or subnet is taken
	ErrAmbiguous   Kind = "ambiguous"                 // a selector matches more than one object
	ErrBusy        Kind = "busy"                      // another command holds the object
	ErrConflict    Kind = "not allowed in this state" // the object's phase or its users forbid the verb
	ErrInvalid     Kind = "invalid"                   // the input can never work
	ErrUnsupported Kind = "not supported"             // this driver, host or build cannot do it
	ErrUnavailable Kind = "unavailable"               // something needed is missing or does not answer
	ErrPrivilege   Kind = "permission denied"         // needs root or the helper
	ErrBroken      Kind = "broken"                    // an object is damaged and has to be mended or removed
)

// Error is the error type of this module: what failed (Op), on which object
// (Subject), why (Err), of what Kind, and what the user can do next (Hint).
type Error struct {
	Kind    Kind   // never empty
	Op      string // "create VM", "pull kernel"; may be empty
	Subject string // the object's name as the user knows it; may be empty
	Hint    string // one sentence or command that helps; may be empty
	Err     error  // the cause; may be nil
}

// Error returns "cannot OP SUBJECT: CAUSE" on one line, without the hint.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString("cannot " + e.Op)
		if e.Subject != "" {
			b.WriteString(" " + Quote(e.Subject))
		}
	} else if e.Subject != "" {
		b.WriteString(Quote(e.Subject))
	}
	cause := string(e.Kind)
	if e.Err != nil {
		cause = e.Err.Error()
	}
	if b.Len() == 0 {
		return cause
	}
	return b.String() + ": " + cause
}

// Unwrap returns the kind and the cause, so that errors.Is finds either.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Errorf makes an *Error of a kind with a formatted cause; %w is honoured.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}

// WithHint sets what the user can do next and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// On sets what failed and on which object, and returns e.
func (e *Error) On(op, subject string) *Error {
	e.Op, e.Subject = op, subject
	return e
}

// Wrap says what was attempted on which object when err happened. The kind and
// the hint of err are kept; an err without a kind becomes ErrUnavailable. It
// returns nil for a nil err.
func Wrap(err error, op, subject string) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Op: op, Subject: subject, Hint: HintOf(err), Err: err}
}

// KindOf returns the kind that err wraps, or ErrUnavailable when it has none.
func KindOf(err error) Kind {
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	return ErrUnavailable
}

// HintOf returns the outermost hint in what err wraps, of joined errors that of
// the first which has one, or "".
func HintOf(err error) string {
	if e, ok := err.(*Error); ok && e.Hint != "" { //nolint:errorlint // this walks the tree itself
		return e.Hint
	}
	switch u := err.(type) { //nolint:errorlint // likewise
	case interface{ Unwrap() error }:
		return HintOf(u.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range u.Unwrap() {
			if hint := HintOf(inner); hint != "" {
				return hint
			}
		}
	}
	return ""
}

// NeedsInteraction is returned where a person has to do or decide something
// first, such as running a command with sudo. It matches ErrPrivilege.
type NeedsInteraction struct {
	What    string   // what cannot go on without it
	Command []string // the command to run, ready to be shown
	Consent bool     // a yes is all that it takes; Command says it
}

// Error says what is needed and the command to run.
func (n *NeedsInteraction) Error() string {
	return n.What + ": run '" + strings.Join(n.Command, " ") + "'"
}

// Unwrap makes NeedsInteraction match ErrPrivilege.
func (n *NeedsInteraction) Unwrap() error { return ErrPrivilege }

// Quote returns s in double quotes with control characters escaped, so that a
// hostile name cannot write to the terminal.
func Quote(s string) string { return fmt.Sprintf("%q", s) }
