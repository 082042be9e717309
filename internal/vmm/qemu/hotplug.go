package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/vmm"
)

// plugged is a disk that QEMU has.
type plugged struct {
	number   int // in which order they came
	id       string
	device   string // QEMU's id
	port     int
	node     string
	bytes    int64
	readOnly bool
}

// disksOf asks QEMU for the disks that it has, in the order in which they came.
func disksOf(ctx context.Context, q *QMP) ([]plugged, error) {
	var objects []struct {
		Name string `json:"name"`
	}
	if err := q.Execute(ctx, "qom-list", map[string]string{"path": peripheral}, &objects); err != nil {
		return nil, err
	}
	nodes, err := nodesOf(ctx, q)
	if err != nil {
		return nil, err
	}
	var disks []plugged
	for _, o := range objects {
		d := plugged{device: o.Name}
		var ok bool
		if d.number, d.id, ok = parseNumbered(o.Name, "disk"); !ok {
			continue
		}
		path := peripheral + "/" + o.Name
		var bus string
		if err := errors.Join(property(ctx, q, path, "parent_bus", &bus), property(ctx, q, path, "drive", &d.node)); err != nil {
			return nil, err
		}
		// "/machine/peripheral/port1/port1", or that of the root bus
		_, _ = fmt.Sscanf(bus[strings.LastIndexByte(bus, '/')+1:], "port%d", &d.port)
		n := nodes[d.node]
		d.bytes, d.readOnly = n.Image.Bytes, n.ReadOnly
		disks = append(disks, d)
	}
	slices.SortFunc(disks, func(a, b plugged) int { return a.number - b.number })
	return disks, nil
}

// parseNumbered reads what diskDevice and diskNode make.
func parseNumbered(name, prefix string) (number int, id string, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	digits, id, cut := strings.Cut(rest, "-")
	number, err := strconv.Atoi(digits)
	return number, id, ok && cut && err == nil
}

// node is one of the block layer (BlockDeviceInfo in qapi/block-core.json).
type node struct {
	Name     string `json:"node-name"`
	ReadOnly bool   `json:"ro"`
	Image    struct {
		Bytes int64 `json:"virtual-size"`
	} `json:"image"`
}

func nodesOf(ctx context.Context, q *QMP) (map[string]node, error) {
	var list []node
	if err := q.Execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &list); err != nil {
		return nil, err
	}
	nodes := map[string]node{}
	for _, n := range list {
		nodes[n.Name] = n
	}
	return nodes, nil
}

func find(disks []plugged, id string) *plugged {
	i := slices.IndexFunc(disks, func(d plugged) bool { return d.id == id })
	if i < 0 {
		return nil
	}
	return &disks[i]
}

// AttachDisk implements vmm.DiskHotplugger. The guest finds the disk by its id, the
// first 20 bytes of which are its serial number.
func (m *machine) AttachDisk(ctx context.Context, disk vmm.Disk) error {
	if err := checkDisk(disk); err != nil {
		return err
	}
	if err := checkImage(disk); err != nil {
		return err
	}
	return m.gone(ctx, m.session(ctx, "device_add", func(ctx context.Context, q *QMP) error {
		disks, err := disksOf(ctx, q)
		if err != nil {
			return err
		}
		if find(disks, disk.ID) != nil {
			return mvm.Errorf(mvm.ErrExists, "the VM has a disk %q", disk.ID).WithHint("detach it first")
		}
		if err := dropNodes(ctx, q, disks, ""); err != nil {
			return err
		}
		port, err := freePort(m.extra(), disks)
		if err != nil {
			return err
		}
		number := 0
		if len(disks) > 0 {
			number = disks[len(disks)-1].number + 1
		}
		return plug(ctx, q, number, port, disk)
	}))
}

// freePort chooses where a disk goes.
func freePort(e extra, disks []plugged) (int, error) {
	ports := 0
	if e.Facts != nil {
		ports = e.Facts.Ports
	}
	for port := 1; port <= ports; port++ {
		if !slices.ContainsFunc(disks, func(d plugged) bool { return d.port == port }) {
			return port, nil
		}
	}
	return 0, mvm.Errorf(mvm.ErrUnsupported, "QEMU cannot plug in another disk: all %d places for one are taken", ports).
		WithHint("detach another disk, or stop the VM and start it with this one")
}

func plug(ctx context.Context, q *QMP, number, port int, disk vmm.Disk) error {
	if err := q.Execute(ctx, "blockdev-add", nodeOf(number, disk), nil); err != nil {
		return unusable(disk, err)
	}
	bus, addr := diskPlace(port)
	device := diskDevice(number, disk.ID)
	err := q.Execute(ctx, "device_add", map[string]string{
		"driver": "virtio-blk-pci", "id": device, "bus": bus, "addr": addr, "drive": diskNode(number, disk.ID), "serial": serial(disk.ID),
	}, nil)
	var refused *QMPError
	if errors.As(err, &refused) {
		return errors.Join(unusable(disk, err), dropNode(ctx, q, diskNode(number, disk.ID)))
	}
	if err != nil || disk.Limit == (vmm.RateLimit{}) {
		return err // of a node that is left the next one to come lets go
	}
	return throttle(ctx, q, device, disk.Limit)
}

