package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

func (a *app) configCommands() *cobra.Command {
	return a.group(&cobra.Command{
		Use:   "config",
		Short: "Read and change settings",
		Long: `Read and change the settings: what is taken where a command does not say. A flag
goes before a setting, and a setting before the built-in default.`,
		Example: "  mvm config ls\n  mvm config set defaults.vm vcpu_count 2",
	}, newConfigGet(a), newConfigSet(a), newConfigList(a), newConfigReset(a))
}

// settingArgs lets the name of a setting be written CATEGORY KEY or CATEGORY.KEY.
func settingArgs(args []string) []string {
	i := strings.LastIndexByte(args[0], '.')
	if i < 0 {
		return args
	}
	if _, known := mvm.SettingOf(args[0][:i], args[0][i+1:]); !known {
		return args
	}
	return append([]string{args[0][:i], args[0][i+1:]}, args[1:]...)
}

// settingLine is how a setting is printed for people and scripts.
func settingLine(e api.ConfigEntry) string { return e.Category + "." + e.Key + " = " + e.Text() }

// origin says what a setting may be and where its value comes from.
func origin(e api.ConfigEntry) string {
	parts := []string{"type: " + e.Type}
	if e.Min != nil && e.Max != nil {
		parts = append(parts, fmt.Sprintf("%d to %d", *e.Min, *e.Max))
	}
	if len(e.Choices) > 0 {
		parts = append(parts, alternatives(e.Choices))
	}
	if e.Source == api.SourceDefault {
		return strings.Join(append(parts, "the default"), "; ")
	}
	return strings.Join(append(parts, fmt.Sprintf("set; the default is %v", quoteEmpty(e.Default))), "; ")
}

func quoteEmpty(v any) any {
	if v == "" {
		return "empty"
	}
	return v
}

// completeSettings offers categories, then their keys, then the values that a
// setting is limited to. It needs no database.
func completeSettings(most int) completer {
	return func(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp
		if len(args) >= most {
			return nil, directive
		}
		seen := map[string]bool{}
		var out []string
		offer := func(word, help string) {
			if strings.HasPrefix(word, typed) && !seen[word] {
				seen[word] = true
				out = append(out, strings.TrimSuffix(word+"\t"+help, "\t"))
			}
		}
		for _, s := range mvm.Settings() {
			switch {
			case len(args) == 0:
				offer(s.Category, "")
			case s.Category != args[0]:
			case len(args) == 1:
				offer(s.Key, s.Help)
			case s.Key == args[1]:
				for _, c := range s.Choices() {
					offer(c, "")
				}
				if s.Type == "bool" {
					offer("true", "")
					offer("false", "")
				}
			}
		}
		return out, directive
	}
}

func newConfigGet(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get CATEGORY [KEY]",
		Short: "Print a setting",
		Long: `Print a setting as CATEGORY.KEY = VALUE, or without a key all of its category. With
--json a setting is an object that also says its type, range, default and where the
value comes from; a category is an array.`,
		Example:           "  mvm config get defaults.vm vcpu_count\n  mvm config get settings.vm --json",
		Args:              needs(1, 2, "a category"),
		ValidArgsFunction: completeSettings(2),
	}
	a.jsonFlag(cmd)
	return a.command(cmd, "Config.Get", func(ctx context.Context, m *api.Client, args []string) error {
		args = settingArgs(args)
		if len(args) == 3 {
			return usagef("the key is given twice").withHint("write CATEGORY KEY, or CATEGORY.KEY")
		}
		args = append(args, "")
		entries, err := m.Config.Get(ctx, args[0], args[1])
		if err != nil {
			return err
		}
		if a.out.JSON {
			if args[1] != "" {
				return a.out.Object(entries[0])
			}
			return a.out.Object(entries)
		}
		for _, e := range entries {
			if err := a.out.Line(settingLine(e)); err != nil {
				return err
			}
		}
		return nil
	})
}
