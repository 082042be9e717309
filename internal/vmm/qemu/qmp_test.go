package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`

// monitor is the other end of a connection: it says the greeting, and then for
// each command what answer returns, where ID stands for the command's id.
func monitor(t *testing.T, hello string, answer func(command string) string) *QMP {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = theirs.Close() }()
		_, _ = io.WriteString(theirs, hello+"\r\n")
		for s := bufio.NewScanner(theirs); s.Scan(); {
			var c struct {
				Execute string `json:"execute"`
				ID      string `json:"id"`
			}
			if err := json.Unmarshal(s.Bytes(), &c); err != nil {
				t.Errorf("the client says %q: %v", s.Text(), err)
				return
			}
			text := `{"return": {}, "id": "ID"}`
			if c.Execute != "qmp_capabilities" {
				text = answer(c.Execute)
			}
			if text == "" {
				return
			}
			_, _ = io.WriteString(theirs, strings.ReplaceAll(text, `"ID"`, fmt.Sprintf("%q", c.ID))+"\r\n")
		}
	}()
	q := newQMP(ours)
	t.Cleanup(func() {
		_ = q.Close()
		<-done
	})
	return q
}

func TestQMP(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		want         string // status
		wantErr      string // "" for none
		wantEvents   []string
	}{
		{"answer", `{"return": {"status": "running"}, "id": "ID"}`, "running", "", nil},
		{"events before", `{"timestamp": {"seconds": 1}, "event": "STOP"}` + "\n" + `{"event": "RESUME", "data": {}}` + "\n" + `{"return": {"status": "paused"}, "id": "ID"}`, "paused", "", []string{"STOP", "RESUME"}},
		{"an answer of another command", `{"return": {"status": "x"}, "id": "99"}` + "\n" + `{"return": {"status": "running"}, "id": "ID"}`, "running", "", nil},
		{"refused", `{"error": {"class": "GenericError", "desc": "no such thing"}, "id": "ID"}`, "", "QEMU refused query-status: no such thing", nil},
		{"not understood", `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`, "", "QEMU refused query-status: JSON parse error", nil},
		{"wrong type", `{"return": [], "id": "ID"}`, "", "QEMU's answer to query-status", nil},
		{"no JSON", `hello`, "", "no QMP", nil},
		{"end", ``, "", "does not answer", nil},
		{"endless line", strings.Repeat("x", maxQMPLine+1), "", "token too long", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := monitor(t, greeting, func(string) string { return c.answer })
			if err := q.greet(t.Context()); err != nil {
				t.Fatal(err)
			}
			if q.Version() != "7.2.22" {
				t.Errorf("Version = %q", q.Version())
			}
			var info struct{ Status string }
			err := q.Execute(t.Context(), "query-status", nil, &info)
			if (err == nil) != (c.wantErr == "") || err != nil && !strings.Contains(err.Error(), c.wantErr) {
				t.Errorf("Execute: %v, want %q", err, c.wantErr)
			}
			if info.Status != c.want {
				t.Errorf("status = %q, want %q", info.Status, c.want)
			}
			var names []string
			for _, e := range q.Events() {
				names = append(names, e.Name)
			}
			if diff := cmp.Diff(c.wantEvents, names); diff != "" || len(q.Events()) > 0 {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestQMPGreeting(t *testing.T) {
	for _, c := range []struct {
		hello string
		kind  mvm.Kind
	}{{`{"event": "STOP"}`, mvm.ErrBroken}, {"SSH-2.0", mvm.ErrBroken}} {
		err := monitor(t, c.hello, nil).greet(t.Context())
		if !errors.Is(err, c.kind) {
			t.Errorf("greeting %q: %v, want %v", c.hello, err, c.kind)
		}
	}
}

// Events that never end are bounded.
func TestQMPEventsBounded(t *testing.T) {
	q := monitor(t, greeting, func(string) string {
		return strings.Repeat(`{"event": "RTC_CHANGE"}`+"\n", 10*maxEvents) + `{"return": {}, "id": "ID"}`
	})
	if err := q.greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := q.Execute(t.Context(), "query-status", nil, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(q.Events()); n != maxEvents {
		t.Errorf("%d events are kept, want %d", n, maxEvents)
	}
}

// A monitor that says nothing does not hold a caller whose context ends.
func TestQMPCancelled(t *testing.T) {
	ours, theirs := net.Pipe()
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	timer := time.AfterFunc(10*time.Millisecond, cancel)
	defer timer.Stop()
	if err := newQMP(ours).greet(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("greet = %v, want context.Canceled", err)
	}
}

func FuzzQMP(f *testing.F) {
	f.Add(greeting + "\n" + `{"return": {}, "id": "1"}` + "\n" + `{"return": {"status": "running"}, "id": "2"}` + "\n")
	f.Add(`{"QMP": null}` + "\n")
	f.Add(greeting + "\n" + `{"error": null, "id": "1"}` + "\n{}\n[]\nnull\n")
	f.Fuzz(func(_ *testing.T, said string) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		go func() {
			_, _ = io.WriteString(theirs, said)
			_ = theirs.Close()
		}()
		q := newQMP(ours)
		if q.greet(context.Background()) == nil {
			var info struct{ Status string }
			_ = q.Execute(context.Background(), "query-status", nil, &info)
		}
		_ = q.Close()
	})
}
