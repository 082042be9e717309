package kernel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/apt"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/run"
	"golang.org/x/sys/unix"
)

// DebianOptions say which kernel package to fetch and where to put it.
type DebianOptions struct {
	Runner   run.Runner
	WorkDir  string           // keeps downloaded packages (see package apt)
	DestDir  string           // gets one directory per pulled kernel; made if missing
	Version  string           // "6.1.0-56-cloud-amd64"; "" is the distribution's present cloud kernel
	Progress mvm.ProgressFunc // may be nil
}

// Pulled is a kernel that was made from a package. Its directory is complete
// and never changed.
type Pulled struct {
	Dir            string `json:"-"`
	Vmlinux        string `json:"-"`               // ELF for x86_64, Image for arm64
	ModulesDir     string `json:"-"`               // has kernel/ and modules.builtin, like /lib/modules/VERSION
	Version        string `json:"version"`         // "6.1.0-56-cloud-amd64"
	Arch           string `json:"arch"`            // X86_64 or ARM64
	Package        string `json:"package"`         // "linux-image-6.1.0-56-cloud-amd64"
	PackageVersion string `json:"package_version"` // "6.1.192-2"
	Reused         bool   `json:"-"`               // it was there already
}

// marker is the file whose presence says that a pulled kernel is complete.
const marker = "kernel.json"

// Debian fetches the cloud kernel of the host's distribution (Debian or Ubuntu)
// as a package, without installing it, and unpacks the kernel and the modules
// that guests use. A kernel that is there already is returned as it is.
// An interrupted pull leaves no directory that looks complete.
//
// Errors: those of apt.Client.Download; mvm.ErrBroken for a package that holds
// no usable kernel.
func Debian(ctx context.Context, o DebianOptions) (Pulled, error) {
	p, err := pull(ctx, o)
	if err != nil {
		return Pulled{}, mvm.Wrap(err, "pull kernel", "debian")
	}
	return p, nil
}

func pull(ctx context.Context, o DebianOptions) (Pulled, error) {
	if err := errors.Join(os.MkdirAll(o.WorkDir, 0o755), os.MkdirAll(o.DestDir, 0o755)); err != nil {
		return Pulled{}, unwritable(o.DestDir, err)
	}
	client := &apt.Client{Runner: o.Runner, Dir: o.WorkDir, Progress: o.Progress}
	image, err := imagePackage(ctx, client, o.Version)
	if err != nil {
		return Pulled{}, err
	}
	names := []string{image}
	deps, err := client.Depends(ctx, image)
	if err != nil {
		return Pulled{}, err
	}
	for _, d := range deps { // where modules have a package of their own
		if strings.HasPrefix(d, "linux-modules-") {
			names = append(names, d)
		}
	}
	debs, err := client.Download(ctx, names...)
	if err != nil {
		return Pulled{}, err
	}
	lock, err := fsx.LockWait(ctx, filepath.Join(o.DestDir, ".pull.lock"))
	if err != nil {
		return Pulled{}, unwritable(o.DestDir, err)
	}
	defer lock.Unlock()
	return assemble(ctx, o, image, debs)
}

// versioned is a package with a kernel of one version, not a meta package.
var versioned = regexp.MustCompile(`^linux-image-(?:unsigned-)?([0-9][a-z0-9.+-]*)$`)

// imagePackage returns the name of the package that holds the kernel.
func imagePackage(ctx context.Context, client *apt.Client, version string) (string, error) {
	if version != "" {
		name := "linux-image-" + version
		if !versioned.MatchString(name) {
			return "", mvm.Errorf(mvm.ErrInvalid, "%q is no kernel version", version).
				WithHint("a version is like 6.1.0-56-cloud-%s; leave it out for the newest", runtime.GOARCH)
		}
		return name, nil
	}
	var err error
	for _, meta := range metaPackages(osRelease("/etc/os-release"), runtime.GOARCH) {
		var deps []string
		deps, err = client.Depends(ctx, meta)
		for _, d := range deps {
			if versioned.MatchString(d) {
				return d, nil
			}
		}
		if err != nil && !errors.Is(err, mvm.ErrNotFound) {
			return "", err
		}
	}
	if err == nil {
		err = mvm.Errorf(mvm.ErrNotFound, "the distribution's kernel package names no kernel").
			WithHint("ask for a version: see 'apt-cache search linux-image'")
	}
	return "", err
}

// metaPackages returns the packages that depend on the present kernel for
// virtual machines, the distribution's own first.
func metaPackages(id, arch string) []string {
	debian, ubuntu := "linux-image-cloud-"+arch, "linux-image-virtual"
	if strings.Contains(id, "ubuntu") {
		return []string{ubuntu}
	}
	if strings.Contains(id, "debian") {
		return []string{debian}
	}
	return []string{debian, ubuntu}
}

// osRelease returns ID and ID_LIKE of the distribution (os-release(5)).
func osRelease(path string) string {
	data, _ := os.ReadFile(path) // without it, all names are tried
	var id []string
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		if name == "ID" && value == "debian" {
			return value
		}
		if name == "ID" || name == "ID_LIKE" {
			id = append(id, value)
		}
	}
	return strings.Join(id, " ")
}

