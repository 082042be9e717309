package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/mvmctl/mvm"
)

// guestConfigs is where Firecracker keeps its configurations for guests.
const guestConfigs = "https://raw.githubusercontent.com/firecracker-microvm/firecracker/main/resources/guest_configs"

// configuration is what is asked of a build.
type configuration struct {
	base     string   // what it begins with
	rest     bool     // what is not named is as the kernel's authors propose it; else off
	options  []option // all, the later ones over the earlier
	own      []option // those that guests need or the user asked for, which have to come true
	warnings []string
}

// text is the configuration as Kconfig reads it.
func (c configuration) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# base %s\n", c.base)
	for _, o := range append(c.options, c.own...) {
		b.WriteString(o.line() + "\n")
		if o.or != nil {
			b.WriteString(o.or.line() + "\n")
		}
	}
	return b.String()
}

// configuration puts together base, what guests need, features, and the user's own.
func (o *BuildOptions) configuration(ctx context.Context, version string, own []option) (configuration, error) {
	c := configuration{base: o.Base}
	var err error
	switch o.Base {
	case BaseFirecracker:
		if c.options, err = o.firecrackerBase(ctx, version); err == nil {
			c.rest = true
			break
		}
		if ctx.Err() != nil || !errors.Is(err, mvm.ErrUnavailable) && !errors.Is(err, mvm.ErrNotFound) {
			return c, err
		}
		c.warnings = append(c.warnings, fmt.Sprintf("Firecracker's configuration cannot be had, so the kernel is built with mvm's minimal one: %v", err))
		c.base = BaseMinimal
	case BaseMinimal:
	default:
		c.rest = true
		if c.options, err = readOptions(o.Base); err != nil {
			return c, err
		}
	}
	if c.base == BaseMinimal {
		c.own = append(c.own, fragment("minimal", o.Arch, "the base")...)
	}
	c.own = append(c.own, fragment("guest", o.Arch, "a guest")...)
	for _, f := range o.Features {
		c.own = append(c.own, fragment("feature-"+f, o.Arch, "--features "+f)...)
	}
	c.own = append(c.own, own...)
	return c, nil
}

// firecrackerBase fetches Firecracker's configuration for the newest series that is
// not newer than the version's.
func (o *BuildOptions) firecrackerBase(ctx context.Context, version string) ([]option, error) {
	arch := map[string]string{X86_64: "x86_64", ARM64: "aarch64"}[o.Arch]
	series := []string{"6.1", "5.10"}
	if strings.HasPrefix(version, "5.") {
		series = series[1:]
	}
	url := fmt.Sprintf("%s/microvm-kernel-ci-%s-%s.config", guestConfigs, arch, series[0])
	data, err := o.Fetcher.Read(ctx, url, maxConfig)
	if err != nil {
		return nil, err
	}
	options, err := parseOptions(string(data), url)
	if err == nil && len(options) < 100 {
		err = mvm.Errorf(mvm.ErrBroken, "%s holds no kernel's configuration", url).WithHint("build with --base minimal")
	}
	return options, err
}

// configure makes the final configuration and checks it: what guests need and what
// the user asked for has to be in it.
func (w *workshop) configure(ctx context.Context, c configuration) (warnings []string, err error) {
	w.Progress.Send("configure", "configuring")
	wanted, dotConfig := filepath.Join(w.objects, "wanted.config"), filepath.Join(w.objects, ".config")
	if err := os.WriteFile(wanted, []byte(c.text()), 0o644); err != nil {
		return nil, unwritable(w.objects, err)
	}
	target := []string{"KCONFIG_ALLCONFIG=" + wanted, "allnoconfig"}
	if c.rest {
		target = []string{"olddefconfig"}
		if err := os.WriteFile(dotConfig, []byte(c.text()), 0o644); err != nil {
			return nil, unwritable(w.objects, err)
		}
	}
	if err := w.run(ctx, target...); err != nil {
		return nil, err
	}
	final, err := finalOptions(dotConfig)
	if err != nil {
		return nil, err
	}
	if off := missing(c.own, final); len(off) > 0 {
		return nil, w.unmet(off, final)
	}
	modules := 0
	for _, v := range final {
		if v == "m" {
			modules++
		}
	}
	if modules > 0 {
		warnings = append(warnings, fmt.Sprintf("%d options of the configuration are modules, which are not built: ask for what you need of them with =y in --config", modules))
	}
	if gone := missing(c.options, final); len(gone) > 0 && c.base != BaseMinimal {
		warnings = append(warnings, fmt.Sprintf("%d of the %d options of the base %s are not in this kernel, or changed by what was asked for", len(gone), len(c.options), c.base))
	}
	return warnings, nil
}

// unmet says which options are not in the final configuration, and why likely.
func (w *workshop) unmet(off []option, final map[string]string) error {
	var names []string
	for _, o := range off {
		names = append(names, o.name)
		if o.or != nil {
			names = append(names, o.or.name)
		}
	}
	defined := symbols(w.tree, names)
	var says []string
	for _, o := range off {
		says = append(says, fmt.Sprintf("%s=%s for %s: %s", o.name, o.value, o.from, o.why(defined[strings.TrimPrefix(o.name, "CONFIG_")], final)))
	}
	more := ""
	if n := len(says) - 8; n > 0 {
		says, more = says[:8], fmt.Sprintf("; and %d more", n)
	}
	return mvm.Errorf(mvm.ErrInvalid, "the kernel cannot be configured as asked: %s%s", strings.Join(says, "; "), more).
		WithHint("add the options that these depend on with --config, or take them out")
}
