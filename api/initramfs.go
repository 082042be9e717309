package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"runtime"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest/agentbin"
	"github.com/mvmctl/mvm/internal/initramfs"
	"github.com/mvmctl/mvm/internal/kernel"
)

// buildInitramfs returns the shared initramfs for a kernel and the file systems that
// a guest mounts, which is made if it is not there.
func (c *core) buildInitramfs(ctx context.Context, k *mvm.KernelItem, fsTypes []string) (string, error) {
	agent, err := c.agentFile(k.Arch)
	if err != nil {
		return "", err
	}
	spec := initramfs.BaseSpec{Agent: agent, Dir: c.paths.initramfs()}
	if k.ModulesPath != "" {
		if spec.Modules, err = kernel.BootModules(c.paths.abs(k.ModulesPath), fsTypes...); err != nil {
			return "", mvm.Wrap(err, "read the modules of kernel", k.Name)
		}
	}
	base, err := initramfs.Base(ctx, spec)
	return base, mvm.Wrap(err, "build the initramfs for kernel", k.Name)
}

// goArch is what Go calls the architectures that uname(1) names.
var goArch = map[string]string{"x86_64": "amd64", "aarch64": "arm64"}

// agentFile returns the program that goes into guests of an architecture: the agent
// that was built in, or this program itself, which can act as one.
func (c *core) agentFile(arch string) (string, error) {
	arch = firstOf(goArch[arch], arch)
	data, ok := agentbin.Agent(arch)
	if !ok && arch == runtime.GOARCH {
		return c.agent, nil
	}
	if !ok {
		return "", mvm.Errorf(mvm.ErrUnsupported, "this mvm has no guest agent for %s", arch).WithHint("use an mvm that was built by 'make build', or a kernel for %s", runtime.GOARCH)
	}
	sum := sha256.Sum256(data)
	path := filepath.Join(c.paths.binaries(), "mvm-agent-"+hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(c.paths.binaries(), 0o755); err != nil {
		return "", mvm.Errorf(mvm.ErrUnavailable, "cannot make the directory for binaries: %w", err)
	}
	if err := fsx.WriteFile(path, data, 0o755); err != nil {
		return "", mvm.Errorf(mvm.ErrUnavailable, "cannot unpack the guest agent: %w", err).WithHint("see whether the disk of %s is full", c.paths.cache)
	}
	return path, nil
}
