package firecracker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm"
)

// enjailed is a launch in a jail that is ready for its VMM.
type enjailed struct {
	launch   vmm.Launch // with the limits that there are
	rendered vmm.Rendered
	jailed   *vmm.Jailed
	jail     *supervisor.Jail
}

// enjail makes the jail of a launch. On error nothing of it is left.
func (d *Driver) enjail(ctx context.Context, l vmm.Launch) (enjailed, error) {
	var e enjailed
	if err := notRoot(os.Geteuid()); err != nil {
		return e, err
	}
	if err := os.Mkdir(filepath.Join(l.Dir, jailDir), 0o700); err != nil {
		return e, err
	}
	cgroups, without := makeCgroups(&l)
	r, err := d.Render(l)
	if err == nil {
		var binds []supervisor.Bind
		if binds, err = furnish(ctx, l, r.Config); err == nil {
			return enjailed{l, r, describeJail(l, cgroups, without), &supervisor.Jail{Binds: binds}}, nil
		}
	}
	return e, errors.Join(err, Unjail(context.WithoutCancel(ctx), l.Dir, l.ID))
}

// resolveJail makes the paths that the jailer looks at those that it will see: it
// resolves the program's symlinks.
func resolveJail(l vmm.Launch) (vmm.Launch, error) {
	if l.Jail == nil {
		return l, nil
	}
	path, err := filepath.EvalSymlinks(l.Binary)
	if errors.Is(err, os.ErrNotExist) {
		return l, nil // present says so
	}
	l.Binary = path
	return l, err
}

// fromJailer begins what the jailer said.
const fromJailer = "the jailer: "

// jailerSaid returns why the jailer failed: it says so for people, and then once
// more for its programmers. "" where it was not the jailer.
func (m *machine) jailerSaid() string {
	if m.handle.Jail == nil {
		return ""
	}
	data, err := os.ReadFile(filepath.Join(m.handle.Dir, stderrFile))
	first, second, two := strings.Cut(strings.TrimSpace(string(data)), "\n")
	if err != nil || !two || strings.HasPrefix(first, "Error: ") || !strings.HasPrefix(second, "Error: ") || strings.Contains(second, "\n") {
		return ""
	}
	return fromJailer + first
}
