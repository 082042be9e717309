package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// initRun is one run of init: what it works with and what it found.
type initRun struct {
	c        *core
	st       *store.Store
	in       InitInput
	progress mvm.ProgressFunc
	res      *InitResult
}

// Run sets a machine up: database, key, host, Firecracker, default network, and a
// kernel and an image where they are asked for. What is there already stays, so that
// a run that was interrupted, or that lacked rights, is gone on with by the next one.
// What it cannot do here is said in the step's detail and in Next.
func (o *InitOperation) Run(ctx context.Context, in InitInput, opts ...Option) (*InitResult, error) {
	r := &initRun{c: o.core, in: in, progress: options(opts).progress, res: &InitResult{Changes: []HostChange{}, Next: []string{}}}
	for _, part := range []func(context.Context) error{r.database, r.key, r.host, r.firecracker, r.hypervisor, r.network, r.kernel, r.image} {
		if err := part(ctx); err != nil {
			return nil, err
		}
	}
	r.res.Next = append(r.res.Next, "mvm vm create NAME --wait")
	return r.res, nil
}

// InitDatabase makes the cache directory and the database, or brings an older one up
// to date. Every operation does so when it is the first one.
func (o *InitOperation) InitDatabase(ctx context.Context) error {
	_, err := o.core.open(ctx)
	return err
}

// SetupHost is Host.Init.
func (o *InitOperation) SetupHost(ctx context.Context, opts ...Option) (*HostInitResult, error) {
	return (&HostOperation{o.core}).Init(ctx, opts...)
}

func (r *initRun) step(name string, done bool, detail string) {
	r.res.Steps = append(r.res.Steps, InitStep{Name: name, Done: done, Detail: detail})
}

func (r *initRun) database(ctx context.Context) error {
	r.progress.Send("database", "opening the database")
	_, statErr := os.Stat(r.c.paths.db())
	st, err := r.c.open(ctx)
	if err != nil {
		return err
	}
	r.st = st
	r.step("database", statErr != nil, r.c.paths.db())
	return nil
}

func (r *initRun) key(ctx context.Context) error {
	r.progress.Send("key", "looking for a default key")
	k, made, err := r.c.defaultKey(ctx, r.st)
	if err != nil {
		return err
	}
	r.step("key", made, k.Name+" "+k.Fingerprint)
	return nil
}

// host sets the host up, which takes root; others are told how.
func (r *initRun) host(ctx context.Context) error {
	if r.in.SkipHost {
		return nil
	}
	if !r.c.isRoot() {
		if r.c.mayAct() {
			r.step("host", false, "set up; you are one who may make networks and VMs")
			return nil
		}
		r.step("host", false, "not set up: that needs root, once")
		r.res.Next = append(r.res.Next, "sudo mvm host init")
		return nil
	}
	res, err := r.c.setUpHost(ctx, r.progress, false)
	if err != nil {
		return err
	}
	r.res.Changes, r.res.Next = res.Changes, append(r.res.Next, res.Next...)
	detail := "as it has to be"
	if n := len(res.Changes); n > 0 {
		detail = fmt.Sprintf("%d settings changed; 'mvm host reset' takes them back", n)
	}
	for _, s := range res.Skipped {
		detail += "; left out: " + s.What
	}
	r.step("host", len(res.Changes) > 0, detail)
	return nil
}

func (r *initRun) firecracker(ctx context.Context) error {
	if r.in.DownloadVersion == "" {
		detail, made, err := r.c.wantFirecracker(ctx, r.st, r.progress)
		if err == nil {
			r.step("firecracker", made, detail)
		}
		return err
	}
	items, err := r.c.pullFirecracker(ctx, r.st, BinaryPullInput{Version: strings.TrimPrefix(r.in.DownloadVersion, "v"), SetDefault: true}, r.progress)
	if err != nil {
		return err
	}
	r.step("firecracker", true, "firecracker "+items[0].Version)
	return nil
}

// hypervisor looks what VMs will run on, and has it said here, so that the first
// create need not.
func (r *initRun) hypervisor(ctx context.Context) error {
	r.progress.Send("hypervisor", "looking what VMs can run on")
	status, err := (&HostOperation{r.c}).Status(ctx)
	if err != nil {
		return err
	}
	r.res.Hypervisor = status.Hypervisor
	if status.Hypervisor != "none" {
		if _, _, _, err := r.c.chooseDriver(ctx, r.st, "auto", "", ""); err != nil {
			return err
		}
	}
	r.step("hypervisor", false, hostLine(status))
	return nil
}

func (r *initRun) network(ctx context.Context) error {
	if r.in.SkipNetwork {
		return nil
	}
	r.progress.Send("network", "bringing up the default network")
	return r.c.initNetwork(ctx, r.step)
}

// kernel gets the kernel that was asked for, where there is none yet.
func (r *initRun) kernel(ctx context.Context) error {
	inv, err := loadInventory(ctx, r.st)
	if err != nil || len(inv.kernels) > 0 {
		return err
	}
	if r.in.Kernel == "" {
		r.res.Next = append(r.res.Next, "mvm kernel pull debian")
		return nil
	}
	res, err := (&KernelOperation{r.c}).Pull(ctx, KernelPullInput{KernelType: r.in.Kernel, SetDefault: true}, OnProgress(r.progress))
	if err != nil {
		return err
	}
	r.step("kernel", true, res.KernelType+":"+res.Version)
	return nil
}

// image gets the image that was asked for, where there is none yet.
func (r *initRun) image(ctx context.Context) error {
	inv, err := loadInventory(ctx, r.st)
	if err != nil || len(inv.images) > 0 {
		return err
	}
	if r.in.Image == "" {
		r.res.Next = append(r.res.Next, "mvm image pull debian")
		return nil
	}
	images := &ImageOperation{r.c}
	item, err := images.Build(ctx, ImageBuildInput{Ref: r.in.Image, SetDefault: true}, OnProgress(r.progress))
	if errors.Is(err, mvm.ErrInvalid) || errors.Is(err, mvm.ErrNotFound) { // what is not built from packages is pulled
		item, err = images.Pull(ctx, ImagePullInput{Type: r.in.Image, SetDefault: true}, OnProgress(r.progress))
	}
	if err != nil {
		return err
	}
	r.step("image", true, item.Type+":"+item.Version)
	return nil
}

func (c *core) initNetwork(ctx context.Context, step func(string, bool, string)) error {
	n, made, err := c.defaultNetwork(ctx, c.st)
	if err != nil {
		return err
	}
	detail := n.Name + " " + n.Subnet + " on bridge " + n.Bridge
	if !c.mayAct() {
		step("network", made, detail+"; it is brought up with the first VM, which needs root")
		return nil
	}
	seen, err := c.observeNetwork(ctx, c.st, n)
	if err != nil {
		return err
	}
	if _, err := c.ensureAndRecord(ctx, networkSpec(n)); err != nil {
		return err
	}
	step("network", made || !seen.Active(), detail)
	return nil
}

func hostLine(s *HostStatus) string {
	var parts []string
	for _, d := range s.Drivers {
		if d.Usable {
			parts = append(parts, d.Name+" "+d.Version+" ("+d.Accel+")")
		}
	}
	if len(parts) == 0 {
		return "no hypervisor can run here; see 'mvm host status'"
	}
	line := "VMs run on " + s.Hypervisor + "; usable: " + strings.Join(parts, ", ")
	if !s.KVMAccessible {
		line += "; no KVM: " + s.KVMReason
	}
	return line
}
