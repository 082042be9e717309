package nettest

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFakeKernel(t *testing.T) {
	Suite(t, func(*testing.T) Host { return new(Fake) })
}

func TestFakeKernelInAFile(t *testing.T) {
	Suite(t, func(t *testing.T) Host { return &Fake{File: filepath.Join(t.TempDir(), "net")} })
}

// Whichever effect fails, removal leaves what was there before, and trying
// again succeeds.
func TestFakeFailsAtEveryEffect(t *testing.T) {
	refused := errors.New("refused")
	tap := TapOf("vm1", red, "172.27.0.2")
	for at := 1; ; at++ {
		f := new(Fake)
		before := interfaces(t, f)
		n := 0
		f.Fail = func(string) error {
			if n++; n == at {
				return refused
			}
			return nil
		}
		_, err := f.EnsureNetwork(t.Context(), red)
		if err == nil {
			err = f.AddTap(t.Context(), tap)
		}
		if err == nil {
			if at < 8 {
				t.Errorf("only %d effects", at-1)
			}
			return
		}
		if !errors.Is(err, refused) {
			t.Fatalf("effect %d: %v", at, err)
		}
		ensure(t, f, red)
		addTap(t, f, tap)
		wantActive(t, f, red)
		if err := errors.Join(f.RemoveTap(t.Context(), tap), f.RemoveNetwork(t.Context(), red)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, interfaces(t, f)); diff != "" || len(f.tables) != 0 {
			t.Errorf("effect %d: tables %v, interfaces:\n%s", at, f.tables, diff)
		}
	}
}
