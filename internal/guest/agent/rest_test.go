package agent

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// What a command wrote is not lost where the deadline passed before anybody looked.
func TestPumpTakesTheRest(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() //nolint:errcheck // a daemon holds it open
	if _, err := w.WriteString("the last words"); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	p := &process{}
	var out bytes.Buffer
	if err := p.pump(&out, r, pumpBuffer); err != nil || out.String() != "the last words" {
		t.Errorf("%q, %v", out.String(), err)
	}
}
