package cli

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type vmCreateOptions struct {
	input       api.VMCreateInput
	vcpu, count int
	mem         string
	template    string
	wait        string
	noPCI       bool

	nested, noNested   bool
	logging, noLogging bool
	metrics, noMetrics bool
	console            bool

	beyond    vmBeyond
	container containerOptions
	cloudInit cloudInitOptions
}

func newVMCreate(a *app) *cobra.Command {
	var o vmCreateOptions
	cmd := &cobra.Command{
		Use:   "create NAME [-- CMD...]",
		Short: "Make a VM and start it",
		Long: `Make a VM from an image and a kernel and start it. What is not said is taken from
the settings. When something fails, everything that was begun is undone.

Host name, network and SSH keys reach the guest without cloud-init. An image that
has it runs user data of yours in one of three modes: inject puts it into the guest's
root at boot, iso on a second disk, and net on a server that this guest alone
reaches, until it was read.

A container image has no init. Its entrypoint runs under a small one of ours, with CMD in
place of its own arguments; what it prints is in 'mvm logs', and when it ends, so does the
VM.`,
		Example: `  mvm vm create web --wait
  mvm vm create db --image debian:12 --vcpu 2 --mem 2G --disk-size 20G
  mvm vm create node --count 3 --atomic
  mvm vm create ci --egress files.example.org,10.0.0.0/8 --net-limit 10M
  mvm vm create app --image debian:12 --cloudinit-config user-data.yaml
  mvm vm create cache --image oci://redis:7 --publish 6379:6379 -- --save 60 1
  mvm vm create box --image oci://alpine --no-entrypoint`,
		Args: func(cmd *cobra.Command, args []string) error {
			if n := cmd.ArgsLenAtDash(); n >= 0 {
				args = args[:n]
			}
			return needs(1, 1, "a name for the VM")(cmd, args)
		},
		ValidArgsFunction: fixed(),
	}
	o.flags(a, cmd)
	return undone(a.command(cmd, "VM.Create", func(ctx context.Context, m *api.Client, args []string) error {
		o.input.Name = args[0]
		if len(args) > 1 {
			o.input.Cmd = args[1:]
		}
		o.container.resolve(cmd, &o.input)
		o.input.Env = a.environment(o.input.Env)
		if err := o.resolve(cmd); err != nil {
			return err
		}
		return o.run(ctx, m, a.out)
	}))
}

func (o *vmCreateOptions) flags(a *app, cmd *cobra.Command) {
	f, in := cmd.Flags(), &o.input
	f.StringVar(&in.Image, "image", "", "image: type:version, type, name or id prefix")
	f.StringVar(&in.User, "user", "", "user that mvm ssh logs in as")
	f.BoolVar(&in.SkipCleanup, "skip-cleanup", false, "leave everything as it is when something fails")
	f.IntVarP(&o.count, "count", "c", 0, "make so many VMs, NAME-1, NAME-2, …")
	f.BoolVar(&in.Atomic, "atomic", false, "with --count: all or none")
	waitFlag(cmd, &o.wait)
	o.container.entrypointFlag(cmd)
	f.BoolVar(&in.NoEntrypoint, "no-entrypoint", false, "a container image: start nothing but the agent")
	f.StringArrayVarP(&in.Env, "env", "e", nil, "a container image: environment variable NAME=VALUE; NAME alone takes the one here")
	f.BoolVar(&in.NoAgent, "no-agent", false, "no guest agent in the VM")
	f.StringVar((*string)(&in.RestartPolicy), "restart", "", "start it again when it ends by itself: no, on-failure, or always (also after a reboot of the host)")
	completeFlag(cmd, "restart", fixed("no", "on-failure", "always"))
	a.jsonFlag(cmd)
	completeFlag(cmd, "image", a.completeImages(0))
	o.cloudInit.flags(cmd, in)
	o.machineFlags(a, cmd)
}

