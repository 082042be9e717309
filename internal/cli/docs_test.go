package cli

import (
	"os"
	"path/filepath"
	"testing"
)

const cliDocs = "../../docs/cli"

// TestDocs holds the command reference against the commands.
func TestDocs(t *testing.T) {
	pages := Markdown()
	if os.Getenv("UPDATE_CLI_DOCS") != "" {
		if err := os.RemoveAll(cliDocs); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(cliDocs, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range pages {
			if err := os.WriteFile(filepath.Join(cliDocs, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	const renew = "make docs"
	for name, text := range pages {
		if got, err := os.ReadFile(filepath.Join(cliDocs, name)); err != nil || string(got) != text {
			t.Errorf("docs/cli/%s is not what the commands say (%v); run: %s", name, err, renew)
		}
	}
	there, err := filepath.Glob(filepath.Join(cliDocs, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range there {
		if pages[filepath.Base(path)] == "" {
			t.Errorf("%s is about a command that is not there; run: %s", path, renew)
		}
	}
}
