package kernel

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

func TestDebianReal(t *testing.T) {
	requireApt(t)
	dir := t.TempDir()
	if d := os.Getenv("KDIR"); d != "" {
		dir = d
	}
	o := DebianOptions{Runner: &run.Host{}, WorkDir: filepath.Join(dir, "debs"), DestDir: filepath.Join(dir, "kernels"),
		Progress: func(e mvm.ProgressEvent) { t.Logf("%s: %s", e.Phase, e.Message) }}
	begin := time.Now()
	p, err := Debian(context.Background(), o)
	if err != nil {
		t.Fatal(err, mvm.HintOf(err))
	}
	t.Logf("pulled in %v: %+v", time.Since(begin), p)
	info, err := Inspect(p.Vmlinux)
	t.Logf("%+v %v", info, err)
	for _, fs := range []string{"ext4", "xfs", "btrfs", ""} {
		begin = time.Now()
		paths, err := BootModules(p.ModulesDir, fs)
		if err != nil {
			t.Fatal(err)
		}
		var n []string
		var size int64
		for _, p := range paths {
			n = append(n, ModuleName(p))
			st, _ := os.Stat(p)
			size += st.Size()
		}
		t.Log(fs, time.Since(begin), size, strings.Join(n, " "))
	}
}

func requireApt(t *testing.T) {
	t.Helper()
}
