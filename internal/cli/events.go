package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

type eventsOptions struct {
	input  api.EventInput
	lines  string
	since  string
	follow bool
}

// How many events are shown where no number is given.
const (
	someEvents = 50
	fewEvents  = 10 // before those that are followed
)

func newEvents(a *app) *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened to VMs",
		Long: `Show what happened to VMs, oldest first: when each came to which phase, why, and with
which exit status, also of VMs that were removed. -f goes on with what comes, until
Ctrl-C. --json prints an array, and with -f one object a line.`,
		Example: `  mvm events
  mvm events --vm web --since 1h
  mvm events -f -n 0 --json | jq -r 'select(.to == "crashed") | .vm_name'`,
		Args: noArgs,
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with what comes")
	f.StringVar(&o.input.Identifier, "vm", "", "of one VM only, which may be gone")
	f.StringVarP(&o.lines, "lines", "n", "", "how many of the last, or all (default 50; with -f 10; with --since all)")
	f.StringVar(&o.since, "since", "", "not older than this: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 10m")
	a.jsonFlag(cmd)
	completeFlag(cmd, "vm", a.completeVMs(0))
	return a.command(cmd, "Event.List Event.Follow", func(ctx context.Context, m *api.Client, _ []string) error {
		if err := o.resolve(a.out.Now()); err != nil {
			return err
		}
		if o.follow {
			return o.stream(ctx, m, a.out)
		}
		events, err := m.Event.List(ctx, o.input)
		if err != nil {
			return err
		}
		if a.out.JSON {
			return render.List(a.out, events)
		}
		for _, e := range events {
			if err := a.out.Line(eventLine(e)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (o *eventsOptions) resolve(now time.Time) error {
	n := someEvents
	switch {
	case o.lines != "":
		var err error
		if n, err = lineCount(o.lines); err != nil {
			return err
		}
	case o.since != "":
		n = -1
	case o.follow:
		n = fewEvents
	}
	if n >= 0 {
		o.input.Limit = &n
	}
	if o.since == "" {
		return nil
	}
	var ok bool
	if o.input.Since, ok = sinceTime(o.since, now); !ok {
		return usagef("--since cannot be %s", mvm.Quote(o.since)).withHint("write a time such as 2026-01-31T12:00:00Z, or how long ago, such as 10m or 2h")
	}
	return nil
}

// sinceTime reads a time, as RFC 3339 or in local time with parts left out, or how
// long ago it was.
func sinceTime(s string, now time.Time) (time.Time, bool) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), true
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

func (o *eventsOptions) stream(ctx context.Context, m *api.Client, out *render.Output) error {
	for e, err := range m.Event.Follow(ctx, o.input) {
		if err != nil {
			if interrupted(ctx) && cancelled(err) {
				return nil // Ctrl-C is how following ends
			}
			return err
		}
		if out.JSON {
			err = out.ObjectLine(e)
		} else {
			err = out.Line(eventLine(e))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eventLine is an event on one line: time, VM, change, exit status, cause.
func eventLine(e api.VMEvent) string {
	s := e.At + "  " + e.VMName + "  "
	switch {
	case e.From == e.To:
		s += e.Kind
	case e.From == "":
		s += e.To
	default:
		s += e.From + " -> " + e.To
	}
	if e.ExitCode != nil && e.To != e.From {
		s += " (exit status " + strconv.Itoa(*e.ExitCode) + ")"
	}
	if e.Cause != "" {
		s += ": " + e.Cause
	}
	return s
}
