// Command orchestrate sets a machine up and runs a VM on it by the Go API alone:
// database, host, hypervisor, kernel, image, key, network, VM. What is there already
// is used. Run it as root.
//
//	go run ./examples/orchestrate [-skip-host] [-image tiny] [-name my-api-vm]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
)

type options struct {
	skipHost    bool
	image, name string
}

func main() {
	if status, done := api.ChildMain(); done { // this program is the VM's supervisor too
		os.Exit(status)
	}
	var o options
	flag.BoolVar(&o.skipHost, "skip-host", false, "leave the host's settings alone")
	flag.StringVar(&o.image, "image", "tiny", "image, built if it is not there")
	flag.StringVar(&o.name, "name", "my-api-vm", "name of the VM")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		if hint := mvm.HintOf(err); hint != "" {
			fmt.Fprintln(os.Stderr, "hint:", hint)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	m, err := api.Open(ctx, api.Config{})
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()

	// 1. The database.
	if err := m.Init.InitDatabase(ctx); err != nil {
		return err
	}
	fmt.Println("Database ready.")

	// 2. The host; safe to run again.
	if !o.skipHost {
		if err := setUpHost(ctx, m); err != nil {
			return err
		}
	}

	// 3. A hypervisor: Firecracker where KVM works; QEMU comes with the distribution.
	status, err := m.Host.Status(ctx)
	if err != nil {
		return err
	}
	if status.KVMAccessible {
		if _, err := m.Binary.EnsureDefault(ctx); err != nil {
			return err
		}
	}
	fmt.Println("VMs run on", status.Hypervisor+".")

	// 4. and 5. A kernel and an image.
	if err := ensureAssets(ctx, m, o.image); err != nil {
		return err
	}

	// 6. A key of its own.
	key, err := m.Key.Create(ctx, api.KeyCreateInput{Name: "my-api-key", SetDefault: true})
	if errors.Is(err, mvm.ErrExists) {
		key, err = m.Key.Get(ctx, api.KeyInput{Identifiers: []string{"my-api-key"}})
	}
	if err != nil {
		return err
	}
	fmt.Printf("SSH key: %s (%s)\n", key.Name, key.Fingerprint)

	// 7. The default network.
	network, err := m.Network.CreateDefaultNetwork(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("Default network: %s (%s)\n", network.Name, network.Subnet)

	// 8. A VM, until it answers.
	created, err := m.VM.Create(ctx, api.VMCreateInput{
		Name: o.name, SSHKeys: []string{"my-api-key"}, VCPUCount: new(1), MemSizeMiB: new(256), Image: o.image, Wait: api.WaitReady,
	}, api.OnProgress(func(e mvm.ProgressEvent) { fmt.Printf("  %s: %s\n", e.Phase, e.Message) }))
	var ask *mvm.NeedsInteraction
	if errors.As(err, &ask) {
		return fmt.Errorf("making VMs needs rights; run: %s", strings.Join(ask.Command, " "))
	}
	if err != nil {
		return err
	}
	for _, vm := range created.VMs {
		fmt.Println("Created VM:", vm.Name)
	}

	// 9. All VMs.
	vms, err := m.VM.ListAll(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\nRegistered VMs (%d):\n", len(vms))
	for _, vm := range vms {
		fmt.Printf("  %-20s %-10s %s\n", vm.Name, vm.Status, vm.IPv4)
	}
	return nil
}

func setUpHost(ctx context.Context, m *api.Client) error {
	res, err := m.Host.Init(ctx)
	var ask *mvm.NeedsInteraction
	if errors.As(err, &ask) {
		return fmt.Errorf("the host is not set up; run: %s", strings.Join(ask.Command, " "))
	}
	if err != nil {
		return err
	}
	for _, change := range res.Changes {
		fmt.Printf("  Applied: %s = %s\n", change.What, change.New)
	}
	if len(res.Changes) == 0 {
		fmt.Println("Host already configured.")
	}
	return nil
}

func ensureAssets(ctx context.Context, m *api.Client, image string) error {
	kernels, err := m.Kernel.ListAll(ctx)
	if err != nil {
		return err
	}
	if len(kernels) == 0 {
		if _, err := m.Kernel.Pull(ctx, api.KernelPullInput{KernelType: "debian", SetDefault: true}); err != nil {
			return err
		}
	}
	_, err = m.Image.Get(ctx, api.ImageInput{Identifiers: []string{image}})
	if errors.Is(err, mvm.ErrNotFound) {
		_, err = m.Image.Build(ctx, api.ImageBuildInput{Ref: image})
	}
	return err
}
