package cli

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// timeout(1) sends its signal to the process and to the process group: that asks
// once.
func TestSignalsThatComeTwiceAreOne(t *testing.T) {
	for _, c := range []struct {
		name   string
		got    []os.Signal
		lastAt time.Duration // how long ago the first came when the others do
		left   int           // that are not taken
	}{
		{"twice at once", []os.Signal{syscall.SIGTERM, syscall.SIGTERM, syscall.SIGINT}, 0, 0},
		{"another one", []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGINT}, 0, 1},
		{"again later", []os.Signal{syscall.SIGINT, syscall.SIGINT, syscall.SIGINT}, time.Hour, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := make(chan os.Signal, len(c.got))
			for _, sig := range c.got {
				got <- sig
			}
			close(got)
			s := &signals{}
			s.next(got)
			s.lastAt = s.lastAt.Add(-c.lastAt)
			s.next(got)
			if len(got) != c.left {
				t.Errorf("%d were left, want %d", len(got), c.left)
			}
		})
	}
}
