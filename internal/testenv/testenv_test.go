package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// spy is a test that is run by Require, and remembers how it ended.
type spy struct {
	testing.TB
	skipped, failed string
}

func (s *spy) Helper()             {}
func (s *spy) Name() string        { return "TestSpy" }
func (s *spy) Logf(string, ...any) {}

func (s *spy) Skipf(format string, args ...any) {
	s.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (s *spy) Fatalf(format string, args ...any) {
	s.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// require calls Require as a test would.
func require(t *testing.T, names ...string) *spy {
	t.Helper()
	s := &spy{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Require(s, names...)
	}()
	<-done
	return s
}

// pretend adds needs that are there, or not, for one test.
func pretend(t *testing.T, reasons map[string]string) {
	t.Helper()
	for name, why := range reasons {
		needs[name] = func() string { return why }
		t.Cleanup(func() { delete(needs, name) })
	}
}

func TestRequire(t *testing.T) {
	pretend(t, map[string]string{"here": "", "gone": "the thing is not here"})
	for _, tc := range []struct {
		name, required  string
		needs           []string
		skipped, failed string
	}{
		{"all there", "", []string{"here"}, "", ""},
		{"nothing needed", "", nil, "", ""},
		{"one missing", "", []string{"here", "gone"}, "skipped: the thing is not here", ""},
		{"unknown", "", []string{"flux"}, "", `testenv knows no "flux"`},
		{"required and there", "here", []string{"here"}, "", ""},
		{"a list with blanks", " here, gone", []string{"gone"}, "", "gone is required here: the thing is not here"},
		{"a mistake in the list", "here,flux", []string{"here"}, "", `MVM_TEST_REQUIRE names "flux", which testenv does not know`},
		{"required and missing", "here,gone", []string{"gone"}, "", "gone is required here: the thing is not here"},
		{"another is required", "here", []string{"gone"}, "skipped: the thing is not here", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("MVM_TEST_REQUIRE", tc.required)
			t.Setenv("MVM_TEST_LANES", "")
			if s := require(t, tc.needs...); s.skipped != tc.skipped || s.failed != tc.failed {
				t.Errorf("skipped %q, failed %q; want %q, %q", s.skipped, s.failed, tc.skipped, tc.failed)
			}
		})
	}
}

func TestNotes(t *testing.T) {
	pretend(t, map[string]string{"here": "", "gone": "the thing is not here"})
	file := filepath.Join(t.TempDir(), "lanes")
	t.Setenv("MVM_TEST_LANES", file)
	t.Setenv("MVM_TEST_REQUIRE", "")
	require(t, "here")
	require(t, "here", "gone")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	test := filepath.Base(os.Args[0]) + "/TestSpy"
	want := "kernel run " + test + " \nkernel skip " + test + " the thing is not here\n"
	if string(data) != want {
		t.Errorf("got:\n%s\nwant:\n%s", data, want)
	}
	t.Setenv("MVM_TEST_LANES", filepath.Join(file, "impossible"))
	if s := require(t, "here"); s.failed != "" || s.skipped != "" {
		t.Errorf("a note that cannot be written ends the test: %+v", s)
	}
}

func TestLanes(t *testing.T) {
	for names, want := range map[string]string{
		"root": "kernel", "root netns": "kernel", "qemu": "vm", "root qemu": "vm", "kvm": "kernel", "qemu firecracker": "lab", "firecracker": "lab",
	} {
		if got := lane(strings.Fields(names)); got != want {
			t.Errorf("%s is lane %s, want %s", names, got, want)
		}
	}
}

func TestNeeds(t *testing.T) {
	for _, name := range strings.Fields("root netns qemu kvm firecracker mmdebstrap e2fsprogs apt ssh userns") {
		if needs[name] == nil {
			t.Errorf("%s is unknown", name)
		}
	}
	if why := program("mvm-no-such-program", "some-package")(); !strings.Contains(why, "mvm-no-such-program") || !strings.Contains(why, "some-package") {
		t.Errorf("a missing program: %q", why)
	}
	plain := filepath.Join(t.TempDir(), "firecracker")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"": FirecrackerVariable, plain: "cannot be executed", "/bin/sh": ""} {
		t.Setenv(FirecrackerVariable, path)
		if why := needs["firecracker"](); (why == "") != (want == "") || !strings.Contains(why, want) {
			t.Errorf("firecracker at %q: %q", path, why)
		}
	}
}
