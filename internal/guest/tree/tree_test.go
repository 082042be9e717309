package tree_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm/internal/guest/tree"
	"github.com/mvmctl/mvm/internal/guest/tree/treetest"
)

func TestSuite(t *testing.T) { treetest.Suite(t, transfer, time.Microsecond) }

// transfer packs into a pipe and unpacks from it; the packer's error comes first.
func transfer(sources []string, target tree.Target) (tree.Stats, error) {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		_, err := tree.Pack(w, sources)
		_ = w.CloseWithError(err)
		sent <- err
	}()
	s, err := tree.Unpack(r, target)
	_ = r.CloseWithError(io.ErrClosedPipe)
	if sendErr := <-sent; sendErr != nil && !errors.Is(sendErr, io.ErrClosedPipe) {
		return s, sendErr
	}
	return s, err
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
	s, err := tree.Pack(&stream, sources)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{from + "/fifo"}, s.Skipped); d != "" {
		t.Error(d)
	}
	if _, err := tree.Unpack(&stream, tree.Target{Path: to}); err != nil {
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
	treetest.Plant(t, from, map[string]string{"d/one": "1", "d/two": strings.Repeat("2", 2000)}, 0o600)
	var stream bytes.Buffer
	if _, err := tree.Pack(&stream, []string{from + "/d"}); err != nil {
		t.Fatal(err)
	}
	whole := stream.Bytes()
	end := bytes.Index(whole, []byte(tree.EndRecord))
	to := t.TempDir()
	treetest.Plant(t, to, map[string]string{"d/one": "old"}, 0o600)
	for n := 0; n < end; n += 100 {
		if _, err := tree.Unpack(bytes.NewReader(whole[:n]), tree.Target{Path: to, Force: true}); err == nil {
			t.Fatalf("%d of %d bytes were taken for the whole", n, len(whole))
		}
		if d := cmp.Diff(map[string]string{"d/one": "old"}, treetest.Look(t, to)); d != "" {
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
		"another name":           {file(".bashrc")},
		"one more":               {file("asked"), file(".bashrc")},
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			to := filepath.Join(out, "to")
			treetest.Plant(t, out, map[string]string{"to/victim": "v"}, 0o600)
			target := tree.Target{Path: to, Force: false}
			switch name {
			case "another name", "one more":
				target.Expect = []string{"asked"}
			}
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
			if err := errors.Join(tree.WriteEnd(tw), tw.Close()); err != nil {
				t.Fatal(err)
			}
			if _, err := tree.Unpack(&b, target); err == nil {
				t.Error("it was taken")
			}
			if d := cmp.Diff(map[string]string{"to/victim": "v"}, treetest.Look(t, out)); d != "" {
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
	if err := errors.Join(err, writeErr, tree.WriteEnd(tw), tw.Close()); err != nil {
		t.Fatal(err)
	}
	stream := bytes.ReplaceAll(b.Bytes(), []byte("XXX."), []byte("GNU."))
	if got, err := tar.NewReader(bytes.NewReader(stream)).Next(); err != nil || got.Size != 1<<60 {
		t.Fatalf("the stream is not what this tests: %+v, %v", got, err)
	}
	to := t.TempDir()
	if _, err := tree.Unpack(bytes.NewReader(stream), tree.Target{Path: to}); err == nil {
		t.Error("it was taken")
	}
	if d := cmp.Diff(map[string]string{}, treetest.Look(t, to)); d != "" {
		t.Error(d)
	}
}

func TestServe(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	treetest.Plant(t, from, map[string]string{"f": "x"}, 0o600)
	var stream, report bytes.Buffer
	if st := tree.Serve(tree.Args([]string{from + "/f"}, tree.Target{}), nil, &stream, &report); st != 0 {
		t.Fatal(st, report.String())
	}
	var s tree.Stats
	if err := json.Unmarshal(report.Bytes(), &s); err != nil || s.Files != 1 || s.Bytes != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if st := tree.Serve(tree.Args(nil, tree.Target{Path: to}), &stream, nil, io.Discard); st != 0 {
		t.Error(st)
	}
	if d := cmp.Diff(map[string]string{"f": "x"}, treetest.Look(t, to)); d != "" {
		t.Error(d)
	}
	report.Reset()
	var e tree.Error
	if st := tree.Serve(tree.Args([]string{from + "/no"}, tree.Target{}), nil, io.Discard, &report); st != 1 || json.Unmarshal(report.Bytes(), &e) != nil || e.Code != tree.NotFound {
		t.Errorf("%d, %+v", st, e)
	}
	if st := tree.Serve([]string{"pack", "{"}, nil, io.Discard, io.Discard); st != 1 {
		t.Error(st)
	}
}

func FuzzUnpack(f *testing.F) {
	from := f.TempDir()
	if err := os.WriteFile(from+"/f", []byte("x"), 0o600); err != nil {
		f.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := tree.Pack(&stream, []string{from}); err != nil {
		f.Fatal(err)
	}
	f.Add(stream.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		out := t.TempDir()
		treetest.Plant(t, out, map[string]string{"to/": "", "victim": "v"}, 0o600)
		_, err := tree.Unpack(bytes.NewReader(data), tree.Target{Path: out + "/to"})
		entries, readErr := os.ReadDir(out)
		if readErr != nil || len(entries) != 2 {
			t.Errorf("beside the destination: %v, %v", entries, readErr)
		}
		if inside, _ := os.ReadDir(out + "/to"); err != nil && len(inside) > 0 {
			t.Error(fmt.Sprint("a refused stream left ", inside))
		}
	})
}

func TestNames(t *testing.T) {
	got := tree.Names([]string{"/etc/hosts", "dir/", ".", "/a/..", "x"})
	if d := cmp.Diff([]string{"hosts", "dir", tree.AnyName, tree.AnyName, "x"}, got); d != "" {
		t.Error(d)
	}
	from, to := t.TempDir(), t.TempDir()
	treetest.Plant(t, from, map[string]string{"one/f": "1", "two": "2"}, 0o600)
	for _, c := range []struct {
		expect []string
		ok     bool
	}{{nil, true}, {[]string{"one", "two"}, true}, {[]string{tree.AnyName, "two"}, true}, {[]string{tree.AnyName, tree.AnyName}, true}, {[]string{tree.AnyName}, false}, {[]string{"one"}, false}} {
		_, err := transfer([]string{from + "/one", from + "/two"}, tree.Target{Path: to, Dir: true, Force: true, Expect: c.expect})
		if c.ok != (err == nil) {
			t.Errorf("expecting %q: %v", c.expect, err)
		}
	}
}
