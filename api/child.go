package api

import (
	"os"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm/internal/guest/agentmain"
	"github.com/mvmctl/mvm/internal/supervisor"
)

// ChildMain takes over when this process was started by mvm itself: as the
// supervisor of a VM, or inside a guest as its agent. It then returns true when
// that work is done, and main has to end. A program that uses this package calls
// it first thing in main.
func ChildMain() bool {
	switch {
	case agentmain.IsGuest(os.Args):
		agentmain.Main(os.Args)
	case len(os.Args) > 1 && os.Args[1] == supervisor.Command:
		supervisor.Main(os.Args[2:])
	default:
		return false
	}
	return true
}

// cmdline returns the command line of a process, nothing when it is gone.
func cmdline(pid int) []string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return []string{}
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
}
