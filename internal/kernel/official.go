package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/run"
)

// The bases that a configuration begins with.
const (
	BaseFirecracker = "firecracker" // Firecracker's own configuration for guests
	BaseMinimal     = "minimal"     // ours: the smallest that runs a distribution
)

// The places that sources come from.
const (
	SourceKernelOrg = "kernel.org"
	SourcePackage   = "package" // the distribution's linux-source
)

// BuildOptions say what kernel to build.
type BuildOptions struct {
	Version      string // "6.19.9"; with SourcePackage also "6.1", or "" for the distribution's present one
	Arch         string // "" is this host's, and no other can be built
	Source       string // SourceKernelOrg ("") or SourcePackage
	Base         string // BaseFirecracker (""), BaseMinimal, or a file
	Config       string // file with options of the user's own; "" for none
	Features     []string
	Jobs         int  // 0 means one per CPU
	Clean        bool // use nothing from earlier builds
	Keep         bool // leave the build directory
	SkipChecksum bool

	Runner   run.Runner
	Fetcher  *asset.Fetcher
	WorkDir  string // for downloaded packages
	BuildDir string // for sources and objects; made if missing
	LogDir   string // for the logs of builds; made if missing
	DestDir  string // gets one directory per kernel; made if missing
	Progress mvm.ProgressFunc
}

// Built is a kernel that was built. Its directory is complete and never changed.
type Built struct {
	Dir     string `json:"-"`
	Path    string `json:"-"`
	Version string `json:"version"` // as the kernel says it
	Arch    string `json:"arch"`
	Base    string `json:"base"` // what the configuration began with in the end
	mvm.Provenance
	Warnings []string `json:"warnings"`
	Info     []string `json:"-"`
	Reused   bool     `json:"-"` // it was built before, from the same source and configuration
}

// Build builds a kernel from source, with Firecracker's or our own base
// configuration, what guests of mvm need, and what is asked for. A kernel of the
// same source, configuration and compiler is not built again. What the final
// configuration lacks of what was asked for is an error before anything is compiled.
// An interrupted build leaves nothing that looks complete.
//
// Errors: mvm.ErrUnavailable for missing tools, with the packages to install;
// mvm.ErrInvalid for options that cannot be had; *mvm.BuildError with the end of the
// log where the compiler fails; those of the source's download.
func Build(ctx context.Context, o BuildOptions) (Built, error) {
	b, err := o.build(ctx)
	if err != nil {
		return Built{}, mvm.Wrap(err, "build kernel", firstOf(o.Version, "of the distribution"))
	}
	return b, nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// check fills in defaults and refuses what can never work. It returns the
// options of the user's own.
func (o *BuildOptions) check() ([]option, error) {
	host := hostArch()
	if o.Arch = firstOf(o.Arch, host); o.Arch != host || host == "" {
		return nil, mvm.Errorf(mvm.ErrUnsupported, "a kernel for %s cannot be built on %s", firstOf(o.Arch, "this machine"), runtime.GOARCH).
			WithHint("build it there, and import the file")
	}
	o.Base, o.Source = firstOf(o.Base, BaseFirecracker), firstOf(o.Source, SourceKernelOrg)
	if o.Source != SourceKernelOrg && o.Source != SourcePackage {
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s is no source of kernels", mvm.Quote(o.Source)).WithHint("use %s or %s", SourceKernelOrg, SourcePackage)
	}
	if err := checkVersion(o.Source, o.Version); err != nil {
		return nil, err
	}
	if err := CheckFeatures(o.Features); err != nil {
		return nil, err
	}
	if o.Jobs <= 0 {
		o.Jobs = runtime.NumCPU()
	}
	if o.Base != BaseFirecracker && o.Base != BaseMinimal {
		if _, err := readOptions(o.Base); err != nil {
			return nil, err
		}
	}
	if o.Config == "" {
		return nil, nil
	}
	return readOptions(o.Config)
}

func (o *BuildOptions) build(ctx context.Context) (Built, error) {
	own, err := o.check()
	if err != nil {
		return Built{}, err
	}
	compiler, err := o.tools(ctx)
	if err != nil {
		return Built{}, err
	}
	for _, dir := range []string{o.BuildDir, o.LogDir, o.DestDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return Built{}, unwritable(dir, err)
		}
	}
	src, err := o.source(ctx)
	if err != nil {
		return Built{}, err
	}
	conf, err := o.configuration(ctx, src.version, own)
	if err != nil {
		return Built{}, err
	}
	b := Built{Arch: o.Arch, Base: conf.base, Provenance: src.Provenance, Warnings: conf.warnings}
	key := sha256.Sum256([]byte(strings.Join([]string{src.key, o.Arch, compiler, conf.text()}, "\x00")))
	b.at(filepath.Join(o.DestDir, "official-"+src.version+"-"+hex.EncodeToString(key[:6])), o.Arch)
	lock, err := fsx.LockWait(ctx, filepath.Join(o.BuildDir, src.id()+".lock"))
	if err != nil {
		return Built{}, unwritable(o.BuildDir, err)
	}
	defer lock.Unlock()
	if !o.Clean {
		if data, err := os.ReadFile(filepath.Join(b.Dir, marker)); err == nil && json.Unmarshal(data, &b) == nil {
			b.Reused, b.Info = true, []string{"built before from the same source and configuration; --clean-build builds it again"}
			return b, nil
		}
	}
	began := time.Now()
	if err := o.make(ctx, src, conf, &b); err != nil {
		return Built{}, err
	}
	b.Info = append(b.Info, fmt.Sprintf("built in %v with %d jobs by %s", time.Since(began).Round(time.Second), o.Jobs, compiler))
	return b, nil
}

