// Command firstvm makes a VM through the Go API, asks it for its kernel, and
// removes it again. Run it as root, after `mvm kernel pull debian` and
// `mvm image build tiny`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/mvmctl/mvm/api"
)

func main() {
	if status, done := api.ChildMain(); done { // this program is the VM's supervisor too
		os.Exit(status)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	m, err := api.Open(ctx, api.Config{})
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	res, err := m.VM.Create(ctx, api.VMCreateInput{Name: "example", Image: "tiny", Wait: api.WaitSSH})
	if err != nil {
		return err
	}
	vm := res.VMs[0]
	fmt.Printf("%s runs at %s on %s\n", vm.Name, vm.IPv4, vm.Hypervisor)
	_, sshErr := m.SSH.Connect(ctx, api.SSHInput{Identifier: vm.Name, Cmd: "uname -sr", IO: api.StreamIO{Stdout: os.Stdout, Stderr: os.Stderr}})
	_, err = m.VM.Remove(context.WithoutCancel(ctx), api.VMInput{Identifiers: []string{vm.ID}, Force: true})
	if sshErr != nil {
		return sshErr
	}
	return err
}
