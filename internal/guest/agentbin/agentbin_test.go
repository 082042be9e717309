package agentbin

import (
	"bytes"
	"testing"
)

func TestAgent(t *testing.T) {
	if _, ok := Agent("pdp11"); ok {
		t.Error("an agent for an architecture that nobody builds")
	}
	if _, ok := Agent("../bin/README"); ok {
		t.Error("the name of an architecture reached another file")
	}
	for _, arch := range []string{"amd64", "arm64"} {
		data, ok := Agent(arch)
		if !ok {
			continue // not built in; that is a supported build
		}
		if !bytes.HasPrefix(data, []byte("\x7fELF")) {
			t.Errorf("the agent for %s is no ELF file", arch)
		}
		if len(data) > 8<<20 {
			t.Errorf("the agent for %s has %d bytes, more than 8 MiB", arch, len(data))
		}
	}
}
