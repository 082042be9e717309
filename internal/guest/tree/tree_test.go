package tree

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm/internal/testenv"
)

var then = time.Date(2001, 2, 3, 4, 5, 6, 789_000_000, time.UTC)

// plant makes a tree: a name with a '/' at its end is a directory, text that begins
// with "->" makes a link. All get the mode and a time long ago.
func plant(t *testing.T, root string, files map[string]string, mode fs.FileMode) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		link, isLink := strings.CutPrefix(text, "->")
		switch {
		case strings.HasSuffix(name, "/"):
			err = errors.Join(err, os.MkdirAll(p, 0o755))
		case isLink:
			err = errors.Join(err, os.Symlink(link, p))
		default:
			err = errors.Join(err, os.WriteFile(p, []byte(text), 0o600), os.Chmod(p, mode), os.Chtimes(p, then, then))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// look reads a tree back as plant has it.
func look(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		switch {
		case d.IsDir():
			if rest, err := os.ReadDir(p); err == nil && len(rest) == 0 {
				all[rel+"/"] = ""
			}
		case d.Type() == fs.ModeSymlink:
			link, err := os.Readlink(p)
			all[rel] = "->" + link
			return err
		default:
			data, err := os.ReadFile(p)
			all[rel] = string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestCopy(t *testing.T) {
	src := map[string]string{"d/one": "1", "d/sub/two": "2", "d/sub/link": "->../one", "d/empty/": "", "file": "f", "other": "o", "link": "->file"}
	for _, c := range []struct {
		name    string
		sources []string
		there   map[string]string // below dst
		target  Target            // Path relative to dst
		want    map[string]string // nil: as it was
		code    Code
		path    string // of the error, below dst or the sources
	}{
		{name: "file into a directory", sources: []string{"file"}, want: map[string]string{"file": "f"}},
		{name: "file under a new name", sources: []string{"file"}, target: Target{Path: "new"}, want: map[string]string{"new": "f"}},
		{name: "link that is named is followed", sources: []string{"link"}, want: map[string]string{"link": "f"}},
		{name: "tree into a directory", sources: []string{"d"}, want: map[string]string{"d/one": "1", "d/sub/two": "2", "d/sub/link": "->../one", "d/empty/": ""}},
		{name: "tree under a new name", sources: []string{"d/"}, target: Target{Path: "n"}, want: map[string]string{"n/one": "1", "n/sub/two": "2", "n/sub/link": "->../one", "n/empty/": ""}},
		{name: "several", sources: []string{"file", "other"}, target: Target{Dir: true}, want: map[string]string{"file": "f", "other": "o"}},
		{name: "merged", sources: []string{"d"}, there: map[string]string{"d/sub/three": "3", "x": "x"},
			want: map[string]string{"d/one": "1", "d/sub/two": "2", "d/sub/three": "3", "d/sub/link": "->../one", "d/empty/": "", "x": "x"}},
		{name: "replaced", sources: []string{"file"}, there: map[string]string{"file": "old"}, target: Target{Force: true}, want: map[string]string{"file": "f"}},
		{name: "replaced through a link", sources: []string{"file"}, there: map[string]string{"l": "->real", "real": "old"}, target: Target{Path: "l", Force: true}, want: map[string]string{"l": "->real", "real": "f"}},
		{name: "in the way", sources: []string{"file"}, there: map[string]string{"file": "old"}, code: Exists, path: "file"},
		{name: "in the way, named", sources: []string{"other"}, there: map[string]string{"file": "old"}, target: Target{Path: "file"}, code: Exists, path: "file"},
		{name: "in the way deep down", sources: []string{"d"}, there: map[string]string{"d/sub/two": "old"}, code: Exists, path: "d/sub/two"},
		{name: "directory in the way of a file", sources: []string{"file"}, there: map[string]string{"file/": ""}, target: Target{Force: true}, code: Exists, path: "file"},
		{name: "file in the way of a directory", sources: []string{"d"}, there: map[string]string{"d": "x"}, target: Target{Force: true}, code: NotDir, path: "d"},
		{name: "link in the way of a directory", sources: []string{"d"}, there: map[string]string{"d": "->/tmp"}, target: Target{Force: true}, code: NotDir, path: "d"},
		{name: "several onto a file", sources: []string{"file", "other"}, there: map[string]string{"x": "x"}, target: Target{Path: "x", Dir: true}, code: NotDir, path: "x"},
		{name: "into what is not there", sources: []string{"file"}, target: Target{Path: "no/"}, code: NotDir, path: "no/"},
		{name: "below what is not there", sources: []string{"file"}, target: Target{Path: "no/x"}, code: NotDir, path: "no"},
		{name: "no such source", sources: []string{"none"}, code: NotFound, path: "none"},
		{name: "no such source after another", sources: []string{"d", "none"}, target: Target{Dir: true}, code: NotFound, path: "none"},
		{name: "one name twice", sources: []string{"file", "d/../file"}, target: Target{Dir: true}, code: Exists, path: "file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			from, to := t.TempDir(), t.TempDir()
			plant(t, from, src, 0o640)
			plant(t, to, c.there, 0o644)
			before := look(t, to)
			var sources []string
			for _, s := range c.sources {
				sources = append(sources, from+"/"+s)
			}
			c.target.Path = to + "/" + c.target.Path
			_, err := transfer(sources, c.target)
			var e *Error
			switch {
			case c.code == "" && err != nil:
				t.Fatal(err)
			case c.code != "" && !errors.As(err, &e):
				t.Fatalf("%v, want %s", err, c.code)
			case c.code != "" && (e.Code != c.code || e.Path != to+"/"+c.path && e.Path != from+"/"+c.path):
				t.Errorf("%s on %s, want %s on %s", e.Code, e.Path, c.code, c.path)
			}
			want := c.want
			if c.code != "" {
				want = before
			}
			if d := cmp.Diff(want, look(t, to)); d != "" {
				t.Error(d)
			}
		})
	}
}

// transfer packs into a pipe and unpacks from it; the packer's error comes first.
func transfer(sources []string, target Target) (Stats, error) {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		_, err := Pack(w, sources)
		_ = w.CloseWithError(err)
		sent <- err
	}()
	s, err := Unpack(r, target)
	_ = r.CloseWithError(io.ErrClosedPipe)
	if sendErr := <-sent; sendErr != nil && !errors.Is(sendErr, io.ErrClosedPipe) {
		return s, sendErr
	}
	return s, err
}

func TestAttributes(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	plant(t, from, map[string]string{"d/run": "x", "d/ro/file": "y"}, 0o751)
	for _, name := range []string{"d/ro", "d"} {
		if err := errors.Join(os.Chmod(from+"/"+name, 0o550), os.Chtimes(from+"/"+name, then, then)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, d := range []string{from, to} {
			_ = errors.Join(os.Chmod(d+"/d", 0o700), os.Chmod(d+"/d/ro", 0o700))
		}
	})
	if _, err := transfer([]string{from + "/d"}, Target{Path: to}); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"d": fs.ModeDir | 0o550, "d/ro": fs.ModeDir | 0o550, "d/run": 0o751, "d/ro/file": 0o751} {
		fi, err := os.Stat(to + "/" + name)
		if err != nil || fi.Mode() != mode || fi.ModTime().Sub(then).Abs() > time.Microsecond {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
}

func TestOwnersAndSetuid(t *testing.T) {
	testenv.Require(t, "root")
	from := t.TempDir()
	plant(t, from, map[string]string{"f": "x"}, 0o755)
	if err := errors.Join(os.Chown(from+"/f", 4242, 4343), os.Chmod(from+"/f", 0o755|fs.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	for _, owners := range []bool{false, true} {
		to := t.TempDir()
		if _, err := transfer([]string{from + "/f"}, Target{Path: to, Owners: owners}); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(to + "/f")
		if err != nil {
			t.Fatal(err)
		}
		st, _ := fi.Sys().(*syscall.Stat_t)
		if kept := st.Uid == 4242 && st.Gid == 4343 && fi.Mode() == 0o755|fs.ModeSetuid; kept != owners || !owners && (st.Uid != 0 || fi.Mode() != 0o755) {
			t.Errorf("owners %v: uid %d, gid %d, mode %v", owners, st.Uid, st.Gid, fi.Mode())
		}
	}
}

func TestContent(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	data := bytes.Repeat([]byte("x"), 300<<10)
	clear(data[64<<10 : 256<<10])
	if err := errors.Join(os.WriteFile(from+"/holes", data, 0o600), os.WriteFile(from+"/zeros", make([]byte, 1<<20+1), 0o600), syscall.Mkfifo(from+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	sources := []string{from}
	if _, err := os.Stat("/proc/version"); err == nil {
		sources = append(sources, "/proc/version") // says that it is empty
	}
	var stream bytes.Buffer
	s, err := Pack(&stream, sources)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{from + "/fifo"}, s.Skipped); d != "" {
		t.Error(d)
	}
	if _, err := Unpack(&stream, Target{Path: to}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"holes": data, "zeros": make([]byte, 1<<20+1)} {
		file := filepath.Join(to, filepath.Base(from), name)
		got, err := os.ReadFile(file)
		fi, statErr := os.Stat(file)
		if err != nil || statErr != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: %d bytes, %v", name, len(got), err)
		}
		if st, _ := fi.Sys().(*syscall.Stat_t); st.Blocks*512 > int64(len(want))/2+64<<10 {
			t.Errorf("%s takes %d KiB: its holes were filled", name, st.Blocks/2)
		}
	}
	if len(sources) > 1 {
		if got, err := os.ReadFile(to + "/version"); err != nil || len(got) == 0 {
			t.Errorf("/proc/version: %q, %v", got, err)
		}
	}
}

// Every beginning of a stream is one that broke off, and leaves nothing.
func TestBrokenOff(t *testing.T) {
	from := t.TempDir()
	plant(t, from, map[string]string{"d/one": "1", "d/two": strings.Repeat("2", 2000)}, 0o600)
	var stream bytes.Buffer
	if _, err := Pack(&stream, []string{from + "/d"}); err != nil {
		t.Fatal(err)
	}
	whole := stream.Bytes()
	end := bytes.Index(whole, []byte(endRecord))
	to := t.TempDir()
	plant(t, to, map[string]string{"d/one": "old"}, 0o600)
	for n := 0; n < end; n += 100 {
		if _, err := Unpack(bytes.NewReader(whole[:n]), Target{Path: to, Force: true}); err == nil {
			t.Fatalf("%d of %d bytes were taken for the whole", n, len(whole))
		}
		if d := cmp.Diff(map[string]string{"d/one": "old"}, look(t, to)); d != "" {
			t.Fatalf("after %d bytes: %s", n, d)
		}
	}
}

func TestHostileStream(t *testing.T) {
	file := func(name string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o777}
	}
	link := func(name, to string) *tar.Header {
		return &tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink, Mode: 0o777}
	}
	dir := &tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o777}
	for name, hs := range map[string][]*tar.Header{
		"up":                     {file("../evil")},
		"up from within":         {dir, file("d/../../evil")},
		"absolute":               {file("/etc/evil")},
		"nothing":                {file(".")},
		"over a link":            {link("d", "../.."), file("d/evil")},
		"over a link to /":       {link("d", "/"), file("d/evil")},
		"over a link beside":     {link("l", "."), file("l/victim")},
		"link where a dir was":   {dir, link("d", "/tmp")},
		"no directory":           {file("d/evil")},
		"device":                 {{Name: "evil", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666}},
		"pipe":                   {{Name: "evil", Typeflag: tar.TypeFifo, Mode: 0o666}},
		"hard link":              {{Name: "evil", Linkname: "/etc/passwd", Typeflag: tar.TypeLink}},
		"two names for one file": {file("a"), file("b")},
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			to := filepath.Join(out, "to")
			plant(t, out, map[string]string{"to/victim": "v"}, 0o600)
			target := Target{Path: to, Force: false}
			if name == "two names for one file" {
				target.Path = to + "/new" // one source was asked for
			}
			var b bytes.Buffer
			tw := tar.NewWriter(&b)
			for _, h := range hs {
				if err := tw.WriteHeader(h); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(writeEnd(tw), tw.Close()); err != nil {
				t.Fatal(err)
			}
			if _, err := Unpack(&b, target); err == nil {
				t.Error("it was taken")
			}
			if d := cmp.Diff(map[string]string{"to/victim": "v"}, look(t, out)); d != "" {
				t.Error(d)
			}
		})
	}
}