// hostArch is this host's architecture, "" where no kernel of ours runs.
func hostArch() string { return map[string]string{"amd64": X86_64, "arm64": ARM64}[runtime.GOARCH] }

// at sets the paths.
func (b *Built) at(dir, arch string) {
	b.Dir, b.Path = dir, filepath.Join(dir, "vmlinux")
	if arch == ARM64 {
		b.Path = filepath.Join(dir, "Image")
	}
}

// make configures and compiles in the build directory, and puts the kernel in place.
func (o *BuildOptions) make(ctx context.Context, src source, conf configuration, b *Built) error {
	tree, objects := filepath.Join(o.BuildDir, src.id(), "source"), filepath.Join(o.BuildDir, src.id(), "objects")
	if o.Clean {
		if err := os.RemoveAll(filepath.Dir(tree)); err != nil {
			return err
		}
	}
	if err := o.unpack(ctx, src, tree); err != nil {
		return err
	}
	if err := os.MkdirAll(objects, 0o755); err != nil {
		return unwritable(o.BuildDir, err)
	}
	w := &workshop{BuildOptions: o, tree: tree, objects: objects, log: filepath.Join(o.LogDir, "kernel-"+src.version+".log")}
	if !o.Keep {
		defer func() { _ = os.RemoveAll(filepath.Dir(tree)) }()
	}
	if err := w.open(); err != nil {
		return unwritable(o.LogDir, err)
	}
	defer w.close()
	warnings, err := w.configure(ctx, conf)
	if err != nil {
		return err
	}
	b.Warnings = append(b.Warnings, warnings...)
	if err := w.compile(ctx); err != nil {
		return err
	}
	if o.Keep {
		b.Info = append(b.Info, "the build directory is "+filepath.Dir(tree))
	}
	b.Info = append(b.Info, "the log is "+w.log)
	return o.install(ctx, w, src, b)
}

// install checks what was built and puts it in place.
func (o *BuildOptions) install(ctx context.Context, w *workshop, src source, b *Built) error {
	product := filepath.Join(w.objects, "vmlinux")
	if o.Arch == ARM64 {
		product = filepath.Join(w.objects, "arch", "arm64", "boot", "Image")
	}
	info, err := Inspect(product)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(info.Version, src.version) {
		return mvm.Errorf(mvm.ErrBroken, "what was built says that it is %s, not %s", mvm.Quote(info.Version), src.version).WithHint("build it with --clean-build")
	}
	b.Version = src.version
	config, err := os.ReadFile(filepath.Join(w.objects, ".config"))
	if err != nil {
		return err
	}
	return b.place(ctx, product, o.DestDir, config)
}

// place makes the kernel's directory below dest, whole: the image, its configuration
// where that is known, the marker. One that is there is replaced.
func (b *Built) place(ctx context.Context, image, dest string, config []byte) error {
	if err := os.MkdirAll(dest, 0o755); err != nil {
		return unwritable(dest, err)
	}
	lock, err := fsx.LockWait(ctx, filepath.Join(dest, ".pull.lock"))
	if err != nil {
		return unwritable(dest, err)
	}
	defer lock.Unlock()
	stale, _ := filepath.Glob(filepath.Join(dest, ".new-*")) // of those that were killed: we hold the lock
	for _, dir := range stale {
		_ = os.RemoveAll(dir)
	}
	tmp, err := os.MkdirTemp(dest, ".new-*")
	if err != nil {
		return unwritable(dest, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	data, err := os.ReadFile(image)
	meta, jsonErr := json.MarshalIndent(b, "", "  ")
	if err := errors.Join(err, jsonErr); err != nil {
		return err
	}
	err = errors.Join(
		replace(ctx, filepath.Join(tmp, filepath.Base(b.Path)), data),
		os.WriteFile(filepath.Join(tmp, marker), append(meta, '\n'), 0o644),
		os.Chmod(tmp, 0o755),
	)
	if len(config) > 0 {
		err = errors.Join(err, os.WriteFile(filepath.Join(tmp, "config"), config, 0o644))
	}
	if err = errors.Join(err, syncfs(tmp), ctx.Err()); err == nil {
		err = os.RemoveAll(b.Dir)
	}
	if err == nil {
		err = os.Rename(tmp, b.Dir)
	}
	if err != nil {
		return unwritable(dest, err)
	}
	return fsx.SyncDir(dest)
}