func unusable(disk vmm.Disk, err error) error {
	return mvm.Errorf(mvm.ErrUnavailable, "disk %s: %w", disk.ID, err).WithHint("see whether %s is there, and used by nobody else", disk.Path)
}

func dropNode(ctx context.Context, q *QMP, name string) error {
	return q.Execute(ctx, "blockdev-del", map[string]string{"node-name": name}, nil)
}

// dropNodes lets go of files whose device is gone: of a disk that the guest has
// released after nobody waited for it any more, say. With an id only of that disk,
// and it is mvm.ErrNotFound when there is none.
func dropNodes(ctx context.Context, q *QMP, disks []plugged, id string) error {
	nodes, err := nodesOf(ctx, q)
	if err != nil {
		return err
	}
	err = nil
	if id != "" {
		err = noDisk(id)
	}
	for name := range nodes {
		_, of, ours := parseNumbered(name, "node")
		used := slices.ContainsFunc(disks, func(d plugged) bool { return d.node == name })
		if !ours || used || id != "" && of != serial(id) {
			continue
		}
		if err = dropNode(ctx, q, name); err != nil {
			return err
		}
	}
	return err
}

// askAgain is how long QEMU refuses to ask the guest a second time to release a
// device (pending_deleted_expires_ms in hw/acpi/pcihp.c and hw/pci/pcie.c).
const askAgain = 5 * time.Second

// DetachDisk implements vmm.DiskHotplugger: it asks the guest, and waits. A guest
// that answers after that releases the disk all the same; QEMU cannot take the
// question back. The next call then finds the disk gone.
func (m *machine) DetachDisk(ctx context.Context, id string) error {
	disk, err := m.toDetach(ctx, id)
	if err != nil || disk == nil {
		return m.gone(ctx, err)
	}
	var asked time.Time
	for pause := lookFirst; ; pause = min(pause*2, lookMost) {
		ask := time.Since(asked) > askAgain
		gone, err := m.detached(ctx, *disk, ask)
		if ask {
			asked = time.Now()
		}
		if gone || err != nil && ctx.Err() == nil {
			return m.gone(ctx, err)
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return mvm.Errorf(mvm.ErrBusy, "the guest does not release disk %s", id).
				WithHint("unmount it in the guest and ask again; one that still boots, or cannot unplug, does so when the VM is stopped")
		case <-time.After(pause):
		}
	}
}

// toDetach finds a disk that can be asked for; nil, when the guest has released it
// already.
func (m *machine) toDetach(ctx context.Context, id string) (*plugged, error) {
	var disk *plugged
	err := m.session(ctx, "device_del", func(ctx context.Context, q *QMP) error {
		disks, err := disksOf(ctx, q)
		if err != nil {
			return err
		}
		if disk = find(disks, id); disk == nil {
			return dropNodes(ctx, q, disks, id)
		}
		if disk.port == 0 {
			return mvm.Errorf(mvm.ErrConflict, "disk %s is the root disk", id).WithHint("only the others can be detached")
		}
		status, err := statusOf(ctx, q)
		if err == nil && status != "running" {
			err = mvm.Errorf(mvm.ErrBusy, "the VM is paused, and its guest cannot release disk %s", id).WithHint("resume it first: 'mvm vm resume'")
		}
		return err
	})
	return disk, err
}

// detached asks for a disk, if it is time to, and reports whether the guest has
// released it. Then QEMU lets go of the file.
func (m *machine) detached(ctx context.Context, disk plugged, ask bool) (gone bool, err error) {
	err = m.session(ctx, "device_del", func(ctx context.Context, q *QMP) error {
		var refused *QMPError
		if ask {
			err := q.Execute(ctx, "device_del", map[string]string{"id": disk.device}, nil)
			if err != nil && !errors.As(err, &refused) { // asked already, or gone
				return err
			}
		}
		var objects []struct {
			Name string `json:"name"`
		}
		if err := q.Execute(ctx, "qom-list", map[string]string{"path": peripheral}, &objects); err != nil {
			return err
		}
		for _, o := range objects {
			if o.Name == disk.device {
				return nil
			}
		}
		// The device is gone from the tree before it has let go of the node.
		err := dropNode(ctx, q, disk.node)
		if errors.As(err, &refused) {
			nodes, listErr := nodesOf(ctx, q)
			if _, still := nodes[disk.node]; still || listErr != nil {
				return listErr
			}
			err = nil
		}
		gone = err == nil
		return err
	})
	return gone, err
}
