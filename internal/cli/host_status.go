package cli

import (
	"context"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

func (a *app) hostCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:     "host",
		Short:   "Set this host up, look at it, take everything back",
		Long:    "Set this host up for mvm, look at what it has and has room for, and take everything back.",
		Example: "  sudo mvm host init\n  mvm host status",
	}, newHostInit(a), newHostStatus(a), newHostInfo(a), newHostClean(a), newHostReset(a))
}

func newHostStatus(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what works on this host and what is missing",
		Long: `Show whether KVM works, which hypervisors can be used and which one is taken,
what is missing, whether the host is as 'mvm host init' has left it, what you may do,
and what to do about the rest.`,
		Example: "  mvm host status\n  mvm host status --json",
		Args:    noArgs,
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Host.Status", func(ctx context.Context, m *api.Client, _ []string) error {
		st, err := m.Host.Status(ctx)
		if err != nil {
			return err
		}
		if a.out.JSON {
			return a.out.Object(st)
		}
		return a.out.Tree("Host: "+st.State, hostTree(st))
	})
}

func hostTree(st *api.HostStatus) []render.Node {
	kvm := render.Node{Label: "KVM", Value: "works"}
	if !st.KVMAccessible {
		kvm.Value = render.OrDash(st.KVMReason)
		if st.KVMHint != "" {
			kvm.Children = []render.Node{{Label: "hint", Value: st.KVMHint}}
		}
	}
	drivers := render.Node{Label: "hypervisors"}
	for _, d := range st.Drivers {
		n := render.Node{Label: d.Name, Value: "not usable"}
		if d.Usable {
			n.Value = d.Version + " with " + d.Accel + " (" + d.Path + ")"
		}
		for _, p := range d.Problems {
			n.Children = append(n.Children, render.Node{Value: p})
		}
		drivers.Children = append(drivers.Children, n)
	}
	nodes := []render.Node{
		{Label: "hypervisor", Value: render.OrDash(st.Hypervisor)},
		kvm,
		drivers,
		{Label: "IP forwarding", Value: render.OrDash(st.IPForward)},
		{Label: "you are", Value: map[string]string{"root": "root", "member": "a member of the group mvm", "none": "an ordinary user"}[st.Access]},
		settingsNode(st.Settings),
		{Label: "cache", Value: st.CacheDir},
	}
	if len(st.MissingBinaries) > 0 {
		missing := render.Node{Label: "missing programs"}
		for _, b := range st.MissingBinaries {
			missing.Children = append(missing.Children, render.Node{Value: b})
		}
		nodes = append(nodes, missing)
	}
	if len(st.Problems) > 0 {
		problems := render.Node{Label: "problems"}
		for _, p := range st.Problems {
			n := render.Node{Value: p.What}
			if p.Hint != "" {
				n.Children = []render.Node{{Label: "hint", Value: p.Hint}}
			}
			problems.Children = append(problems.Children, n)
		}
		nodes = append(nodes, problems)
	}
	return nodes
}

// settingsNode shows what init sets, and of that what is not so.
func settingsNode(settings []api.HostSetting) render.Node {
	node := render.Node{Label: "set up by 'mvm host init'", Value: "yes"}
	for _, s := range settings {
		if !s.OK {
			node.Children = append(node.Children, render.Node{Label: s.What, Value: render.OrDash(s.Now) + ", to be " + s.Want})
		}
	}
	switch {
	case len(settings) == 0:
		node.Value = "not known to you"
	case len(node.Children) == len(settings):
		node.Value, node.Children = "no", nil
	case len(node.Children) > 0:
		node.Value = "not all of it"
	}
	return node
}
