package api

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
	"github.com/mvmctl/mvm/internal/image/oci"
)

// validateContainer refuses what can never work of the choices for container images.
func (in VMCreateInput) validateContainer() error {
	for _, e := range in.Env {
		if strings.IndexByte(e, '=') < 1 || strings.IndexByte(e, 0) >= 0 {
			return mvm.Errorf(mvm.ErrInvalid, "%s sets no environment variable", mvm.Quote(e)).WithHint("write NAME=VALUE")
		}
	}
	return nil
}

// resolveContainer chooses what a VM of a container image runs.
func (p *vmPlan) resolveContainer(in VMCreateInput) error {
	c, name := p.image.Container, mvm.Quote(p.image.Type+":"+p.image.Version)
	if c == nil {
		if in.Entrypoint != nil || len(in.Env) > 0 || (len(in.Cmd) > 0 || in.NoEntrypoint) && !in.run {
			return mvm.Errorf(mvm.ErrInvalid, "the image %s is no container image: what it starts is up to its init", name).
				WithHint("run commands in the VM with 'mvm exec', or get a container image with 'mvm image pull oci://NAME'")
		}
		return nil
	}
	v := &mvm.VMContainer{
		Args: c.Args(in.Entrypoint, in.Cmd), Env: overEnv(c.Env, in.Env), WorkingDir: c.WorkingDir, User: c.User, StopSignal: c.StopSignal, Idle: in.NoEntrypoint,
	}
	if len(v.Args) == 0 && !v.Idle {
		return mvm.Errorf(mvm.ErrInvalid, "the image %s has neither entrypoint nor command", name).
			WithHint("say what to run, with --entrypoint or behind --, or give --no-entrypoint for a VM to run commands in")
	}
	if v.Idle && p.noAgent {
		return mvm.Errorf(mvm.ErrInvalid, "without entrypoint and agent nothing would run in it").WithHint("leave --no-agent or --no-entrypoint out")
	}
	p.item.Options.Container = v
	return nil
}

// overEnv puts variables over others of their names.
func overEnv(base, over []string) []string {
	out := slices.Clone(base)
	for _, e := range over {
		name, _, _ := strings.Cut(e, "=")
		out = slices.DeleteFunc(out, func(o string) bool { return strings.HasPrefix(o, name+"=") })
		out = append(out, e)
	}
	return out
}

// bootContainer is what the guest is told of it: an init to start, or what ours does.
func (p *vmPlan) bootContainer() (init string, c *guest.Container) {
	v := p.item.Options.Container
	switch {
	case v == nil:
		return "", nil
	case !v.Idle && isInit(v.Args[0]):
		return v.Args[0], nil
	}
	c = &guest.Container{StopSignal: v.StopSignal, Dir: v.WorkingDir}
	if !v.Idle {
		c.Main = &wire.Exec{Argv: v.Args, Env: v.Env, Dir: v.WorkingDir, User: v.User}
	}
	return "", c
}

// isInit tells container images that bring an init of a machine, as podman does.
func isInit(file string) bool {
	return path.IsAbs(file) && (path.Base(file) == "init" || path.Base(file) == "systemd")
}

// asContainer has a command run like the main process of a container image.
func (in *ExecInput) asContainer(c *mvm.VMContainer) {
	if c == nil {
		return
	}
	in.Env = overEnv(c.Env, in.Env)
	in.Dir, in.User = firstOf(in.Dir, c.WorkingDir), firstOf(in.User, c.User)
}

// ensureImage gets the image of a run if it is not there.
func (c *core) ensureImage(ctx context.Context, in *RunInput, progress mvm.ProgressFunc) error {
	in.VM.run = true
	name := in.VM.Image
	if name == "" {
		return nil
	}
	o := &ImageOperation{c}
	ref, refErr := oci.ParseRef(name)
	if oci.IsRef(name) && refErr != nil {
		return refErr
	}
	var missing error
	if _, _, named := ref.TypeVersion(); named || !oci.IsRef(name) {
		if _, missing = o.Get(ctx, ImageInput{Identifiers: []string{name}}); missing == nil || !errors.Is(missing, mvm.ErrNotFound) {
			return missing
		}
	}
	pull := ImagePullInput{Type: name, Arch: in.Arch, Insecure: in.Insecure}
	if !oci.IsRef(name) {
		pull.Type, pull.Version, _ = strings.Cut(name, ":")
	}
	item, err := o.Pull(ctx, pull, OnProgress(progress))
	if errors.Is(err, mvm.ErrNotFound) && !oci.IsRef(name) {
		return missing // no name of a catalog either
	}
	if err != nil {
		return err
	}
	in.VM.Image = item.ID
	return nil
}
