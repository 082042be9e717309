package image

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"syscall"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/image/format"
	"github.com/mvmctl/mvm/internal/rootfs"
	"github.com/mvmctl/mvm/internal/run"
)

// fromTar makes a root file system of an archive, while it is read.
func (im *importer) fromTar(ctx context.Context) error {
	in, err := im.stream(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	_, err = rootfs.FromTar(ctx, in, im.at(rootName), rootfs.Options{Label: RootLabel, MaxBytes: im.MaxBytes})
	return im.converted(err)
}

// fromSquashfs makes one of a squashfs image.
func (im *importer) fromSquashfs(ctx context.Context, name string) error {
	info, err := disk.Probe(name)
	if err != nil {
		return err
	}
	st, err := os.Stat(name)
	if err != nil {
		return err
	}
	if err := whole(info, st.Size()); err != nil {
		return err
	}
	im.Progress.Send("import", "making an ext4 of the squashfs")
	_, err = rootfs.FromSquashfs(ctx, im.Runner, name, im.at(rootName), rootfs.Options{Label: RootLabel, MaxBytes: im.MaxBytes})
	return im.converted(err)
}

func (im *importer) converted(err error) error {
	if err != nil {
		return err
	}
	im.root.info, err = disk.Probe(im.at(rootName))
	return err
}

// fromDisk finds the root on a disk and takes it out.
func (im *importer) fromDisk(ctx context.Context) error {
	if im.kind.Compression != "" {
		if err := im.plain(ctx); err != nil {
			return err
		}
	} else {
		im.path = im.src.Name()
	}
	f, size, err := im.rawDisk(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	im.root, err = findRoot(f, size, im.Arch, im.Partition, im.Disabled)
	if err != nil {
		return err
	}
	take := min(im.root.info.SizeBytes, im.root.size) // what is behind the file system is nobody's
	if im.root.info.FS == "squashfs" {
		if err := im.takeOut(ctx, f, squashName, take); err != nil {
			return err
		}
		return im.fromSquashfs(ctx, im.at(squashName))
	}
	return im.takeOut(ctx, f, rootName, take)
}

// rawDisk opens the disk as a raw one: the file itself, or a conversion of it.
func (im *importer) rawDisk(ctx context.Context) (*os.File, int64, error) {
	f := im.src
	if im.path != im.src.Name() {
		var err error
		if f, err = os.Open(im.path); err != nil {
			return nil, 0, err
		}
		// Only now it can be seen whether a disk that was compressed has a VHD's end.
		if n, ok := format.FixedVHD(f, im.size); ok && im.kind.Format == format.Raw {
			im.kind.Format, im.size = format.VHD, n
			return f, n, nil
		}
		defer func() { _ = f.Close() }()
	}
	virtual, err := format.CheckDisk(f, im.size, im.kind.Format, im.MaxBytes)
	if err != nil {
		return nil, 0, err
	}
	if _, fixed := format.FixedVHD(f, im.size); im.kind.Format == format.Raw || fixed {
		again, err := os.Open(im.path)
		return again, virtual, err
	}
	if err := im.convert(ctx); err != nil {
		return nil, 0, err
	}
	out, err := os.Open(im.at(diskName))
	if err != nil {
		return nil, 0, err
	}
	im.path = im.at(diskName)
	st, err := out.Stat()
	if err != nil {
		_ = out.Close()
		return nil, 0, err
	}
	return out, st.Size(), nil
}

// qemuNames are what QEMU calls formats.
var qemuNames = map[string]string{format.Qcow2: "qcow2", format.VMDK: "vmdk", format.VHD: "vpc"}

// convert makes a raw disk of im.path by qemu-img, whose format drivers are told
// what to open and that there is nothing below it. It checks first: QEMU would
// fill up with zeros what is missing at the end of a file.
func (im *importer) convert(ctx context.Context) error {
	spec := map[string]any{"driver": qemuNames[im.kind.Format], "file": map[string]any{"driver": "file", "filename": im.path}}
	if im.kind.Format != format.VHD {
		spec["backing"] = nil
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	node := "json:" + string(b)
	if im.kind.Format != format.VHD { // it has no check for those
		if err := im.qemuCheck(ctx, node); err != nil {
			return err
		}
	}
	im.Progress.Send("import", "converting "+im.kind.String())
	_, err = im.Runner.Run(ctx, qemuImg("convert", "-q", "-O", "raw", "-m", "4", node, im.at(diskName)))
	if err != nil {
		return im.toolFault(err, "it cannot be converted")
	}
	if im.path == im.at(plainName) {
		return os.Remove(im.path)
	}
	return nil
}

func (im *importer) qemuCheck(ctx context.Context, node string) error {
	_, err := im.Runner.Run(ctx, qemuImg("check", "-q", node))
	var exit *run.ExitError
	const leaks, unsupported = 3, 63 // qemu-img(1): clusters that are in nobody's use do no harm
	if errors.As(err, &exit) && (exit.Code == leaks || exit.Code == unsupported) {
		return nil
	}
	return im.toolFault(err, "it is damaged, or cut short")
}

// toolFault tells what a tool says of the file from what it says of the host.
func (im *importer) toolFault(err error, what string) error {
	var exit *run.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if err := disk.EnoughSpace(im.s.dir, 64<<20); err != nil {
		return err
	}
	return mvm.Errorf(mvm.ErrBroken, "%s: %w", what, err).WithHint("get the file again")
}

// qemuImg ends with us, however we do.
func qemuImg(args ...string) run.Cmd {
	return run.Cmd{Name: "qemu-img", Args: args, Env: append(os.Environ(), "LC_ALL=C"), Attr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
}

// takeOut puts size bytes of the root, from its beginning on, into a file of the
// stage. A disk that is ours is cut down to them; the user's is copied.
func (im *importer) takeOut(ctx context.Context, f *os.File, name string, size int64) error {
	if im.path != im.src.Name() {
		if err := disk.Keep(ctx, im.path, im.root.off, size); err != nil {
			return err
		}
		return os.Rename(im.path, im.at(name))
	}
	out, err := create(im.at(name))
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	return disk.CopyPart(ctx, out, f, im.root.off, size, im.count("copying", size))
}
