package mvm

// BuildError says that something built from source failed to build.
type BuildError struct {
	Log   string   // path of the whole log
	Cause string   // the line that says first what failed, "" when none does
	Tail  []string // the log's last lines, and Cause if it came before
}

// Error says what failed first.
func (e *BuildError) Error() string {
	if e.Cause == "" {
		return "the build failed"
	}
	return "the build failed: " + e.Cause
}

// Unwrap makes it ErrBroken, with a hint.
func (e *BuildError) Unwrap() error {
	return Errorf(ErrBroken, "the build failed").WithHint("the whole log is %s", e.Log)
}
