package mvm_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/mvmctl/mvm"
)

func TestErrorText(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  *mvm.Error
		want string
	}{
		{"all", mvm.Errorf(mvm.ErrBusy, "cause %d", 7).On("stop VM", "web"), `cannot stop VM "web": cause 7`},
		{"no subject", mvm.Errorf(mvm.ErrBusy, "cause").On("list", ""), "cannot list: cause"},
		{"no op", &mvm.Error{Kind: mvm.ErrBusy, Subject: "web"}, `"web": busy`},
		{"kind alone", &mvm.Error{Kind: mvm.ErrNotFound}, "not found"},
		{"cause alone", mvm.Errorf(mvm.ErrInvalid, "cause"), "cause"},
		{"the hint is left out", mvm.Errorf(mvm.ErrInvalid, "cause").WithHint("do this"), "cause"},
		{"hostile subject", mvm.Errorf(mvm.ErrInvalid, "cause").On("stop", "a\x1b[2J"), `cannot stop "a\x1b[2J": cause`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.err.Error(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestErrorMatches(t *testing.T) {
	cause := errors.New("the disk is full")
	err := error(mvm.Errorf(mvm.ErrUnavailable, "cannot write: %w", cause))
	if !errors.Is(err, mvm.ErrUnavailable) || !errors.Is(err, cause) || errors.Is(err, mvm.ErrBusy) {
		t.Errorf("%v matches the wrong things", err)
	}
	if bare := error(&mvm.Error{Kind: mvm.ErrBusy}); !errors.Is(bare, mvm.ErrBusy) {
		t.Error("an error without a cause does not match its kind")
	}
}

func TestKindOf(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want mvm.Kind
	}{
		{"of an Error", mvm.Errorf(mvm.ErrBusy, "x"), mvm.ErrBusy},
		{"of a kind", mvm.ErrExists, mvm.ErrExists},
		{"wrapped", fmt.Errorf("more: %w", mvm.Errorf(mvm.ErrBusy, "x")), mvm.ErrBusy},
		{"the outer one counts", mvm.Errorf(mvm.ErrBroken, "y: %w", mvm.Errorf(mvm.ErrBusy, "x")), mvm.ErrBroken},
		{"joined: the first", errors.Join(errors.New("x"), mvm.ErrInvalid, mvm.ErrBusy), mvm.ErrInvalid},
		{"interaction", &mvm.NeedsInteraction{What: "x"}, mvm.ErrPrivilege},
		{"none", errors.New("x"), mvm.ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := mvm.KindOf(tc.err); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestWrap(t *testing.T) {
	if err := mvm.Wrap(nil, "stop VM", "web"); err != nil {
		t.Errorf("nil became %v", err)
	}
	inner := mvm.Errorf(mvm.ErrConflict, "it is stopped").WithHint("start it")
	err := mvm.Wrap(inner, "pause VM", "web")
	if got, want := err.Error(), `cannot pause VM "web": it is stopped`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, mvm.ErrConflict) || !errors.Is(err, inner) || mvm.HintOf(err) != "start it" {
		t.Errorf("kind, cause or hint were lost: %#v", err)
	}
	plain := mvm.Wrap(context.Canceled, "stop VM", "web")
	if !errors.Is(plain, mvm.ErrUnavailable) || !errors.Is(plain, context.Canceled) {
		t.Errorf("an error without a kind became %#v", plain)
	}
	var ask *mvm.NeedsInteraction
	if err := mvm.Wrap(&mvm.NeedsInteraction{What: "this needs root"}, "stop VM", "web"); !errors.As(err, &ask) || !errors.Is(err, mvm.ErrPrivilege) {
		t.Errorf("the interaction was lost: %#v", err)
	}
}

func TestHintOf(t *testing.T) {
	hinted := mvm.Errorf(mvm.ErrBusy, "x").WithHint("wait %d s", 5)
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"nil", nil, ""},
		{"none", errors.New("x"), ""},
		{"own", hinted, "wait 5 s"},
		{"below one without", mvm.Errorf(mvm.ErrBroken, "y: %w", hinted), "wait 5 s"},
		{"the outer one counts", mvm.Errorf(mvm.ErrBroken, "y: %w", hinted).WithHint("look"), "look"},
		{"below fmt", fmt.Errorf("y: %w", hinted), "wait 5 s"},
		{"no cause", &mvm.Error{Kind: mvm.ErrBusy}, ""},
		{"beside one without", errors.Join(mvm.Errorf(mvm.ErrBroken, "y"), hinted), "wait 5 s"},
		{"beside a plain one", errors.Join(errors.New("z"), fmt.Errorf("w: %w", hinted)), "wait 5 s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := mvm.HintOf(tc.err); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestNeedsInteraction(t *testing.T) {
	err := error(&mvm.NeedsInteraction{What: "creating a VM needs root", Command: []string{"sudo", "mvm", "vm", "create", "web"}})
	if got, want := err.Error(), "creating a VM needs root: run 'sudo mvm vm create web'"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, mvm.ErrPrivilege) {
		t.Error("it does not match ErrPrivilege")
	}
}

func TestBatch(t *testing.T) {
	bad := mvm.Errorf(mvm.ErrNotFound, "there is no VM")
	b := mvm.Batch[string]{Entries: []mvm.BatchEntry[string]{{Identifier: "a", Item: "A"}, {Identifier: "b", Err: bad}, {Identifier: "c", Item: "C"}}}
	if got := b.Items(); len(got) != 2 || got[0] != "A" || got[1] != "C" {
		t.Errorf("items are %q", got)
	}
	if !errors.Is(b.Err(), bad) {
		t.Errorf("the error is %v", b.Err())
	}
	var empty mvm.Batch[string]
	if empty.Err() != nil || empty.Items() == nil || len(empty.Items()) != 0 {
		t.Errorf("an empty batch has %v, %v", empty.Items(), empty.Err())
	}
}

func TestProgressOfNobody(t *testing.T) {
	var nobody mvm.ProgressFunc
	nobody.Send("boot", "x") // must not crash
	var got mvm.ProgressEvent
	mvm.ProgressFunc(func(e mvm.ProgressEvent) { got = e }).Send("boot", "booting")
	if got.Phase != "boot" || got.Message != "booting" {
		t.Errorf("got %+v", got)
	}
}
