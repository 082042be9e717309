package mvm

import "time"

// ProgressEvent tells a caller how a long operation goes on. Events of one
// operation come in order; a phase ends when the next begins or the operation
// returns.
type ProgressEvent struct {
	Phase   string `json:"phase"`             // "download", "build", "boot", …
	Message string `json:"message"`           // one line for a person
	Current int64  `json:"current,omitempty"` // done so far, in bytes unless Unit says otherwise
	Total   int64  `json:"total,omitempty"`   // 0 when unknown
	Unit    string `json:"unit,omitempty"`    // "" means bytes

	Rate int64         `json:"rate,omitempty"` // units per second, of late; 0 when unknown
	Left time.Duration `json:"left,omitempty"` // until Current is Total at that rate, in nanoseconds; 0 when unknown
}

// ProgressFunc receives progress events. It is called from the operation's
// goroutine and must not block for long. A nil ProgressFunc is never called.
type ProgressFunc func(ProgressEvent)

// Send calls f if it is not nil.
func (f ProgressFunc) Send(phase, message string) {
	if f != nil {
		f(ProgressEvent{Phase: phase, Message: message})
	}
}
