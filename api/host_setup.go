package api

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/helper"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/run"
)

// What 'host init' writes to the host.
const (
	sysctlForward = "net.ipv4.ip_forward"
	sysctlFile    = "/etc/sysctl.d/99-mvm.conf"
	modulesFile   = "/etc/modules-load.d/mvm.conf"
	sudoersDir    = "/etc/sudoers.d"
	sudoersFile   = sudoersDir + "/mvm"
	unitDir       = "/etc/systemd/system"
	unitName      = "mvm.service"
	wantsDir      = unitDir + "/multi-user.target.wants"
)

const madeByInit = "# Made by 'mvm host init'; 'mvm host reset' takes it away again.\n"

// sudoersText lets members of the group run the one helper, which takes no arguments
// (sudoers(5): "" means none), in an environment that sudo makes.
const sudoersText = madeByInit +
	"Defaults!" + helper.Path + " env_reset, !setenv, !requiretty, !use_pty\n" +
	"%" + helper.Group + " ALL=(root:root) NOPASSWD: " + helper.Path + " \"\"\n"

// hostPlan is what init wants of the host.
type hostPlan struct {
	c       *core
	machine host.Machine
	changes []host.Change // what has to be done, in order
	kept    []host.Change // what is right already
	skipped []HostProblem
}

// want adds a setting.
func (p *hostPlan) want(kind host.Kind, name string, st host.State) error {
	return p.change(host.Change{Setting: host.Setting{Kind: kind, Name: name}, New: st})
}

func (p *hostPlan) change(ch host.Change) error {
	var err error
	if ch.Old, err = p.machine.Observe(ch.Setting); err != nil {
		return mvm.Errorf(mvm.ErrConflict, "cannot tell how the %s is: %w", ch.Setting, err).WithHint("look at it, and move it away if nothing needs it")
	}
	ch.New.Exists = true
	if ch.Old == ch.New {
		p.kept = append(p.kept, ch)
		return nil
	}
	p.changes = append(p.changes, ch)
	return nil
}

