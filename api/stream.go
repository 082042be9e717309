package api

import "io"

// StreamIO connects a session in a guest with the caller.
type StreamIO struct {
	Stdin  io.Reader // nil: empty
	Stdout io.Writer // nil: discarded
	Stderr io.Writer // nil: discarded

	// Terminal, when set, asks for a pty of that size; Resize tells of changes.
	Terminal *TerminalSize
	Resize   <-chan TerminalSize
	Term     string // $TERM in the guest; "" means xterm
}

// TerminalSize is the size of a terminal in characters.
type TerminalSize struct{ Rows, Cols int }
