package agent

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

func TestFramerStopsBetweenFrames(t *testing.T) {
	data := func(n byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, n} }
	window := []byte{0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9} // has a number, and no body
	var out bytes.Buffer
	f := &framer{Writer: &out}
	write := func(want error, b []byte) {
		t.Helper()
		if n, err := f.Write(b); !errors.Is(err, want) || err == nil && n != len(b) {
			t.Fatalf("%d bytes of %v, %v", n, b, err)
		}
	}
	write(nil, window)
	write(nil, data(5))
	write(nil, []byte("abc"))
	stopped := make(chan struct{})
	go func() {
		f.stop(time.Hour)
		close(stopped)
	}()
	for { // until it is asked to stop
		f.mu.Lock()
		asked := f.stopped
		f.mu.Unlock()
		if asked {
			break
		}
	}
	select {
	case <-stopped:
		t.Fatal("it stopped in the middle of a frame")
	default:
	}
	write(nil, []byte("de"))
	<-stopped
	write(errLeaving, window)
	write(errLeaving, data(0))
	if want := string(window) + string(data(5)) + "abcde"; out.String() != want {
		t.Errorf("written was %q", out.String())
	}
}

func TestFramerGivesUp(t *testing.T) {
	f := &framer{Writer: &bytes.Buffer{}}
	if _, err := f.Write([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7}); err != nil {
		t.Fatal(err)
	}
	f.stop(time.Millisecond) // the body never comes
	if f.body != 7 {
		t.Errorf("%d bytes are to come", f.body)
	}
}
