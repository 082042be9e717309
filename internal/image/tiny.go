package image

import (
	"context"
	"errors"
	"os"
	"path"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/apt"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/run"
)

// BuildTiny makes the image "tiny": busybox as init and everything else, and the
// dropbear SSH server, which lets in keys only. The packages are unpacked; no
// program of theirs runs. The errors are those of Build.
func BuildTiny(ctx context.Context, o Options) (Built, error) {
	return build(ctx, o, tinySpace, func(b builder, s *stage) (Built, error) { return b.tiny(ctx, o, s) })
}

// What a build takes on disk while it goes on, in bytes.
const (
	tinySpace   = 64 << 20
	distroSpace = 1 << 30
)

// build is what all builds have in common: the stage, cleaning up, and what the
// finished file says.
func build(ctx context.Context, o Options, need int64, make func(builder, *stage) (Built, error)) (Built, error) {
	return inStage(ctx, o.Runner, o.Dest, need, func(b builder, s *stage) (Built, error) {
		built, err := make(b, s)
		if err != nil {
			return Built{}, err
		}
		built.Path = path.Join(s.dest, rootFile)
		return built, built.describe(s.path("out/" + rootFile))
	})
}

// inStage has an image made in a stage, and makes what is in its directory "out"
// the destination. need is how many bytes that takes on disk at least.
func inStage(ctx context.Context, r run.Runner, dest string, need int64, make func(builder, *stage) (Built, error)) (Built, error) {
	b := newBuilder(r)
	s, err := newStage(ctx, b, dest)
	if err != nil && mvm.HintOf(err) == "" && ctx.Err() == nil {
		err = mvm.Errorf(mvm.ErrUnavailable, "cannot prepare the build: %w", err).WithHint("check that %s can be written", path.Dir(dest))
	}
	if err != nil {
		return Built{}, err
	}
	defer s.close(context.WithoutCancel(ctx), b)
	if err := disk.EnoughSpace(s.dir, need); err != nil {
		return Built{}, err
	}
	if err := os.Mkdir(s.path("out"), 0o700); err != nil {
		return Built{}, err
	}
	built, err := make(b, s)
	if err != nil {
		return Built{}, err
	}
	return built, s.commit()
}

func (b builder) tiny(ctx context.Context, o Options, s *stage) (Built, error) {
	debs, err := tinyPackages(ctx, o)
	if err != nil {
		return Built{}, err
	}
	o.Progress.Send("build", "making the file tree")
	dir := s.path("work/tree")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Built{}, err
	}
	t, err := openTree(dir)
	if err != nil {
		return Built{}, err
	}
	defer func() { _ = t.Close() }()
	if err := tinyLayout(t); err != nil {
		return Built{}, err
	}
	built := Built{Type: Tiny, Version: "1", Name: "Tiny Linux", Packages: len(debs)}
	for _, d := range debs {
		if strings.HasPrefix(d.Name, "busybox") {
			built.Distro = "busybox " + upstream(d.Version)
		}
		if err := apt.Unpack(ctx, o.Runner, d.Path, dir, apt.UnpackOptions{Filter: tinyKeeps, Owner: b.root}); err != nil {
			return Built{}, err
		}
	}
	if err := tinyFiles(t); err != nil {
		return Built{}, err
	}
	o.Progress.Send("build", "making the file system")
	return built, b.tinyDisk(ctx, s)
}

// tinyPackages fetches what the image is made of. Debian's static busybox is
// second choice: without the C library's name service modules of its very
// version, it crashes when it looks up a name.
func tinyPackages(ctx context.Context, o Options) ([]apt.Deb, error) {
	c := &apt.Client{Runner: o.Runner, Dir: o.Cache, Progress: o.Progress}
	debs, err := c.DownloadClosure(ctx, "busybox", "dropbear-bin")
	if errors.Is(err, mvm.ErrNotFound) || errors.Is(err, mvm.ErrUnavailable) && ctx.Err() == nil {
		if more, err := c.DownloadClosure(ctx, "busybox-static", "dropbear-bin"); err == nil {
			return more, nil
		}
	}
	return debs, err
}

// tinyDisk makes the file system. An ordinary user does it in a box, where the
// files of the tree, which are his, belong to root.
func (b builder) tinyDisk(ctx context.Context, s *stage) error {
	if err := os.WriteFile(s.path("work/"+mkfsConfigFile), []byte(disk.Mke2fsConfig), 0o644); err != nil {
		return err
	}
	u, err := measure(s.path("work/tree"))
	if err != nil {
		return err
	}
	cmd := mkfsCmd("tree", rootFile, tinySize(u))
	b.single = true
	if b.root {
		cmd.Name, cmd.Dir = hostTool(cmd.Name), s.path("work")
		_, err = b.runner.Run(ctx, cmd)
	} else if err = b.check(ctx, s.path("work")); err == nil {
		_, err = b.inBox(ctx, s.path("work"), cmd)
	}
	if err != nil {
		return err
	}
	return collect(s.path("work/"+rootFile), s.path("out/"+rootFile))
}

// tinySize leaves room for host keys, logs and a few files; disks made from the
// image are larger anyway, and the file system grows at boot.
func tinySize(u usage) int64 {
	const step = 4 << 20
	return (u.bytes + u.bytes/8 + 16<<20 + step - 1) / step * step
}

// tinyKeeps leaves out of a package what a guest without a package manager has
// no use for. All of /etc is ours.
func tinyKeeps(name string) string {
	for _, dir := range []string{"etc/", "usr/share/", "lib/systemd/", "usr/lib/systemd/", "var/"} {
		if strings.HasPrefix(name, dir) {
			return ""
		}
	}
	if strings.Contains(name, "/gconv/") {
		return ""
	}
	return name
}

// upstream is the part of a package's version that people know: "1:1.35.0-4+b1" is 1.35.0.
func upstream(version string) string {
	if _, rest, ok := strings.Cut(version, ":"); ok {
		version = rest
	}
	if i := strings.LastIndex(version, "-"); i > 0 {
		version = version[:i]
	}
	return version
}
