package cli

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type execOptions struct {
	input       api.ExecInput
	timeout     int
	interactive bool
	tty         bool
}

func newExec(a *app) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec VM [-- CMD...]",
		Short: "Run a command in a VM through its agent",
		Long: `Run a command in a VM through the agent in it, which needs neither network nor SSH
server there. Exits with the exit status of the command. Without a command it is a
login shell.

Standard input, output and error are those of the command, each for itself; with -t
it gets a terminal, on which output and errors come together. A login shell gets one
whenever standard input is a terminal. Ctrl-C and SIGTERM are sent on to the command;
the third in a row ends mvm.

-t followed by a number is --timeout; else it is --tty, as docker has it.`,
		Example: `  mvm exec web -- uname -a
  mvm exec web
  mvm exec -it web -- top
  mvm exec web -u www-data -w /srv -e DEBUG=1 -- ./run.sh < input`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() == 0 {
				return usagef("%q needs a VM before the command", cmd.CommandPath()).withHint("usage: %s", usageLine(cmd))
			}
			return needs(1, -1, "a VM")(cmd, args[:min(1, len(args))])
		},
		ValidArgsFunction: a.completeVMs(1),
	}
	f := cmd.Flags()
	f.StringVarP(&o.input.User, "user", "u", "", "user to run it as: NAME, UID, NAME:GROUP or UID:GID (default root)")
	f.IntVarP(&o.timeout, "timeout", "t", 0, "seconds that it may take with all; then it is sent SIGTERM")
	o.streamFlags(cmd)
	f.BoolVar(&o.tty, "tty", false, "give it a terminal; also -t")
	f.IntVarP(&o.input.Port, "port", "p", 0, "port of the agent in the guest")
	f.Bool("no-sync", false, "accepted for scripts that use it: exec never writes disks out")
	return a.command(cmd, "Exec.Run", func(ctx context.Context, m *api.Client, args []string) error {
		if o.timeout < 0 || cmd.Flags().Changed("timeout") && o.timeout == 0 {
			return usagef("--timeout is not above 0").withHint("write a number of seconds, or leave it out")
		}
		o.input.Identifier, o.input.Cmd = args[0], args[1:]
		o.input.Timeout = time.Duration(o.timeout) * time.Second
		return o.run(ctx, m, a)
	})
}

// streamFlags are those that exec and run have alike.
func (o *execOptions) streamFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVarP(&o.input.Env, "env", "e", nil, "environment variable NAME=VALUE; NAME alone takes the one here")
	f.StringVarP(&o.input.Dir, "workdir", "w", "", "directory to run it in (default the user's home)")
	f.BoolVarP(&o.interactive, "interactive", "i", true, "pass standard input on; =false gives it none")
}

// environment gives variables that are only named the value that they have here;
// those that are not set here are left out.
func (a *app) environment(env []string) []string {
	var out []string
	for _, e := range env {
		if strings.Contains(e, "=") {
			out = append(out, e)
		} else if v := a.getenv(e); v != "" {
			out = append(out, e+"="+v)
		}
	}
	return out
}

// attach connects the command with our streams and, where it is to have one, our
// terminal, and has signals sent on to it, until end is called.
func (o *execOptions) attach(a *app) (end func(), err error) {
	o.input.Env = a.environment(o.input.Env)
	o.input.IO = api.StreamIO{Stdout: a.out.Stdout, Stderr: a.out.Stderr, Term: a.getenv("TERM")}
	if o.interactive {
		o.input.IO.Stdin = a.stdin
	}
	restore := func() {}
	if o.tty || len(o.input.Cmd) == 0 && o.interactive {
		if restore, err = a.attachTerminal(&o.input.IO); err != nil {
			return nil, err
		}
		if o.tty && o.input.IO.Terminal == nil { // asked for, though there is none here
			o.input.IO.Terminal = &api.TerminalSize{Rows: 24, Cols: 80}
		}
	}
	signals := make(chan string, 8)
	o.input.Signals = signals
	release := a.sig.forward(passOn(signals))
	return func() { release(); restore() }, nil
}

func (o *execOptions) run(ctx context.Context, m *api.Client, a *app) error {
	end, err := o.attach(a)
	if err != nil {
		return err
	}
	defer end()
	code, err := m.Exec.Run(ctx, o.input)
	if err != nil {
		return err
	}
	if code != 0 {
		return guestExit(code)
	}
	return nil
}

// impatience is the signal in a row that is not sent on any more.
const impatience = 3

// passOn sends the first signals on to a command.
func passOn(to chan<- string) func(os.Signal) bool {
	n := 0
	return func(sig os.Signal) bool {
		n++
		name := "INT"
		switch sig {
		case syscall.SIGTERM:
			name = "TERM"
		case syscall.SIGHUP: // nobody is there any more to ask again
			return false
		}
		if n >= impatience || len(to) > 0 { // nobody took the last one: the command has not begun
			return false
		}
		to <- name
		return true
	}
}

// dockerWords rewrites the words of exec and run as docker users write them: what
// follows the VM or image is the command. For exec, -t without a number is --tty,
// and -it is both.
func dockerWords(root *cobra.Command, args []string) []string {
	at := slices.IndexFunc(args, func(s string) bool { return !strings.HasPrefix(s, "-") })
	if at < 0 || args[at] != "exec" && args[at] != "run" {
		return args
	}
	cmd, _, err := root.Find(args[at : at+1])
	if err != nil {
		return args
	}
	exec := args[at] == "exec"
	out := slices.Clone(args[:at+1])
	rest := args[at+1:]
	for named := false; len(rest) > 0; {
		word := rest[0]
		switch {
		case word == "--":
			return append(out, rest...)
		case !exec && named && strings.HasPrefix(word, "-") && flagOfWord(cmd, word) == nil: // as docker has it: it is the command's
			return append(append(out, "--"), rest...)
		case exec && (word == "-it" || word == "-ti"):
			out, rest = append(out, "--interactive", "--tty"), rest[1:]
		case exec && word == "-t" && (len(rest) == 1 || !isNumber(rest[1])):
			out, rest = append(out, "--tty"), rest[1:]
		case takesNext(cmd, word):
			n := min(2, len(rest))
			out, rest = append(out, rest[:n]...), rest[n:]
		case strings.HasPrefix(word, "-") && word != "-":
			out, rest = append(out, word), rest[1:]
		case !named:
			out, rest, named = append(out, word), rest[1:], true
		default: // the command's first word
			return append(append(out, "--"), rest...)
		}
	}
	return out
}

// flagOfWord returns the flag that a word gives, nil where there is none of its name.
func flagOfWord(cmd *cobra.Command, word string) *pflag.Flag {
	name, _, _ := strings.Cut(word, "=")
	if long, ok := strings.CutPrefix(name, "--"); ok {
		return cmd.Flag(long)
	}
	return cmd.Flags().ShorthandLookup(name[1:min(2, len(name))])
}

// takesNext reports whether a word is a flag whose value is the next word.
func takesNext(cmd *cobra.Command, word string) bool {
	var f *pflag.Flag
	switch {
	case strings.HasPrefix(word, "--"):
		f = cmd.Flag(word[2:])
	case len(word) == 2 && word[0] == '-' && word != "--":
		f = cmd.Flags().ShorthandLookup(word[1:])
	}
	return f != nil && f.NoOptDefVal == ""
}

func isNumber(s string) bool {
	_, err := strconv.Atoi(s)
	return err == nil
}
