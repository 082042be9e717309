package store

import (
	"context"
	"database/sql"
	"strings"

	"github.com/mvmctl/mvm"
)

var vms = table[mvm.VMInstanceItem]{
	name: "vms", noun: "VM",
	cols: []string{
		"id", "name", "status", "pid", "ipv4", "mac", "network_id", "tap_device", "image_id", "kernel_id", "binary_id",
		"api_socket_path", "config_path", "cloud_init_mode", "vcpu_count", "mem_size_mib", "disk_size_mib",
		"rootfs_path", "rootfs_suffix", "pci_enabled", "nested_virt", "enable_logging", "enable_metrics", "enable_console",
		"created_at", "updated_at", "exit_code", "log_path", "serial_output_path", "nocloud_net_port", "nocloud_net_pid",
		"relay_pid", "relay_socket_path", "process_start_time", "lsm_flags", "boot_args", "ssh_keys", "ssh_user",
		"volume_ids", "cpu_config", "hypervisor", "accel", "dns_server", "status_reason", "handle", "has_agent", "options",
	},
	fixed: []string{"volume_ids"},
	fields: func(v *mvm.VMInstanceItem) []any {
		return []any{
			&v.ID, &v.Name, &v.Status, &v.PID, &v.IPv4, &v.MAC, &v.NetworkID, &v.TapDevice, &v.ImageID, &v.KernelID, &v.BinaryID,
			&v.APISocketPath, &v.ConfigPath, &v.CloudInitMode, &v.VCPUCount, &v.MemSizeMiB, &v.DiskSizeMiB,
			&v.RootfsPath, &v.RootfsSuffix, &v.PCIEnabled, &v.NestedVirt, &v.EnableLogging, &v.EnableMetrics, &v.EnableConsole,
			&v.CreatedAt, &v.UpdatedAt, &v.ExitCode, &v.LogPath, &v.SerialOutputPath, &v.NocloudNetPort, &v.NocloudNetPID,
			&v.RelayPID, &v.RelaySocketPath, &v.ProcessStartTime, &v.LSMFlags, &v.BootArgs, asJSON{&v.SSHKeys}, &v.SSHUser,
			asJSON{&v.VolumeIDs}, asJSON{&v.CPUConfig}, &v.Hypervisor, &v.Accel, &v.DNSServer, &v.StatusReason, asJSON{&v.Handle}, &v.HasAgent, asJSON{&v.Options},
		}
	},
	stamp: func(v *mvm.VMInstanceItem) []*string { return []*string{&v.CreatedAt, &v.UpdatedAt} },
	unique: map[string]taken{
		"vms.name": {cols: []string{"name"}, what: "a VM named %q exists already",
			hint: "choose another name; 'mvm vm ls' shows those in use"},
		"vms.mac": {cols: []string{"mac"}, what: "the MAC address %s is used",
			owner: `select 'VM "' || name || '"' from vms where mac = ?`,
			hint:  "choose another with --mac, or leave it out to get a free one"},
		"vms.tap_device": {cols: []string{"tap_device"}, what: "the tap device %s is used",
			owner: `select 'VM "' || name || '"' from vms where tap_device = ?`, hint: "try again"},
		"vms.nocloud_net_port": {cols: []string{"nocloud_net_port"}, what: "the NoCloud port %d is used",
			owner: `select 'VM "' || name || '"' from vms where nocloud_net_port = ?`,
			hint:  "choose another with --nocloud-net-port, or leave it out to get a free one"},
	},
}

// InsertVM adds a VM. ErrExists when its name, MAC address, tap device or
// NoCloud port is taken.
func (q Queries) InsertVM(ctx context.Context, v *mvm.VMInstanceItem) error {
	return vms.insert(ctx, q, v)
}

// GetVM returns a VM by id, or ErrNotFound.
func (q Queries) GetVM(ctx context.Context, id string) (*mvm.VMInstanceItem, error) {
	return vms.get(ctx, q, id)
}

// ListVMs returns all VMs, oldest first.
func (q Queries) ListVMs(ctx context.Context) ([]*mvm.VMInstanceItem, error) {
	return vms.where(ctx, q, "1 order by created_at, name")
}

// ListRestarts returns the VMs that wait until their restart policies start them
// again, oldest first.
func (q Queries) ListRestarts(ctx context.Context) ([]*mvm.VMInstanceItem, error) {
	cond, args := in([]mvm.VMStatus{mvm.StatusStopped, mvm.StatusCrashed})
	return vms.where(ctx, q, "status"+cond+" and options ->> '$.restart_at' <> '' order by created_at, name", args...)
}

// Use says by what ListVMsUsing selects.
type Use string

// What VMs use.
const (
	UseNetwork Use = "network_id"
	UseImage   Use = "image_id"
	UseKernel  Use = "kernel_id"
	UseBinary  Use = "binary_id"
)

// ListVMsUsing returns the VMs that use the network, image, kernel or binary
// with that id, oldest first.
func (q Queries) ListVMsUsing(ctx context.Context, use Use, id string) ([]*mvm.VMInstanceItem, error) {
	return vms.where(ctx, q, string(use)+" = ? order by created_at, name", id)
}

