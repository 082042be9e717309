package image

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/run"
)

// BuildDistro makes a minimal Debian or Ubuntu with systemd and OpenSSH from the
// host's package mirror, by mmdebstrap. Everything that comes out of packages
// runs in a user namespace whose root is nobody on the host. The errors are
// those of Build.
func BuildDistro(ctx context.Context, ref Ref, o Options) (Built, error) {
	ref, err := ref.resolve()
	if err == nil {
		err = CheckPackages(ref, o.Packages)
	}
	if err != nil {
		return Built{}, err
	}
	entry, err := ref.entry()
	if err != nil {
		return Built{}, err
	}
	if entry.Codename == "" {
		return Built{}, mvm.Errorf(mvm.ErrInvalid, "%s is no distribution", ref).WithHint("name one such as debian:12")
	}
	return build(ctx, o, distroSpace, func(b builder, s *stage) (Built, error) { return b.distro(ctx, entry, o, s) })
}

func (b builder) distro(ctx context.Context, entry Entry, o Options, s *stage) (Built, error) {
	if err := b.canBootstrap(ctx); err != nil {
		return Built{}, err
	}
	src, err := findSources(ctx, o.Runner, entry, o.Mirror)
	if err != nil {
		return Built{}, err
	}
	work := s.path("work")
	if err := b.workdir(work); err != nil {
		return Built{}, err
	}
	if err := b.check(ctx, work); err != nil {
		return Built{}, err
	}
	o.Progress.Send("build", "installing the packages of "+entry.Name)
	if err := b.bootstrap(ctx, work, entry, src, o); err != nil {
		return Built{}, err
	}
	o.Progress.Send("build", "trimming the file tree")
	// The paths in the script are resolved in the tree, by chroot, and by somebody
	// who has no rights outside.
	script := trimScript(entry, src)
	res, err := b.inBox(ctx, work, run.Cmd{Name: "chroot", Args: []string{"tree", "/bin/sh", "-eus"}, Stdin: strings.NewReader(script)})
	if err != nil {
		return Built{}, mvm.Errorf(mvm.ErrBroken, "trimming the file tree: %w", err).WithHint("build another version of %s", entry.Type)
	}
	built := Built{Type: entry.Type, Version: entry.Version, Name: entry.Name}
	built.Distro, built.Packages = trimReport(string(res.Stdout), entry)
	o.Progress.Send("build", "making the file system")
	return built, b.distroDisk(ctx, s)
}

// canBootstrap says what is missing before anything is made.
func (b builder) canBootstrap(ctx context.Context) error {
	if _, err := b.runner.Run(ctx, run.Cmd{Name: "mmdebstrap", Args: []string{"--version"}}); err != nil {
		if mvm.HintOf(err) != "" {
			// debootstrap is no way out: it has to be root on the host.
			return mvm.Errorf(mvm.ErrUnavailable, "the program mmdebstrap is not installed, and debootstrap would run programs of the image as root").
				WithHint("apt-get install mmdebstrap")
		}
		return err
	}
	return nil
}

// packageName is the name of a package (Debian policy, 5.6.1).
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// CheckPackages says whether an image can be built with packages besides its own, as
// mvm.ErrInvalid if not.
func CheckPackages(ref Ref, names []string) error {
	if len(names) > 0 && ref.Type == Tiny {
		return mvm.Errorf(mvm.ErrInvalid, "the tiny image has no packages").WithHint("build debian with them")
	}
	for _, n := range names {
		if !packageName.MatchString(n) {
			return mvm.Errorf(mvm.ErrInvalid, "%s is no name of a package", mvm.Quote(n)).WithHint("write for example cloud-init")
		}
	}
	return nil
}

// bootstrap makes work/tree out of packages.
func (b builder) bootstrap(ctx context.Context, work string, entry Entry, src sources, o Options) error {
	args := []string{"--mode=root", "--variant=minbase", "--format=directory", "--components=" + strings.Join(src.components, ","),
		"--include=" + strings.Join(append(slices.Clone(distroPackages), o.Packages...), ",")}
	for _, k := range src.keyrings {
		args = append(args, "--keyring="+k)
	}
	for _, opt := range src.aptOptions {
		args = append(args, "--aptopt="+opt)
	}
	for _, dir := range []string{"doc", "man", "info", "lintian", "locale"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+dir+"/*")
	}
	args = append(args, "--dpkgopt=path-include=/usr/share/doc/*/copyright", "--dpkgopt=path-include=/usr/share/locale/locale.alias",
		// The unpacking of a tree that nobody sees until it is complete need not be durable.
		"--dpkgopt=force-unsafe-io", entry.Codename, "tree", "-")
	said := &phases{send: o.Progress}
	_, err := b.inBox(ctx, work, run.Cmd{Name: "mmdebstrap", Args: args, Stdin: strings.NewReader(src.list), Stdout: said, Stderr: said})
	if err == nil || ctx.Err() != nil {
		return err
	}
	cause := said.cause()
	if cause == "" {
		return mvm.Errorf(mvm.ErrUnavailable, "mmdebstrap failed: %w", err).WithHint("check the package sources of this host with 'apt-get update'")
	}
	return mvm.Errorf(mvm.ErrUnavailable, "mmdebstrap failed: %s", cause).WithHint("check the package sources of this host with 'apt-get update'")
}

// distroPackages are what an image has beyond the essential packages. dbus is
// for logind, which reacts to the power button; kmod and procps are what people
// expect; no cron, no rsyslog, no DHCP client.
var distroPackages = []string{"systemd-sysv", "udev", "dbus", "openssh-server", "iproute2", "iputils-ping", "kmod", "procps", "ca-certificates"}

// distroDisk measures the tree in the box, where it can be read, and makes the
// file system there.
func (b builder) distroDisk(ctx context.Context, s *stage) error {
	work := s.path("work")
	res, err := b.inBox(ctx, work, run.Cmd{Name: "sh", Args: []string{"-euc",
		`cat >"$1"; du -s -B1 tree; du -s --inodes tree`, "sh", mkfsConfigFile}, Stdin: strings.NewReader(disk.Mke2fsConfig)})
	if err != nil {
		return err
	}
	u, err := parseUsage(string(res.Stdout))
	if err != nil {
		return err
	}
	if _, err := b.inBox(ctx, work, mkfsCmd("tree", rootFile, distroSize(u))); err != nil {
		return err
	}
	return collect(work+"/"+rootFile, s.path("out/"+rootFile))
}

func parseUsage(out string) (usage, error) {
	var n [2]int64
	for i, line := range strings.SplitN(strings.TrimSpace(out), "\n", 2) {
		first, _, _ := strings.Cut(line, "\t")
		var err error
		if n[i], err = strconv.ParseInt(first, 10, 64); err != nil {
			return usage{}, fmt.Errorf("du printed %q: %w", out, err)
		}
	}
	return usage{bytes: n[0], nodes: n[1]}, nil
}

// distroSize leaves room for a few packages. The file is sparse and disks are
// larger: the least that a disk can have is what counts.
func distroSize(u usage) int64 {
	const step = 64 << 20
	need := u.bytes + u.bytes/10 + u.nodes*256 + 192<<20
	return (need + step - 1) / step * step
}

// hostRelease returns the type and version of the host's own distribution.
func hostRelease() Ref {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return Ref{}
	}
	return parseRelease(string(b))
}

// parseRelease reads os-release(5).
func parseRelease(text string) Ref {
	var r Ref
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			r.Type = value
		case "VERSION_ID":
			r.Version = value
		}
	}
	return r
}
