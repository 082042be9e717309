package initramfs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/run"
)

// node is what the reader below finds.
type node struct {
	Mode, Major, Minor uint64
	Data               string
}

// read reads archives one after the other as the kernel does (init/initramfs.c):
// a header at a multiple of four, zeros between segments, a later file replaces
// an earlier one.
func read(t *testing.T, data []byte) (order []string, nodes map[string]node) {
	t.Helper()
	nodes = map[string]node{}
	off := 0
	for off < len(data) {
		if data[off] == 0 {
			off++
			continue
		}
		if off%4 != 0 || string(data[off:off+6]) != "070701" {
			t.Fatalf("no header at %d: %q", off, data[off:off+6])
		}
		var field [13]uint64
		for i := range field {
			v, err := strconv.ParseUint(string(data[off+6+8*i:off+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			field[i] = v
		}
		mode, uid, gid, mtime, size, nameLen := field[1], field[2], field[3], field[5], field[6], field[11]
		if uid != 0 || gid != 0 || mtime != 0 {
			t.Errorf("owner %d:%d, time %d, want 0", uid, gid, mtime)
		}
		name := string(data[off+110 : off+110+int(nameLen)-1])
		off = (off + 110 + int(nameLen) + 3) &^ 3
		body := string(data[off : off+int(size)])
		off = (off + int(size) + 3) &^ 3
		if name == "TRAILER!!!" {
			continue
		}
		if dir := filepath.Dir(name); dir != "." && nodes[dir].Mode&0o170000 != typeDir && !strings.HasPrefix(name, "mvm/config") {
			t.Errorf("%s comes before its directory", name)
		}
		order = append(order, name)
		nodes[name] = node{mode, field[9], field[10], body}
	}
	return order, nodes
}

func TestWriter(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	w.Dir("/a", 0o755)
	w.File("a/f", 0o640, 5, strings.NewReader("hello"))
	w.File("a/empty", 0o600, 0, strings.NewReader(""))
	w.Symlink("l", "a/f")
	w.CharDevice("console", 0o600, 5, 1)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%align != 0 {
		t.Errorf("the segment has %d bytes", b.Len())
	}
	_, got := read(t, b.Bytes())
	want := map[string]node{"a": {Mode: 0o40755}, "a/f": {Mode: 0o100640, Data: "hello"}, "a/empty": {Mode: 0o100600},
		"l": {Mode: 0o120777, Data: "a/f"}, "console": {Mode: 0o20600, Major: 5, Minor: 1}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, add := range map[string]func(*Writer){
		"empty name":   func(w *Writer) { w.Dir("/", 0o755) },
		"trailer":      func(w *Writer) { w.Dir("TRAILER!!!", 0o755) },
		"zero byte":    func(w *Writer) { w.Symlink("a\x00b", "c") },
		"long name":    func(w *Writer) { w.Dir(strings.Repeat("a", 5000), 0o755) },
		"short reader": func(w *Writer) { w.File("f", 0o644, 10, strings.NewReader("short")) },
		"too large":    func(w *Writer) { w.File("f", 0o644, 1<<32, strings.NewReader("")) },
		"negative":     func(w *Writer) { w.File("f", 0o644, -1, strings.NewReader("")) },
	} {
		w := NewWriter(io.Discard)
		add(w)
		w.Dir("after", 0o755)
		if w.Close() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// spec makes inputs: a file that passes for a static agent, and three modules.
func spec(t *testing.T) BaseSpec {
	t.Helper()
	dir := t.TempDir()
	s := BaseSpec{Agent: filepath.Join(dir, "agent"), Dir: filepath.Join(dir, "out")}
	// An ELF header without segments or sections is all that is looked at.
	head := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	head[16], head[18], head[20], head[52], head[54], head[58] = 2, 62, 1, 64, 56, 64
	must(t, os.WriteFile(s.Agent, append(head, "the agent"...), 0o755))
	for i := range 3 {
		m := filepath.Join(dir, fmt.Sprintf("m-%d.ko", 3-i))
		must(t, os.WriteFile(m, bytes.Repeat([]byte{byte(i)}, 1000+i), 0o600))
		s.Modules = append(s.Modules, m)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBase(t *testing.T) {
	s := spec(t)
	path, err := Base(t.Context(), s)
	must(t, err)
	data, err := os.ReadFile(path)
	must(t, err)
	_, nodes := read(t, data)
	if got := nodes["mvm/modules.list"].Data; got != "m-3.ko\nm-2.ko\nm-1.ko\n" {
		t.Errorf("modules.list = %q", got)
	}
	if n := nodes["init"]; n.Mode != 0o100755 || !strings.HasSuffix(n.Data, "the agent") {
		t.Errorf("init: mode %o", n.Mode)
	}
	if d := cmp.Diff(node{Mode: 0o100644, Data: strings.Repeat("\x01", 1001)}, nodes["mvm/modules/m-2.ko"]); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(node{Mode: 0o20600, Major: 5, Minor: 1}, nodes["dev/console"]); d != "" {
		t.Error(d)
	}

	// The same input elsewhere gives the same bytes under the same name.
	other := s
	other.Dir = filepath.Join(t.TempDir(), "other")
	path2, err := Base(t.Context(), other)
	must(t, err)
	data2, err := os.ReadFile(path2)
	must(t, err)
	if filepath.Base(path2) != filepath.Base(path) || !bytes.Equal(data, data2) {
		t.Error("the same input gave another archive")
	}
}

func TestBaseFollowsItsInput(t *testing.T) {
	s := spec(t)
	first, err := Base(t.Context(), s)
	must(t, err)
	st, err := os.Stat(first)
	must(t, err)
	again, err := Base(t.Context(), s)
	must(t, err)
	st2, err := os.Stat(again)
	must(t, err)
	if again != first || !os.SameFile(st, st2) {
		t.Error("an unchanged input was built again")
	}
	must(t, os.Remove(first))
	if again, err = Base(t.Context(), s); err != nil || again != first {
		t.Errorf("after removal: %s, %v", again, err)
	}
	// Same size and modification time, another content.
	mst, err := os.Stat(s.Modules[0])
	must(t, err)
	must(t, os.WriteFile(s.Modules[0], bytes.Repeat([]byte{9}, 1000), 0o600))
	must(t, os.Chtimes(s.Modules[0], mst.ModTime(), mst.ModTime()))
	changed, err := Base(t.Context(), s)
	if err != nil || changed == first {
		t.Errorf("a changed module gave the old base: %v", err)
	}
	// Another order is another base.
	s.Modules[0], s.Modules[1] = s.Modules[1], s.Modules[0]
	if swapped, err := Base(t.Context(), s); err != nil || swapped == changed {
		t.Errorf("another order gave the old base: %v", err)
	}
}

func TestBaseRefuses(t *testing.T) {
	s := spec(t)
	must(t, os.WriteFile(s.Agent, []byte("#!/bin/sh\n"), 0o755))
	if _, err := Base(t.Context(), s); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
		t.Errorf("a script as agent: %v", err)
	}
	s = spec(t)
	s.Modules = append(s.Modules, filepath.Join(t.TempDir(), "missing.ko"))
	if _, err := Base(t.Context(), s); !errors.Is(err, mvm.ErrUnavailable) {
		t.Errorf("a missing module: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestForVM(t *testing.T) {
	s := spec(t)
	base, err := Base(t.Context(), s)
	must(t, err)
	before, err := os.ReadFile(base)
	must(t, err)
	dest := filepath.Join(t.TempDir(), "initrd")
	must(t, os.WriteFile(dest, []byte("an old one, readable by all"), 0o644))
	config := guest.BootConfig{Version: 1, Hostname: "demo", Network: &guest.NetConfig{MAC: "02:00:00:00:00:01"}, Entropy: []byte{1, 2}}
	must(t, ForVM(base, dest, config))

	st, err := os.Stat(dest)
	must(t, err)
	if st.Mode() != 0o600 {
		t.Errorf("mode %v, want 0600: it holds keys", st.Mode())
	}
	data, err := os.ReadFile(dest)
	must(t, err)
	if !bytes.HasPrefix(data, before) {
		t.Error("it does not begin with the base")
	}
	order, nodes := read(t, data)
	if order[len(order)-1] != "mvm/config.json" || nodes["mvm/config.json"].Mode != 0o100600 {
		t.Errorf("last is %s with mode %o", order[len(order)-1], nodes["mvm/config.json"].Mode)
	}
	var got guest.BootConfig
	must(t, json.Unmarshal([]byte(nodes["mvm/config.json"].Data), &got))
	if d := cmp.Diff(config, got); d != "" {
		t.Error(d)
	}
	if after, err := os.ReadFile(base); err != nil || !bytes.Equal(before, after) {
		t.Error("the base was changed")
	}
	if left, _ := os.ReadDir(filepath.Dir(dest)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	if err := ForVM(base+"x", dest, config); !errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "" {
		t.Errorf("a missing base: %v", err)
	}
	if err := ForVM(base, filepath.Join(dest, "no", "dir"), config); !errors.Is(err, mvm.ErrUnavailable) {
		t.Errorf("no directory: %v", err)
	}
}

// TestCpioReadsIt shows the archive to an independent reader.
func TestCpioReadsIt(t *testing.T) {
	base, err := Base(t.Context(), spec(t))
	must(t, err)
	f, err := os.Open(base)
	must(t, err)
	defer func() { _ = f.Close() }()
	res, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: "cpio", Args: []string{"-it", "--quiet"}, Stdin: f})
	if errors.Is(err, mvm.ErrUnavailable) {
		t.Skip("needs cpio")
	}
	must(t, err)
	data, err := os.ReadFile(base)
	must(t, err)
	order, _ := read(t, data)
	if d := cmp.Diff(order, strings.Fields(string(res.Stdout))); d != "" {
		t.Error(d)
	}
}

func BenchmarkForVM(b *testing.B) {
	dir := b.TempDir()
	base := filepath.Join(dir, "base")
	if err := os.WriteFile(base, bytes.Repeat([]byte("0123456789abcdef"), 12<<20/16), 0o644); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := ForVM(base, filepath.Join(dir, "initrd"), guest.BootConfig{}); err != nil {
			b.Fatal(err)
		}
	}
}
