package firecracker

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Firecracker would hand a guest the bytes of a qcow2 file as they are. It gets such a
// disk from qemu-storage-daemon, over the vhost-user protocol
// (docs/api_requests/block-vhost-user.md): a process per disk, which the VM's
// supervisor starts before the VMM and ends after it.

// diskServer is the program, and its Debian package.
const (
	diskServer        = "qemu-storage-daemon"
	diskServerPackage = "qemu-system-common"
)

// served tells whether a disk comes from a server.
func served(d vmm.Disk) bool { return d.Format == "qcow2" }

func anyServed(l vmm.Launch) bool { return slices.ContainsFunc(l.Disks, served) }

// socketSuffix ends the names of the sockets of disks' servers, in the VMM's working
// directory; linkPrefix begins them.
const socketSuffix = ".sock"

func socketName(d vmm.Disk) string { return linkName(d) + socketSuffix }

// checkServed refuses what a disk's server, or Firecracker with it, cannot do.
func checkServed(l vmm.Launch, d vmm.Disk, root bool) error {
	what := "disk " + d.ID
	switch {
	case root:
		return unsupported(what, "its format is qcow2, and a root disk has to be raw").WithHint("convert the disk to raw, or use --hypervisor qemu")
	case l.DiskServer == "":
		return unsupported(what, "its format is qcow2, which "+diskServer+" has to serve, and that is not installed").
			WithHint("apt-get install %s, or use a raw disk", diskServerPackage)
	case !filepath.IsAbs(l.DiskServer):
		return invalid("disk server", "%q is not absolute", l.DiskServer).WithHint("give the whole path")
	case d.Limit != (vmm.RateLimit{}):
		return unsupported("the limit of "+what, "it does not see what "+diskServer+" reads and writes").WithHint("use a raw disk, or leave the limit out")
	case l.Restore != nil:
		return unsupported(what, "a snapshot has no qcow2 disks").WithHint("boot the VM instead")
	}
	return nil
}

// serversOf are the servers of a launch's disks.
func serversOf(l vmm.Launch) ([]supervisor.Server, error) {
	var servers []supervisor.Server
	for _, d := range l.Disks {
		if !served(d) {
			continue
		}
		file, err := filepath.EvalSymlinks(d.Path)
		if err != nil {
			return nil, err
		}
		argv, err := serverArgv(l, d)
		if err != nil {
			return nil, err
		}
		s := supervisor.Server{
			Name: "disk " + d.ID, Argv: argv, Env: []string{"PATH=/usr/bin:/bin"}, Socket: filepath.Join(rootOf(l), socketName(d)), File: file, ReadOnly: d.ReadOnly,
		}
		if l.Logging {
			s.Log = filepath.Join(l.Dir, l.Files.Log+pipeSuffix)
		}
		if l.Jail != nil {
			s.UID, s.GID = l.Jail.UID, l.Jail.GID
		}
		servers = append(servers, s)
	}
	return servers, nil
}

// serverArgv is a server's command line (qemu-storage-daemon(1)). It opens the file
// that it inherits, by a name that leads nowhere else; whatever the file says, it
// takes no content from another one.
func serverArgv(l vmm.Launch, d vmm.Disk) ([]string, error) {
	node, err := json.Marshal(map[string]any{
		"driver": "qcow2", "node-name": "disk", "read-only": d.ReadOnly, "backing": nil,
		"file": map[string]any{"driver": "file", "filename": fmt.Sprintf("/proc/self/fd/%d", supervisor.ServerFileFD)},
	})
	if err != nil {
		return nil, err
	}
	writable := "on"
	if d.ReadOnly { // Firecracker cannot be told; the server tells the guest
		writable = "off"
	}
	return []string{
		l.DiskServer, "--blockdev", string(node),
		"--export", fmt.Sprintf("type=vhost-user-blk,id=%s-%s,node-name=disk,addr.type=fd,addr.str=%d,writable=%s",
			supervisor.ServerToken(l.ID), deviceID(d.ID), supervisor.ServerSocketFD, writable),
	}, nil
}

// onlyFromStart is the error for a disk that Firecracker cannot take, or let go of,
// while it runs: it shares its memory with servers from the start or never, and a
// guest that keeps the others apart by their order could not any more.
func onlyFromStart(verb string) error {
	return mvm.Errorf(mvm.ErrUnsupported, "firecracker %s a qcow2 disk only when it starts", verb).
		WithHint("stop the VM, change its disks, and start it again")
}

// servesDisks refuses what a VM with disks from servers cannot do.
func (m *machine) servesDisks(what, why string) error {
	if !m.extra().Served {
		return nil
	}
	return mvm.Errorf(mvm.ErrUnsupported, "firecracker cannot %s a VM with a qcow2 disk: %s", what, why).
		WithHint("stop the VM, detach the volume, and start it again; or keep the data on a raw volume")
}