// UpdateVM writes all fields of a VM but CreatedAt and VolumeIDs, which follow from
// AttachVolume and DetachVolume. ErrNotFound when it is gone.
// To change nothing but the phase use SetVMStatus, which cannot undo what
// another command wrote meanwhile.
func (q Queries) UpdateVM(ctx context.Context, v *mvm.VMInstanceItem) error {
	return vms.update(ctx, q, v)
}

// DeleteVM removes a VM, its leases and forwarded ports, and detaches its
// volumes. A VM that is gone is no error.
func (q Queries) DeleteVM(ctx context.Context, id string) error { return vms.remove(ctx, q, id) }

// SetVMStatus moves a VM to a phase, with the reason (crashed, error; else ""),
// if its phase is one of from, or whatever it is when from is empty. It reports
// whether it did: false when the VM is gone or in another phase.
func (q Queries) SetVMStatus(ctx context.Context, id string, to mvm.VMStatus, reason string, from ...mvm.VMStatus) (bool, error) {
	query, args := "update vms set status = ?, status_reason = ?, updated_at = ? where id = ?", []any{string(to), reason, now(), id}
	if len(from) > 0 {
		cond, more := in(from)
		query, args = query+" and status"+cond, append(args, more...)
	}
	n, err := q.exec(ctx, query, args...)
	return n > 0, q.fail(err)
}

// ClaimVM moves a VM to the transitional phase of a verb, if its phase allows
// the verb, with an event, and returns the VM as it was before. One statement decides: of several
// commands that claim at once one wins, if the verb has a transitional phase
// (for the others the operation journal lets one in at a time). Errors:
// ErrNotFound; ErrBusy when an operation of another command is under way;
// ErrConflict, naming the present phase and those that would do.
func (q Queries) ClaimVM(ctx context.Context, id string, verb mvm.Verb) (*mvm.VMInstanceItem, error) {
	var before *mvm.VMInstanceItem
	err := q.tx(ctx, func(tx *Tx) error {
		t := mvm.TransitionOf(verb)
		v, err := tx.GetVM(ctx, id)
		if err != nil {
			return err
		}
		cond, from := in(t.From)
		n, err := tx.exec(ctx, "update vms set status = iif(? = '', status, ?), updated_at = ? where id = ? and status"+cond,
			append([]any{string(t.During), string(t.During), now(), id}, from...)...)
		if err != nil {
			return tx.fail(err)
		}
		if n == 0 {
			return tx.refuse(ctx, t, v)
		}
		before = v
		if t.During == "" {
			return nil
		}
		return tx.AppendEvent(ctx, &Event{VMID: v.ID, VMName: v.Name, Kind: EventState, From: string(v.Status), To: string(t.During), Cause: string(verb) + " has begun"})
	})
	return before, err
}

// refuse words why a VM cannot be claimed.
func (q Queries) refuse(ctx context.Context, t mvm.Transition, v *mvm.VMInstanceItem) error {
	if v.Status == mvm.StatusStarting || v.Status == mvm.StatusStopping {
		ops, err := q.ListOps(ctx, v.ID)
		if err != nil {
			return err
		}
		if len(ops) > 0 {
			return Busy(ops[0]).On(string(t.Verb), v.Name)
		}
	}
	hint := "'mvm vm inspect " + v.Name + "' shows what happened to it"
	switch v.Status {
	case mvm.StatusStopped, mvm.StatusCrashed:
		hint = "start it first with 'mvm vm start " + v.Name + "'"
	case mvm.StatusPaused:
		hint = "resume it first with 'mvm vm resume " + v.Name + "'"
	case mvm.StatusRunning:
		hint = "stop it first with 'mvm vm stop " + v.Name + "'"
		if t.Verb == mvm.VerbResume || t.Verb == mvm.VerbStart {
			hint = "there is nothing to do"
		}
	}
	return mvm.Errorf(mvm.ErrConflict, "it is %s; it has to be %s", v.Status, oneOf(t.From)).
		WithHint("%s", hint).On(string(t.Verb), v.Name)
}

// Busy is the error for an object that the operation o works on.
func Busy(o *OpRow) *mvm.Error {
	return mvm.Errorf(mvm.ErrBusy, "another command (%s, pid %d) is working on %s", o.Kind, o.PID, mvm.Quote(o.Subject)).
		WithHint("wait until it has ended, then try again")
}

// in returns " in (?, …)" and the values.
func in(statuses []mvm.VMStatus) (string, []any) {
	args := make([]any, len(statuses))
	for i, s := range statuses {
		args[i] = string(s)
	}
	return " in (" + strings.TrimPrefix(strings.Repeat(", ?", len(args)), ", ") + ")", args
}

// oneOf writes "a, b or c".
func oneOf(statuses []mvm.VMStatus) string {
	var b strings.Builder
	for i, s := range statuses {
		switch {
		case i == 0:
		case i == len(statuses)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(s))
	}
	return b.String()
}

// CountVMs returns how many VMs there are.
func (q Queries) CountVMs(ctx context.Context) (int, error) {
	var n int
	err := q.each(ctx, func(r *sql.Rows) error { return r.Scan(&n) }, "select count(*) from vms")
	return n, q.fail(err)
}
