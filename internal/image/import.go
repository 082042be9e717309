package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/image/format"
	"github.com/mvmctl/mvm/internal/run"
)

// ImportOptions say which file becomes an image, and how.
type ImportOptions struct {
	Runner           run.Runner
	Path             string   // the file, which is only read
	Format           string   // one of format.Names; "" and "auto" look at the content
	Dest             string   // as in Options
	Arch             string   // that the image has to be for; "" is the host's
	Partition        int      // number of the root partition; 0 has it found
	Disabled         []string // detectors that do not look for it
	SkipOptimization bool     // keep its size and what the machine that it was made on has left in it
	MaxBytes         int64    // that it may unpack to; 0 is MaxBytes
	Progress         mvm.ProgressFunc

	// Make makes the file, in place of Path, in a directory that goes whatever happens.
	Make func(ctx context.Context, dir string) (path string, err error)
}

// MaxBytes is the most that an image may unpack to, as a disk or as a stream, where
// nobody says another limit.
const MaxBytes = 128 << 30

// Import makes an image of a file: a disk in qcow2, raw, VHD or VMDK, a tar archive
// or a squashfs, each plain or compressed with gzip, xz, zstd or bzip2. A root in
// ext4, XFS or btrfs is kept as it is; trees become ext4. The errors are those of
// Build, and mvm.ErrBroken or mvm.ErrInvalid for files that cannot be an image.
func Import(ctx context.Context, o ImportOptions) (Built, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = MaxBytes
	}
	if o.Arch == "" {
		o.Arch = arch()
	}
	wanted, err := format.Parse(o.Format)
	if err == nil {
		err = CheckDetectors(o.Disabled)
	}
	if err == nil && o.Partition < 0 {
		err = mvm.Errorf(mvm.ErrInvalid, "there is no partition %d", o.Partition).WithHint("partitions are numbered from 1 on")
	}
	if err != nil {
		return Built{}, err
	}
	if o.Make == nil { // told before anything is made
		src, err := openSource(o.Path)
		if err != nil {
			return Built{}, err
		}
		_ = src.Close()
	}
	return inStage(ctx, o.Runner, o.Dest, 0, func(b builder, s *stage) (Built, error) {
		im := &importer{ImportOptions: o, b: b, s: s}
		if o.Make != nil {
			if im.Path, err = o.Make(ctx, s.dir); err != nil {
				return Built{}, err
			}
		}
		if im.src, err = openSource(im.Path); err != nil {
			return Built{}, err
		}
		defer func() { _ = im.src.Close() }()
		if err := im.identify(wanted); err != nil {
			return Built{}, err
		}
		return im.run(ctx)
	})
}

// importer makes one image. Its files are in the stage's directory "work".
type importer struct {
	ImportOptions
	b    builder
	s    *stage
	src  *os.File
	size int64 // of src
	kind format.Kind
	path string // of the disk's or tree's file, which is src's or one in the stage
	root found  // the root's file system, alone in the file rootName
	warn []string
}

// The names in the stage's "work".
const (
	plainName  = "plain"  // the file without its compression
	diskName   = "disk"   // as a raw disk
	rootName   = "root"   // the root file system
	squashName = "squash" // a root file system that is to be converted
)

func (im *importer) at(name string) string { return im.s.path("work/" + name) }

// openSource opens a regular file to be read.
func openSource(name string) (*os.File, error) {
	st, err := os.Stat(name) // before it is opened: a FIFO would block
	if err == nil && !st.Mode().IsRegular() {
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s is no regular file", name).WithHint("name an image file, or a VM")
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(name)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, mvm.Errorf(mvm.ErrNotFound, "there is no file %s", name).WithHint("check the path")
	case errors.Is(err, os.ErrPermission):
		return nil, mvm.Errorf(mvm.ErrPrivilege, "%s cannot be read: %w", name, err).WithHint("check its owner and mode")
	case err != nil:
		return nil, mvm.Errorf(mvm.ErrUnavailable, "%s cannot be read: %w", name, err).WithHint("check the path")
	}
	return f, nil
}

