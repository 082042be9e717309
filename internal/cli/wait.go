package cli

import (
	"errors"
	"strconv"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

// waitFlag gives a command --wait, alone or with what is waited for.
func waitFlag(cmd *cobra.Command, wait *string) {
	cmd.Flags().StringVar(wait, "wait", "", "wait until the guest is ready, answers ssh, has stopped, or listens on a port (ready, ssh, stopped, port:N)")
	cmd.Flag("wait").NoOptDefVal = string(api.WaitReady)
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("wait", fixed("ready", "ssh", "stopped", "port:")))
}

// waitFor checks the value of --wait.
func waitFor(s string) (api.WaitFor, error) {
	w := api.WaitFor(s)
	if err := w.Validate(); err != nil {
		return "", usagef("%s", err).withHint("%s", mvm.HintOf(err))
	}
	return w, nil
}

// span is a flag's value that is a time above 0: "90s", "2m", or seconds alone.
type span time.Duration

func (s *span) Set(text string) error {
	d, err := time.ParseDuration(text)
	if n, numErr := strconv.Atoi(text); numErr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil {
		return errors.New("it has to be a time such as 30s or 2m")
	}
	if d <= 0 {
		return errors.New("it has to be above 0")
	}
	*s = span(d)
	return nil
}

func (s *span) String() string {
	if *s == 0 {
		return ""
	}
	return time.Duration(*s).String()
}

func (s *span) Type() string { return "time" }
