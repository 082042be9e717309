// Package packaging makes the packages as a release does, installs them below a
// directory of their own, uses what is in them, and removes them again.
package packaging

import (
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/testenv"
)

const version = "9.8.7"

// TestPackages makes everything twice, since the same source has to make the same
// bytes.
func TestPackages(t *testing.T) {
	testenv.Require(t, "root", "rpm")
	dir, again := t.TempDir(), t.TempDir()
	dist(t, dir)
	dist(t, again)
	if a, b := sums(t, dir), sums(t, again); a != b {
		t.Errorf("made twice, the packages differ:\n%s\n%s", a, b)
	}
	for _, kind := range []string{"deb", "rpm", "tar.gz"} {
		t.Run(kind, func(t *testing.T) {
			root := t.TempDir()
			file := filepath.Join(dir, "mvm_"+version+"_linux_amd64."+kind)
			install, remove := commands(t, kind, root, file)
			before := tree(t, root)
			command(t, install...)
			use(t, root)
			command(t, remove...)
			if left := tree(t, root); !slices.Equal(left, before) {
				t.Errorf("after the removal there are %q, before the installation there were %q", left, before)
			}
		})
	}
}

func dist(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "../../packaging/dist", dir)
	cmd.Env = append(os.Environ(), "VERSION="+version, "ARCHS=amd64", "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("packaging/dist: %v\n%s", err, out)
	}
}

func sums(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil || strings.Count(string(data), "\n") != 3 {
		t.Fatalf("SHA256SUMS: %v\n%s", err, data)
	}
	return string(data)
}

// commands install and remove a package below a directory. Dependencies are left
// to the distribution: there is none below the directory.
func commands(t *testing.T, kind, root, file string) (install, remove []string) {
	t.Helper()
	switch kind {
	case "deb":
		for _, dir := range []string{"info", "updates"} {
			if err := os.MkdirAll(filepath.Join(root, "var/lib/dpkg", dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		dpkg := []string{"dpkg", "--root=" + root, "--log=/dev/null", "--force-depends"}
		return append(slices.Clone(dpkg), "--install", file), append(slices.Clone(dpkg), "--purge", "mvm")
	case "rpm":
		rpm := []string{"rpm", "--root", root, "--dbpath", "/var/lib/rpm"}
		return append(slices.Clone(rpm), "--install", "--nodeps", "--ignorearch", file), append(slices.Clone(rpm), "--erase", "mvm")
	}
	usr := filepath.Join(root, "usr")
	if err := os.Mkdir(usr, 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{"tar", "-C", usr, "-xzf", file}, []string{"find", usr, "-mindepth", "1", "-delete"}
}

// use does with the installed files what a user and the shells do.
func use(t *testing.T, root string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "usr/bin/mvm"), "version")
	cmd.Env = []string{"HOME=" + t.TempDir()}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "mvm "+version+"\n" {
		t.Errorf("mvm version: %v %q", err, out)
	}
	page, err := os.Open(filepath.Join(root, "usr/share/man/man1/mvm-vm-create.1.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close() //nolint:errcheck // it is only read
	z, err := gzip.NewReader(page)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(z); err != nil || !strings.Contains(string(text), "mvm vm create web") {
		t.Errorf("the manual page of 'vm create' has no example (%v)", err)
	}
	script := filepath.Join(root, "usr/share/bash-completion/completions/mvm")
	out := command(t, "bash", "-c", `source "$0"; complete -p mvm`, script)
	if !strings.Contains(out, "__start_mvm") {
		t.Errorf("bash completes mvm by %q", out)
	}
}

func command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// tree lists the files below a directory, but for what package managers keep for
// themselves.
func tree(t *testing.T, root string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		if name == "/var" {
			return filepath.SkipDir
		}
		if !d.IsDir() {
			list = append(list, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
