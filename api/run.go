package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/op"
)

const opRun = "vm.run"

// runPrefix begins the names of VMs that are made for one command.
const runPrefix = "run-"

// RunInput is a command to run in a VM of its own.
type RunInput struct {
	// VM is what the VM shall be. Without a name it gets one that begins with "run-";
	// Count, Wait and NoAgent cannot be had.
	VM VMCreateInput

	// Exec is the command; its Identifier is not used. Its Timeout begins when the
	// guest is ready.
	Exec ExecInput

	// Insecure and Arch are those of ImagePullInput, for an image that is not there.
	Insecure bool
	Arch     string

	// Keep leaves the VM running at the end.
	Keep bool

	// Ready, when set, is called when the guest is ready, before the command begins.
	// It may change what the command's streams are. An error ends the run.
	Ready func(vm *mvm.VMInstanceItem, exec *ExecInput) error
}

// Run makes a VM, runs a command in it, and removes the VM with its disk, whatever
// happens meanwhile: when the process is killed, the next command of mvm does it.
// It returns the exit status of the command; volumes have been written out by then.
//
// An image that is not there is got first. Of a container image the entrypoint is run,
// with the command as its arguments, or the image's own without a command.
func (o *VMOperation) Run(ctx context.Context, in RunInput, opts ...Option) (int, error) {
	if in.VM.Name == "" {
		in.VM.Name = newRunName()
	}
	in.VM.NoEntrypoint, in.VM.Cmd = true, nil
	if len(in.Exec.Cmd) > 0 {
		in.VM.Cmd = in.Exec.Cmd
	}
	in.VM.Wait = WaitReady
	if err := in.validate(); err != nil {
		return 1, err
	}
	if err := o.core.ensureImage(ctx, &in, options(opts).progress); err != nil {
		return 1, err
	}
	if in.Keep {
		return o.runIn(ctx, in, opts, func(*mvm.VMInstanceItem) {})
	}
	c := o.core
	if _, err := c.open(ctx); err != nil {
		return 1, err
	}
	in.VM.id = newID()
	code := 1
	// A run is an operation that is always taken back, by this process or, when that
	// was killed, by the next one. Its subject is not the VM, which others may work on.
	err := c.journal.Run(ctx, op.Op{
		Kind: opRun, Subject: in.VM.Name,
		Steps: []op.Step{&runStep{c: c, VMID: in.VM.id, do: func(ctx context.Context) error {
			var err error
			if code, err = o.runIn(ctx, in, opts, c.syncVolumes); err == nil {
				err = errRunOver
			}
			return err
		}}},
	})
	var undo *op.UndoError
	switch {
	case !errors.Is(err, errRunOver):
		return code, err
	case errors.As(err, &undo):
		return code, mvm.Wrap(errors.Join(undo.Undo...), "remove VM", in.VM.Name)
	}
	return code, nil
}

// errRunOver ends the operation of a run whose command has ended.
var errRunOver = errors.New("the command has ended")

// newRunName makes a name that no VM has, but by a chance that Create refuses.
func newRunName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return runPrefix + hex.EncodeToString(b[:])
}

func (in RunInput) validate() error {
	switch {
	case in.VM.Count != nil:
		return mvm.Errorf(mvm.ErrInvalid, "a command is run in one VM").WithHint("leave --count out; 'mvm vm create --count' makes several")
	case in.VM.NoAgent:
		return mvm.Errorf(mvm.ErrInvalid, "without the agent no command can be run").WithHint("leave --no-agent out")
	}
	if err := in.VM.validate(); err != nil {
		return err
	}
	return in.Exec.validate()
}

// runIn makes the VM and runs the command; ended is called with the VM once the
// command has.
func (o *VMOperation) runIn(ctx context.Context, in RunInput, opts []Option, ended func(*mvm.VMInstanceItem)) (int, error) {
	res, err := o.Create(ctx, in.VM, opts...)
	var e *mvm.Error
	if err != nil && !in.Keep && len(res.VMs) > 0 && errors.As(err, &e) { // it did not get ready, and will be gone
		err = (&mvm.Error{Kind: e.Kind, Op: e.Op, Subject: e.Subject, Err: e.Err}).WithHint("try it with --keep and look at the VM with 'mvm logs'")
	}
	if err != nil {
		return 1, err
	}
	vm := res.VMs[0]
	in.Exec.Identifier = vm.ID
	if c := vm.Options.Container; c != nil {
		in.Exec.Cmd = c.Args
	}
	if in.Ready != nil {
		if err := in.Ready(vm, &in.Exec); err != nil {
			return 1, err
		}
	}
	code, err := (&ExecOperation{o.core}).Run(ctx, in.Exec)
	ended(vm)
	if err != nil {
		code = max(code, 1)
	}
	return code, err
}

// syncLimit bounds how long a guest may take to write its volumes out before it is
// ended.
const syncLimit = 30 * time.Second

// syncVolumes has the guest write its disks out if it has some that stay.
func (c *core) syncVolumes(vm *mvm.VMInstanceItem) {
	at, err := c.st.ListAttachmentsOfVM(context.Background(), vm.ID)
	if err == nil && len(at) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), syncLimit)
	defer cancel()
	_, client, err := c.openAgent(ctx, vm.ID, "write out the disks of", agentLoginAs{})
	if err == nil {
		err = errors.Join(client.Sync(ctx), client.Close())
	}
	if err != nil {
		c.notice("the volumes of " + mvm.Quote(vm.Name) + " may lack what was written last: " + err.Error())
	}
}

// runStep is a VM that is made for one command. Reverting it removes the VM.
type runStep struct {
	c    *core
	VMID string `json:"vm_id"`

	do func(context.Context) error
}

func (s *runStep) Kind() string { return "run" }

func (s *runStep) Apply(ctx context.Context) error { return s.do(ctx) }

func (s *runStep) Revert(ctx context.Context) error {
	vm, err := s.c.st.GetVM(ctx, s.VMID)
	if errors.Is(err, mvm.ErrNotFound) {
		return nil // never made, or removed already
	}
	if err != nil {
		return err
	}
	err = s.c.removeVM(ctx, vm, nil)
	if errors.Is(err, mvm.ErrNotFound) {
		return nil // by another command, meanwhile
	}
	return err
}
