package binary

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// project is a git repository with a workspace of two packages, as Firecracker has
// it, whose programs answer --version. Its tags: v1.2.3, broken (does not compile),
// liar (a jailer of another version).
func project(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	git := func(args ...string) {
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	program := func(pkg, says string) {
		put("src/"+pkg+"/Cargo.toml", "[package]\nname = \""+pkg+"\"\nversion = \"0.1.0\"\nedition = \"2021\"\n")
		put("src/"+pkg+"/src/main.rs", "fn main() { println!(\""+says+"\"); println!(); }\n")
	}
	put("Cargo.toml", "[workspace]\nmembers = [\"src/firecracker\", \"src/jailer\"]\n")
	put("Cargo.lock", "version = 3\n\n[[package]]\nname = \"firecracker\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"jailer\"\nversion = \"0.1.0\"\n")
	program("firecracker", "Firecracker v1.2.3-dev")
	program("jailer", "Jailer v1.2.3-dev")
	git("init", "--quiet")
	commit := func(tag string) { git("add", "-A"); git("commit", "--quiet", "-m", tag); git("tag", tag) }
	commit("v1.2.3")
	program("jailer", "Jailer v1.2.4")
	commit("liar")
	put("src/jailer/src/main.rs", "fn main() { this is no Rust }\n")
	commit("broken")
	return dir
}

func TestBuildFromGit(t *testing.T) {
	testenv.Require(t, "cargo")
	dir := t.TempDir()
	o := BuildOptions{
		Dir: filepath.Join(dir, "bin"), Repository: project(t), BuildDir: filepath.Join(dir, "tmp", "build"), LogDir: filepath.Join(dir, "logs"), Runner: &run.Host{},
	}
	rel, _, err := BuildFirecracker(t.Context(), "v1.2.3", o)
	if err != nil {
		t.Fatal(err)
	}
	if rel.Version != "1.2.3-dev" || rel.Verification != mvm.VerifiedLocal || !strings.Contains(rel.Source, "#v1.2.3@") {
		t.Errorf("got %+v", rel)
	}
	for path, name := range map[string]string{rel.Firecracker: "Firecracker", rel.Jailer: "Jailer"} {
		if v, err := Version(t.Context(), o.Runner, path, name); err != nil || v != "1.2.3-dev" {
			t.Errorf("%s says %q, %v", path, v, err)
		}
	}
	if _, err := os.Stat(o.BuildDir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the build directory is left")
	}
	before := names(t, o.Dir)
	for _, tt := range []struct {
		name, ref string
		change    func(*BuildOptions)
		kind      mvm.Kind
		say       string
	}{
		{name: "does not compile", ref: "broken", kind: mvm.ErrBroken, say: "error"},
		{name: "two versions", ref: "liar", kind: mvm.ErrBroken, say: "1.2.4"},
		{name: "no such reference", ref: "v9.9.9", kind: mvm.ErrNotFound, say: "v9.9.9"},
		{name: "an option", ref: "--upload-pack=x", kind: mvm.ErrInvalid},
		{name: "a path", ref: "../../x", kind: mvm.ErrInvalid},
		{name: "no repository", ref: "v1.2.3", change: func(o *BuildOptions) { o.Repository = filepath.Join(dir, "none") }, kind: mvm.ErrUnavailable, say: "repository"},
		{name: "a repository that runs a program", ref: "v1.2.3", change: func(o *BuildOptions) { o.Repository = "ext::sh -c true" }, kind: mvm.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := o
			if tt.change != nil {
				tt.change(&o)
			}
			rel, _, err := BuildFirecracker(t.Context(), tt.ref, o)
			if !errors.Is(err, tt.kind) || mvm.HintOf(err) == "" || !strings.Contains(err.Error(), tt.say) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %+v, %v (hint %q); want kind %q saying %q", rel, err, mvm.HintOf(err), tt.kind, tt.say)
			}
			if now := names(t, o.Dir); now != before {
				t.Errorf("the binaries are %s, and were %s", now, before)
			}
			var failed *mvm.BuildError
			if errors.As(err, &failed) {
				if _, err := os.Stat(failed.Log); err != nil || len(failed.Tail) == 0 {
					t.Errorf("log %v, tail %q", err, failed.Tail)
				}
			}
		})
	}
}

func TestMissingToolsAreNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, _, err := BuildFirecracker(t.Context(), "v1.2.3", BuildOptions{Dir: t.TempDir(), Runner: &run.Host{}})
	if !errors.Is(err, mvm.ErrUnavailable) || !strings.Contains(err.Error(), "git, cargo, rustc") || !strings.HasPrefix(mvm.HintOf(err), "apt-get install git cargo rustc gcc") {
		t.Errorf("got %v (hint %q)", err, mvm.HintOf(err))
	}
}

func TestShown(t *testing.T) {
	for in, want := range map[string]string{"https://u:secret@h/r.git": "https://h/r.git", "/srv/r.git": "/srv/r.git", "https://h/r": "https://h/r"} {
		if got := shown(in); got != want {
			t.Errorf("%s is shown as %s", in, got)
		}
	}
}

func FuzzVersionLine(f *testing.F) {
	f.Add("Firecracker v1.16.1")
	f.Add("Jailer v1.2.3-dev+x")
	f.Add("Firecracker v1.2.3/../../x")
	f.Fuzz(func(t *testing.T, line string) {
		if m := versionLine.FindStringSubmatch(line); m != nil && strings.ContainsAny(m[1], "/\x00\n ") {
			t.Errorf("a version leads elsewhere: %q", m[1])
		}
	})
}
