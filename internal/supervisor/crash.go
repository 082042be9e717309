package supervisor

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
)

// crashFile, in the VM's directory, gets what Go's runtime says when the supervisor
// itself fails; that of the one before has oldCrash added.
const (
	crashFile = "supervisor.crash"
	oldCrash  = ".1"
)

// keepCrash has the words of a failure of this process kept. Without it they are lost,
// and the VM goes on all the same.
func keepCrash(dir string) {
	path := filepath.Join(dir, crashFile)
	if fi, err := os.Lstat(path); err == nil && fi.Size() > 0 {
		_ = os.Rename(path, path+oldCrash)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	_ = debug.SetCrashOutput(f, debug.CrashOptions{})
	_ = f.Close() // it has a descriptor of its own
}

// Failure returns why the supervisor of a VM failed, as Go's runtime has it, or ""
// where it did not: when it was killed, say. dir is the VM's.
func Failure(dir string) string {
	f, err := os.Open(filepath.Join(dir, crashFile))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	line, _ := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
	return strings.TrimSpace(line)
}
