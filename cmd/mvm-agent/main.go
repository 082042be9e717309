// Command mvm-agent is the program inside a guest: PID 1 of mvm's initramfs and,
// after the root was switched, the agent that answers the host.
package main

import (
	"os"

	"github.com/mvmctl/mvm/internal/guest/agentmain"
)

func main() { os.Exit(agentmain.Main(os.Args)) }
