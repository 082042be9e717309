package image

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/run"
)

// dropped are the trees whose files go: logs, what package managers have cached,
// what belongs to one machine. Directories stay, with their owners and modes.
var dropped = []string{
	"var/log", "var/cache/apt", "var/lib/apt/lists", "var/cache/dnf", "var/cache/libdnf5", "var/cache/yum", "var/cache/zypp",
	"var/cache/apk", "var/cache/pacman/pkg", "var/lib/cloud", "var/lib/dhcp", "var/lib/NetworkManager", "var/crash", "tmp", "var/tmp",
}

// droppedFiles are single files, patterns as in path.Match.
var droppedFiles = []string{
	"etc/ssh/ssh_host_*", "etc/dropbear/dropbear_*_host_key", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "root/.bash_history", "etc/machine-id",
}

const (
	maxDropped = 50_000 // files, of an image that wants to keep us busy
	maxDepth   = 12
)

// plainPath has nothing in it that debugfs would take for something else.
var plainPath = regexp.MustCompile(`^[A-Za-z0-9._+~:@,=/-]+$`)

// optimize drops what the next machine has no use for and makes the file system as
// small as it goes. XFS and btrfs, which can be changed only where they are
// mounted, keep their size; a guest drops package caches at its first boot.
//
// The tools run in the box: what they read was written by others.
func (im *importer) optimize(ctx context.Context, name string) error {
	switch im.root.info.FS {
	case "ext2", "ext3", "ext4":
	default:
		return nil
	}
	if !im.b.root {
		im.b.single = true
	}
	if err := im.b.check(ctx, im.s.path("work")); err != nil {
		if ctx.Err() != nil {
			return err
		}
		im.note("the image was not made smaller: %v", err)
		return nil
	}
	if err := im.giveToBox(name); err != nil {
		return err
	}
	im.Progress.Send("import", "checking the file system")
	if err := im.fsck(ctx); err != nil {
		return err
	}
	if err := im.drop(ctx, name); err != nil {
		return err
	}
	im.Progress.Send("import", "making the file system smaller")
	if _, err := im.b.inBox(ctx, im.s.path("work"), boxTool("resize2fs", "-M", rootName)); err != nil {
		return im.shrinkFault(ctx, err)
	}
	info, err := disk.Probe(name)
	if err != nil {
		return err
	}
	im.root.info = info
	return os.Truncate(name, info.SizeBytes)
}

// shrinkFault goes on with a file system that is sound and that resize2fs cannot
// make smaller, and refuses one that it left in the middle.
func (im *importer) shrinkFault(ctx context.Context, err error) error {
	var exit *run.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	im.note("the image keeps its size: %v", err)
	return im.fsck(ctx)
}

// giveToBox makes a file the box's root's.
func (im *importer) giveToBox(name string) error {
	if !im.b.root {
		return nil
	}
	start, err := boxStart()
	if err != nil {
		return err
	}
	return os.Chown(name, start, start)
}

func boxTool(name string, args ...string) run.Cmd {
	return run.Cmd{Name: name, Args: args, Env: append(boxEnv(), "E2FSCK_TIME=0")}
}

// fsck replays the journal and mends what can be mended without a loss of data.
func (im *importer) fsck(ctx context.Context) error {
	_, err := im.b.inBox(ctx, im.s.path("work"), boxTool("e2fsck", "-f", "-y", rootName))
	var exit *run.ExitError
	const mended = 1 | 2 // e2fsck(8)
	if errors.As(err, &exit) && exit.Code > 0 && exit.Code&^mended == 0 {
		return nil
	}
	return im.toolFault(err, "its file system is damaged")
}

// drop removes files by debugfs. The list of them comes from a reader of our own,
// and names that debugfs could misread stay.
func (im *importer) drop(ctx context.Context, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	files := toDrop(func() (fs.FS, error) { return openFS(f, im.root.info) })
	if len(files) == 0 {
		return nil
	}
	var script bytes.Buffer
	machineID := false
	for _, p := range files {
		script.WriteString("rm /" + p + "\n")
		machineID = machineID || p == "etc/machine-id"
	}
	if machineID { // empty and not missing: that is no first boot, see machine-id(5)
		script.WriteString("write /dev/null /etc/machine-id\nset_inode_field /etc/machine-id mode 0100444\n")
	}
	im.Progress.Send("import", "dropping caches, logs and what belonged to one machine")
	cmd := boxTool("debugfs", "-w", "-f", "-", rootName)
	cmd.Stdin = &script
	if _, err := im.b.inBox(ctx, im.s.path("work"), cmd); err != nil {
		return im.toolFault(err, "its file system cannot be changed")
	}
	return im.fsck(ctx)
}

// toDrop lists the files that go.
func toDrop(open func() (fs.FS, error)) (files []string) {
	defer func() {
		if recover() != nil { // a library met what it did not expect
			files = nil
		}
	}()
	fsys, err := open()
	if err != nil {
		return nil
	}
	for _, dir := range dropped {
		files = dropTree(fsys, dir, maxDepth, files)
	}
	for _, pattern := range droppedFiles {
		dir, base := path.Split(pattern)
		dir = strings.TrimSuffix(dir, "/")
		if !isDir(fsys, dir) {
			continue
		}
		entries, err := fs.ReadDir(fsys, dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if ok, _ := path.Match(base, e.Name()); ok && e.Type().IsRegular() && plainPath.MatchString(e.Name()) {
				files = append(files, dir+"/"+e.Name())
			}
		}
	}
	return files
}

// isDir tells whether a path leads to a directory without any link on the way:
// debugfs would follow one, and this reader would not.
func isDir(fsys fs.FS, dir string) bool {
	got, ok := resolve(fsys, dir)
	if !ok || got != dir {
		return false
	}
	st, err := fs.Stat(fsys, dir)
	return err == nil && st.IsDir()
}

func dropTree(fsys fs.FS, dir string, depth int, files []string) []string {
	if depth == 0 || !isDir(fsys, dir) {
		return files
	}
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return files
	}
	for _, e := range entries {
		p := dir + "/" + e.Name()
		switch {
		case len(files) >= maxDropped:
			return files
		case e.Name() == "." || e.Name() == ".." || !plainPath.MatchString(e.Name()):
		case e.Type().IsRegular():
			files = append(files, p)
		case e.IsDir():
			files = dropTree(fsys, p, depth-1, files)
		}
	}
	return files
}
