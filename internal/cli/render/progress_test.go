package render

import (
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/mvmctl/mvm"
)

func TestProgressOffTerminal(t *testing.T) {
	o, stdout, stderr, c := testOutput(0)
	o.Verbose = true
	p := o.Progress()
	p.Show(mvm.ProgressEvent{Phase: "download", Message: "linux-image", Total: 100})
	c.add(2 * time.Second)
	p.Show(mvm.ProgressEvent{Phase: "download", Message: "linux-image", Current: 50, Total: 100})
	c.add(time.Second)
	o.Notice("using qemu")
	p.Show(mvm.ProgressEvent{Phase: "boot", Message: "web\x1b"})
	c.add(500 * time.Millisecond)
	if took := p.Done(); took != 3500*time.Millisecond {
		t.Errorf("took %s", took)
	}
	want := "download: linux-image\nusing qemu\nboot: web\\x1b\ndownload took 3.0 s\nboot took 500 ms\n"
	if d := cmp.Diff(want, stderr.String()); d != "" {
		t.Error(d)
	}
	if stdout.Len() > 0 {
		t.Errorf("progress on stdout: %q", stdout)
	}
}

func TestProgressOnTerminal(t *testing.T) {
	o, _, stderr, c := testOutput(40)
	p := o.Progress()
	p.Show(mvm.ProgressEvent{Phase: "download", Message: strings.Repeat("x", 60)})
	line := stderr.String()
	if n := utf8.RuneCountInString(line); n >= 40 || strings.Contains(line, "\n") {
		t.Errorf("the line has %d characters: %q", n, line)
	}
	c.add(7 * time.Second)
	o.mu.Lock()
	stderr.Reset()
	o.mu.Unlock()
	p.Show(mvm.ProgressEvent{Phase: "copy", Message: "disk", Current: 5 << 20, Total: 10 << 20})
	o.Notice("hello")
	p.Done()
	got := stderr.String()
	for _, want := range []string{"\r\x1b[K", "copy: disk 5.0 MiB of 10 MiB (50%) 7s", "\r\x1b[Khello\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in %q", want, got)
		}
	}
	if !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("the line is left on the terminal: %q", got)
	}
}

func TestProgressSilentWithJSON(t *testing.T) {
	o, stdout, stderr, _ := testOutput(80)
	o.JSON = true
	p := o.Progress()
	p.Show(mvm.ProgressEvent{Phase: "boot", Message: "web"})
	p.Done()
	if stdout.Len()+stderr.Len() > 0 {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}

// Operations report from goroutines of their own; the race detector looks on.
func TestProgressConcurrently(t *testing.T) {
	o, _, _, _ := testOutput(80)
	p := o.Progress()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				p.Show(mvm.ProgressEvent{Phase: "boot", Current: 1, Unit: "VMs"})
				o.Notice("x")
			}
		})
	}
	wg.Wait()
	p.Done()
}

func TestProgressByTurns(t *testing.T) {
	o, _, stderr, c := testOutput(0)
	o.Verbose = true
	p := o.Progress()
	for _, e := range []mvm.ProgressEvent{{Phase: "disk", Message: "a"}, {Phase: "boot", Message: "b"}, {Phase: "disk", Message: "a"}, {Phase: "boot", Message: "a"}} {
		p.Show(e)
		c.add(time.Second)
	}
	p.Done()
	want := "disk: a\nboot: b\nboot: a\ndisk took 2.0 s\nboot took 2.0 s\n"
	if d := cmp.Diff(want, stderr.String()); d != "" {
		t.Error(d)
	}
}
