package render

// Failure is one error as it is shown.
type Failure struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

// Failure prints an error on stderr: a line "error: …" and, if there is
// something to do about it, "hint: …"; with JSON {"error": {…}} on one line.
func (o *Output) Failure(f Failure) {
	if o.JSON && o.Format == nil {
		o.failureJSON(f)
		return
	}
	o.say("error: ", ToneBad, Clean(f.Message))
	if f.Hint != "" {
		o.say("hint: ", ToneMuted, Clean(f.Hint))
	}
}

// Interrupted says that the user ended the command.
func (o *Output) Interrupted(f Failure) {
	if o.JSON && o.Format == nil {
		o.failureJSON(f)
		return
	}
	o.say("", toneNone, f.Message)
}

// Abandoned is the last word of a command that ends at once. Where another
// goroutine is stuck in printing, it says nothing.
func (o *Output) Abandoned(message string) {
	if !o.mu.TryLock() {
		return
	}
	o.clearProgress()
	o.progress = nil
	o.mu.Unlock()
	o.Interrupted(Failure{Kind: "interrupted", Message: message})
}

func (o *Output) failureJSON(f Failure) {
	b, err := encodeLine(map[string]Failure{"error": f})
	if err != nil {
		return // three strings always encode
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = o.Stderr.Write(b)
}