// identify finds out what the file is, and whether that is what the user said.
func (im *importer) identify(wanted string) error {
	st, err := im.src.Stat()
	if err != nil {
		return err
	}
	im.size = st.Size()
	im.kind, err = format.Detect(im.src, im.size)
	if wanted == format.Raw && (err == nil || errors.Is(err, mvm.ErrUnsupported)) {
		im.kind.Format = format.Raw // whatever it begins with
		return nil
	}
	if err != nil {
		return err
	}
	if wanted != "" && wanted != im.kind.Format {
		return mvm.Errorf(mvm.ErrInvalid, "it is %s by its content, and not %s", im.kind, wanted).WithHint("leave --format out, or check the file")
	}
	if im.Partition > 0 && (im.kind.Format == format.Tar || im.kind.Format == format.Squashfs) {
		return mvm.Errorf(mvm.ErrInvalid, "it is %s, which has no partitions, and so no partition %d", im.kind, im.Partition).WithHint("leave --root-partition out")
	}
	return nil
}

func (im *importer) run(ctx context.Context) (Built, error) {
	if err := im.b.workdir(im.s.path("work")); err != nil {
		return Built{}, err
	}
	im.Progress.Send("import", "reading "+im.kind.String())
	var err error
	switch im.kind.Format {
	case format.Tar:
		err = im.fromTar(ctx)
	case format.Squashfs:
		if err = im.plain(ctx); err == nil {
			err = im.fromSquashfs(ctx, im.path)
		}
	default:
		err = im.fromDisk(ctx)
	}
	if err != nil {
		return Built{}, err
	}
	return im.finish(ctx)
}

// plain sees to it that there is a file without compression at im.path.
func (im *importer) plain(ctx context.Context) error {
	if im.kind.Compression == "" {
		im.path = im.src.Name()
		return nil
	}
	im.path = im.at(plainName)
	f, err := create(im.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	in, err := im.stream(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	im.size, err = disk.WriteSparse(ctx, f, in, im.count("unpacking", 0))
	return err
}

// stream reads the file without its compression.
func (im *importer) stream(ctx context.Context) (io.ReadCloser, error) {
	if _, err := im.src.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return format.Open(ctx, im.src, im.kind.Compression, im.MaxBytes)
}

func create(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// count reports bytes that are done.
func (im *importer) count(what string, total int64) func(int64) {
	return func(n int64) {
		if im.Progress != nil {
			im.Progress(mvm.ProgressEvent{Phase: "import", Message: what, Current: n, Total: total})
		}
	}
}

// finish looks into the root file system, makes it small, and puts it in place.
func (im *importer) finish(ctx context.Context) (Built, error) {
	name := im.at(rootName)
	inside := im.peek(ctx, name)
	if err := checkArch(inside.arch, im.Arch); err != nil {
		return Built{}, err
	}
	if !im.SkipOptimization {
		if err := im.optimize(ctx, name); err != nil {
			return Built{}, err
		}
	}
	built := Built{Arch: im.Arch, Distro: inside.distro, Version: inside.version, Subvolume: inside.subvolume, Warnings: im.warn, Format: im.kind.String()}
	final := im.s.path("out/" + fileFor(im.root.info.FS))
	if err := collect(name, final); err != nil {
		return Built{}, err
	}
	if err := built.measure(final); err != nil {
		return Built{}, err
	}
	built.Path = filepath.Join(im.s.dest, filepath.Base(final))
	if im.SkipOptimization {
		return built, nil
	}
	im.Progress.Send("import", "compressing")
	packed, err := Pack(ctx, final, im.count("compressing", built.SizeBytes))
	if err != nil {
		return Built{}, err
	}
	built.PackedBytes = packed
	return built, os.Remove(final)
}

// fileFor is the name of an image with the given file system.
func fileFor(fs string) string {
	if slices.Contains([]string{"xfs", "btrfs"}, fs) {
		return "rootfs." + fs
	}
	return rootFile
}

// measure fills in what the finished file itself says.
func (b *Built) measure(name string) error {
	info, err := disk.Probe(name)
	if err != nil {
		return err
	}
	if !canBeRoot(info) || info.FS == "squashfs" {
		return mvm.Errorf(mvm.ErrBroken, "what came out has %q as its file system", info.FS).WithHint("import it again with --skip-optimization")
	}
	b.FSType, b.UUID = info.FS, info.UUID
	b.SizeBytes, b.AllocatedBytes, err = disk.Sizes(name)
	b.MinimumMiB = int((b.SizeBytes + slack(b.SizeBytes) + 1<<20 - 1) >> 20)
	return err
}

// slack is what a guest needs beyond a file system that was made as small as it
// goes: a tenth, and room for keys, logs and a few packages.
func slack(size int64) int64 { return size/10 + 64<<20 }

// said joins what a user should know about the import.
func (im *importer) note(format string, args ...any) {
	im.warn = append(im.warn, fmt.Sprintf(format, args...))
}
