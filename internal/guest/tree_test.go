package guest_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/tree"
)

// What an agent reports on a copy is short, printable, and never a success that it
// does not claim.
func TestReportsOfLyingAgents(t *testing.T) {
	for _, c := range []struct {
		name, report string
		status       byte
		kind         mvm.Kind // "" is a *tree.Error
		text         string
	}{
		{"no report", "", 0, mvm.ErrBroken, "no report"},
		{"nonsense", "{{{", 0, mvm.ErrBroken, "no report"},
		{"endless", strings.Repeat("x\x1b[31m", 1<<16), 1, mvm.ErrUnavailable, "does not copy: x"},
		{"old", `mvm-agent: unknown command "pack"`, 1, mvm.ErrUnavailable, "unknown command"},
		{"a failure", `{"code":"source-not-found","path":"/x\u001b[31m","reason":"gone\u001b[31m\n"}`, 1, "", `"/x\x1b[31m": gone`},
		{"failure and success", `{"code":"other","reason":"no"}`, 0, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := liar{session: func(ch ssh.Channel, reqs <-chan *ssh.Request) {
				for r := range reqs {
					_ = r.Reply(true, nil)
					_, _ = ch.Stderr().Write([]byte(c.report))
					_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, c.status})
					_ = ch.Close()
				}
			}}.start(t)
			s, err := client.Tree(short(t, time.Minute), tree.Args([]string{"/x"}, tree.Target{}), nil, nil)
			if c.name == "failure and success" {
				if err != nil || s.Files != 0 {
					t.Errorf("%+v, %v", s, err)
				}
				return
			}
			var e *tree.Error
			if isTree := errors.As(err, &e); isTree != (c.kind == "") || !isTree && !errors.Is(err, c.kind) {
				t.Fatalf("%v", err)
			}
			if !strings.Contains(err.Error(), c.text) || strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 1000 {
				t.Errorf("%.300q", err)
			}
		})
	}
}
