package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/supervisor"
)

// LogOperation reads what VMs have logged. They need not run.
type LogOperation struct{ core *core }

// LogInput selects lines of a VM's log.
type LogInput struct {
	Identifier string
	OS         bool  // the VMM's own log instead of what the guest's serial console showed
	Lines      *int  // how many of the last lines; nil takes settings.vm log_lines, less than 0 all that is kept
	Follow     *bool // go on with what comes; nil takes settings.vm log_follow

	// Timestamps puts the time at which it came and a blank before each line, in UTC
	// (RFC 3339, milliseconds), or "-" where nothing tells.
	Timestamps bool
}

// Limits of reading logs.
const (
	logPoll    = 100 * time.Millisecond // between looks at a log that is followed
	logMaxLine = 64 << 10               // a longer line is handed out in pieces
)

// Stream yields lines without their ends, and an error at most once, last. What a
// guest prints is handed on as it is: a caller that shows it has to make control
// characters harmless. Following goes on across rotation of the log and restarts
// of the VM, until ctx ends or the VM is removed.
func (o *LogOperation) Stream(ctx context.Context, in LogInput) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		f, lines, err := o.find(ctx, in)
		if err == nil {
			err = f.run(ctx, lines, func(s string) error {
				if !yield(s, nil) {
					return errStopped
				}
				return nil
			})
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield("", err)
		}
	}
}

func (o *LogOperation) find(ctx context.Context, in LogInput) (*logReader, int, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, 0, err
	}
	vm, err := o.core.findVM(ctx, st, in.Identifier)
	if err != nil {
		return nil, 0, err
	}
	set, err := loadSettings(ctx, st)
	if err != nil {
		return nil, 0, err
	}
	path := deref(vm.SerialOutputPath)
	if in.OS {
		path = deref(vm.LogPath)
	}
	f := &logReader{path: path, follow: or(in.Follow, set.flag("settings.vm", "log_follow")), times: in.Timestamps}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && !f.follow {
		return nil, 0, mvm.Errorf(mvm.ErrNotFound, "it has not logged anything yet").On("read the log of", vm.Name).WithHint("start it with 'mvm vm start %s'", vm.Name)
	}
	return f, or(in.Lines, set.num("settings.vm", "log_lines")), nil
}

// errStopped says that the caller wants no more lines.
var errStopped = errors.New("stopped")

// logReader reads a log and, where there is one, the older part that was rotated
// away under the name with ".1".
type logReader struct {
	path   string
	follow bool
	times  bool // before each line

	file   *os.File
	stamps *supervisor.Stamps // of file
	read   int64              // of file
	last   []byte             // what was read last of file, up to logMemory
	part   []byte             // what has no end of line yet
	partAt string             // when that began
}

// lineFunc takes a line; its error ends the reading.
type lineFunc func(string) error