// machineFlags are those that say what the VM is; run has them too.
func (o *vmCreateOptions) machineFlags(a *app, cmd *cobra.Command) {
	f, in := cmd.Flags(), &o.input
	f.StringVar(&in.KernelID, "kernel", "", "kernel: type:version, path, id prefix or type")
	f.IntVar(&o.vcpu, "vcpu", 0, "number of vCPUs")
	f.StringVar(&o.mem, "mem", "", "memory, such as 512M or 2G; a number alone is MiB")
	f.StringVar(&o.mem, "memory", "", "the same as --mem")
	f.StringVarP(&in.DiskSize, "disk-size", "s", "", "size of the disk, such as 10G")
	f.StringArrayVarP(&in.Volumes, "volume", "v", nil, "volume to attach, as NAME[:ro][:/MOUNT/POINT]; may be given several times")
	f.StringVar(&in.RequestedGuestIP, "ip", "", "IPv4 address in the network")
	f.StringVar(&in.RequestedMAC, "mac", "", "MAC address")
	f.StringVar(&in.NetworkName, "network", "", "network")
	f.StringVar(&in.NetworkName, "net", "", "the same as --network")
	f.StringSliceVar(&in.SSHKeys, "ssh-key", nil, "name of an SSH key; may be given several times")
	f.BoolVar(&o.noPCI, "no-pci", false, "no PCI bus: virtio over MMIO")
	f.BoolVar(&o.nested, "nested-virt", false, "let the guest run VMs itself")
	f.BoolVar(&o.noNested, "disable-nested-virt", false, "do not let it, whatever the setting says")
	f.StringVar(&o.template, "cpu-template", "", "file with a Firecracker CPU template (JSON)")
	f.BoolVar(&o.logging, "enable-logging", false, "keep the VMM's log")
	f.BoolVar(&o.noLogging, "disable-logging", false, "do not keep the VMM's log")
	f.BoolVar(&o.metrics, "enable-metrics", false, "keep the VMM's metrics")
	f.BoolVar(&o.noMetrics, "disable-metrics", false, "do not keep the VMM's metrics")
	f.BoolVar(&o.console, "console", false, "interactive serial console, which every VM has in any case; see 'mvm console'")
	f.StringVar(&in.LSMFlags, "lsm-flags", "", "security modules of the guest's kernel (lsm=)")
	f.StringVar(&in.BootArgs, "boot-args", "", "more arguments for the guest's kernel")
	f.BoolVar(&in.SkipDeblob, "skip-deblob", false, "leave what the package managers of the image have cached")
	f.StringVar(&in.Hypervisor, "hypervisor", "", "auto, firecracker or qemu")
	f.BoolVar(&in.NoJailer, "no-jailer", false, "run Firecracker as root, without the jail that it has where its jailer is installed")
	f.DurationVar(&in.WaitLimit, "wait-timeout", 0, "how long to wait, such as 90s")
	o.beyond.flags(f)
	vmNetFlags(f, in)
	for _, alias := range []string{"memory", "net"} {
		f.Lookup(alias).Hidden = true
	}
	for flag, c := range map[string]completer{
		"kernel": a.completeKernels(0), "network": a.completeNetworks(0), "ssh-key": a.completeKeys(), "volume": a.completeVolumes(0),
		"hypervisor": fixed("auto", "firecracker", "qemu"),
	} {
		completeFlag(cmd, flag, c)
	}
}

// completeFlag completes the value of a flag: arguments before it do not count.
func completeFlag(cmd *cobra.Command, flag string, c completer) {
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return c(cmd, nil, typed)
	}))
}

