package wire

import (
	"strings"
	"testing"
)

func TestServerVersion(t *testing.T) {
	for in, want := range map[string]string{
		"v1.2.3": "v1.2.3", "v1.2.3-4-gabc-dirty": "v1.2.3-4-gabc-dirty", "": "", "a b\nc\x1bü": "a_b_c__", strings.Repeat("x", 300): strings.Repeat("x", 64),
	} {
		server := ServerVersion(in)
		if strings.ContainsAny(server[len("SSH-2.0-"):], "- \n") || len(server) > 255 {
			t.Errorf("%q is no version string of SSH", server)
		}
		if got := AgentVersion(server); got != want {
			t.Errorf("%q came back as %q, want %q", in, got, want)
		}
	}
	if got := AgentVersion("SSH-2.0-OpenSSH_9.2p1 Debian-2"); got != "" {
		t.Errorf("an SSH server of another kind has version %q", got)
	}
}
