package firecracker

import (
	"os"
	"testing"

	"github.com/mvmctl/mvm/internal/vmm/vmmtest/fakevmm"
)

// TestMain makes the test binary serve as the fake Firecracker, and as the
// guest of the real one.
func TestMain(m *testing.M) {
	fakevmm.Main()
	if os.Getpid() == 1 && os.Args[0] == "/init" {
		guestMain()
	}
	os.Exit(m.Run())
}