// resolve turns flags into input: what was not given stays unset.
func (o *vmCreateOptions) resolve(cmd *cobra.Command) error {
	for _, pair := range [][]string{
		{"mem", "memory"}, {"network", "net"}, {"nested-virt", "disable-nested-virt"},
		{"enable-logging", "disable-logging"}, {"enable-metrics", "disable-metrics"},
	} {
		if err := onlyOne(cmd, pair...); err != nil {
			return err
		}
	}
	given := cmd.Flags().Changed
	in := &o.input
	in.VCPUCount = ifGiven(given("vcpu"), o.vcpu)
	in.Count = ifGiven(given("count"), o.count)
	in.PCIEnabled = ifGiven(given("no-pci"), !o.noPCI)
	in.NestedVirt = either(given("nested-virt"), o.nested, given("disable-nested-virt"), o.noNested)
	in.EnableLogging = either(given("enable-logging"), o.logging, given("disable-logging"), o.noLogging)
	in.EnableMetrics = either(given("enable-metrics"), o.metrics, given("disable-metrics"), o.noMetrics)
	in.EnableConsole = ifGiven(given("console"), o.console)
	if given("mem") || given("memory") {
		mib, err := memMiB(o.mem)
		if err != nil {
			return err
		}
		in.MemSizeMiB = &mib
	}
	wait, err := waitFor(o.wait)
	if err != nil {
		return err
	}
	in.Wait = wait
	if in.WaitLimit < 0 {
		return usagef("--wait-timeout is negative").withHint("write for example 90s")
	}
	if given("wait-timeout") && in.Wait == api.WaitNone {
		in.Wait = api.WaitReady
	}
	if in.Atomic && !given("count") {
		return usagef("--atomic says something about several VMs only").withHint("add --count, or leave it out")
	}
	if err := o.beyond.resolve(cmd, in); err != nil {
		return err
	}
	o.cloudInit.resolve(cmd, in)
	return o.readTemplate()
}

func (o *vmCreateOptions) readTemplate() error {
	if o.template == "" {
		return nil
	}
	b, err := os.ReadFile(o.template)
	if err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "cannot read the CPU template: %w", err).WithHint("name a file with a Firecracker CPU template")
	}
	if !json.Valid(b) {
		return mvm.Errorf(mvm.ErrInvalid, "the CPU template %s is not JSON", mvm.Quote(o.template)).WithHint("see Firecracker's docs/cpu_templates")
	}
	o.input.CPUConfig = b
	return nil
}

// memMiB reads a memory size as whole MiB.
func memMiB(s string) (int, error) {
	bytes, err := mvm.ParseSize(s)
	switch {
	case err != nil:
		return 0, usagef("--mem: %s", err).withHint("%s", mvm.HintOf(err))
	case bytes%(1<<20) != 0:
		return 0, usagef("--mem: %s is not a whole number of MiB", mvm.Quote(s)).withHint("write for example 512M or 2G")
	}
	return int(bytes >> 20), nil
}

// ifGiven returns a pointer to v where the user said something.
func ifGiven[T any](given bool, v T) *T {
	if !given {
		return nil
	}
	return &v
}

// either reads a pair of flags, one to switch on and one to switch off.
func either(onGiven, on, offGiven, off bool) *bool {
	if onGiven {
		return &on
	}
	return ifGiven(offGiven, !off)
}

func (o *vmCreateOptions) run(ctx context.Context, m *api.Client, out *render.Output) error {
	p := out.Progress()
	res, err := m.VM.Create(ctx, o.input, api.OnProgress(p.Show))
	took := p.Stop()
	if err != nil && (res == nil || len(res.VMs) == 0) {
		return err
	}
	if out.JSON {
		if failed := out.Object(res); err == nil {
			err = failed
		}
		return err
	}
	for _, t := range res.Timings {
		out.Detail(t.Phase + " " + render.Took(t.Took))
	}
	for _, v := range res.VMs {
		if failed := out.Line(v.Name); err == nil {
			err = failed
		}
	}
	if err == nil && len(res.VMs) > 0 {
		o.goOn(out, res.VMs, took)
	}
	return err
}

// goOn tells on stderr what can be done now; stdout has the names alone.
func (o *vmCreateOptions) goOn(out *render.Output, vms []*mvm.VMInstanceItem, took time.Duration) {
	switch w := o.input.Wait; w {
	case api.WaitNone:
	case api.WaitSSH:
		out.Notice("answers ssh after " + render.Took(took))
	case api.WaitStopped:
		out.Notice("stopped after " + render.Took(took))
		return
	default:
		out.Notice(string(w) + " after " + render.Took(took))
	}
	out.Notice("log in:  mvm ssh " + vms[0].Name)
}
