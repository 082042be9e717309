package api

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

// Fifty VMs are made, stopped, started and removed by clients of their own at once,
// as by as many commands. Nothing is given to two of them, and nothing is left.
func TestFiftyAtOnce(t *testing.T) {
	w := newHosted(t)
	w.must("create other") // the network is there, and somebody else's VM
	before := w.settled()
	ctx := t.Context()
	const n = 50
	clients := make([]*Client, n)
	for i := range clients {
		clients[i] = w.open()
	}
	all := func(what string, do func(m *Client, name string) error) {
		t.Helper()
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i, m := range clients {
			wg.Go(func() { errs[i] = do(m, fmt.Sprintf("many-%d", i)) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	one := func(verb func(*Client) batchVerb) func(*Client, string) error {
		return func(m *Client, name string) error {
			_, err := verb(m)(ctx, VMInput{Identifiers: []string{name}, Force: true})
			return err
		}
	}
	all("create", func(m *Client, name string) error {
		_, err := m.VM.Create(ctx, VMCreateInput{Name: name, NoAgent: true})
		return err
	})
	vms, err := clients[0].VM.ListAll(ctx, mvm.StatusRunning)
	if err != nil || len(vms) != n+1 {
		t.Fatalf("%d VMs run, %v", len(vms), err)
	}
	own := map[string]string{}
	for _, vm := range vms {
		for _, what := range []string{vm.ID, vm.IPv4, vm.MAC, vm.TapDevice, vm.RootfsPath, vm.APISocketPath, fmt.Sprint("pid ", vm.PID)} {
			if other, taken := own[what]; taken {
				t.Errorf("%s was given to %s and %s", what, other, vm.Name)
			}
			own[what] = vm.Name
		}
	}
	taps, err := w.net.Taps(ctx)
	if err != nil || len(taps) != n+1 {
		t.Errorf("there are %d taps, %v", len(taps), err)
	}
	all("stop", one(func(m *Client) batchVerb { return m.VM.Stop }))
	all("start", one(func(m *Client) batchVerb { return m.VM.Start }))
	all("remove", one(func(m *Client) batchVerb { return m.VM.Remove }))
	if diff := cmp.Diff(before, w.settled()); diff != "" {
		t.Errorf("the world is another (-before +after):\n%s", diff)
	}
}

// Of twenty commands at once on one VM exactly one gets it; the others are told why
// they do not.
func TestTwentyCommandsOnOneVM(t *testing.T) {
	w := newHosted(t)
	w.must("create")
	ctx := t.Context()
	const n = 20
	clients := make([]*Client, n)
	for i := range clients {
		clients[i] = w.open()
	}
	for _, c := range []struct {
		what string
		verb func(*Client) batchVerb
		ends mvm.VMStatus
	}{
		{"stop", func(m *Client) batchVerb { return m.VM.Stop }, mvm.StatusStopped},
		{"start", func(m *Client) batchVerb { return m.VM.Start }, mvm.StatusRunning},
		{"pause", func(m *Client) batchVerb { return m.VM.Pause }, mvm.StatusPaused},
		{"resume", func(m *Client) batchVerb { return m.VM.Resume }, mvm.StatusRunning},
		{"remove", func(m *Client) batchVerb { return m.VM.Remove }, ""},
	} {
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i, m := range clients {
			wg.Go(func() { _, errs[i] = c.verb(m)(ctx, VMInput{Identifiers: []string{"web"}, Force: true}) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, mvm.ErrBusy) && !errors.Is(err, mvm.ErrConflict) && !(c.ends == "" && errors.Is(err, mvm.ErrNotFound)):
				t.Errorf("%s: %v", c.what, err)
			}
		}
		// A removal that waits for another to end has removed it too, in its own eyes.
		if won != 1 && !(c.ends == "" && won > 0) {
			t.Errorf("%s: %d commands did it", c.what, won)
		}
		vm, err := clients[0].VM.Get(ctx, sel("web"))
		if c.ends == "" {
			if !errors.Is(err, mvm.ErrNotFound) {
				t.Errorf("removed, it is %+v, %v", vm, err)
			}
			continue
		}
		if err != nil || vm.Status != c.ends {
			t.Errorf("after %s it is %+v, %v", c.what, vm, err)
		}
	}
	for _, line := range w.settled() {
		if !strings.HasPrefix(line, "link ") && !strings.HasPrefix(line, "table ") && line != "DNS of default runs: false" { // of the network, which stays
			t.Errorf("left: %s", line)
		}
	}
}
