package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mvmctl/mvm/test/scriptcmd"
)

// TestScripts runs command lines of every kind on machines with real guests: what
// package script does where none is needed.
func TestScripts(t *testing.T) {
	names, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			m := newMachine(t)
			testscript.Run(t, testscript.Params{
				Files: []string{name}, RequireExplicitExec: true, Setup: m.setup,
				Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": scriptcmd.Code},
			})
		})
	}
}

// setup puts mvm into a script's PATH, in the machine's network.
func (m *machine) setup(e *testscript.Env) error {
	bin := filepath.Join(e.WorkDir, ".bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for name, program := range map[string]string{"mvm": m.bin, "ns": ""} { // ns runs anything there
		wrapper := fmt.Sprintf("#!/bin/sh\nexec nsenter --net=%s -- %s \"$@\"\n", m.ns.Path(), program)
		if err := os.WriteFile(filepath.Join(bin, name), []byte(wrapper), 0o755); err != nil {
			return err
		}
	}
	e.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	e.Setenv("HOME", m.config)
	e.Setenv("MVM_CACHE_DIR", m.cache)
	e.Setenv("MVM_CONFIG_DIR", m.config)
	for _, name := range []string{"MVM_TEMP_DIR", "MVM_ASSET_MIRROR", "MVM_LOG_LEVEL"} {
		e.Setenv(name, "")
	}
	return nil
}
