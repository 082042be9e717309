// Package boot is PID 1 of our initramfs: it finds and mounts the VM's root
// disk, makes the guest itself (name, network, keys) without the host ever
// writing into an image, leaves the agent running and hands over to the image's
// init. It runs in the guest only and knows nothing of the host.
package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest"
)

// deviceWait is how long the root disk may take to appear.
const deviceWait = 30 * time.Second

// netWait is how long the network interface may take.
const netWait = 5 * time.Second

// initCandidates are tried when the image does not say.
var initCandidates = []string{"/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/etc/init", "/bin/init", "/bin/sh"}

// Main boots the guest and becomes its init. It never returns: where nothing
// works it says why on the console and powers the machine off.
func Main(args []string) {
	debug.SetGCPercent(-1) // the process is replaced within a second
	apiErr := mountAPI()
	con := openConsole()
	ph := phases{on: os.Getenv("mvm_timing") != "", last: time.Now(), text: "/init at " + uptime() + " s"}
	cfg, err := readConfig()
	if err = errors.Join(apiErr, err); err != nil {
		con.giveUp("", err)
	}
	if err := AddEntropy(cfg.Entropy); err != nil {
		con.say("entropy: %v", err)
	}
	ph.done("setup")
	loadModules(guest.ModulesDir, guest.ModulesList, func(err error) { con.say("%v", err) })
	ph.done("modules")
	agentFile, err := prepare(con, cfg, &ph)
	if err != nil {
		con.giveUp(cfg.PowerOff, err)
	}
	if cfg.Container != nil {
		con.giveUp(cfg.PowerOff, execContainerInit(con, cfg))
	}
	if cfg.Agent != nil {
		if err := startAgent(agentFile); err != nil {
			con.say("start the agent: %v", err)
		}
		ph.done("start agent")
	}
	if ph.on {
		con.say("boot phases: %s, init at %s s", ph.text, uptime())
	}
	con.giveUp(cfg.PowerOff, execInit(cfg.Root.Init, args))
}

func readConfig() (*guest.BootConfig, error) {
	data, err := os.ReadFile(guest.ConfigPath)
	if err != nil {
		return nil, fmt.Errorf("the initramfs has no configuration: %w", err)
	}
	cfg := &guest.BootConfig{}
	if err := json.Unmarshal(data, cfg); err != nil {
		return nil, fmt.Errorf("%s: %w", guest.ConfigPath, err)
	}
	if cfg.Version != 1 {
		return nil, fmt.Errorf("%s has version %d, this agent reads version 1", guest.ConfigPath, cfg.Version)
	}
	if cfg.Root.Device == "" {
		return nil, fmt.Errorf("%s names no root device", guest.ConfigPath)
	}
	return cfg, nil
}

// prepare does everything up to the root switch. What a guest can live without
// is reported and passed over; an error means that it cannot boot.
func prepare(con console, cfg *guest.BootConfig, ph *phases) (agentConfig *os.File, err error) {
	report := func(what string, err error) {
		if err != nil {
			con.say("%s: %v", what, err)
		}
	}
	if err := waitDevice(cfg.Root.Device, deviceWait); err != nil {
		return nil, err
	}
	root, err := openRoot(cfg.Root, cfg.Container != nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	ph.done("mount root")
	if cfg.Root.Grow {
		report("grow the root file system", Grow(newRoot, cfg.Root.Device))
	}
	ph.done("grow")
	if cfg.Container == nil && !hasInit(root, cfg.Root.Init) {
		return nil, noInit(cfg.Root)
	}
	if cfg.Container == nil {
		report("homes", mountHomes(root, cfg.Root.Device))
	}
	if IsFirstBoot(root, cfg.InstanceID) {
		report("first boot", FirstBoot(root, cfg))
	}
	if cfg.CloudInit != nil {
		report("cloud-init", PrepareCloudInit(root, cfg.CloudInit))
	}
	ph.done("first boot")
	report("hostname", unix.Sethostname([]byte(cfg.Hostname)))
	report("loopback", SetupLoopback())
	if cfg.Network != nil && !leftToIfupdown(root, cfg.CloudInit) {
		report("network", SetupNetwork(cfg.Network, netWait))
	}
	ph.done("network")
	run, err := mountRun(root)
	if err != nil {
		return nil, err
	}
	defer func() { _ = run.Close() }()
	report("network configuration", WriteRunConfig(root, run, cfg.Network))
	if cfg.Agent != nil {
		report("install the agent", installAgent(run, cfg.Agent))
		// Opened now: an init may mount another tmpfs over /run before the agent reads it.
		agentConfig, err = run.open(inRun(guest.AgentConfig), os.O_RDONLY)
		report("open the agent's configuration", err)
	}
	ph.done("install agent")
	if cfg.Container != nil {
		if err := prepareContainer(root, run, cfg); err != nil {
			return nil, err
		}
	}
	for _, v := range cfg.Volumes {
		report("volume for "+v.Mount, mountAtBoot(root, v))
	}
	ph.done("volumes")
	if err := moveMounts(root); err != nil {
		return nil, err
	}
	return agentConfig, switchRoot()
}

func candidates(want string) []string {
	if want != "" {
		return []string{want}
	}
	return initCandidates
}

func hasInit(r *Rootfs, want string) bool {
	for _, p := range candidates(want) {
		if r.Executable(p) {
			return true
		}
	}
	return false
}

func noInit(cfg guest.RootConfig) error {
	if cfg.Init != "" {
		return fmt.Errorf("the image has no executable %s; it was named as init", cfg.Init)
	}
	return fmt.Errorf("the image on %s has no init: none of %s is there", cfg.Device, strings.Join(initCandidates, " "))
}

// startAgent runs the agent as a child of what becomes the init.
func startAgent(config *os.File) error {
	if config == nil {
		return errors.New("its configuration could not be written")
	}
	defer func() { _ = config.Close() }()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	log, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		log = null
	}
	p, err := os.StartProcess(guest.AgentPath, []string{"mvm-agent", "serve", "--config-fd", "3"}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Files: []*os.File{null, log, log, config},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	return p.Release()
}

// execInit becomes the image's init. Arguments and environment are what the
// kernel gave us from its command line.
func execInit(want string, args []string) error {
	var errs []error
	for _, p := range candidates(want) {
		argv := []string{p}
		if len(args) > 1 {
			argv = append(argv, args[1:]...)
		}
		err := unix.Exec(p, argv, initEnv())
		if errors.Is(err, unix.ENOENT) && want == "" {
			continue
		}
		errs = append(errs, fmt.Errorf("run %s: %w", p, err))
	}
	return errors.Join(errs...)
}

// initEnv is the kernel's environment for init, without what is ours.
func initEnv() []string {
	var out []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "mvm_") && !strings.HasPrefix(e, "GO") {
			out = append(out, e)
		}
	}
	return out
}
