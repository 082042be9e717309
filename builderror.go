package mvm

import "fmt"

// BuildError says that something built from source failed to build.
type BuildError struct {
	Log  string   // path of the whole log
	Tail []string // its last lines, and the first error if it came before
}

// Error says what failed first, and where the log is.
func (e *BuildError) Error() string {
	if len(e.Tail) == 0 {
		return fmt.Sprintf("the build failed; its log is %s", e.Log)
	}
	return fmt.Sprintf("the build failed: %s", e.Tail[0])
}

// Unwrap makes it ErrBroken, with a hint.
func (e *BuildError) Unwrap() error {
	return Errorf(ErrBroken, "the build failed").WithHint("the whole log is %s", e.Log)
}
