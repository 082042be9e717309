package host

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// KVMModules names the module that makes this CPU virtualise; none where it does not.
func KVMModules() []string {
	switch flags := " " + strings.ReplaceAll(CPU(), "\n", " ") + " "; {
	case strings.Contains(flags, " vmx "):
		return []string{"kvm_intel"}
	case strings.Contains(flags, " svm "):
		return []string{"kvm_amd"}
	}
	return nil
}

// Loadable reports whether the running kernel has a module as a file (depmod(8):
// modules.dep). One that is built in has none.
func Loadable(name string) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	return loadable("/lib/modules/"+unix.ByteSliceToString(u.Release[:])+"/modules.dep", name)
}

func loadable(dep, name string) bool {
	f, err := os.Open(dep)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		path, _, _ := strings.Cut(s.Text(), ":")
		file, _, _ := strings.Cut(filepath.Base(path), ".ko")
		if strings.ReplaceAll(file, "-", "_") == name {
			return true
		}
	}
	return false
}
