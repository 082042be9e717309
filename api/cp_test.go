package api

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/tree"
)

func TestCPPlaces(t *testing.T) {
	for in, want := range map[string]cpPlace{
		"file":                     {"", []string{"file"}},
		"/a/b:c":                   {"", []string{"/a/b:c"}},
		"./a:b":                    {"", []string{"./a:b"}},
		":x":                       {"", []string{":x"}},
		"web:/etc/hosts":           {"web", []string{"/etc/hosts"}},
		"web:":                     {"web", []string{"."}},
		"web:a:b":                  {"web", []string{"a:b"}},
		"172.27.0.2:/x":            {"172.27.0.2", []string{"/x"}},
		"02:FC:00:00:00:01:/x":     {"02:FC:00:00:00:01", []string{"/x"}},
		"02:fc:00:00:00:01":        {"02:fc:00:00:00:01", []string{"."}},
		"web:02:fc:00:00:00:01/xx": {"web", []string{"02:fc:00:00:00:01/xx"}},
	} {
		if d := cmp.Diff(want, cpParse(in), cmp.AllowUnexported(cpPlace{})); d != "" {
			t.Errorf("%q: %s", in, d)
		}
	}
	got := cpGroups([]string{"a", "web:b", "c", "db:d", "web:e"})
	want := []cpPlace{{"", []string{"a", "c"}}, {"web", []string{"b", "e"}}, {"db", []string{"d"}}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(cpPlace{})); d != "" {
		t.Error(d)
	}
}

func TestCPErrors(t *testing.T) {
	for code, c := range map[tree.Code]struct {
		kind mvm.Kind
		is   func(error) bool
	}{
		tree.NotFound: {mvm.ErrNotFound, func(err error) bool { var e *CPSourceNotFoundError; return errors.As(err, &e) }},
		tree.Exists:   {mvm.ErrExists, func(err error) bool { var e *CPDestinationExistsError; return errors.As(err, &e) }},
		tree.NotDir:   {mvm.ErrInvalid, func(err error) bool { var e *CPDestinationNotDirectoryError; return errors.As(err, &e) }},
		tree.Other:    {mvm.ErrUnavailable, func(err error) bool { return true }},
	} {
		for _, vm := range []string{"", "web"} {
			err := cpError(&tree.Error{Code: code, Path: "/x", Reason: "no"}, vm)
			var base *CPError
			place := strings.TrimPrefix(vm+":/x", ":")
			if !c.is(err) || !errors.As(err, &base) || base.VM != vm || base.Path != "/x" || !errors.Is(err, c.kind) || mvm.KindOf(err) != c.kind || mvm.HintOf(err) == "" {
				t.Errorf("%s in %q: %#v, kind %v, hint %q", code, vm, err, mvm.KindOf(err), mvm.HintOf(err))
			}
			if want := `cannot copy "` + place + `": no`; err.Error() != want {
				t.Errorf("%s: %q, want %q", code, err, want)
			}
		}
	}
	if err := cpError(nil, ""); err != nil {
		t.Error(err)
	}
}

func TestCPRefusesBadInput(t *testing.T) {
	o := &CPOperation{}
	for _, in := range []CPInput{{}, {Sources: []string{"a"}}, {Dst: "web:/x"}, {Sources: []string{"a"}, Dst: "b"}, {Sources: []string{"web:/x", "a"}, Dst: "b"}} {
		if _, err := o.Copy(t.Context(), in); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
			t.Errorf("%+v: %v", in, err)
		}
	}
}

func TestHostPath(t *testing.T) {
	for in, want := range map[string]string{"/a/b/": "/a/b/", "/": "/", "/a/../b": "/b"} {
		if got := hostPath(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
