// Package script runs the mvm command in txtar scripts that need no VM, no root
// and nothing of the machine: each has a home, a cache and a configuration of
// its own below $WORK.
package script

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli"
	"github.com/mvmctl/mvm/test/scriptcmd"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mvm": func() {
			if status, done := api.ChildMain(); done {
				os.Exit(status)
			}
			os.Exit(cli.Main(os.Args[1:]))
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("MVM_CACHE_DIR", filepath.Join(e.WorkDir, "cache"))
			e.Setenv("MVM_CONFIG_DIR", filepath.Join(e.WorkDir, "config"))
			for _, name := range []string{"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MVM_TEMP_DIR", "MVM_ASSET_MIRROR", "MVM_LOG_LEVEL"} {
				e.Setenv(name, "")
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": scriptcmd.Code},
	})
}
