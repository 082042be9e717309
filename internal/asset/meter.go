package asset

import (
	"time"

	"github.com/mvmctl/mvm"
)

// meter measures how fast a download goes, over the last seconds: a mean of all
// of it would take long to notice that the network has changed.
type meter struct {
	now     func() time.Time
	samples []sample // the oldest first
	sent    time.Time
}

type sample struct {
	at   time.Time
	done int64
}

const (
	window  = 5 * time.Second
	spacing = window / 20
	often   = 100 * time.Millisecond // between two events
)

// add notes that done bytes are there.
func (m *meter) add(done int64) {
	now := m.now()
	if n := len(m.samples); n > 0 && (done < m.samples[n-1].done || now.Before(m.samples[n-1].at)) {
		m.samples = m.samples[:0] // begun anew
	}
	if n := len(m.samples); n == 0 || now.Sub(m.samples[n-1].at) >= spacing {
		m.samples = append(m.samples, sample{now, done})
	}
	for len(m.samples) > 1 && now.Sub(m.samples[1].at) >= window {
		m.samples = m.samples[1:]
	}
}

// rate returns bytes per second, 0 when it is too early to tell.
func (m *meter) rate(done int64) int64 {
	if len(m.samples) == 0 {
		return 0
	}
	took := m.now().Sub(m.samples[0].at)
	if took < spacing {
		return 0
	}
	return int64(float64(done-m.samples[0].done) / took.Seconds())
}

// event is the progress to report, or ok false when one was just reported and
// the file is not at its end.
func (m *meter) event(name string, done, total int64, end bool) (e mvm.ProgressEvent, ok bool) {
	m.add(done)
	now := m.now()
	if !m.sent.IsZero() && now.Sub(m.sent) < often && !end {
		return e, false
	}
	m.sent = now
	e = mvm.ProgressEvent{Phase: "download", Message: name, Current: done, Total: max(total, 0), Rate: m.rate(done)}
	if e.Rate > 0 && total > done {
		e.Left = time.Duration(float64(total-done) / float64(e.Rate) * float64(time.Second)).Round(time.Second)
	}
	return e, true
}
