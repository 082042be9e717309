package supervisor

import "fmt"

// logPipe appends to a log what the VMM writes to a FIFO that it has opened itself.
// Firecracker opens such a file for reading, too, and without blocking: it neither
// stands still nor ends when nobody takes what it writes.
type logPipe struct {
	out *source
	log boundedLog
}

func newLogPipe(p Pipe) (*logPipe, error) {
	if err := makeFIFO(p.FIFO); err != nil {
		return nil, err
	}
	v := &logPipe{log: boundedLog{path: p.File}}
	if err := v.log.open(); err != nil {
		return nil, fmt.Errorf("open %s: %w", p.File, err)
	}
	var err error
	if v.out, err = openSource(p.FIFO, v.log.write); err != nil {
		v.log.close()
		return nil, err
	}
	return v, nil
}

// finish takes what the VMM has left.
func (v *logPipe) finish() {
	v.out.finish()
	v.log.close()
}
