package linux

import (
	"testing"

	"github.com/mvmctl/mvm/internal/network/nettest"
)

func TestRealKernel(t *testing.T) {
	nettest.Suite(t, func(t *testing.T) nettest.Host { return nettest.NewHost(t, New()) })
}
