package image

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

func TestRenderSources(t *testing.T) {
	ts := parseTargets(`Debian|http://m/debian/|bookworm|main
Debian|http://m/debian/|bookworm|contrib
Debian|http://m/debian/|bookworm-updates|main
Debian|http://m/debian-security/|bookworm-security|main
Debian Backports|http://m/debian/|bookworm-backports|main
Docker|http://docker/|bookworm|main
$(ORIGIN)|http://new/debian|bookworm|main
Debian|http://m/debian/|trixie|main
Debian|http://m/debian/ [trusted=yes]|bookworm|main
garbage
`)
	want := "deb http://m/debian/ bookworm main\ndeb http://m/debian/ bookworm-updates main\ndeb http://m/debian-security/ bookworm-security main\ndeb http://new/debian bookworm main\n"
	if d := cmp.Diff(want, renderSources(ts, "Debian", "bookworm", "bookworm")); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(strings.ReplaceAll(want, "bookworm", "trixie"), renderSources(ts, "Debian", "bookworm", "trixie")); d != "" {
		t.Error(d)
	}
	if got := renderSources(nil, "Debian", "bookworm", "bookworm"); got != "" {
		t.Errorf("no targets: %q", got)
	}
}

func TestMirrorLines(t *testing.T) {
	for in, want := range map[string]string{
		"https://m/debian":                              "deb https://m/debian bookworm main\n",
		" file:/srv/mirror\n":                           "deb file:/srv/mirror bookworm main\n",
		"deb [signed-by=/k] http://m/d bookworm main":   "deb [signed-by=/k] http://m/d bookworm main\n",
		"deb http://a b main\ndeb http://a b-sec main ": "deb http://a b main\ndeb http://a b-sec main\n",
	} {
		got, err := mirrorLines(in, "bookworm", []string{"main"})
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%q: %v %s", in, err, d)
		}
	}
	for _, in := range []string{"nonsense", "http://", "ftp://m/debian", "http://m/ x\ndeb http://evil y z", "http://m [trusted=yes]", "-"} {
		if got, err := mirrorLines(in, "bookworm", []string{"main"}); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestSecretsStayOnTheHost(t *testing.T) {
	in := "deb [arch=amd64 signed-by=/root/k.gpg] https://user:secret@m/debian bookworm main\ndeb http://m/debian bookworm-updates main\ndeb [broken\n"
	want := "deb [signed-by=/k.gpg] https://m/debian bookworm main\ndeb [signed-by=/k.gpg] http://m/debian bookworm-updates main\n"
	if d := cmp.Diff(want, withoutSecrets(in, "/k.gpg")); d != "" {
		t.Error(d)
	}
}

// aptHost answers as the package client of a host with these sources.
type aptHost struct{ targets, proxy string }

func (h aptHost) Run(_ context.Context, c run.Cmd) (run.Result, error) {
	switch c.Name {
	case "apt-get":
		return run.Result{Stdout: []byte(h.targets)}, nil
	case "apt-config":
		return run.Result{Stdout: []byte(h.proxy)}, nil
	}
	return run.Result{}, mvm.Errorf(mvm.ErrUnavailable, "the program %s is not installed", c.Name).WithHint("apt-get install %s", c.Name)
}

func TestFindSources(t *testing.T) {
	t.Setenv("MVM_DEBIAN_MIRROR", "")
	t.Setenv("MVM_UBUNTU_MIRROR", "")
	bookworm, _ := Ref{"debian", "12"}.entry()
	h := aptHost{proxy: "Acquire::http::Proxy \"http://p:1\";\nAcquire::https::Proxy \"\";\nother\n"}

	s, err := findSources(t.Context(), h, bookworm, "deb [signed-by=/k] http://m/d bookworm main")
	if d := cmp.Diff([]string{`Acquire::http::Proxy "http://p:1";`}, s.aptOptions); err != nil || d != "" {
		t.Error(err, d)
	}
	t.Setenv("MVM_DEBIAN_MIRROR", "deb [trusted=yes] http://env/d bookworm main")
	if s, err := findSources(t.Context(), h, bookworm, ""); err != nil || !strings.Contains(s.list, "http://env/d") {
		t.Errorf("%q, %v", s.list, err)
	}
	t.Setenv("MVM_DEBIAN_MIRROR", "")
	// A host of another distribution, or whose sources have nothing that fits.
	for _, ref := range []Ref{{"debian", "12"}, {"ubuntu", "24.04"}} {
		e, err := ref.entry()
		if err != nil {
			t.Fatal(err)
		}
		_, err = findSources(t.Context(), aptHost{}, e, "")
		if err == nil || mvm.HintOf(err) == "" || !strings.Contains(mvm.HintOf(err), "_MIRROR") {
			t.Errorf("%s: %v (hint %q)", ref, err, mvm.HintOf(err))
		}
	}
}

func TestBuildDistroSaysWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	_, err := Build(t.Context(), Ref{"debian", "12"}, Options{Runner: aptHost{}, Cache: dir, Dest: dir + "/images/x"})
	if !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) != "apt-get install mmdebstrap" {
		t.Errorf("%v (hint %q)", err, mvm.HintOf(err))
	}
	if _, err := BuildTiny(t.Context(), Options{Runner: aptHost{}, Cache: dir, Dest: "/proc/no/such/x"}); !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" {
		t.Errorf("a place that cannot be written: %v", err)
	}
	if _, err := BuildDistro(t.Context(), Ref{Type: Tiny}, Options{Runner: aptHost{}, Dest: dir + "/images/y"}); !errors.Is(err, mvm.ErrInvalid) {
		t.Error(err)
	}
}

func TestPhases(t *testing.T) {
	var got []string
	p := &phases{send: func(e mvm.ProgressEvent) { got = append(got, e.Message) }}
	for _, s := range []string{"I: running apt-get up", "date...\nnoise\nE: apt-get \x1b[2Jfailed\nE: mmdebstrap failed to run\n", strings.Repeat("x", maxSaid+1), "\nI: done\n"} {
		if n, err := p.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if d := cmp.Diff([]string{"running apt-get update", "done"}, got); d != "" {
		t.Error(d)
	}
	if p.cause() != "apt-get [2Jfailed" {
		t.Errorf("%q", p.cause())
	}
}

func TestTrimScriptQuotes(t *testing.T) {
	e, _ := Ref{"debian", "12"}.entry()
	// What a shell would act on is within quotes.
	s := trimScript(e, sources{list: "deb http://m/$(touch${IFS}evil)/`id` bookworm main's\n"})
	if !strings.Contains(s, `printf '%s' 'deb [signed-by=`) || !strings.Contains(s, `bookworm main'\''s`) {
		t.Error("the sources are not quoted")
	}
	distro, n := trimReport("release debian 12\npoint 12.15\npackages 149\npoint $(x)\n", e)
	if distro != "debian 12.15" || n != 149 {
		t.Error(distro, n)
	}
	if distro, n := trimReport("point 12\x1b.1\npackages 99999999999999999999\n", e); distro != "debian 12" || n != 0 {
		t.Error(distro, n)
	}
}
