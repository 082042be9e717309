package api

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestInitDatabase(t *testing.T) {
	m := newWorld(t).open()
	if _, err := os.Stat(m.core.paths.db()); err == nil {
		t.Fatal("opening a client made the database")
	}
	for range 2 {
		if err := m.Init.InitDatabase(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(m.core.paths.db()); err != nil {
		t.Error(err)
	}
}

// What was done once is seen the next time, so that init goes on where it stopped.
func TestInitRun(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	done := func(res *InitResult) (names []string) {
		for _, s := range res.Steps {
			if s.Done {
				names = append(names, s.Name)
			}
		}
		return names
	}
	res, err := m.Init.Run(t.Context(), InitInput{SkipHost: true, SkipNetwork: true})
	if err != nil || !slices.Equal(done(res), []string{"database", "key"}) || !slices.Contains(res.Next, "mvm kernel pull debian") {
		t.Fatalf("%+v, %v", res, err)
	}
	res, err = m.Init.Run(t.Context(), InitInput{SkipHost: true})
	if err != nil || !slices.Equal(done(res), []string{"network"}) || res.Hypervisor != "qemu" {
		t.Errorf("%+v, %v", res, err)
	}
	w.stock(m)
	res, err = m.Init.Run(t.Context(), InitInput{SkipHost: true, Kernel: "debian", Image: "tiny"})
	if err != nil || len(done(res)) > 0 || !slices.Equal(res.Next, []string{"mvm vm create NAME --wait"}) {
		t.Errorf("with a kernel and an image there: %+v, %v", res, err)
	}
	w.root = false
	res, err = m.Init.Run(t.Context(), InitInput{})
	if err != nil || !slices.Contains(res.Next, "sudo mvm host init") {
		t.Errorf("without root: %+v, %v", res, err)
	}
	_, err = m.Init.SetupHost(t.Context())
	if err == nil || !strings.Contains(err.Error(), "sudo mvm host init") {
		t.Errorf("setting the host up without root: %v", err)
	}
}
