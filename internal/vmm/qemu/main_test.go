package qemu

import (
	"os"
	"testing"

	"github.com/mvmctl/mvm/internal/supervisor"
)

// TestMain makes the test binary serve as the supervisor.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == supervisor.Command {
		os.Exit(supervisor.Main(os.Args[2:]))
	}
	code := m.Run()
	if linuxMade != "" {
		_ = os.RemoveAll(linuxMade)
	}
	os.Exit(code)
}
