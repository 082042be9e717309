package cli

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// The wizard asks about what is not there, and takes each answer.
func TestInitWizard(t *testing.T) {
	t.Setenv("MVM_CACHE_DIR", t.TempDir())
	t.Setenv("MVM_CONFIG_DIR", t.TempDir())
	keyboard, tty := openPTY(t)
	a := ptyApp(tty)
	root := newRoot(a)
	root.SetArgs([]string{"init"})
	answers := []string{"n\n", "n\n", "none\n", "none\n"}
	questions := []string{"Set the host up", "Make the default network", "Which kernel to get?", "Which image to get?"}
	seen := make(chan string, 1)
	go func() { // the person at the keyboard
		var all bytes.Buffer
		buf := make([]byte, 4096)
		for {
			n, err := keyboard.Read(buf)
			all.Write(buf[:n])
			for len(questions) > 0 && strings.Contains(all.String(), questions[0]) {
				_, _ = io.WriteString(keyboard, answers[0])
				questions, answers = questions[1:], answers[1:]
			}
			if err != nil || strings.Contains(all.String(), "mvm vm create NAME") {
				seen <- all.String()
				return
			}
		}
	}()
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	text := <-seen
	for _, want := range []string{"mvm keeps everything in", "Set the host up", "Which image", "database", "mvm kernel pull debian"} {
		if !strings.Contains(text, want) {
			t.Errorf("the wizard did not say %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "bridge mvm-default") {
		t.Errorf("the network was made although the answer was no:\n%s", text)
	}
}
