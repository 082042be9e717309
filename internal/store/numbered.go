package store

import (
	"context"
	"strings"

	"github.com/mvmctl/mvm"
)

// insertNumbered adds a row of which the database chooses the id.
func insertNumbered[T any](ctx context.Context, q Queries, t *table[T], item *T, id **int64) error {
	res, err := q.q.ExecContext(ctx, "insert into "+t.name+" ("+strings.Join(t.cols[1:], ", ")+
		") values (?"+strings.Repeat(", ?", len(t.cols)-2)+")", t.fields(item)[1:]...)
	if err != nil {
		return t.fail(ctx, q, item, err)
	}
	n, err := res.LastInsertId()
	if err != nil {
		return q.fail(err)
	}
	*id = &n
	return nil
}

// Forward is a port of the host that leads to a port of a VM.
type Forward struct {
	ID        *int64 `json:"id"`
	VMID      string `json:"vm_id"`
	Protocol  string `json:"protocol"`  // tcp or udp
	HostAddr  string `json:"host_addr"` // "" means all addresses
	HostPort  int    `json:"host_port"`
	GuestPort int    `json:"guest_port"`
	CreatedAt string `json:"created_at"`
}

var forwards = table[Forward]{
	name: "forwards", noun: "forwarded port",
	cols: []string{"id", "vm_id", "protocol", "host_addr", "host_port", "guest_port", "created_at"},
	fields: func(f *Forward) []any {
		return []any{&f.ID, &f.VMID, &f.Protocol, &f.HostAddr, &f.HostPort, &f.GuestPort, &f.CreatedAt}
	},
	unique: map[string]taken{
		"forwards.protocol, forwards.host_addr, forwards.host_port": {cols: []string{"protocol", "host_addr", "host_port"},
			what: "%[1]s port %[3]d of the host is used",
			owner: `select 'VM "' || v.name || '"' from forwards f join vms v on v.id = f.vm_id
				where f.protocol = ? and f.host_addr = ? and f.host_port = ?`,
			hint: "choose another port of the host"},
	},
}

// InsertForward reserves a port of the host for a VM and sets the ID. ErrExists
// when it is taken, also by a forward of the same port on all addresses.
func (q Queries) InsertForward(ctx context.Context, f *Forward) error {
	if f.CreatedAt == "" {
		f.CreatedAt = now()
	}
	return q.tx(ctx, func(tx *Tx) error {
		others, err := forwards.where(ctx, tx.Queries, "protocol = ? and host_port = ? and host_addr <> ? and '' in (host_addr, ?)",
			f.Protocol, f.HostPort, f.HostAddr, f.HostAddr)
		if err != nil {
			return err
		}
		if len(others) > 0 {
			owner := others[0].VMID
			if vm, err := tx.GetVM(ctx, owner); err == nil {
				owner = vm.Name
			}
			where := "on all addresses"
			if others[0].HostAddr != "" {
				where = "on " + others[0].HostAddr
			}
			return mvm.Errorf(mvm.ErrExists, "%s port %d of the host is used by VM %s %s", f.Protocol, f.HostPort, mvm.Quote(owner), where).
				WithHint("choose another port of the host")
		}
		return insertNumbered(ctx, tx.Queries, &forwards, f, &f.ID)
	})
}

// ListForwards returns the forwarded ports of a VM, or all when vmID is "".
func (q Queries) ListForwards(ctx context.Context, vmID string) ([]*Forward, error) {
	return forwards.where(ctx, q, "? in ('', vm_id) order by id", vmID)
}

// DeleteForward frees a port of the host. One that is free is no error.
func (q Queries) DeleteForward(ctx context.Context, protocol, hostAddr string, hostPort int) error {
	_, err := q.exec(ctx, "delete from forwards where protocol = ? and host_addr = ? and host_port = ?", protocol, hostAddr, hostPort)
	return q.fail(err)
}
