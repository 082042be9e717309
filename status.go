package mvm

import "slices"

// VMStatus is the phase of a VM as users see it.
type VMStatus string

// The phases of a VM.
const (
	StatusStarting VMStatus = "starting" // being created or started
	StatusRunning  VMStatus = "running"  // its VMM runs and its vCPUs execute
	StatusPaused   VMStatus = "paused"   // its VMM runs, its vCPUs stand still
	StatusStopping VMStatus = "stopping" // being stopped or removed
	StatusStopped  VMStatus = "stopped"  // ended as asked; its disk is kept
	StatusCrashed  VMStatus = "crashed"  // its VMM ended by itself
	StatusError    VMStatus = "error"    // an operation failed and could not be undone
)

// Statuses lists every phase, in the order of a VM's life.
func Statuses() []VMStatus {
	return []VMStatus{StatusStarting, StatusRunning, StatusPaused, StatusStopping, StatusStopped, StatusCrashed, StatusError}
}

// Active reports whether a VM in this phase has, or may have, a VMM process.
func (s VMStatus) Active() bool {
	switch s {
	case StatusStarting, StatusRunning, StatusPaused, StatusStopping:
		return true
	}
	return false
}

// Verb is an operation that moves a VM from one phase to another.
type Verb string

// The verbs of a VM's life.
const (
	VerbStart    Verb = "start"
	VerbStop     Verb = "stop"
	VerbPause    Verb = "pause"
	VerbResume   Verb = "resume"
	VerbReboot   Verb = "reboot"
	VerbSnapshot Verb = "snapshot"
	VerbLoad     Verb = "load"
	VerbUpdate   Verb = "update"
	VerbRemove   Verb = "remove"
)

// Transition says from which phases a verb may start, which phase the VM shows
// meanwhile, and where it ends.
type Transition struct {
	Verb    Verb
	From    []VMStatus // phases that allow the verb
	During  VMStatus   // shown while the verb works; "" keeps the phase it had
	Success VMStatus   // "" means the VM is gone (remove) or the phase is as before (snapshot)
	Failure VMStatus   // where a failure that was undone ends; "" means as before
}

var transitions = []Transition{
	{VerbStart, []VMStatus{StatusStopped, StatusCrashed, StatusError}, StatusStarting, StatusRunning, ""},
	{VerbStop, []VMStatus{StatusRunning, StatusPaused, StatusError}, StatusStopping, StatusStopped, ""},
	{VerbPause, []VMStatus{StatusRunning}, "", StatusPaused, ""},
	{VerbResume, []VMStatus{StatusPaused}, "", StatusRunning, ""},
	{VerbReboot, []VMStatus{StatusRunning, StatusPaused}, StatusStopping, StatusRunning, StatusStopped},
	{VerbSnapshot, []VMStatus{StatusRunning, StatusPaused}, "", "", ""},
	{VerbLoad, []VMStatus{StatusStopped, StatusCrashed}, StatusStarting, StatusPaused, ""},
	{VerbUpdate, []VMStatus{StatusRunning, StatusPaused, StatusStopped, StatusCrashed}, "", "", ""},
	{VerbRemove, []VMStatus{StatusRunning, StatusPaused, StatusStopped, StatusCrashed, StatusError}, StatusStopping, "", StatusError},
}

// Transitions returns the whole table, one row per verb.
func Transitions() []Transition { return slices.Clone(transitions) }

// TransitionOf returns the row of a verb. It is total over the declared verbs.
func TransitionOf(v Verb) Transition {
	for _, t := range transitions {
		if t.Verb == v {
			return t
		}
	}
	return Transition{Verb: v}
}

// Allows reports whether the verb may start from phase s.
func (t Transition) Allows(s VMStatus) bool { return slices.Contains(t.From, s) }
