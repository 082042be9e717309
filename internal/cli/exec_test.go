package cli

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDockerWords(t *testing.T) {
	a, _, _ := testApp()
	root := newRoot(a)
	for _, c := range []struct{ typed, want string }{
		{"exec web", "exec web"},
		{"exec web -- ls -l", "exec web -- ls -l"},
		{"exec web ls -l", "exec web -- ls -l"},
		{"exec -it web sh", "exec --interactive --tty web -- sh"},
		{"exec -ti web", "exec --interactive --tty web"},
		{"exec -i -t web sh", "exec -i --tty web -- sh"},
		{"exec web -t", "exec web --tty"},
		{"exec web -t 5 -- ls", "exec web -t 5 -- ls"},
		{"exec -t 5 web ls -t x", "exec -t 5 web -- ls -t x"},
		{"exec -u bob web -e A=1 env", "exec -u bob web -e A=1 -- env"},
		{"exec --user=bob web id", "exec --user=bob web -- id"},
		{"exec web - x", "exec web -- - x"},
		{"exec web -u", "exec web -u"},
		{"--debug exec web ls", "--debug exec web -- ls"},
		{"exec -- web ls", "exec -- web ls"},
		{"vm ls -t", "vm ls -t"},
		{"ssh web -t 5", "ssh web -t 5"},
		{"run debian:12", "run debian:12"},
		{"run -it debian:12 sh -c ls", "run -it debian:12 -- sh -c ls"},
		{"run debian:12 --mem 1G --keep ls -l", "run debian:12 --mem 1G --keep -- ls -l"},
		{"run -e A=1 --vcpu=2 -t -i --rm tiny env -i", "run -e A=1 --vcpu=2 -t -i --rm tiny -- env -i"},
		{"run tiny -- -x", "run tiny -- -x"},
		{"", ""},
	} {
		if d := cmp.Diff(strings.Fields(c.want), dockerWords(root, strings.Fields(c.typed))); d != "" {
			t.Errorf("%q: %s", c.typed, d)
		}
	}
}

func TestSignalsArePassedOnTwice(t *testing.T) {
	to := make(chan string, 8)
	take := passOn(to)
	for i, c := range []struct {
		sig   os.Signal
		name  string
		taken bool
	}{{os.Interrupt, "INT", true}, {syscall.SIGTERM, "TERM", true}, {os.Interrupt, "", false}} {
		if got := take(c.sig); got != c.taken {
			t.Errorf("signal %d: taken: %v", i+1, got)
		}
		if c.taken {
			if got := <-to; got != c.name {
				t.Errorf("signal %d: %q was sent on", i+1, got)
			}
		}
	}
	waiting := passOn(to)
	if !waiting(os.Interrupt) || waiting(os.Interrupt) {
		t.Error("the second signal was taken although nobody reads the first")
	}
}

func TestEnvironment(t *testing.T) {
	a, _, _ := testApp()
	a.getenv = func(name string) string { return map[string]string{"HERE": "x y"}[name] }
	if d := cmp.Diff([]string{"A=1", "HERE=x y", "EMPTY="}, a.environment([]string{"A=1", "HERE", "GONE", "EMPTY="})); d != "" {
		t.Error(d)
	}
}

func TestEscapesAreLeftOut(t *testing.T) {
	for in, want := range map[string]string{
		"\x1b[0;32m  OK  \x1b[0m done": "  OK   done", "\x1b]0;title\x07x": "x", "\x1b]2;t\x1b\\x": "x", "\x1bcx\x1b(B": "x",
		"\x1b[2J\x1b[1;1Hx": "x", "plain": "plain", "\x1b[31": "\x1b[31",
	} {
		if got := escapes.ReplaceAllString(in, ""); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
