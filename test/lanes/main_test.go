package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// reported hands the lines to report, and returns what it printed.
func reported(t *testing.T, lanes string, lines ...string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lanes.txt")
	if err := os.WriteFile(file, []byte(lanes), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	err := run([]string{"report", file}, strings.NewReader(strings.Join(lines, "\n")), &out)
	return out.String(), err
}

func TestReport(t *testing.T) {
	const (
		passA  = `{"Action":"pass","Package":"p","Test":"TestA","Elapsed":1}`
		passB  = `{"Action":"pass","Package":"p","Test":"TestB"}`
		skipC  = `{"Action":"skip","Package":"p","Test":"TestC"}`
		failD  = `{"Action":"fail","Package":"p","Test":"TestD"}`
		subA   = `{"Action":"pass","Package":"p","Test":"TestA/one"}`
		otherA = `{"Action":"pass","Package":"q","Test":"TestA"}`
		pkgOK  = `{"Action":"pass","Package":"p"}`
		pkgBad = `{"Action":"fail","Package":"p"}`
	)
	for _, tc := range []struct {
		name, lanes string
		lines       []string
		want        []string
		not         []string
		fails       bool
	}{
		{
			"all pass", "", []string{passA, passB, pkgOK},
			[]string{"unit       2        0", "2 passed, 0 failed, 0 skipped"}, nil, false,
		},
		{
			"a parent is not counted beside its subtests", "", []string{subA, passA, otherA, pkgOK},
			[]string{"2 passed, 0 failed"}, nil, false,
		},
		{
			"a failure shows its output and its name", "",
			[]string{`{"Action":"output","Package":"p","Test":"TestD","Output":"it is wrong\n"}`, `{"Action":"output","Package":"p","Test":"TestA","Output":"all is well\n"}`, passA, failD, pkgBad},
			[]string{"it is wrong", "failed: p TestD", "1 passed, 1 failed"},
			[]string{"all is well"}, true,
		},
		{"a package that does not build", "", []string{passA, `{"Action":"build-output","Output":"x.go:1: syntax error\n"}`, `{"Action":"build-fail"}`}, []string{"syntax error"}, nil, true},
		{"a package that dies", "", []string{passA, `{"Action":"output","Package":"p","Output":"panic: no\n"}`, pkgBad}, []string{"panic: no"}, nil, true},
		{"no test at all", "", nil, []string{"0 passed"}, nil, true},
		{"only skipped", "", []string{skipC, pkgOK}, []string{"0 passed, 0 failed, 1 skipped"}, nil, true},
		{"no JSON is shown as it is", "", []string{passA, "go: cannot find module"}, []string{"go: cannot find module"}, nil, false},
		{"noise is left out", "", []string{passA, `{"Action":"output","Package":"p","Output":"PASS\n"}`, `{"Action":"output","Package":"p","Output":"?  q [no test files]\n"}`}, []string{"1 passed"}, []string{"PASS", "no test files"}, false},
		{
			"lanes in order, with reasons", "vm run x.test/TestA \nkernel skip x.test/TestC no root\nlab skip x.test/TestE no Firecracker\nlab skip x.test/TestF no Firecracker\n",
			[]string{passA, passB, skipC, pkgOK},
			[]string{"unit       1        0\nkernel     0        1\n         skipped 1: no root\nvm         1        0\nlab        0        2\n         skipped 2: no Firecracker\n"}, nil, false,
		},
		{
			"a test counts once, and a skip stays one", "kernel run x.test/TestC \nvm skip x.test/TestC no qemu\nkernel run x.test/TestC \nodd\n",
			[]string{passA, skipC, pkgOK},
			[]string{"vm         0        1\n         skipped 1: no qemu"}, []string{"kernel"}, false,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := reported(t, tc.lanes, tc.lines...)
			if (err != nil) != tc.fails {
				t.Errorf("the error is %v", err)
			}
			for _, w := range tc.want {
				if !strings.Contains(out, w) {
					t.Errorf("it does not say %q:\n%s", w, out)
				}
			}
			for _, w := range tc.not {
				if strings.Contains(out, w) {
					t.Errorf("it says %q:\n%s", w, out)
				}
			}
		})
	}
}

func TestReportNeedsTheLanes(t *testing.T) {
	if err := run([]string{"report", filepath.Join(t.TempDir(), "missing")}, strings.NewReader(""), &strings.Builder{}); err == nil {
		t.Error("a missing file is no error")
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"fly"}, {"report"}, {"state", "more"}} {
		if err := run(args, strings.NewReader(""), &strings.Builder{}); err == nil || !strings.Contains(err.Error(), "usage") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestStateIsStable(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("left", []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{".git", "bin"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "own"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	if err := state(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "file left 3\n") || !strings.Contains(out.String(), "link lo\n") {
		t.Errorf("it lacks the file or the link:\n%s", out.String())
	}
	if strings.Contains(out.String(), "/own") {
		t.Errorf("it lists what git and the build keep:\n%s", out.String())
	}
}
