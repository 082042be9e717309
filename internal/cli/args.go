package cli

import (
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/spf13/cobra"
)

// noArgs refuses arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%q takes no arguments, but %s was given", cmd.CommandPath(), mvm.Quote(args[0])).withHint("see '%s --help'", cmd.CommandPath())
	}
	return nil
}

// needs accepts between least and most arguments; most < 0 sets no limit. what
// names them, as in "a VM".
func needs(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("%q needs %s", cmd.CommandPath(), what).withHint("usage: %s", usageLine(cmd))
		case most >= 0 && len(args) > most:
			return usagef("%q does not take %s", cmd.CommandPath(), mvm.Quote(args[most])).withHint("usage: %s", usageLine(cmd))
		}
		for _, s := range args {
			if s == "" {
				return usagef("an argument of %q is empty", cmd.CommandPath()).withHint("usage: %s", usageLine(cmd))
			}
		}
		return nil
	}
}

// typeVersion takes apart type:version and puts it together with the flags
// --type and --version, which may not say something else.
func typeVersion(args []string, typ, version string) (string, string, error) {
	if len(args) == 0 {
		if typ == "" {
			return "", "", usagef("no type given").withHint("name it as TYPE[:VERSION] or with --type")
		}
		return typ, version, nil
	}
	if isContainer(args[0]) {
		if typ != "" || version != "" {
			return "", "", usagef("--type and --version do not go with %s", mvm.Quote(args[0])).withHint("its tag stands behind its name")
		}
		return args[0], "", nil
	}
	t, v, both := strings.Cut(args[0], ":")
	if t == "" || both && v == "" {
		return "", "", usagef("%s is not TYPE[:VERSION]", mvm.Quote(args[0])).withHint("write for example debian:12")
	}
	if typ != "" && typ != t {
		return "", "", usagef("the type is given twice: %s and --type %s", mvm.Quote(t), mvm.Quote(typ)).withHint("leave one out")
	}
	if version != "" && both && version != v {
		return "", "", usagef("the version is given twice: %s and --version %s", mvm.Quote(v), mvm.Quote(version)).withHint("leave one out")
	}
	if both {
		version = v
	}
	return t, version, nil
}

// onlyOne refuses two flags that say the opposite of each other.
func onlyOne(cmd *cobra.Command, flags ...string) error {
	var set []string
	for _, f := range flags {
		if cmd.Flags().Changed(f) {
			set = append(set, "--"+f)
		}
	}
	if len(set) > 1 {
		return usagef("%s exclude each other", strings.Join(set, " and ")).withHint("leave one out")
	}
	return nil
}

// isContainer says whether an argument names a container image, which has colons of
// its own.
func isContainer(arg string) bool {
	return strings.HasPrefix(arg, "oci://") || strings.HasPrefix(arg, "docker-archive:") || strings.HasPrefix(arg, "oci-layout:")
}
