package supervisor

import (
	"bytes"
	"errors"
	"os"
	"time"
)

// maxLog is the size, with that of its stamps, at which a log is renamed to .1, in
// place of an older one.
const maxLog = 1 << 20

// boundedLog is a file that a guest can make us write to without end. It is
// guarded by its owner.
type boundedLog struct {
	path string
	f    *os.File // nil when it could not be opened again
	size int64

	stamps    stampWriter
	afterLine bool // what is written next begins a line
}

// open opens the file, with what it holds already.
func (l *boundedLog) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size, l.afterLine = f, fi.Size(), true
	l.stamps.open(l.path, fi)
	return nil
}

// restart empties the log.
func (l *boundedLog) restart() error {
	l.size = 0
	l.stamps.close()
	err := errors.Join(l.f.Truncate(0), os.RemoveAll(l.path+stampSuffix))
	if fi, statErr := l.f.Stat(); statErr == nil {
		l.stamps.open(l.path, fi)
	}
	return err
}

// write appends p. What cannot be written (a full disk) is lost: nobody is held
// up by a log.
func (l *boundedLog) write(p []byte) {
	if l.f != nil && l.size+l.stamps.size+int64(len(p)) > maxLog {
		l.close()
		_ = os.Rename(l.path+stampSuffix, l.path+".1"+stampSuffix)
		_ = os.Rename(l.path, l.path+".1")
	}
	if l.f == nil && l.open() != nil {
		return
	}
	first := 0 // where in p a line begins
	if !l.afterLine {
		first = bytes.IndexByte(p, '\n') + 1
	}
	if first < len(p) && (l.afterLine || first > 0) {
		l.stamps.add(l.size+int64(first), time.Now()) // before the line, so that who reads that finds it
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
	if n > 0 {
		l.afterLine = p[n-1] == '\n'
	}
}

func (l *boundedLog) close() {
	if l.f != nil {
		_ = l.f.Close()
	}
	l.f = nil
	l.stamps.close()
}
