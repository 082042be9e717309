package api

import (
	"context"
	"encoding/json"
	"hash/fnv"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
	"github.com/mvmctl/mvm/internal/vmm"
	"github.com/mvmctl/mvm/internal/vmm/firecracker"
)

// VMJail is how a VMM that runs is locked up.
type VMJail struct {
	UID     int      `json:"uid"`     // its user and group, which no other VM has
	Root    string   `json:"root"`    // its root directory
	Cgroups []string `json:"cgroups"` // directories of its control groups
	Without []string `json:"without"` // what it goes without, and why
}

// chooseJail decides whether the VMM is jailed, for every way of starting one: by
// default it is, where root runs it and the jailer of its version is there. Where
// one is wanted and cannot be had the user is told, once.
func (p *vmPlan) chooseJail(ctx context.Context) error {
	p.jail = nil
	p.item.Options.Jailed = false
	if p.item.Options.NoJailer || !p.probe.Capabilities.Jail || !p.c.isRoot() {
		return nil
	}
	jailer, err := p.findJailer(ctx)
	if err == nil && jailer != "" {
		err = p.c.checkJail(p.c.paths.vms())
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	why := "there is no jailer " + p.probe.Version + "; 'mvm binary pull firecracker' gets both"
	if err != nil {
		why = err.Error()
	}
	if err != nil || jailer == "" {
		p.c.noticeOnce(ctx, "jailer", "Firecracker runs without a jail: "+why)
		return nil
	}
	p.item.Options.Jailed = true
	p.jail = &vmm.Jail{Jailer: jailer, FileMiB: p.largestFileMiB(), Cgroup: firecracker.HostCgroup()}
	p.useJailUID(firstNonZero(p.item.Options.JailUID, vmm.FirstJailUID)) // until one is reserved
	return nil
}

// findJailer looks for the jailer among the binaries of ours, and beside
// Firecracker.
func (p *vmPlan) findJailer(ctx context.Context) (string, error) {
	st, err := p.c.open(ctx)
	if err != nil {
		return "", err
	}
	all, err := st.ListBinaries(ctx)
	if err != nil {
		return "", err
	}
	programs := []string{filepath.Join(filepath.Dir(p.probe.Path), "jailer")}
	if path, err := filepath.EvalSymlinks(p.probe.Path); err == nil && path != p.probe.Path {
		programs = append(programs, filepath.Join(filepath.Dir(path), "jailer"))
	}
	for _, b := range all {
		if b.Name == "jailer" && b.Version == p.probe.Version {
			programs = append([]string{p.c.paths.abs(b.Path)}, programs...)
		}
	}
	return firecracker.FindJailer(ctx, p.c.runner, filepath.Join(p.c.paths.cache, "jailer.version"), p.probe.Version, programs...)
}

// largestFileMiB is the size that no file of the VMM exceeds: a disk, a snapshot of
// the memory, or a log.
func (p *vmPlan) largestFileMiB() int {
	const log = 1024
	largest := max(p.item.DiskSizeMiB, p.item.MemSizeMiB, log)
	for _, v := range p.volumes {
		largest = max(largest, int((v.item.SizeBytes+(1<<20)-1)>>20))
	}
	return largest
}

func (p *vmPlan) useJailUID(uid int) { p.jail.UID, p.jail.GID = uid, uid }

// reserveJail gives the VM a user that no other VM has; it keeps one that it has
// already.
func (p *vmPlan) reserveJail(ctx context.Context, tx *store.Tx) error {
	if p.jail == nil {
		return nil
	}
	vms, err := tx.ListVMs(ctx)
	if err != nil {
		return err
	}
	uid, err := freeJailUID(vms, p.item)
	if err != nil {
		return err
	}
	p.item.Options.JailUID = uid
	p.useJailUID(uid)
	return nil
}

// reserveJailOf is reserveJail for a VM that is in the database.
func (p *vmPlan) reserveJailOf(ctx context.Context, tx *store.Tx) error {
	had := p.item.Options.JailUID
	if err := p.reserveJail(ctx, tx); err != nil || p.item.Options.JailUID == had {
		return err
	}
	vm, err := tx.GetVM(ctx, p.item.ID)
	if err != nil {
		return err
	}
	vm.Options.JailUID = p.item.Options.JailUID
	return tx.UpdateVM(ctx, vm)
}

// freeJailUID looks for a user from a place on that the VM's id says: two caches on
// one host, which know nothing of each other, then hardly ever choose the same.
func freeJailUID(vms []*mvm.VMInstanceItem, vm *mvm.VMInstanceItem) (int, error) {
	taken := map[int]bool{}
	for _, other := range vms {
		if other.ID != vm.ID && other.Options.JailUID != 0 {
			taken[other.Options.JailUID] = true
		}
	}
	if uid := vm.Options.JailUID; uid >= vmm.FirstJailUID && uid < vmm.FirstJailUID+vmm.JailUIDs && !taken[uid] {
		return uid, nil
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(vm.ID))
	begin := int(h.Sum32() % vmm.JailUIDs)
	for n := range vmm.JailUIDs {
		if uid := vmm.FirstJailUID + (begin+n)%vmm.JailUIDs; !taken[uid] {
			return uid, nil
		}
	}
	return 0, mvm.Errorf(mvm.ErrUnavailable, "each of the %d users for jails has a VM", vmm.JailUIDs).WithHint("remove some VMs with 'mvm vm rm', or create it with --no-jailer")
}

func firstNonZero(a, b int) int {
	if a != 0 {
		return a
	}
	return b
}

// jailOf tells how a VM that runs is jailed, by what its start wrote down; nil when
// it is not.
func jailOf(vm *mvm.VMInstanceItem) *VMJail {
	var h vmm.Handle
	if vm.PID == 0 || json.Unmarshal(vm.Handle, &h) != nil || h.Jail == nil {
		return nil
	}
	return &VMJail{UID: h.Jail.UID, Root: h.Jail.Root, Cgroups: h.Jail.Cgroups, Without: h.Jail.Without}
}
