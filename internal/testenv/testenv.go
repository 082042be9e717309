// Package testenv decides which tests can run here. A test names what it needs;
// where that is missing it is skipped with the sentence that `mvm host status`
// has for it. It is for tests only.
package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/host"
)

// FirecrackerVariable names the environment variable with the path of a real
// Firecracker, for the lab lane.
const FirecrackerVariable = "MVM_TEST_FIRECRACKER"

// needs are the names that Require knows: each returns why it is missing, or "".
var needs = map[string]func() string{
	"root": func() string {
		if os.Geteuid() != 0 {
			return "this needs root"
		}
		return ""
	},
	"netns":  func() string { return host.CheckNetNS().What },
	"userns": func() string { return host.CheckUserNS().What },
	"kvm":    func() string { return host.CheckKVM().Problem.What },
	"firecracker": func() string {
		path := os.Getenv(FirecrackerVariable)
		if path == "" {
			return FirecrackerVariable + " names no Firecracker"
		}
		if unix.Access(path, unix.X_OK) != nil {
			return path + " cannot be executed"
		}
		return ""
	},
	"qemu":       program("qemu-system-x86_64", "qemu-system-x86"),
	"qemu-img":   program("qemu-img", "qemu-utils"),
	"qemu-disks": program("qemu-storage-daemon", "qemu-system-common"),
	"mmdebstrap": program("mmdebstrap", "mmdebstrap"),
	"e2fsprogs":  program("mke2fs", "e2fsprogs"),
	"squashfs":   program("sqfs2tar", "squashfs-tools-ng"),
	"apt":        program("apt-get", "apt"),
	"ssh":        program("ssh-keygen", "openssh-client"),
	"rsync":      program("rsync", "rsync"),
	"dropbear":   program("dropbearkey", "dropbear-bin"),
	"cpio":       program("cpio", "cpio"),
	"nft":        program("nft", "nftables"),
	"ip":         program("ip", "iproute2"),
	"sudo":       program("sudo", "sudo"),
	"firewalld":  all(program("firewalld", "firewalld"), program("dbus-daemon", "dbus-daemon")),
	"rpm":        program("rpm", "rpm"),
	"sfdisk":     program("sfdisk", "fdisk"),
	"xfsprogs":   program("mkfs.xfs", "xfsprogs"),
	"bzip2":      program("bzip2", "bzip2"),

	"btrfs-progs": program("mkfs.btrfs", "btrfs-progs"),
	"cargo":       all(program("cargo", "cargo"), program("git", "git"), program("cc", "gcc")),
	"kernel-build": all(program("make", "make"), program("gcc", "gcc"), program("flex", "flex"), program("bison", "bison"), program("bc", "bc"),
		program("xz", "xz-utils"), header("libelf.h", "libelf-dev")),
	"busybox": program("apt-get", "apt"), // it is fetched as a package, and not installed
}

func program(name, pkg string) func() string {
	return func() string {
		if host.Has(name) {
			return ""
		}
		return fmt.Sprintf("the program %s is not installed (package %s)", name, pkg)
	}
}

// header is what a compiler needs of a library.
func header(name, pkg string) func() string {
	return func() string {
		if _, err := os.Stat(filepath.Join("/usr/include", name)); err != nil {
			return fmt.Sprintf("the header %s is not installed (package %s)", name, pkg)
		}
		return ""
	}
}

// all needs several things; the first that is missing is told.
func all(checks ...func() string) func() string {
	return func() string {
		for _, check := range checks {
			if why := check(); why != "" {
				return why
			}
		}
		return ""
	}
}

// Require skips the test unless all that is named is here. What the environment
// variable MVM_TEST_REQUIRE lists has to be here: then it fails instead. A name
// there that is none fails too, for it would require nothing.
func Require(t testing.TB, names ...string) {
	t.Helper()
	required := strings.FieldsFunc(os.Getenv("MVM_TEST_REQUIRE"), func(r rune) bool { return r == ',' || r == ' ' })
	for _, n := range required {
		if needs[n] == nil {
			t.Fatalf("MVM_TEST_REQUIRE names %q, which testenv does not know", n)
		}
	}
	for _, n := range names {
		check, ok := needs[n]
		if !ok {
			t.Fatalf("testenv knows no %q", n)
		}
		why := check()
		if why == "" {
			continue
		}
		note(t, names, "skip", why)
		if slices.Contains(required, n) {
			t.Fatalf("%s is required here: %s", n, why)
		}
		t.Skipf("skipped: %s", why)
	}
	note(t, names, "run", "")
}

// lane says which lane a test with these needs belongs to.
func lane(names []string) string {
	switch {
	case slices.Contains(names, "firecracker"):
		return "lab"
	case slices.Contains(names, "qemu"):
		return "vm"
	}
	return "kernel"
}

// note appends the outcome to the file that MVM_TEST_LANES names, one line a
// test: LANE run|skip TEST REASON. Appending one line is atomic.
func note(t testing.TB, names []string, how, why string) {
	path := os.Getenv("MVM_TEST_LANES")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Logf("the lane cannot be noted: %v", err)
		return
	}
	defer func() { _ = f.Close() }()
	_, _ = fmt.Fprintf(f, "%s %s %s/%s %s\n", lane(names), how, filepath.Base(os.Args[0]), t.Name(), why)
}
