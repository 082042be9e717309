package fsx

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWatchDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	must(t, os.Mkdir(dir, 0o755))
	names := make(chan string, 100)
	must(t, WatchDir(dir, func(name string) { names <- name }))
	must(t, os.WriteFile(filepath.Join(dir, "made"), nil, 0o600))
	must(t, SwapFile(filepath.Join(dir, "swapped"), []byte("x"), 0o640))
	seen := map[string]bool{}
	for !seen["made"] || !seen["swapped"] {
		seen[<-names] = true
	}
	if st, err := os.Stat(filepath.Join(dir, "swapped")); err != nil || st.Mode() != 0o640 || st.Size() != 1 {
		t.Errorf("the swapped file is %+v, %v", st, err)
	}
	must(t, os.RemoveAll(dir))
	for name := range names {
		if name == "" {
			break
		}
	}
	if err := WatchDir(dir, func(string) {}); err == nil {
		t.Error("a directory that is gone is watched")
	}
}
