package supervisor

import (
	"errors"
	"os"
)

// maxLog is the size at which a log is renamed to .1, in place of an older one.
const maxLog = 1 << 20

// boundedLog is a file that a guest can make us write to without end. It is
// guarded by its owner.
type boundedLog struct {
	path string
	f    *os.File // nil when it could not be opened again
	size int64
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
	l.f, l.size = f, fi.Size()
	return nil
}

// write appends p. What cannot be written (a full disk) is lost: nobody is held
// up by a log.
func (l *boundedLog) write(p []byte) {
	if l.f != nil && l.size+int64(len(p)) > maxLog {
		l.close()
		_ = os.Rename(l.path, l.path+".1")
	}
	if l.f == nil && l.open() != nil {
		return
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
}

func (l *boundedLog) close() {
	if l.f != nil {
		_ = l.f.Close()
	}
	l.f = nil
}