// run emits the last lines of what is there and, when following, all that comes.
func (l *logReader) run(ctx context.Context, last int, emit lineFunc) error {
	defer l.close()
	t := tail{most: last}
	for _, path := range []string{l.path + ".1", l.path} {
		if err := l.open(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := l.drain(ctx, t.add); err != nil {
			return err
		}
	}
	if !l.follow && len(l.part) > 0 {
		_ = t.add(l.partAt + string(l.part)) // never fails
	}
	for _, s := range t.kept {
		if err := emit(s); err != nil {
			return err
		}
	}
	if !l.follow {
		return nil
	}
	return l.watch(ctx, emit)
}

// watch looks for more until ctx ends or the directory of the log is gone.
func (l *logReader) watch(ctx context.Context, emit lineFunc) error {
	tick := time.NewTicker(logPoll)
	defer tick.Stop()
	for {
		if err := l.more(ctx, emit); err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Dir(l.path)); err != nil {
			if len(l.part) > 0 {
				return emit(l.partAt + string(l.part))
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// more reads what came since. A file that was rotated away is read to its end
// before the next; one that became shorter, or has other content, was begun anew.
func (l *logReader) more(ctx context.Context, emit lineFunc) error {
	now, err := os.Stat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l.drain(ctx, emit) // in the middle of a rotation, or not begun
	}
	if err != nil {
		return err
	}
	var was os.FileInfo
	if l.file != nil {
		if was, err = l.file.Stat(); err != nil {
			return err
		}
	}
	switch {
	case was != nil && os.SameFile(was, now) && (now.Size() < l.read || !l.unchanged()):
		l.part = nil
		if err := l.open(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	case was == nil || !os.SameFile(was, now):
		if err := l.drain(ctx, emit); err != nil {
			return err
		}
		// A flood may have filled a whole file between two looks.
		if older, err := os.Stat(l.path + ".1"); err == nil && was != nil && !os.SameFile(older, was) {
			if err := l.open(l.path + ".1"); err == nil {
				if err := l.drain(ctx, emit); err != nil {
					return err
				}
			}
		}
		if err := l.open(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return l.drain(ctx, emit)
}

// logMemory is how much of what was read last is compared with what stands there
// now.
const logMemory = 256

// unchanged reports whether what was read last still stands where it was read.
func (l *logReader) unchanged() bool {
	there := make([]byte, len(l.last))
	n, _ := l.file.ReadAt(there, l.read-int64(len(there)))
	return bytes.Equal(there[:n], l.last)
}

func (l *logReader) open(path string) error {
	l.close()
	f, err := os.Open(path)
	if err == nil {
		l.file, l.read, l.last = f, 0, nil
	}
	if err == nil && l.times {
		l.stamps = supervisor.OpenStamps(path, f)
	}
	return err
}

func (l *logReader) close() {
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
	if l.stamps != nil {
		l.stamps.Close()
		l.stamps = nil
	}
}

// at returns the time of the line that begins at an offset of the file, as it is
// put before the line.
func (l *logReader) at(offset int64) string {
	if l.stamps == nil {
		return ""
	}
	if at := l.stamps.At(offset); !at.IsZero() {
		return at.UTC().Format("2006-01-02T15:04:05.000Z ")
	}
	return "- "
}

// drain reads to the end of the file. What stands there without an end of line is
// kept for the next time.
func (l *logReader) drain(ctx context.Context, emit lineFunc) error {
	if l.file == nil {
		return nil
	}
	buf := make([]byte, 32<<10)
	for ctx.Err() == nil {
		n, err := l.file.Read(buf)
		if n > 0 && len(l.part) == 0 {
			l.partAt = l.at(l.read)
		}
		l.read += int64(n)
		l.last = append(l.last, buf[:n]...)
		l.last = append([]byte(nil), l.last[max(0, len(l.last)-logMemory):]...)
		l.part = append(l.part, buf[:n]...)
		if emitErr := l.cut(emit); emitErr != nil {
			return emitErr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// cut emits the whole lines of what was read.
func (l *logReader) cut(emit lineFunc) error {
	rest := l.part
	for {
		i := bytes.IndexByte(rest[:min(len(rest), logMaxLine+1)], '\n')
		if i < 0 && len(rest) <= logMaxLine {
			l.part = append(l.part[:0], rest...)
			return nil
		}
		end, next := i, i+1
		if i < 0 {
			end, next = logMaxLine, logMaxLine
		}
		line := rest[:end]
		rest = rest[next:]
		at := l.partAt
		if len(rest) > 0 {
			l.partAt = l.at(l.read - int64(len(rest)))
		}
		if err := emit(at + string(bytes.TrimRight(line, "\r"))); err != nil {
			return err
		}
	}
}

// tail keeps the last lines; most < 0 keeps all.
type tail struct {
	most int
	kept []string
}

func (t *tail) add(s string) error {
	if t.most == 0 {
		return nil
	}
	if t.most > 0 && len(t.kept) == t.most {
		t.kept = t.kept[1:] // append copies what is left when there is no more room
	}
	t.kept = append(t.kept, s)
	return nil
}
