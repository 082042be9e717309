package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/vmm"
)

// Oldest version that this driver drives: --enable-pci came with 1.13.
const oldestMajor, oldestMinor = 1, 13

// Probe implements vmm.Driver.
func (d *Driver) Probe(ctx context.Context) vmm.Probe {
	p := vmm.Probe{Capabilities: vmm.Capabilities{
		Pause: true, Snapshot: true, DiskHotplug: true, Balloon: true, RateLimit: true, NICLimit: true, Metadata: true,
		Metrics: true, Jail: true, HugePages: true, Vsock: true, NestedVirt: nested(),
	}}
	if p.DiskServer = host.Find(diskServer); p.DiskServer != "" {
		p.Capabilities.Qcow2Volumes = true
	}
	bad := func(err error) {
		p.Problems = append(p.Problems, vmm.Problem{What: err.Error(), Hint: mvm.HintOf(err), Fatal: true})
	}
	path, err := d.find()
	if err == nil {
		p.Path = path
		p.Version, err = d.version(ctx, path)
	}
	if err == nil {
		err = checkVersion(p.Version)
	}
	if err != nil {
		bad(err)
	}
	if kvm := d.opts.CheckKVM(); !kvm.Usable {
		p.Problems = append(p.Problems, vmm.Problem{What: kvm.Problem.What, Hint: kvm.Problem.Hint, Fatal: true})
	}
	p.Usable = true
	for _, problem := range p.Problems {
		p.Usable = p.Usable && !problem.Fatal
	}
	if p.Usable {
		p.Accel = "kvm"
	}
	return p
}

func (d *Driver) find() (string, error) {
	path := d.opts.Binary
	if path == "" {
		path = host.Find("firecracker")
	}
	if path == "" {
		return "", mvm.Errorf(mvm.ErrUnavailable, "firecracker is not installed").WithHint("mvm binary pull firecracker")
	}
	return filepath.Abs(path)
}

// known is the cache of versions: what a file of that size and time said.
type known struct {
	Path    string `json:"path"`
	Size    int64  `json:"size"`
	Time    int64  `json:"mtime_ns"`
	Version string `json:"version"`
}

// version asks a binary for its version, unless the answer for just this file
// is known from before.
func (d *Driver) version(ctx context.Context, path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("mvm binary pull firecracker")
	}
	now := known{Path: path, Size: info.Size(), Time: info.ModTime().UnixNano()}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known.Version == "" && d.opts.Cache != "" {
		if data, err := os.ReadFile(d.opts.Cache); err == nil {
			_ = json.Unmarshal(data, &d.known) // a damaged cache is an empty one
		}
	}
	if now.Version = d.known.Version; now.Version != "" && now == d.known {
		return now.Version, nil
	}
	if now.Version, err = askVersion(ctx, d.opts.Runner, path); err != nil {
		return "", err
	}
	d.known = now
	if d.opts.Cache != "" {
		if data, err := json.Marshal(now); err == nil {
			_ = fsx.WriteFile(d.opts.Cache, data, 0o600) // without it the next probe just asks again
		}
	}
	return now.Version, nil
}

// askVersion runs the binary. It prints "Firecracker v1.16.1", an empty line
// and a line of its log.
func askVersion(ctx context.Context, r run.Runner, path string) (string, error) {
	res, err := r.Run(ctx, run.Cmd{Name: path, Args: []string{"--version"}, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		return "", mvm.Errorf(mvm.ErrUnavailable, "%s does not run: %w", path, err).WithHint("mvm binary pull firecracker")
	}
	first, _, _ := strings.Cut(string(res.Stdout), "\n")
	version, ok := strings.CutPrefix(strings.TrimSpace(first), "Firecracker v")
	if !ok || version == "" {
		return "", mvm.Errorf(mvm.ErrUnsupported, "%s is no Firecracker: it says %q", path, first).
			WithHint("mvm binary pull firecracker")
	}
	return version, nil
}

func checkVersion(version string) error {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) == 3 {
		major, err1 := strconv.Atoi(parts[0])
		minor, err2 := strconv.Atoi(parts[1])
		if err1 == nil && err2 == nil && (major > oldestMajor || major == oldestMajor && minor >= oldestMinor) {
			return nil
		}
	}
	return mvm.Errorf(mvm.ErrUnsupported, "firecracker %s is older than %d.%d", version, oldestMajor, oldestMinor).
		WithHint("mvm binary pull firecracker")
}

// nested tells whether KVM lets guests virtualise (Documentation/virt/kvm/x86/
// running-nested-guests.rst). Firecracker passes on what KVM offers.
func nested() bool {
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		data, err := os.ReadFile("/sys/module/" + module + "/parameters/nested")
		if err == nil && (strings.HasPrefix(string(data), "Y") || strings.HasPrefix(string(data), "1")) {
			return true
		}
	}
	return false
}

// removeStale removes what an earlier run of the same VM left: Firecracker
// refuses to start where its sockets exist. One old log is kept.
func removeStale(l vmm.Launch) error {
	var errs []error
	for _, name := range []string{l.Files.API, l.Files.Agent, l.Files.Log + pipeSuffix, l.Files.Metrics + pipeSuffix, metadataFile} {
		if name == "" {
			continue
		}
		if err := os.Remove(filepath.Join(l.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, name := range []string{l.Files.Log, l.Files.Metrics} {
		if name == "" {
			continue
		}
		path := filepath.Join(l.Dir, name)
		if err := os.Rename(path, path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clear the VM's directory: %w", err)
	}
	return nil
}
