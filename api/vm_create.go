package api

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/op"
	"github.com/mvmctl/mvm/internal/store"
)

const (
	opCreate = "vm.create"
	opStart  = "vm.start"
	opRemove = "vm.remove"
)

// maxBatch is how many VMs one create may ask for.
const maxBatch = 1000

// parallelCreates bounds how many VMs are made at once; more only queue for
// the same disk and database.
const parallelCreates = 4

// Create makes a VM and starts it. It returns when the vCPUs run, or later where
// in.Wait says so. Bad input is refused before the first side effect; a
// failure, a cancelled context or a crash leaves nothing behind.
//
// With Count it makes NAME-1 to NAME-N in parallel. It then returns the VMs that
// were made beside the joined errors, or with Atomic none if one failed.
func (o *VMOperation) Create(ctx context.Context, in VMCreateInput, opts ...Option) (*VMCreateResult, error) {
	names := []string{in.Name}
	if in.Count != nil {
		if *in.Count < 1 || *in.Count > maxBatch {
			return nil, mvm.Errorf(mvm.ErrInvalid, "%d VMs asked for; one create makes 1 to %d", *in.Count, maxBatch).WithHint("set --count to a number from 1 to %d", maxBatch)
		}
		if *in.Count > 1 && len(in.Publish) > 0 {
			return nil, mvm.Errorf(mvm.ErrInvalid, "a port of the host cannot lead to %d VMs", *in.Count).WithHint("create the VMs one by one, each with ports of its own")
		}
		names = names[:0]
		for i := range *in.Count {
			names = append(names, in.Name+"-"+strconv.Itoa(i+1))
		}
	}
	results := make([]*VMCreateResult, len(names))
	errs := make([]error, len(names))
	var g errgroup.Group
	g.SetLimit(parallelCreates)
	for i, name := range names {
		g.Go(func() error {
			one := in
			one.Name = name
			res, err := o.createOne(ctx, one, options(opts).progress)
			results[i], errs[i] = res, err
			if err != nil && one.validate() == nil { // what is wrong with the input names itself
				errs[i] = mvm.Wrap(err, "create VM", name)
			}
			return errs[i]
		})
	}
	firstErr := g.Wait()
	out := &VMCreateResult{VMs: []*mvm.VMInstanceItem{}, Timings: []Timing{}}
	batch := mvm.Batch[*mvm.VMInstanceItem]{}
	for i, r := range results {
		if r != nil {
			out.VMs, out.Timings = append(out.VMs, r.VMs...), r.Timings
		}
		batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.VMInstanceItem]{Identifier: names[i], Err: errs[i]})
	}
	if firstErr != nil && in.Atomic && len(out.VMs) > 0 {
		var made []string
		for _, v := range out.VMs {
			made = append(made, v.ID)
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_, err := o.Remove(undo, VMInput{Identifiers: made, Force: true})
		batch.Entries = append(batch.Entries, mvm.BatchEntry[*mvm.VMInstanceItem]{Err: mvm.Wrap(err, "undo the batch of", in.Name)})
		out.VMs = []*mvm.VMInstanceItem{}
	}
	return out, batch.Err()
}

func (o *VMOperation) createOne(ctx context.Context, in VMCreateInput, progress mvm.ProgressFunc) (*VMCreateResult, error) {
	c, begin := o.core, time.Now()
	if err := in.validate(); err != nil {
		return nil, err
	}
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	inv, err := loadInventory(ctx, st)
	if err != nil {
		return nil, err
	}
	p, err := c.planCreate(ctx, st, inv, in)
	if err != nil {
		return nil, err
	}
	if p.initrd, err = c.buildInitramfs(ctx, p.kernel, p.bootFSTypes()); err != nil {
		return nil, err
	}
	planned := time.Now()
	say := sync.OnceFunc(func() { // when the name and the address are ours
		progress.Send("create", fmt.Sprintf("creating %s: %s on %s, %d vCPU, %d MiB, %s", in.Name, p.image.Type+":"+p.image.Version, p.driver.Name(), p.item.VCPUCount, p.item.MemSizeMiB, p.kernel.Version))
	})
	err = c.journal.Run(ctx, op.Op{
		Kind: opCreate, Subject: in.Name, SubjectID: p.item.ID, KeepOnFailure: in.SkipCleanup,
		Reserve: func(tx *store.Tx) error { return p.reserve(ctx, tx) },
		Steps:   p.createSteps(),
		OnStep:  func(string) { say() },
		Commit:  func(tx *store.Tx) error { return p.commitRunning(ctx, tx, "created") },
	})
	if err != nil {
		return nil, err
	}
	res := &VMCreateResult{VMs: []*mvm.VMInstanceItem{p.item}, Timings: []Timing{
		{"plan", planned.Sub(begin)}, {"prepare and start VMM", p.startedAt.Sub(planned)},
	}}
	if in.Wait == WaitNone {
		return res, nil
	}
	progress.Send("boot", waitingFor(in.Name, in.Wait))
	boot := time.Now()
	if err := c.waitFor(ctx, p.item, in.Wait, in.WaitLimit); err != nil {
		return res, err // the VM stays: its console tells what went wrong
	}
	res.Timings = append(res.Timings, Timing{"boot until " + string(in.Wait), time.Since(boot)})
	return res, nil
}

// commitRunning writes down that the VM runs; it is the commit point of create
// and start.
func (p *vmPlan) commitRunning(ctx context.Context, tx *store.Tx, cause string) error {
	return p.commitAs(ctx, tx, mvm.StatusRunning, cause)
}

func (p *vmPlan) commitAs(ctx context.Context, tx *store.Tx, to mvm.VMStatus, cause string) error {
	if err := p.recordHandle(); err != nil {
		return err
	}
	p.item.Status, p.item.StatusReason, p.item.ExitCode, p.item.UpdatedAt = to, "", nil, now()
	p.item.Options.RestartAt = ""
	return write(ctx, tx, p.item, store.EventState, cause)
}

// validate refuses what can never work, whatever the machine has.
func (in VMCreateInput) validate() error {
	if err := mvm.ValidateName("VM", in.Name); err != nil {
		return err
	}
	if in.RequestedMAC != "" {
		if _, err := mvm.ParseGuestMAC(in.RequestedMAC); err != nil {
			return err
		}
	}
	if in.VCPUCount != nil {
		if err := mvm.ValidateVCPUs(*in.VCPUCount); err != nil {
			return err
		}
	}
	if in.MemSizeMiB != nil {
		if err := mvm.ValidateMem(*in.MemSizeMiB, host.MemTotalMiB()); err != nil {
			return err
		}
	}
	if in.DiskSize != "" {
		if _, err := mvm.ParseSize(in.DiskSize); err != nil {
			return err
		}
	}
	for _, v := range in.Volumes {
		if _, err := parseVolumeSpec(v); err != nil {
			return err
		}
	}
	for _, err := range []error{in.validateOptions(), in.validatePublish(), mvm.ValidateBootArgs(in.LSMFlags), mvm.ValidateBootArgs(in.BootArgs), validateHypervisor(in.Hypervisor), in.validateCloudInit(), in.Wait.Validate(), in.RestartPolicy.Validate(), in.validateContainer()} {
		if err != nil {
			return err
		}
	}
	return nil
}
