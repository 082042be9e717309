// Package agentmain is the one entry of the guest-side program, so that
// cmd/mvm-agent and an mvm that stands in for it behave the same. It must not
// import anything of the host's side: what it pulls in is in every guest's
// memory.
package agentmain

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"syscall"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/agent"
	"github.com/mvmctl/mvm/internal/guest/boot"
	"github.com/mvmctl/mvm/internal/guest/tree"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// IsGuest says whether the process was started as the guest-side program: as
// PID 1 by the kernel of our initramfs, or under the agent's name. A host
// process never is: mvm in a container may have pid 1, but not argv[0] "/init".
func IsGuest(args []string) bool {
	return len(args) > 0 && (args[0] == guest.InitPath || path.Base(args[0]) == "mvm-agent" ||
		(len(args) >= 2 && args[0] == "/proc/self/exe" && (args[1] == "sftp" || args[1] == "pack" || args[1] == "unpack" || args[1] == wire.ReceiveCommand)))
}

const usage = `mvm-agent runs inside a microVM; mvm puts it there.
usage: mvm-agent serve [--config-fd N | --config FILE]
       mvm-agent sftp
       mvm-agent pack JSON | unpack JSON
       mvm-agent receive SHA256
       mvm-agent check
       mvm-agent init --config-fd N
`

// Main is the program: PID 1 of the initramfs, or the agent. It returns the exit
// status.
func Main(args []string) int {
	if len(args) > 0 && args[0] == guest.InitPath && os.Getpid() == 1 {
		boot.Main(args)
		return 1
	}
	if len(args) > 1 && (args[1] == "pack" || args[1] == "unpack") {
		// A host that is gone shows as the end of the stream, and what was staged is
		// removed then.
		signal.Ignore(syscall.SIGHUP, syscall.SIGTERM)
		return tree.Serve(args[1:], os.Stdin, os.Stdout, os.Stderr)
	}
	err := agentMain(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "mvm-agent: %v\n", err)
		return 1
	}
	return 0
}

func agentMain(args []string) error {
	if len(args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		return errors.New("no command was given")
	}
	switch args[1] {
	case "sftp":
		return agent.ServeSFTP()
	case wire.ReceiveCommand:
		if len(args) != 3 {
			return errors.New("receive needs a checksum")
		}
		return agent.Receive(os.Stdin, args[2])
	case "check": // it has started: that is all
		return nil
	case "init":
		in, err := config(args[2:])
		if err != nil {
			return err
		}
		return agent.Init(in)
	case "serve":
		in, err := config(args[2:])
		if err != nil {
			return err
		}
		return agent.Main(in)
	}
	fmt.Fprint(os.Stderr, usage)
	return fmt.Errorf("unknown command %q", args[1])
}

// config opens where the parameters are.
func config(args []string) (io.ReadCloser, error) {
	switch {
	case len(args) == 0:
		return os.Open(guest.AgentConfig)
	case len(args) == 2 && args[0] == "--config":
		return os.Open(args[1])
	case len(args) == 2 && args[0] == "--config-fd":
		var fd uintptr
		if _, err := fmt.Sscanf(args[1], "%d", &fd); err != nil || fd < 3 {
			return nil, fmt.Errorf("%q is no file descriptor for the configuration", args[1])
		}
		return os.NewFile(fd, "agent.json"), nil
	}
	return nil, fmt.Errorf("do not understand the arguments %q", args)
}