// assemble makes the kernel's directory from its packages, the lock held.
func assemble(ctx context.Context, o DebianOptions, image string, debs []apt.Deb) (Pulled, error) {
	p := Pulled{Package: image, Version: versioned.FindStringSubmatch(image)[1]}
	for _, d := range debs {
		if d.Name == image {
			p.PackageVersion = d.Version
		}
	}
	// The version of the package is in the name: a security update may keep the kernel's version.
	p.at(filepath.Join(o.DestDir, "debian-"+p.Version+"_"+strings.ReplaceAll(p.PackageVersion, ":", "_")))
	if data, err := os.ReadFile(filepath.Join(p.Dir, marker)); err == nil {
		if err := json.Unmarshal(data, &p); err == nil {
			p.Reused = true
			return p, nil
		}
	}
	if err := clean(o.DestDir, p.Dir); err != nil {
		return Pulled{}, unwritable(o.DestDir, err)
	}
	tmp, err := os.MkdirTemp(o.DestDir, ".pull-*")
	if err != nil {
		return Pulled{}, unwritable(o.DestDir, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	final := p.Dir
	p.at(tmp)
	o.Progress.Send("unpack", "unpacking "+image)
	for _, d := range debs {
		if err := apt.Unpack(ctx, o.Runner, d.Path, tmp, apt.UnpackOptions{Filter: wanted}); err != nil {
			return Pulled{}, err
		}
	}
	if err := p.finish(ctx); err != nil {
		return Pulled{}, err
	}
	if err := errors.Join(syncfs(tmp), os.Chmod(tmp, 0o755), ctx.Err()); err != nil {
		return Pulled{}, unwritable(o.DestDir, err)
	}
	if err := os.Rename(tmp, final); err != nil {
		return Pulled{}, unwritable(o.DestDir, err)
	}
	p.at(final)
	return p, fsx.SyncDir(o.DestDir)
}

// at sets the paths.
func (p *Pulled) at(dir string) {
	p.Dir, p.Vmlinux, p.ModulesDir = dir, filepath.Join(dir, "vmlinux"), filepath.Join(dir, "modules", p.Version)
}

// clean removes what interrupted pulls left, and a final directory that lacks
// its marker.
func clean(dest, final string) error {
	stale, err := filepath.Glob(filepath.Join(dest, ".pull-*"))
	for _, dir := range append(stale, final) {
		if filepath.Base(dir) != ".pull.lock" {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

// wanted says where a file of a kernel package goes: the kernel, its
// configuration, and modules. (/lib is /usr/lib in newer packages.)
func wanted(name string) string {
	name = strings.TrimPrefix(name, "usr/")
	switch {
	case strings.HasPrefix(name, "boot/vmlinuz-"):
		return "vmlinuz"
	case strings.HasPrefix(name, "boot/config-"), strings.HasPrefix(name, "lib/modules/") && filepath.Base(name) == "config":
		return "config"
	case !strings.HasPrefix(name, "lib/modules/"):
		return ""
	}
	base := filepath.Base(name)
	if strings.Contains(name, "/kernel/") && strings.Contains(base, ".ko") || strings.HasPrefix(base, "modules.") {
		return strings.TrimPrefix(name, "lib/")
	}
	return ""
}

// finish makes of an unpacked package what guests use: the kernel unpacked and
// checked, the modules chosen, the marker written.
func (p *Pulled) finish(ctx context.Context) error {
	vmlinuz := filepath.Join(p.Dir, "vmlinuz")
	data, err := os.ReadFile(vmlinuz)
	if err != nil {
		return mvm.Errorf(mvm.ErrBroken, "the package %s holds no kernel", p.Package).WithHint("try another version")
	}
	var out bytes.Buffer
	if _, ok := parseSetup(data); ok {
		err = extract(data, &out)
	} else {
		err = extractImage(data, &out)
	}
	if err != nil {
		return err
	}
	info, what := inspect(out.Bytes())
	if what != "" {
		return mvm.Errorf(mvm.ErrBroken, "the kernel in %s %s", p.Package, what).WithHint("try another version")
	}
	p.Arch = info.Arch
	if info.Version != "" && info.Version != p.Version {
		return mvm.Errorf(mvm.ErrBroken, "the package %s holds the kernel %s", p.Package, info.Version).WithHint("try another version")
	}
	if err := os.WriteFile(p.Vmlinux, out.Bytes(), 0o644); err != nil {
		return err
	}
	if err := os.Remove(vmlinuz); err != nil {
		return err
	}
	if err := chooseModules(ctx, p.ModulesDir); err != nil {
		return fmt.Errorf("%s: %w", p.Package, err)
	}
	meta, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.Dir, marker), append(meta, '\n'), 0o644)
}

// syncfs makes everything in the file system of dir durable: one call instead
// of one per file.
func syncfs(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
