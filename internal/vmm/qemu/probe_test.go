package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/run"
)

// says is a binary that knows one answer.
type says struct {
	text  string
	err   error
	asked int
}

func (s *says) Run(context.Context, run.Cmd) (run.Result, error) {
	s.asked++
	return run.Result{Stdout: []byte(s.text)}, s.err
}

const debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022\n"

func aBinary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), program)
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProbe(t *testing.T) {
	noKVM := host.KVM{Problem: host.Problem{What: "there is no /dev/kvm", Hint: "modprobe"}}
	for _, c := range []struct {
		name    string
		says    says
		kvm     host.KVM
		usable  bool
		accel   string
		version string
		problem string
	}{
		{"kvm", says{text: debian}, host.KVM{Usable: true}, true, "kvm", "7.2.22", ""},
		{"tcg", says{text: debian}, noKVM, true, "tcg", "7.2.22", "there is no /dev/kvm, so QEMU emulates"},
		{"old", says{text: "QEMU emulator version 5.1.9"}, noKVM, false, "", "5.1.9", "older than 5.2"},
		{"later", says{text: "QEMU emulator version 10.0.2"}, noKVM, true, "tcg", "10.0.2", "so QEMU emulates"},
		{"another program", says{text: "Firecracker v1.16.1"}, noKVM, false, "", "", "is no QEMU"},
		{"broken", says{err: errors.New("bad omen")}, noKVM, false, "", "", "bad omen"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := New(Options{Binary: aBinary(t), Runner: &c.says, CheckKVM: func() host.KVM { return c.kvm }})
			p := d.Probe(t.Context())
			if p.Usable != c.usable || p.Accel != c.accel || p.Version != c.version {
				t.Errorf("Probe = %+v, want usable %v, %q, %q", p, c.usable, c.accel, c.version)
			}
			var all string
			for _, problem := range p.Problems {
				all += problem.What
				if problem.Hint == "" || problem.Fatal == c.usable {
					t.Errorf("problem %+v: want a hint, and fatal to be %v", problem, !c.usable)
				}
			}
			if (all == "") != (c.problem == "") || !strings.Contains(all, c.problem) {
				t.Errorf("problems = %q, want %q", all, c.problem)
			}
		})
	}
}

func TestProbeMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if host.Has(program) {
		t.Skip("skipped: QEMU is where root's programs are")
	}
	p := New(Options{Runner: &says{}}).Probe(t.Context())
	if p.Usable || len(p.Problems) != 1 || p.Problems[0].What != "QEMU is not installed" || !strings.Contains(p.Problems[0].Hint, "qemu-system-x86") {
		t.Errorf("Probe = %+v", p)
	}
}

// A binary is asked once, also by later processes, until it changes.
func TestProbeAsksOnce(t *testing.T) {
	path, cache, s := aBinary(t), t.TempDir(), &says{text: debian}
	probe := func(want int) {
		t.Helper()
		if p := New(Options{Binary: path, CacheDir: cache, Runner: s}).Probe(t.Context()); p.Version != "7.2.22" {
			t.Errorf("Probe = %+v", p)
		}
		if s.asked != want {
			t.Errorf("the binary was asked %d times, want %d", s.asked, want)
		}
	}
	probe(1)
	probe(1)
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	probe(2)
	if err := os.WriteFile(filepath.Join(cache, versionFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	probe(3)
	probe(3)
}

// The time stamp counter that is measured is that of a machine of our days.
func TestHostTSC(t *testing.T) {
	a := hostTSC()
	if a == 0 {
		t.Skip("skipped: this machine has no constant time stamp counter")
	}
	if a < 100_000 || a > 10_000_000 {
		t.Errorf("hostTSC = %d kHz", a)
	}
}