// A few hundred bytes must not become a file of an exabyte.
func TestSparseStream(t *testing.T) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	content := make([]byte, 512)
	copy(content, "0\n")
	h := &tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 512, PAXRecords: map[string]string{
		"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.name": "f", "XXX.sparse.realsize": "1152921504606846976",
	}}
	err := tw.WriteHeader(h)
	_, writeErr := tw.Write(content)
	if err := errors.Join(err, writeErr, writeEnd(tw), tw.Close()); err != nil {
		t.Fatal(err)
	}
	stream := bytes.ReplaceAll(b.Bytes(), []byte("XXX."), []byte("GNU."))
	if got, err := tar.NewReader(bytes.NewReader(stream)).Next(); err != nil || got.Size != 1<<60 {
		t.Fatalf("the stream is not what this tests: %+v, %v", got, err)
	}
	to := t.TempDir()
	if _, err := Unpack(bytes.NewReader(stream), Target{Path: to}); err == nil {
		t.Error("it was taken")
	}
	if d := cmp.Diff(map[string]string{}, look(t, to)); d != "" {
		t.Error(d)
	}
}

func TestServe(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	plant(t, from, map[string]string{"f": "x"}, 0o600)
	var stream, report bytes.Buffer
	if st := Serve(Args([]string{from + "/f"}, Target{}), nil, &stream, &report); st != 0 {
		t.Fatal(st, report.String())
	}
	var s Stats
	if err := json.Unmarshal(report.Bytes(), &s); err != nil || s.Files != 1 || s.Bytes != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if st := Serve(Args(nil, Target{Path: to}), &stream, nil, io.Discard); st != 0 {
		t.Error(st)
	}
	if d := cmp.Diff(map[string]string{"f": "x"}, look(t, to)); d != "" {
		t.Error(d)
	}
	report.Reset()
	var e Error
	if st := Serve(Args([]string{from + "/no"}, Target{}), nil, io.Discard, &report); st != 1 || json.Unmarshal(report.Bytes(), &e) != nil || e.Code != NotFound {
		t.Errorf("%d, %+v", st, e)
	}
	if st := Serve([]string{"pack", "{"}, nil, io.Discard, io.Discard); st != 1 {
		t.Error(st)
	}
}

func FuzzUnpack(f *testing.F) {
	from := f.TempDir()
	if err := os.WriteFile(from+"/f", []byte("x"), 0o600); err != nil {
		f.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := Pack(&stream, []string{from}); err != nil {
		f.Fatal(err)
	}
	f.Add(stream.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		out := t.TempDir()
		plant(t, out, map[string]string{"to/": "", "victim": "v"}, 0o600)
		_, err := Unpack(bytes.NewReader(data), Target{Path: out + "/to"})
		entries, readErr := os.ReadDir(out)
		if readErr != nil || len(entries) != 2 {
			t.Errorf("beside the destination: %v, %v", entries, readErr)
		}
		if inside, _ := os.ReadDir(out + "/to"); err != nil && len(inside) > 0 {
			t.Error(fmt.Sprint("a refused stream left ", inside))
		}
	})
}
