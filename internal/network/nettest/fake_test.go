package nettest

import "testing"

func TestFakeKernel(t *testing.T) {
	Suite(t, func(*testing.T) Host { return new(Fake) })
}
