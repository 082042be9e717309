package agent

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/mvmctl/mvm/internal/guest/mux"
)

var errLeaving = errors.New("the agent is being replaced")

// framer passes on what yamux writes, header and body one after the other, and can be
// stopped between two frames: in the middle of one, the host would take the first words
// of whoever writes next for its rest.
type framer struct {
	io.Writer
	mu      sync.Mutex
	body    int64 // bytes of the frame that are still to come
	stopped bool
}

func (f *framer) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.body == 0 && f.stopped {
		return 0, errLeaving
	}
	n, err := f.Writer.Write(b)
	switch {
	case f.body > 0:
		f.body -= int64(n)
	case n == mux.HeaderLen:
		f.body = int64(mux.BodyLen(b))
	}
	return n, err
}

// stop lets the frame that is being written end and no other begin, if that takes no
// longer than limit.
func (f *framer) stop(limit time.Duration) {
	for until := time.Now().Add(limit); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if f.mu.TryLock() { // else it is written, to a host that may not read
			f.stopped = true
			whole := f.body == 0
			f.mu.Unlock()
			if whole {
				return
			}
		}
	}
}
