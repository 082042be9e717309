package agent

import (
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/testenv"
)

// A terminal that was opened before the guest's init mounted its own devpts over ours is
// still one.
func TestTerminalWhoseNameLeadsElsewhere(t *testing.T) {
	testenv.Require(t, "root")
	p, err := openPTY(80, 25)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	p.name = "/nonexistent"
	f, err := p.slave(0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("its flags are %#x, %v: commands would inherit it", flags, err)
	}
	if _, err := f.WriteString("typed"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(p.master, got); err != nil || string(got) != "typed" {
		t.Errorf("the master reads %q, %v", got, err)
	}
}