// file adds a file, and the directory that it is in where that is missing.
func (p *hostPlan) file(kind host.Kind, name string, st host.State, from string) error {
	if err := p.directory(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return p.change(host.Change{Setting: host.Setting{Kind: kind, Name: name}, New: st, From: from})
}

func (p *hostPlan) directory(name string, mode os.FileMode) error {
	s := host.Setting{Kind: host.Dir, Name: name}
	for _, ch := range append(p.changes, p.kept...) {
		if ch.Setting == s {
			return nil
		}
	}
	now, err := p.machine.Observe(s)
	if err == nil && now.Exists { // as it is
		return nil
	}
	return p.want(host.Dir, name, host.State{Mode: mode})
}

func (p *hostPlan) skip(what, hint string) { p.skipped = append(p.skipped, HostProblem{what, hint}) }

// planHost compares the host with what init wants of it. It changes nothing.
func (c *core) planHost(ctx context.Context) (*hostPlan, error) {
	p := &hostPlan{c: c, machine: c.machine()}
	for _, part := range []func(context.Context) error{p.forwarding, p.modules, p.group, p.privileges, p.bootUnit} {
		if err := part(ctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (c *core) machine() host.Machine { return host.Machine{Root: "/", Runner: c.runner} }

func (p *hostPlan) forwarding(context.Context) error {
	if err := p.want(host.Sysctl, sysctlForward, host.State{Data: "1"}); err != nil {
		return err
	}
	return p.file(host.File, sysctlFile, host.State{Data: madeByInit + sysctlForward + " = 1\n", Mode: 0o644}, "")
}

// modules has those loaded that VMs need, now and at boot. What is built in, or is
// not there at all, needs none of that.
func (p *hostPlan) modules(context.Context) error {
	var names []string
	for _, name := range append([]string{"tun"}, host.KVMModules()...) {
		if host.Loadable(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	for _, name := range names {
		if err := p.want(host.Module, name, host.State{}); err != nil {
			return err
		}
	}
	return p.file(host.File, modulesFile, host.State{Data: madeByInit + strings.Join(names, "\n") + "\n", Mode: 0o644}, "")
}

func (p *hostPlan) group(context.Context) error {
	s := host.Setting{Kind: host.Group, Name: helper.Group}
	now, err := p.machine.Observe(s)
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot read the groups of this host: %w", err).WithHint("check /etc/group")
	}
	if now.Exists { // whatever its number
		return p.want(s.Kind, s.Name, host.State{Data: now.Data})
	}
	gid, err := p.machine.FreeGroupID()
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("make the group yourself: groupadd %s", helper.Group)
	}
	return p.want(s.Kind, s.Name, host.State{Data: gid})
}

// privileges installs the helper, and lets the group run it.
func (p *hostPlan) privileges(ctx context.Context) error {
	if !host.Has("sudo") {
		p.skip("sudo is not installed, so that only root can make networks and VMs", "install the package sudo and run this again")
		return nil
	}
	above := filepath.Dir(helper.Dir)
	if err := helper.CheckTrustedDir(above); err != nil {
		return mvm.Errorf(mvm.ErrConflict, "the helper cannot be installed in %s: %w", helper.Dir, err).WithHint("mend it with 'chown root %s' and 'chmod go-w %s'", above, above)
	}
	from := p.c.helperProgram()
	sum, err := host.Digest(from)
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "the helper cannot be read: %w", err).WithHint("install mvm anew, with mvm-helper beside it")
	}
	if err := p.checkSudoers(ctx); err != nil {
		return err
	}
	if err := p.directory(helper.Dir, 0o755); err != nil {
		return err
	}
	if err := p.file(host.Program, helper.Path, host.State{Data: sum, Mode: 0o755}, from); err != nil {
		return err
	}
	return p.file(host.File, sudoersFile, host.State{Data: sudoersText, Mode: 0o440}, "")
}

// helperProgram is where the helper is copied from: it is beside this program, or
// this program is it, under another name.
func (c *core) helperProgram() string {
	for _, path := range []string{
		filepath.Join(filepath.Dir(c.cfg.Executable), helper.Name),
		filepath.Join(filepath.Dir(c.cfg.Executable), "..", "libexec", "mvm", helper.Name),
	} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return c.cfg.Executable
}

// checkSudoers has sudo's own parser read the rule first: a file that it cannot read
// would keep everybody from using sudo.
func (p *hostPlan) checkSudoers(ctx context.Context) error {
	if !p.c.isRoot() || !host.Has("visudo") {
		return nil
	}
	_, err := p.c.runner.Run(ctx, run.Cmd{Name: "visudo", Args: []string{"-c", "-f", "-"}, Stdin: strings.NewReader(sudoersText)})
	if err != nil {
		return mvm.Errorf(mvm.ErrUnsupported, "this sudo does not read the rule for the helper: %w", err).WithHint("install a newer sudo")
	}
	return nil
}

// bootUnit has the host's boot put networks back and start the VMs that want it.
func (p *hostPlan) bootUnit(context.Context) error {
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		p.skip("systemd does not run here, so networks are not put back at boot", "have the boot run 'mvm network sync' and 'mvm vm autostart'; else the next command brings a network up")
		return nil
	}
	c := p.c
	for _, err := range []error{helper.CheckTrusted(c.cfg.Executable), helper.CheckTrustedDir(c.paths.cache)} {
		if err != nil {
			p.skip("networks are not put back at boot: "+err.Error(), "install mvm where only root writes ('make install'), and keep root's cache in a directory of root's")
			return nil
		}
	}
	for _, path := range []string{c.cfg.Executable, c.paths.cache, c.paths.config} {
		if strings.ContainsAny(path, "\"'\\%$\n ") {
			p.skip("networks are not put back at boot: systemd would not take the path "+mvm.Quote(path)+" as it is", "use a path of plain letters")
			return nil
		}
	}
	unit := madeByInit + `[Unit]
Description=Networks of mvm, and the VMs that start with the host
After=local-fs.target network-pre.target nftables.service firewalld.service ufw.service docker.service
Wants=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
KillMode=process
Environment=MVM_CACHE_DIR=` + c.paths.cache + ` MVM_CONFIG_DIR=` + c.paths.config + `
ExecStart=-` + c.cfg.Executable + ` network sync
ExecStart=-` + c.cfg.Executable + ` vm autostart

[Install]
WantedBy=multi-user.target
`
	if err := p.file(host.File, unitDir+"/"+unitName, host.State{Data: unit, Mode: 0o644}, ""); err != nil {
		return err
	}
	return p.file(host.Symlink, wantsDir+"/"+unitName, host.State{Data: unitDir + "/" + unitName}, "")
}

// text tells a state of the host in a word or two; "" means that there is nothing.
func settingText(s host.Setting, st host.State) string {
	switch {
	case !st.Exists:
		return ""
	case s.Kind == host.Module:
		return "loaded"
	case s.Kind == host.Group:
		return "number " + st.Data
	case s.Kind == host.Program:
		return "SHA-256 " + st.Data[:min(len(st.Data), 12)] + "…"
	case s.Kind == host.Dir:
		return "mode " + st.Mode.String()
	case s.Kind == host.File:
		var lines []string
		for line := range strings.Lines(st.Data) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		const most = 60
		text := strings.Join(lines, "; ")
		if len(text) > most {
			text = text[:most-3] + "..."
		}
		return text
	}
	return st.Data
}

func changeText(ch host.Change) HostChange {
	return HostChange{What: ch.Setting.String(), Old: settingText(ch.Setting, ch.Old), New: settingText(ch.Setting, ch.New)}
}

// forwardingBefore is where the value stands that IPv4 forwarding had before a
// network turned it on.
const forwardingBefore = "before." + network.ForwardingSysctl
