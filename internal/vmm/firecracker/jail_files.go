package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Names in the VMM's root directory of the files of a snapshot.
const (
	jailState = "restore.state"
	jailMem   = "restore.mem"
)

// jailStage is a directory in the VMM's root directory, beside which it is in the
// jail's: there root makes the files that a snapshot is written to.
const jailStage = "snapshot"

// handed is a file of the host that a VMM in its jail is to have.
type handed struct {
	name     string // in the VMM's root directory
	path     string // on the host
	readOnly bool
	fifo     bool // of ours, to write to
	served   bool // to its server, and not to the VMM
}

// handedTo lists the files of a launch.
func handedTo(l vmm.Launch) []handed {
	var files []handed
	add := func(name, path string) {
		if path != "" {
			files = append(files, handed{name: name, path: path, readOnly: true})
		}
	}
	if l.Restore != nil {
		add(jailState, l.Restore.State)
		add(jailMem, l.Restore.Mem)
	} else {
		add(jailKernel, l.Kernel)
		add(jailInitrd, l.Initrd)
	}
	for _, d := range l.Disks {
		files = append(files, handed{name: diskName(l.Dir, d), path: d.Path, readOnly: d.ReadOnly, served: served(d)})
	}
	for _, name := range pipesOf(l) {
		files = append(files, handed{name: name, path: filepath.Join(l.Dir, name), fifo: true})
	}
	return files
}

// pipesOf returns what Firecracker writes by itself and the supervisor reads.
func pipesOf(l vmm.Launch) []string {
	var names []string
	if l.Logging {
		names = append(names, l.Files.Log+pipeSuffix)
	}
	if l.Metrics {
		names = append(names, l.Files.Metrics+pipeSuffix)
	}
	return names
}

// ledger stands in the jail's directory, which is root's alone, before anything is
// lent: who the VM's user is, and what has to be given back.
type ledger struct {
	UID   int    `json:"uid"`
	GID   int    `json:"gid"`
	Loans []loan `json:"loans"`
}

const ledgerFile = "ledger.json"

// loan is a file whose rights were changed for a VM's user.
type loan struct {
	Name string      `json:"name"` // in the VMM's root directory
	Path string      `json:"path"`
	Dev  uint64      `json:"dev"`
	Ino  uint64      `json:"ino"`
	ACL  bool        `json:"acl"` // the user may read it; else it is the user's own
	UID  int         `json:"uid"` // as it was before
	GID  int         `json:"gid"`
	Mode fs.FileMode `json:"mode"`
}

func readLedger(dir string) (ledger, error) {
	var b ledger
	data, err := os.ReadFile(filepath.Join(dir, jailDir, ledgerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &b)
	}
	if err != nil {
		return b, fmt.Errorf("read what a jail has been lent: %w", err)
	}
	return b, nil
}

func (b ledger) write(dir string) error {
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return fsx.WriteFile(filepath.Join(dir, jailDir, ledgerFile), data, 0o600)
}

