package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// timesOf returns when the lines at offsets of a log came.
func timesOf(t *testing.T, path string, offsets ...int64) []time.Time {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	s := OpenStamps(path, f)
	defer s.Close()
	var out []time.Time
	for _, o := range offsets {
		out = append(out, s.At(o))
	}
	return out
}

func TestStamps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := boundedLog{path: path}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	before := time.Now().Truncate(time.Millisecond)
	l.write([]byte("one\ntw"))
	l.stamps.last = time.Time{} // as if it were much later
	l.write([]byte("o\nthree\n"))
	l.stamps.last = time.Time{}
	l.write([]byte("four\n"))
	l.write([]byte("five\n")) // too soon for a record
	l.close()
	if err := l.open(); err != nil { // the VM was started again
		t.Fatal(err)
	}
	l.write([]byte("six\n"))
	l.close()
	got := timesOf(t, path, 0, 4, 8, 14, 19, 24)
	for i, at := range got {
		if at.Before(before) || at.After(time.Now()) || i > 0 && at.Before(got[i-1]) {
			t.Errorf("line %d came at %s, after %s", i+1, at, before)
		}
	}
	if fi, err := os.Stat(path + stampSuffix); err != nil || fi.Size() != stampHeader+4*stampRecord {
		t.Errorf("%v, %v: want four records", fi.Size(), err)
	}
}

// What is damaged, or belongs to another log, is not believed.
func TestStampsOfOthers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	l := boundedLog{path: path}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	l.write([]byte("one\n"))
	l.close()
	for name, spoil := range map[string]func() error{
		"a copy of the log": func() error {
			return errors.Join(os.Rename(path, path+"x"), os.WriteFile(path, []byte("one\n"), 0o600))
		},
		"half a header": func() error { return os.WriteFile(path+stampSuffix, []byte("abc"), 0o600) },
		"none":          func() error { return os.Remove(path + stampSuffix) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if at := timesOf(t, path, 0)[0]; !at.IsZero() {
			t.Errorf("%s: %s", name, at)
		}
		if err := l.open(); err != nil { // begins anew
			t.Fatal(err)
		}
		end := l.size
		l.write([]byte("two\n"))
		l.close()
		if at := timesOf(t, path, end)[0]; at.IsZero() {
			t.Errorf("%s: what came later has no time", name)
		}
	}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	l.close()
	f, err := os.OpenFile(path+stampSuffix, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write([]byte("half")) // a supervisor that was killed
	}
	if err := errors.Join(err, f.Close(), l.open()); err != nil {
		t.Fatal(err)
	}
	end := l.size
	l.write([]byte("three\n"))
	l.close()
	if at := timesOf(t, path, end)[0]; time.Since(at) > time.Minute {
		t.Errorf("after half a record: %s", at)
	}
}

// Log and stamps together keep to the bound, and go to the older name together.
func TestStampsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := boundedLog{path: path}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	for i := range 200_000 {
		if i%2 == 0 {
			l.stamps.last = time.Time{}
		}
		l.write([]byte("line\n"))
	}
	l.close()
	sum := int64(0)
	for _, name := range []string{path, path + stampSuffix, path + ".1", path + ".1" + stampSuffix} {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		sum += fi.Size()
	}
	if sum > 2*maxLog {
		t.Errorf("%d bytes are kept", sum)
	}
	for _, name := range []string{path, path + ".1"} {
		if at := timesOf(t, name, 5*1000)[0]; at.IsZero() || strings.Contains(name, ".times") {
			t.Errorf("%s: line 1000 has no time", name)
		}
	}
}
