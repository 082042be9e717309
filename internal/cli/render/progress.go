package render

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/mvmctl/mvm"
)

// Progress shows how one operation goes on: on a terminal as a line that is
// rewritten, elsewhere as one line for each phase, with JSON not at all.
type Progress struct {
	o      *Output
	event  mvm.ProgressEvent
	began  time.Time // of the operation
	phase  time.Time // of the phase
	took   []phaseTime
	said   map[string]bool // headlines printed off-terminal
	stop   chan struct{}   // ends the ticker
	ticker chan struct{}   // closed when the ticker has ended
	drawn  bool
}

type phaseTime struct {
	phase string
	took  time.Duration
}

// refresh is how often the elapsed time on the terminal is rewritten.
const refresh = 200 * time.Millisecond

// Progress starts showing an operation. The caller has to call Done, also after a failure.
func (o *Output) Progress() *Progress {
	p := &Progress{o: o, began: o.Now(), said: map[string]bool{}}
	if o.JSON {
		return p
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.progress = p
	if o.ErrWidth > 0 {
		p.stop, p.ticker = make(chan struct{}), make(chan struct{})
		go p.tick()
	}
	return p
}

func (p *Progress) tick() {
	defer close(p.ticker)
	t := time.NewTicker(refresh)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.o.mu.Lock()
			p.o.clearProgress()
			p.o.redrawProgress()
			p.o.mu.Unlock()
		}
	}
}

// Show is an mvm.ProgressFunc.
func (p *Progress) Show(e mvm.ProgressEvent) {
	p.o.mu.Lock()
	defer p.o.mu.Unlock()
	fresh := e.Phase != p.event.Phase
	if fresh {
		p.endPhase()
	}
	p.event = e
	if p.o.progress != p {
		return
	}
	if p.o.ErrWidth > 0 {
		p.o.clearProgress()
		p.o.redrawProgress()
		return
	}
	// Several VMs at once report by turns: each headline is worth one line.
	if head := p.headline(); fresh && !p.said[head] {
		p.said[head] = true
		_, _ = io.WriteString(p.o.Stderr, Clean(head)+"\n")
	}
}

func (p *Progress) endPhase() {
	now := p.o.Now()
	if p.event.Phase != "" {
		i := slices.IndexFunc(p.took, func(t phaseTime) bool { return t.phase == p.event.Phase })
		if i < 0 {
			i = len(p.took)
			p.took = append(p.took, phaseTime{phase: p.event.Phase})
		}
		p.took[i].took += now.Sub(p.phase)
	}
	p.phase = now
}

// Done ends the display and returns how long the operation took. With --verbose
// it prints what each phase took.
func (p *Progress) Done() time.Duration {
	total := p.Stop()
	for _, t := range p.took {
		p.o.Detail(fmt.Sprintf("%s took %s", t.phase, Took(t.took)))
	}
	return total
}

// Stop is Done for those who print timings of their own.
func (p *Progress) Stop() time.Duration {
	if p.stop != nil {
		close(p.stop)
		<-p.ticker
		p.stop = nil
	}
	p.o.mu.Lock()
	if p.o.progress == p {
		p.o.clearProgress()
		p.o.progress = nil
	}
	p.endPhase()
	p.event = mvm.ProgressEvent{}
	p.o.mu.Unlock()
	return p.o.Now().Sub(p.began)
}

func (p *Progress) headline() string {
	if p.event.Message == "" {
		return p.event.Phase
	}
	return p.event.Phase + ": " + p.event.Message
}

// line is what stands on the terminal.
func (p *Progress) line() string {
	s := p.headline()
	if e := p.event; e.Current > 0 || e.Total > 0 {
		s += " " + amount(e)
	}
	elapsed := fmt.Sprintf("%ds", int(p.o.Now().Sub(p.began).Seconds()))
	room := p.o.ErrWidth - len(elapsed) - 2 // the last column stays free: some terminals wrap there
	return cut(Clean(s), room) + " " + elapsed
}

func amount(e mvm.ProgressEvent) string {
	write := Size
	if e.Unit != "" {
		write = func(n int64) string { return fmt.Sprintf("%d %s", n, e.Unit) }
	}
	s := write(e.Current)
	if e.Total > 0 {
		s = fmt.Sprintf("%s of %s (%d%%)", s, write(e.Total), min(100, int(100*float64(e.Current)/float64(e.Total))))
	}
	if e.Rate > 0 {
		s += ", " + write(e.Rate) + "/s"
	}
	if e.Left > 0 {
		s += ", " + e.Left.Round(time.Second).String() + " left"
	}
	return s
}

// clearProgress and redrawProgress take the progress line away for something
// else to be printed, and put it back. The caller holds o.mu.
func (o *Output) clearProgress() {
	if p := o.progress; p != nil && p.drawn {
		_, _ = io.WriteString(o.Stderr, "\r\x1b[K")
		p.drawn = false
	}
}

func (o *Output) redrawProgress() {
	if p := o.progress; p != nil && o.ErrWidth > 0 && p.event.Phase != "" {
		_, _ = io.WriteString(o.Stderr, p.line())
		p.drawn = true
	}
}