// look says what lending a file takes; nil when everybody may read it anyway. The
// path returned has no symlinks.
func look(h handed) (string, *loan, error) {
	path, err := filepath.EvalSymlinks(h.path)
	if err != nil {
		return "", nil, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && (kind != unix.S_IFIFO || !h.fifo) {
		return "", nil, mvm.Errorf(mvm.ErrUnsupported, "%s is no regular file, and cannot be handed to a jailed VMM", path).WithHint("leave the jailer off: --no-jailer")
	}
	if h.readOnly && st.Mode&unix.S_IROTH != 0 {
		return path, nil, nil
	}
	was := loan{Name: h.name, Path: path, Dev: st.Dev, Ino: st.Ino, ACL: h.readOnly, UID: int(st.Uid), GID: int(st.Gid), Mode: fs.FileMode(st.Mode & 0o777)}
	if was.UID >= vmm.FirstJailUID && was.UID < vmm.FirstJailUID+vmm.JailUIDs { // of a jail that is no more
		was.UID, was.GID, was.Mode = 0, 0, 0o600
	}
	return path, &was, nil
}

// lend changes a file's rights. ErrNoACL where a right to read cannot be added.
func (b ledger) lend(t loan) error {
	if t.ACL {
		return fsx.AllowRead(t.Path, b.UID)
	}
	return t.with(func(fd int, _ unix.Stat_t) error {
		return errors.Join(unix.Fchmod(fd, 0o600), unix.Fchown(fd, b.UID, b.GID))
	})
}

// giveBack undoes lend. A file that is gone, another one by now, or somebody
// else's is left alone.
func (b ledger) giveBack(t loan) error {
	var err error
	if t.ACL {
		if err = fsx.DenyRead(t.Path, b.UID); errors.Is(err, fsx.ErrNoACL) {
			err = nil
		}
	} else {
		err = t.with(func(fd int, st unix.Stat_t) error {
			if int(st.Uid) != b.UID {
				return nil
			}
			// First the mode, which its owner may have set to anything.
			return errors.Join(unix.Fchmod(fd, uint32(t.Mode)), unix.Fchown(fd, t.UID, t.GID))
		})
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}

// with opens the very file that was looked at.
func (t loan) with(f func(fd int, st unix.Stat_t) error) error {
	fd, err := unix.Open(t.Path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: t.Path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev != t.Dev || st.Ino != t.Ino {
		return &fs.PathError{Op: "open", Path: t.Path, Err: fs.ErrNotExist}
	}
	if err := f(fd, st); err != nil {
		return fmt.Errorf("change the owner of %s: %w", t.Path, err)
	}
	return nil
}

// furnish fills the jail with the launch's files and returns what the supervisor
// has to bind.
func furnish(ctx context.Context, l vmm.Launch, config []byte) ([]supervisor.Bind, error) {
	root := jailRoot(l)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	for _, name := range pipesOf(l) { // those of the last run were removed
		if err := unix.Mkfifo(filepath.Join(l.Dir, name), 0o600); err != nil {
			return nil, &fs.PathError{Op: "mkfifo", Path: name, Err: err}
		}
	}
	b := ledger{UID: l.Jail.UID, GID: l.Jail.GID}
	stage, err := makeStage(l.Dir, root)
	if err != nil {
		return nil, err
	}
	binds := []supervisor.Bind{stage}
	toServer := map[string]string{} // the disk, by path
	for _, h := range handedTo(l) {
		path, t, err := look(h)
		if err != nil {
			return nil, err
		}
		if t != nil {
			b.Loans = append(b.Loans, *t)
		}
		if h.served {
			toServer[path] = h.name
			continue
		}
		binds = append(binds, supervisor.Bind{From: path, To: filepath.Join(root, h.name), ReadOnly: h.readOnly})
	}
	if err := b.write(l.Dir); err != nil {
		return nil, err
	}
	if err := writeIn(root, l, config, b); err != nil {
		return nil, err
	}
	lent := map[string]error{}
	for _, t := range b.Loans {
		if err := b.lend(t); err != nil && !errors.Is(err, fsx.ErrNoACL) {
			return nil, err
		} else if err != nil && toServer[t.Path] != "" {
			return nil, unsupported(toServer[t.Path], "its file system cannot let the VM's user read it").WithHint("leave the jailer off: --no-jailer")
		} else if err != nil {
			lent[t.Path] = err
		}
	}
	kept := binds[:0]
	for _, bind := range binds {
		if lent[bind.From] != nil { // no way to let the user read it: a copy
			if err := copyIn(ctx, bind.From, bind.To, b); err != nil {
				return nil, err
			}
			continue
		}
		if bind != stage {
			if err := placeholder(root, bind.To); err != nil {
				return nil, err
			}
		}
		kept = append(kept, bind)
	}
	return kept, nil
}

// makeStage makes the directory for snapshots, in which only root can make files.
func makeStage(dir, root string) (supervisor.Bind, error) {
	b := supervisor.Bind{From: filepath.Join(dir, jailDir, jailStage), To: filepath.Join(root, jailStage)}
	for _, path := range []string{b.From, b.To} {
		if err := os.Mkdir(path, 0o711); err != nil { //nolint:gosec // the VM's user has to pass
			return b, err
		}
		if err := os.Chmod(path, 0o711); err != nil { //nolint:gosec // whatever the umask
			return b, err
		}
	}
	return b, nil
}

// writeIn writes what only this VMM reads: its configuration, and its metadata.
func writeIn(root string, l vmm.Launch, config []byte, b ledger) error {
	files := map[string][]byte{}
	if l.Restore == nil {
		files[l.Files.Config] = config
	}
	if l.Metadata != nil {
		data, err := metadataOf(l.Metadata)
		if err != nil {
			return err
		}
		files[metadataFile] = data
	}
	for name, data := range files {
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, data, 0o400); err != nil {
			return err
		}
		if err := os.Lchown(path, b.UID, b.GID); err != nil {
			return err
		}
	}
	return nil
}

// placeholder makes the file that another one is bound over. Nobody but root is in
// the jail yet.
func placeholder(root, path string) error {
	if dir := filepath.Dir(path); dir != root {
		if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // the VM's user has to pass
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	return f.Close()
}

func copyIn(ctx context.Context, from, to string, b ledger) error {
	if err := disk.Clone(ctx, from, to); err != nil {
		return err
	}
	return errors.Join(os.Chmod(to, 0o400), os.Lchown(to, b.UID, b.GID))
}

// Unjail removes what a jailed VM's VMM has left, which has ended: its cgroups, its
// root directory, and the VM's user as an owner of files. id is the VM's, dir its
// directory. What is not there is fine.
func Unjail(ctx context.Context, dir, id string) error {
	// Its cgroups may be all that is left: a VM's directory can be removed before.
	err := removeCgroups(ctx, id)
	jail := filepath.Join(dir, jailDir)
	if _, gone := os.Lstat(jail); errors.Is(gone, fs.ErrNotExist) {
		return err
	}
	b, ledgerErr := readLedger(dir)
	errs := []error{err, ledgerErr}
	for _, t := range b.Loans {
		errs = append(errs, b.giveBack(t))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the jail of VM %s: %w", id, err)
	}
	return os.RemoveAll(jail) // follows no symlink
}
