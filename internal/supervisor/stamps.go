package supervisor

import (
	"encoding/binary"
	"io"
	"os"
	"sort"
	"syscall"
	"time"
)

// When the lines of a log were written stands in a file beside it: the log's inode
// (8 bytes), then records of an offset in the log (4) and the milliseconds since
// 1970 (8) at which the line that begins there came; all big-endian. A line without
// a record came within stampGap of the one before it. A log that was copied has
// another inode: its lines have no times any more.
const (
	stampSuffix = ".times"
	stampHeader = 8
	stampRecord = 12

	// stampGap bounds how many records a guest can make us write.
	stampGap = 10 * time.Millisecond
)

// stampWriter writes the stamps of a log. Where that cannot be done, lines have no
// times.
type stampWriter struct {
	f    *os.File
	size int64
	last time.Time
}

// open opens the stamps of a log, and begins them anew where they are those of
// another one.
func (w *stampWriter) open(log string, fi os.FileInfo) {
	w.close()
	f, err := os.OpenFile(log+stampSuffix, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	size := int64(0)
	if old, err := f.Stat(); err == nil && old.Size() >= stampHeader && fi.Size() > 0 && headerOf(f) == inode(fi) {
		size = old.Size() - (old.Size()-stampHeader)%stampRecord // a killed supervisor may leave half a record
	}
	if f.Truncate(size) == nil && size == 0 {
		n, _ := f.Write(binary.BigEndian.AppendUint64(nil, inode(fi)))
		size = int64(n)
	}
	if size < stampHeader {
		_ = f.Close()
		return
	}
	w.f, w.size = f, size
}

func (w *stampWriter) add(offset int64, now time.Time) {
	if gap := now.Sub(w.last); w.f == nil || gap >= 0 && gap < stampGap {
		return
	}
	rec := binary.BigEndian.AppendUint32(make([]byte, 0, stampRecord), uint32(offset)) //nolint:gosec // logs are bounded
	rec = binary.BigEndian.AppendUint64(rec, uint64(now.UnixMilli()))                  //nolint:gosec // after 1970
	n, err := w.f.Write(rec)
	if err != nil || n < len(rec) { // half a record would shift all that follow
		_ = w.f.Truncate(w.size)
		return
	}
	w.size, w.last = w.size+stampRecord, now
}

func (w *stampWriter) close() {
	if w.f != nil {
		_ = w.f.Close()
	}
	*w = stampWriter{}
}

func inode(fi os.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

func headerOf(f *os.File) uint64 {
	var b [stampHeader]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0
	}
	return binary.BigEndian.Uint64(b[:])
}

// Stamps tells when the lines of a log came.
type Stamps struct {
	path    string
	log     uint64 // its inode
	f       *os.File
	read    int64
	records []stamp
}

type stamp struct {
	offset int64
	at     time.Time
}

// OpenStamps prepares to read the times of a log, which is open and stands, or
// stood, at path. There need not be any.
func OpenStamps(path string, log *os.File) *Stamps {
	s := &Stamps{path: path + stampSuffix}
	if fi, err := log.Stat(); err == nil {
		s.log = inode(fi)
	}
	return s
}

// open opens the file with the times, which may be made a little after the log.
func (s *Stamps) open() {
	f, err := os.Open(s.path)
	if err != nil {
		return
	}
	if headerOf(f) != s.log || s.log == 0 {
		_ = f.Close()
		return
	}
	s.f, s.read = f, stampHeader
}

// At returns when the line came that begins at an offset, or the zero time where
// nothing tells.
func (s *Stamps) At(offset int64) time.Time {
	if n := len(s.records); n == 0 || s.records[n-1].offset < offset {
		s.more()
	}
	after := sort.Search(len(s.records), func(i int) bool { return s.records[i].offset > offset })
	if after == 0 {
		return time.Time{}
	}
	return s.records[after-1].at
}

// more reads the records that were written since.
func (s *Stamps) more() {
	if s.f == nil {
		s.open()
	}
	if s.f == nil {
		return
	}
	data, err := io.ReadAll(io.NewSectionReader(s.f, s.read, 2*maxLog))
	if err != nil {
		return
	}
	for ; len(data) >= stampRecord; data = data[stampRecord:] {
		s.read += stampRecord
		s.records = append(s.records, stamp{
			int64(binary.BigEndian.Uint32(data)), time.UnixMilli(int64(binary.BigEndian.Uint64(data[4:]))), //nolint:gosec // written by us
		})
	}
}

// Close closes the file.
func (s *Stamps) Close() {
	if s.f != nil {
		_ = s.f.Close()
	}
}
