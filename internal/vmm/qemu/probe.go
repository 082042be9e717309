package qemu

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/vmm"
)

const (
	program = "qemu-system-x86_64"
	install = "install the package qemu-system-x86"

	// Oldest version that this driver drives, that of Debian 11: PVH boot came
	// with 4.0, "server=on" with 6.0 in documents and 2.x in fact.
	oldestMajor, oldestMinor = 5, 2

	// versionFile is in CacheDir.
	versionFile = "qemu.version"
)

// Probe implements vmm.Driver.
func (d *Driver) Probe(ctx context.Context) vmm.Probe {
	p := vmm.Probe{Capabilities: vmm.Capabilities{
		Pause: true, Snapshot: true, DiskHotplug: true, Balloon: true, RateLimit: true, HugePages: true, Qcow2: true, Qcow2Volumes: true, NestedVirt: true,
	}}
	path, err := d.find()
	if err == nil {
		p.Path = path
		p.Version, err = d.version(ctx, path)
	}
	if err == nil {
		err = checkVersion(p.Version)
	}
	if err != nil {
		p.Problems = append(p.Problems, vmm.Problem{What: err.Error(), Hint: mvm.HintOf(err), Fatal: true})
		return p
	}
	p.Usable, p.Accel = true, "kvm"
	if kvm := d.opts.CheckKVM(); !kvm.Usable {
		p.Accel = "tcg"
		p.Problems = append(p.Problems, vmm.Problem{What: kvm.Problem.What + ", so QEMU emulates the CPU, which is slower", Hint: kvm.Problem.Hint})
	} else {
		p.Capabilities.NestedVirt = host.NestedVirt() // -cpu host passes on what KVM offers
	}
	return p
}

func (d *Driver) find() (string, error) {
	path := d.opts.Binary
	if path == "" {
		path = host.Find(program)
	}
	if path == "" {
		return "", mvm.Errorf(mvm.ErrUnavailable, "QEMU is not installed").WithHint(install)
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
		return "", mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint(install)
	}
	now := known{Path: path, Size: info.Size(), Time: info.ModTime().UnixNano()}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known.Version == "" && d.opts.CacheDir != "" {
		if data, err := os.ReadFile(filepath.Join(d.opts.CacheDir, versionFile)); err == nil {
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
	if d.opts.CacheDir != "" {
		if data, err := json.Marshal(now); err == nil {
			_ = fsx.WriteFile(filepath.Join(d.opts.CacheDir, versionFile), data, 0o600) // without it the next probe just asks again
		}
	}
	return now.Version, nil
}

var versionLine = regexp.MustCompile(`^QEMU emulator version (\d+\.\d+\.\d+)`)

// askVersion runs the binary. It prints "QEMU emulator version 7.2.22 (Debian …)".
func askVersion(ctx context.Context, r run.Runner, path string) (string, error) {
	res, err := r.Run(ctx, run.Cmd{Name: path, Args: []string{"-version"}, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		return "", mvm.Errorf(mvm.ErrUnavailable, "%s does not run: %w", path, err).WithHint(install)
	}
	m := versionLine.FindSubmatch(res.Stdout)
	if m == nil {
		return "", mvm.Errorf(mvm.ErrUnsupported, "%s is no QEMU: it says %.60q", path, res.Stdout).WithHint(install)
	}
	return string(m[1]), nil
}

var majorMinor = regexp.MustCompile(`^(\d+)\.(\d+)\.`)

func checkVersion(version string) error {
	if m := majorMinor.FindStringSubmatch(version); m != nil {
		major, err1 := strconv.Atoi(m[1])
		minor, err2 := strconv.Atoi(m[2])
		if err1 == nil && err2 == nil && (major > oldestMajor || major == oldestMajor && minor >= oldestMinor) {
			return nil
		}
	}
	return mvm.Errorf(mvm.ErrUnsupported, "QEMU %s is older than %d.%d", version, oldestMajor, oldestMinor).WithHint("install a newer %s", program)
}
