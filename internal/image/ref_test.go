package image

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

func TestParseRef(t *testing.T) {
	for in, want := range map[string]Ref{
		"tiny": {"tiny", "1"}, "tiny:1": {"tiny", "1"},
		"debian:12": {"debian", "12"}, "debian:bookworm": {"debian", "12"}, "ubuntu:24.04": {"ubuntu", "24.04"}, "ubuntu:noble": {"ubuntu", "24.04"},
		"debian:latest": {"debian", "13"},
	} {
		got, err := ParseRef(in)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v %s", in, err, d)
		}
	}
	for in, want := range map[string]error{
		"": mvm.ErrInvalid, ":": mvm.ErrInvalid, "debian:": mvm.ErrInvalid, "../x": mvm.ErrInvalid, "debian:../12": mvm.ErrInvalid,
		"Debian": mvm.ErrInvalid, "debian:12\n": mvm.ErrInvalid, "slackware": mvm.ErrNotFound, "debian:99": mvm.ErrNotFound, "debian:tiny": mvm.ErrNotFound,
	} {
		if got, err := ParseRef(in); !errors.Is(err, want) || mvm.HintOf(err) == "" {
			t.Errorf("%q: %v, %v, want %v with a hint", in, got, err, want)
		}
	}
}

func TestUnnamedVersion(t *testing.T) {
	for name, c := range map[string]struct{ host, want Ref }{
		"the host's own": {Ref{"debian", "12"}, Ref{"debian", "12"}},
		"another host":   {Ref{"ubuntu", "24.04"}, Ref{"debian", "13"}},
		"unknown host":   {Ref{"debian", "7"}, Ref{"debian", "13"}},
	} {
		got, err := Ref{Type: "debian"}.on(c.host)
		if d := cmp.Diff(c.want, got); err != nil || d != "" {
			t.Errorf("%s: %v %s", name, err, d)
		}
	}
}

func TestParseRelease(t *testing.T) {
	got := parseRelease("NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n")
	if d := cmp.Diff(Ref{"debian", "12"}, got); d != "" {
		t.Error(d)
	}
}

func TestCheckPackages(t *testing.T) {
	debian := Ref{Type: "debian", Version: "12"}
	for _, c := range []struct {
		ref   Ref
		names []string
		ok    bool
	}{
		{debian, nil, true},
		{debian, []string{"cloud-init", "g++", "libstdc++6"}, true},
		{Ref{Type: Tiny}, nil, true},
		{Ref{Type: Tiny}, []string{"rsync"}, false},
		{debian, []string{""}, false},
		{debian, []string{"a b"}, false},
		{debian, []string{"--option"}, false},
		{debian, []string{"rsync\n"}, false},
		{debian, []string{"rsync", "../x"}, false},
		{debian, []string{"a,b"}, false},
	} {
		if err := CheckPackages(c.ref, c.names); (err == nil) != c.ok || err != nil && (!errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "") {
			t.Errorf("%v with %q: %v", c.ref, c.names, err)
		}
	}
}
