package kernel

import (
	"bufio"
	"embed"
	"errors"
	"io"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
)

// fragments are the configurations of ours: guest.config, minimal.config and
// feature-NAME.config, each with an optional NAME-ARCH.config.
//
//go:embed fragments/*.config
var fragments embed.FS

// option is a line of a configuration: what is wanted of the build.
type option struct {
	name  string // "CONFIG_KVM"
	value string // "y", "m", "n", or a string or number as it stands there
	or    *option
	from  string // what asks for it, for messages: "--features kvm"
}

// line is how Kconfig writes it.
func (o option) line() string {
	if o.value == "n" {
		return "# " + o.name + " is not set"
	}
	return o.name + "=" + o.value
}

// met tells whether a final configuration has what is wanted.
func (o option) met(final map[string]string) bool {
	have, ok := final[o.name]
	if !ok {
		have = "n"
	}
	return have == o.value || o.or != nil && o.or.met(final)
}

var (
	optionLine = regexp.MustCompile(`^(CONFIG_[A-Za-z0-9_]+)=(.+)$`)
	unsetLine  = regexp.MustCompile(`^# (CONFIG_[A-Za-z0-9_]+) is not set$`)
)

// maxConfig bounds a configuration, in bytes; a distribution's is some 300 KiB.
const maxConfig = 4 << 20

// parseOptions reads a configuration: NAME=VALUE, "# NAME is not set", comments and
// empty lines. What is anything else is an error that names the line. A line of ours
// may have a second option after " | ", for one that other versions call otherwise.
func parseOptions(text, from string) ([]option, error) {
	if len(text) > maxConfig {
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s is larger than 4 MiB", from).WithHint("a configuration has lines like CONFIG_KVM=y")
	}
	var all []option
	sc := bufio.NewScanner(strings.NewReader(text))
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if m := unsetLine.FindStringSubmatch(line); m != nil {
			all = append(all, option{name: m[1], value: "n", from: from})
			continue
		}
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		first, second, two := strings.Cut(line, " | ")
		o, ok := parseOption(first, from)
		if two && ok {
			var or option
			if or, ok = parseOption(second, from); ok {
				o.or = &or
			}
		}
		if !ok {
			return nil, mvm.Errorf(mvm.ErrInvalid, "line %d of %s is no option: %s", n, from, mvm.Quote(clip(line))).
				WithHint("write CONFIG_NAME=y, or # CONFIG_NAME is not set")
		}
		all = append(all, o)
	}
	if err := sc.Err(); err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s cannot be read: %w", from, err).WithHint("a configuration has lines like CONFIG_KVM=y")
	}
	return all, nil
}

func parseOption(s, from string) (option, bool) {
	m := optionLine.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil || strings.ContainsFunc(m[2], func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return option{}, false
	}
	return option{name: m[1], value: m[2], from: from}, true
}

func clip(s string) string { return s[:min(len(s), 60)] }

// fragment returns one of our configurations with what it has for an architecture.
func fragment(name, arch, from string) []option {
	var all []option
	for _, file := range []string{name, name + "-" + arch} {
		text, err := fragments.ReadFile("fragments/" + file + ".config")
		if err != nil {
			continue // nothing of its own for the architecture
		}
		options, err := parseOptions(string(text), from)
		if err != nil {
			panic("the fragment " + file + ": " + err.Error()) // a test reads them all
		}
		all = append(all, options...)
	}
	return all
}

// Features returns the names that --features knows.
func Features() []string {
	entries, err := fragments.ReadDir("fragments")
	if err != nil {
		panic(err) // it is in the program
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutPrefix(strings.TrimSuffix(path.Base(e.Name()), ".config"), "feature-")
		if ok && !strings.Contains(name, "-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Features returns which of the features that --features knows a kernel has, by the
// configuration in it; nil when it holds none.
func (i Info) Features() []string {
	if i.Config == nil {
		return nil
	}
	names := []string{}
	for _, n := range Features() {
		if len(missing(fragment("feature-"+n, i.Arch, n), i.Config)) == 0 {
			names = append(names, n)
		}
	}
	return names
}

// CheckFeatures refuses names that are no features.
func CheckFeatures(names []string) error {
	known := Features()
	for _, n := range names {
		if !slices.Contains(known, n) {
			e := mvm.Errorf(mvm.ErrInvalid, "there is no kernel feature %s", mvm.Quote(n))
			if near := mvm.Nearest(n, known); len(near) > 0 {
				return e.WithHint("did you mean %s? There are %s", strings.Join(near, " or "), strings.Join(known, ", "))
			}
			return e.WithHint("there are %s; --config takes any option", strings.Join(known, ", "))
		}
	}
	return nil
}

// readOptions reads the configuration that a user gives with --config.
func readOptions(file string) ([]option, error) {
	f, err := os.Open(file)
	if err != nil {
		kind := mvm.ErrUnavailable
		if errors.Is(err, os.ErrNotExist) {
			kind = mvm.ErrNotFound
		}
		return nil, mvm.Errorf(kind, "cannot read the configuration: %w", err).WithHint("check the path")
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrUnavailable, "cannot read the configuration: %w", err).WithHint("check the path")
	}
	return parseOptions(string(text), file)
}

// finalOptions reads what the build has made of a configuration.
func finalOptions(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseConfig(string(text)), nil
}

// missing returns the wanted options that a final configuration lacks. Of several
// lines for one option the last is meant.
func missing(wanted []option, final map[string]string) []option {
	last := map[string]int{}
	for i, o := range wanted {
		last[o.name] = i
	}
	var all []option
	for i, o := range wanted {
		if last[o.name] == i && !o.met(final) {
			all = append(all, o)
		}
	}
	return all
}
