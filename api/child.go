package api

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm/internal/cloudinit"
	"github.com/mvmctl/mvm/internal/dns"
	"github.com/mvmctl/mvm/internal/guest/agentmain"
	"github.com/mvmctl/mvm/internal/helper"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/network/linux"
	"github.com/mvmctl/mvm/internal/supervisor"
)

// ChildMain takes over when this process was started by mvm itself: as the
// supervisor of a VM, to write down its end or to restart it, as the server that
// its cloud-init reads from or the DNS server of its network, or inside a guest as
// its agent. It then returns true
// when that work is done, with the status that the process has to exit with. A
// program that uses this package calls it first thing in main:
//
//	if status, done := api.ChildMain(); done {
//		os.Exit(status)
//	}
func ChildMain() (status int, done bool) {
	switch {
	case len(os.Args) > 0 && filepath.Base(os.Args[0]) == helper.Name: // installed where there is no smaller one
		return helper.Main(linux.New(), host.PortTaken), true
	case agentmain.IsGuest(os.Args):
		return agentmain.Main(os.Args), true
	case len(os.Args) > 1 && os.Args[1] == supervisor.Command:
		return supervisor.Main(os.Args[2:]), true
	case len(os.Args) > 1 && os.Args[1] == cloudinit.Command:
		return cloudinit.Main(os.Args[2:]), true
	case len(os.Args) > 1 && os.Args[1] == dns.Command:
		return dns.Main(os.Args[2:], opener{linux.New()}), true
	case len(os.Args) > 1 && os.Args[1] == endedCommand:
		return endedMain(os.Args[2:], nil), true
	case len(os.Args) > 1 && os.Args[1] == restartCommand:
		return restartMain(os.Args[2:], nil), true
	}
	return 0, false
}

// cmdline returns the command line of a process, nothing when it is gone.
func cmdline(pid int) []string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return []string{}
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
}
