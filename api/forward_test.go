package api

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

func TestParsePortForward(t *testing.T) {
	for in, want := range map[string]PortForward{
		"80":                  {"127.0.0.1", 80, 80},
		"8080:80":             {"127.0.0.1", 8080, 80},
		"0:80":                {"127.0.0.1", 0, 80},
		"0.0.0.0:8080:80":     {"0.0.0.0", 8080, 80},
		"[::1]:8080:80":       {"::1", 8080, 80},
		"127.0.0.1:65535:443": {"127.0.0.1", 65535, 443},
	} {
		got, err := ParsePortForward(in)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", ":", "0", "x", ":80", "80:", "8080:0", "65536:80", "80:65536", "::1:80:80", "host:80:80", "1:2:3", "-1:80", "8080:80:", "80:80/udp"} {
		if got, err := ParsePortForward(in); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
}

func TestSSHConfigText(t *testing.T) {
	c := SSHConfig{
		Host: "web", HostKeyAlias: "mvm-1", User: "root", ProxyCommand: "env 'A=x y%' mvm connect 1",
		IdentityFile: "/c d%/key", UserKnownHostsFile: "/c d%/known",
	}
	want := `Host web
  HostName mvm-1
  HostKeyAlias mvm-1
  User root
  ProxyCommand env 'A=x y%%' mvm connect 1
  IdentityFile "/c d%%/key"
  IdentitiesOnly yes
  UserKnownHostsFile "/c d%%/known"
  StrictHostKeyChecking yes
`
	if d := cmp.Diff(want, c.String()); d != "" {
		t.Error(d)
	}
}

func TestProxyPassesEndsOn(t *testing.T) {
	conn, other := relay(t)
	go func() { // answers when the whole question is there
		question, _ := io.ReadAll(other)
		_, _ = other.Write(bytes.ToUpper(question))
		_ = other.Close()
	}()
	var out bytes.Buffer
	proxy(conn, StreamIO{Stdin: strings.NewReader("question"), Stdout: &out})
	if out.String() != "QUESTION" {
		t.Errorf("%q", out.String())
	}
	conn2, gone := relay(t)
	_ = gone.Close()
	in, _ := io.Pipe()
	proxy(conn2, StreamIO{Stdin: in}) // returns though the input has no end
	if _, err := conn2.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is open: %v", err)
	}
}

func TestRunning(t *testing.T) {
	for _, c := range []struct {
		vm   mvm.VMInstanceItem
		kind error
		hint string
	}{
		{mvm.VMInstanceItem{Status: mvm.StatusRunning, HasAgent: true}, nil, ""},
		{mvm.VMInstanceItem{Status: mvm.StatusRunning}, nil, ""},
		{mvm.VMInstanceItem{Status: mvm.StatusPaused, HasAgent: true}, mvm.ErrConflict, "mvm vm resume web"},
		{mvm.VMInstanceItem{Status: mvm.StatusStopped, HasAgent: true}, mvm.ErrConflict, "mvm vm start web"},
	} {
		c.vm.Name = "web"
		if err := running(&c.vm); !errors.Is(err, c.kind) || !strings.Contains(mvm.HintOf(err), c.hint) {
			t.Errorf("%s: %v (%s)", c.vm.Status, err, mvm.HintOf(err))
		}
	}
}
