package api

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest"
)

// renewedName is the file in a VM's directory that names the version to which its
// agent was to be renewed last.
const renewedName = "agent.renewed"

// renewedLimit is how long an agent may take to come back as another one.
const renewedLimit = time.Minute

// renewedPause is how long an agent that is still there is left alone.
const renewedPause = 50 * time.Millisecond

// renewAgent replaces an agent that is older than we are, unless something else runs
// in the guest, and returns the connection to go on with. Where it does not work the
// old agent, which knows less, goes on; it is tried once.
func (c *core) renewAgent(ctx context.Context, vm *mvm.VMInstanceItem, client *guest.Client, dial guest.DialFunc, login guest.Login) (*guest.Client, error) {
	had := client.AgentVersion()
	if !newerVersion(Version, had) || client.CanRenew(ctx) != nil {
		return client, nil
	}
	mark := filepath.Join(c.paths.vm(vm.ID), renewedName)
	if tried, err := os.ReadFile(mark); err == nil && string(tried) == Version {
		return client, nil
	}
	var program []byte
	err := fsx.WriteFile(mark, []byte(Version), 0o600)
	if err == nil {
		program, err = c.agentProgram(ctx, vm)
	}
	if err == nil {
		err = client.Renew(ctx, program, Version)
	}
	if err != nil {
		c.notice("the agent in " + mvm.Quote(vm.Name) + " stays at " + had + ": " + err.Error())
		return client, ctx.Err()
	}
	_ = client.Close()
	back, cancel := context.WithTimeout(ctx, renewedLimit)
	defer cancel()
	for {
		next, _, err := guest.WaitReady(back, dial, login)
		if err != nil {
			return nil, err
		}
		if next.AgentVersion() != had {
			c.notice("the agent in " + mvm.Quote(vm.Name) + " was renewed from " + had + " to " + next.AgentVersion())
			return next, nil
		}
		_ = next.Close() // the old one, in its last moments
		select {
		case <-back.Done():
		case <-time.After(renewedPause):
		}
	}
}

// agentProgram returns our agent for the architecture of a guest's kernel.
func (c *core) agentProgram(ctx context.Context, vm *mvm.VMInstanceItem) ([]byte, error) {
	kernel, err := c.st.GetKernel(ctx, vm.KernelID)
	if err != nil {
		return nil, err
	}
	file, err := c.agentFile(kernel.Arch)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// releaseRE is a version of mvm as git describe has it: v1.2.3, or v1.2.3-45-gabcdef
// for a later commit.
var releaseRE = regexp.MustCompile(`^v?(\d+)\.(\d+)\.(\d+)(?:-(\d+)-g[0-9a-f]+)?(?:-dirty)?$`)

// newerVersion reports whether version a is surely later than b.
func newerVersion(a, b string) bool {
	x, y := releaseRE.FindStringSubmatch(a), releaseRE.FindStringSubmatch(b)
	if x == nil || y == nil {
		return false
	}
	for i := 1; i < len(x); i++ {
		m, _ := strconv.Atoi(x[i]) // "" is 0
		n, _ := strconv.Atoi(y[i])
		if m != n {
			return m > n
		}
	}
	return false
}
