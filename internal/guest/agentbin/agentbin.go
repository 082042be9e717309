// Package agentbin holds the guest-side program for each architecture, as far as
// 'make build' put it into bin/ before mvm was compiled. It must build with
// nothing there: 'go install' then gives an mvm that plays the agent itself.
package agentbin

import "embed"

//go:embed all:bin
var files embed.FS

// Agent returns the static mvm-agent for a Go architecture ("amd64", "arm64").
// Where none was built in it returns false, and the caller gives the guest its
// own executable (see package agentmain).
func Agent(arch string) ([]byte, bool) {
	data, err := files.ReadFile("bin/mvm-agent-" + arch)
	return data, err == nil && len(data) > 0
}
