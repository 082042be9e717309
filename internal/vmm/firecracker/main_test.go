package firecracker

import (
	"os"
	"testing"

	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest/fakevmm"
)

// TestMain makes the test binary serve as the fake Firecracker, as the guest of
// the real one, and as the supervisor of both.
func TestMain(m *testing.M) {
	fakevmm.Main()
	if os.Getpid() == 1 && os.Args[0] == "/init" {
		guestMain()
	}
	if len(os.Args) > 1 && os.Args[1] == supervisor.Command {
		os.Exit(supervisor.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}
