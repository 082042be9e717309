package disk

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// tools runs what it is told to, in place of the host's tools.
type tools func(c run.Cmd) (run.Result, error)

func (f tools) Run(_ context.Context, c run.Cmd) (run.Result, error) { return f(c) }

// none has no tool installed.
var none = tools(func(c run.Cmd) (run.Result, error) {
	return run.Result{}, mvm.Errorf(mvm.ErrUnavailable, "the program %s is not installed", c.Name).WithHint("install it")
})

func TestMakeVolume(t *testing.T) {
	for name, c := range map[string]struct {
		v       Volume
		virtual int64
		least   int64 // that it takes on the host
		most    int64
	}{
		"raw":             {Volume{Format: Raw, Size: 8 << 20}, 8 << 20, 8 << 20, 9 << 20},
		"raw and sparse":  {Volume{Format: Raw, Size: 1 << 40, Sparse: true}, 1 << 40, 0, 1 << 20},
		"qcow2":           {Volume{Format: Qcow2, Size: 1 << 40}, 1 << 40, 1, 1 << 20},
		"the smallest":    {Volume{Format: Raw, Size: MinVolume}, MinVolume, MinVolume, 2 << 20},
		"largest qcow2":   {Volume{Format: Qcow2, Size: MaxVolume}, MaxVolume, 1, 1 << 20},
		"qcow2, odd size": {Volume{Format: Qcow2, Size: 512<<20 + VolumeGrain}, 512<<20 + VolumeGrain, 1, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.v.Path = filepath.Join(dir, "vol")
			if err := MakeVolume(t.Context(), none, c.v); err != nil {
				t.Fatal(err)
			}
			st, err := os.Stat(c.v.Path)
			if err != nil || st.Mode() != 0o600 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			virtual, allocated, err := Sizes(c.v.Path)
			if err != nil || virtual != c.virtual || allocated < c.least || allocated > c.most {
				t.Errorf("sizes %d %d, %v", virtual, allocated, err)
			}
			if size, err := VolumeSize(c.v.Path, c.v.Format); size != c.virtual || err != nil {
				t.Errorf("size %d, %v", size, err)
			}
			if err := Standalone(c.v.Path, c.v.Format); err != nil {
				t.Error(err)
			}
			if d := cmp.Diff([]string{"vol"}, names(t, dir)); d != "" {
				t.Error(d)
			}
			if err := MakeVolume(t.Context(), none, c.v); !errors.Is(err, mvm.ErrExists) {
				t.Errorf("made again: %v", err)
			}
			if err := errors.Join(RemoveVolume(c.v.Path), RemoveVolume(c.v.Path)); err != nil || len(names(t, dir)) > 0 {
				t.Errorf("removed: %v, left are %v", err, names(t, dir))
			}
		})
	}
}

func TestMakeVolumeRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		v    Volume
		kind mvm.Kind
		says string
	}{
		"no format":          {Volume{Size: 1 << 20}, mvm.ErrInvalid, `format ""`},
		"vmdk":               {Volume{Format: "vmdk", Size: 1 << 20}, mvm.ErrInvalid, "vmdk"},
		"too small":          {Volume{Format: Raw, Size: MinVolume - VolumeGrain}, mvm.ErrInvalid, "too small"},
		"too large":          {Volume{Format: Raw, Size: MaxVolume + VolumeGrain}, mvm.ErrInvalid, "too large"},
		"negative":           {Volume{Format: Raw, Size: -4096}, mvm.ErrInvalid, "too small"},
		"no whole block":     {Volume{Format: Raw, Size: 1<<20 + 1}, mvm.ErrInvalid, "multiple"},
		"sparse qcow2":       {Volume{Format: Qcow2, Size: 1 << 20, Sparse: true}, mvm.ErrInvalid, "in any case"},
		"unknown fs":         {Volume{Format: Raw, Size: 1 << 20, FS: "zfs"}, mvm.ErrInvalid, "zfs"},
		"too small for xfs":  {Volume{Format: Raw, Size: 100 << 20, FS: "xfs"}, mvm.ErrInvalid, "too small for xfs"},
		"more than there is": {Volume{Format: Raw, Size: 15 << 40}, mvm.ErrUnavailable, "disk full"},
		"no mke2fs":          {Volume{Format: Raw, Size: 4 << 20, FS: "ext4"}, mvm.ErrUnavailable, "mke2fs is not installed"},
		"no mkfs, qcow2":     {Volume{Format: Qcow2, Size: 4 << 20, FS: "ext4"}, mvm.ErrUnavailable, "mke2fs is not installed"},
	} {
		c.v.Path = filepath.Join(dir, "vol")
		err := MakeVolume(t.Context(), none, c.v)
		if mvm.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.says) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		if err := RemoveVolume(c.v.Path); err != nil { // what the caller does
			t.Error(err)
		}
		if left := names(t, dir); len(left) > 0 {
			t.Fatalf("%s: left are %v", name, left)
		}
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	err := MakeVolume(done, none, Volume{Path: filepath.Join(dir, "vol"), Format: Raw, Size: 1 << 20})
	if !errors.Is(err, context.Canceled) || len(names(t, dir)) > 0 {
		t.Errorf("cancelled: %v, left are %v", err, names(t, dir))
	}
}

func TestGrowVolume(t *testing.T) {
	for _, sparse := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "vol")
		if err := MakeVolume(t.Context(), none, Volume{Path: path, Format: Raw, Size: 4 << 20, Sparse: sparse}); err != nil {
			t.Fatal(err)
		}
		for _, size := range []int64{4 << 20, 6 << 20, 6 << 20} {
			if err := GrowVolume(t.Context(), path, size); err != nil {
				t.Fatal(err)
			}
			virtual, allocated, err := Sizes(path)
			if err != nil || virtual != size || sparse == (allocated >= size) {
				t.Errorf("sparse %v: sizes %d %d, %v", sparse, virtual, allocated, err)
			}
		}
		if err := GrowVolume(t.Context(), path, 2<<20); mvm.KindOf(err) != mvm.ErrInvalid || !strings.Contains(err.Error(), "smaller") {
			t.Errorf("shrinking: %v", err)
		}
		if sparse {
			continue
		}
		if err := GrowVolume(t.Context(), path, 15<<40); mvm.KindOf(err) != mvm.ErrUnavailable {
			t.Errorf("more than there is: %v", err)
		}
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if err := GrowVolume(done, path, 8<<20); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if size, err := VolumeSize(path, Raw); size != 6<<20 || err != nil {
			t.Errorf("after failures it has %d bytes, %v", size, err)
		}
	}
}

// evil makes a qcow2 header say something that ours never does.
func evil(t *testing.T, change func(head []byte)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vol")
	if err := MakeVolume(t.Context(), none, Volume{Path: path, Format: Qcow2, Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	change(data)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStandalone(t *testing.T) {
	be := binary.BigEndian
	for says, change := range map[string]func([]byte){
		"based on another file":          func(b []byte) { be.PutUint64(b[8:], 200); be.PutUint32(b[16:], 11); copy(b[200:], "/etc/shadow") },
		"keeps its data in another file": func(b []byte) { be.PutUint64(b[72:], 4) },
		"encrypted":                      func(b []byte) { be.PutUint32(b[32:], 2) },
		"no qcow2 file":                  func(b []byte) { clear(b[:8]) },
	} {
		path := evil(t, change)
		asked := false
		runner := tools(func(run.Cmd) (run.Result, error) { asked = true; return run.Result{Stdout: []byte("{}")}, nil })
		_, err := InspectVolume(t.Context(), runner, path, Qcow2)
		for _, err := range []error{err, Standalone(path, Qcow2), ResizeQcow2(t.Context(), runner, path, 2<<20, false)} {
			if mvm.KindOf(err) != mvm.ErrBroken || !strings.Contains(fmt.Sprint(err), says) || mvm.HintOf(err) == "" {
				t.Errorf("%s: %v", says, err)
			}
		}
		if asked {
			t.Errorf("%s: a tool opened it all the same", says)
		}
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "short"), []byte("QFI"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A guest may write what it likes to a raw disk.
	path := evil(t, func(b []byte) { be.PutUint64(b[8:], 200) })
	if err := Standalone(path, Raw); err != nil {
		t.Error(err)
	}
	if size, err := VolumeSize(path, Raw); size != 4*clusterBytes || err != nil {
		t.Errorf("as raw it has %d bytes, %v", size, err)
	}
}

func TestReadInfoRefusesOtherFiles(t *testing.T) {
	for _, answer := range []string{
		`{"filename": "v", "backing-filename": "/etc/shadow"}`,
		`{"filename": "v", "full-backing-filename": "/etc/shadow"}`,
		`{"filename": "v", "format-specific": {"type": "qcow2", "data": {"data-file": "/etc/shadow"}}}`,
		`no JSON`,
	} {
		if _, err := readInfo([]byte(answer)); mvm.KindOf(err) != mvm.ErrBroken || strings.Contains(err.Error(), "shadow") {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

func TestInspectVolume(t *testing.T) {
	for _, v := range []Volume{{Format: Raw, Size: 4 << 20}, {Format: Qcow2, Size: 1 << 30}} {
		v.Path = filepath.Join(t.TempDir(), "vol")
		if err := MakeVolume(t.Context(), none, v); err != nil {
			t.Fatal(err)
		}
		plain, err := InspectVolume(t.Context(), none, v.Path, v.Format)
		if err != nil || plain.VirtualSize != v.Size || plain.Format != v.Format || plain.Filename != v.Path || plain.ActualSize == 0 {
			t.Errorf("without qemu-img: %+v, %v", plain, err)
		}
		want := qemuImg(t, "info", "--output=json", "-f", v.Format, v.Path)
		got, err := InspectVolume(t.Context(), &run.Host{}, v.Path, v.Format)
		if err != nil {
			t.Fatal(err)
		}
		var theirs, ours map[string]any
		data, err := json.Marshal(got)
		if err := errors.Join(err, json.Unmarshal(want, &theirs), json.Unmarshal(data, &ours)); err != nil {
			t.Fatal(err)
		}
		delete(theirs, "children") // newer than 7.2
		if d := cmp.Diff(theirs, ours); d != "" {
			t.Errorf("%s (-qemu-img +ours):\n%s", v.Format, d)
		}
		if v.Format == Qcow2 {
			qemuImg(t, "check", "-q", v.Path)
		}
	}
}

func TestResizeQcow2(t *testing.T) {
	testenv.Require(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "vol")
	if err := MakeVolume(t.Context(), none, Volume{Path: path, Format: Qcow2, Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	host := &run.Host{}
	for _, c := range []struct {
		size   int64
		shrink bool
		fails  bool
	}{{1 << 30, false, false}, {32 << 20, false, true}, {32 << 20, true, false}, {48 << 20, true, false}} {
		before, err := VolumeSize(path, Qcow2)
		if err != nil {
			t.Fatal(err)
		}
		err = ResizeQcow2(t.Context(), host, path, c.size, c.shrink)
		want := c.size
		if c.fails {
			want = before
		}
		if size, sizeErr := VolumeSize(path, Qcow2); (err != nil) != c.fails || size != want || sizeErr != nil {
			t.Errorf("to %d: %v; it has %d, %v", c.size, err, size, sizeErr)
		}
		qemuImg(t, "check", "-q", path)
	}
}

func TestMkfs(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		for _, v := range []Volume{{Format: Raw, Size: smallestFS[fs]}, {Format: Raw, Size: 320 << 20}, {Format: Raw, Size: 2 << 30, Sparse: true}, {Format: Qcow2, Size: 2 << 30}} {
			t.Run(fs+" "+v.Format, func(t *testing.T) {
				v.Path, v.FS, v.Label = filepath.Join(t.TempDir(), "vol"), fs, "a-name-longer-than-labels"
				if err := MakeVolume(t.Context(), &run.Host{}, v); err != nil {
					if strings.Contains(err.Error(), "is not installed") {
						t.Skip(err)
					}
					t.Fatal(err)
				}
				path := v.Path
				if v.Format == Qcow2 {
					path += ".raw"
					qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", v.Path, path)
				}
				info, err := Probe(path)
				if err != nil || info.FS != fs || info.SizeBytes != v.Size || info.UUID == "" || !strings.HasPrefix("a-name-longer-than-labels", info.Label) || len(info.Label) < 12 {
					t.Errorf("%+v, %v", info, err)
				}
				_, allocated, err := Sizes(v.Path)
				full := v.Format == Raw && !v.Sparse
				if err != nil || full != (allocated >= v.Size) {
					t.Errorf("it takes %d bytes, %v", allocated, err)
				}
				if st, err := os.Stat(v.Path); err != nil || st.Mode() != 0o600 {
					t.Errorf("%v, %v", st.Mode(), err)
				}
			})
		}
	}
}

// The kernel mounts what was made, and it can be written to.
func TestMkfsMounts(t *testing.T) {
	testenv.Require(t, "root")
	host := &run.Host{}
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			v := Volume{Path: filepath.Join(t.TempDir(), "vol"), Format: Raw, Size: 320 << 20, Sparse: true, FS: fs, Label: "data"}
			if err := MakeVolume(t.Context(), host, v); err != nil {
				if strings.Contains(err.Error(), "is not installed") {
					t.Skip(err)
				}
				t.Fatal(err)
			}
			at := t.TempDir()
			if _, err := host.Run(t.Context(), run.Cmd{Name: "mount", Args: []string{"-o", "loop", v.Path, at}}); err != nil {
				t.Skipf("needs loop devices and %s in the kernel: %v", fs, err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(at, 0); err != nil {
					t.Error(err)
				}
			})
			if err := os.WriteFile(filepath.Join(at, "x"), make([]byte, 1<<20), 0o600); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestVolumeOnFullDisk(t *testing.T) {
	onSmallMount(t, func(dir string) {
		path := filepath.Join(dir, "vol")
		err := MakeVolume(t.Context(), none, Volume{Path: path, Format: Raw, Size: 64 << 20})
		if mvm.KindOf(err) != mvm.ErrUnavailable || !strings.Contains(err.Error(), "disk full") || mvm.HintOf(err) == "" {
			t.Errorf("make: %v", err)
		}
		if err := MakeVolume(t.Context(), none, Volume{Path: path, Format: Raw, Size: 2 << 20}); err != nil {
			t.Error(err)
		}
		if err := GrowVolume(t.Context(), path, 64<<20); mvm.KindOf(err) != mvm.ErrUnavailable {
			t.Errorf("grow: %v", err)
		}
		// The look ahead is no reservation: allocating itself has to fail well.
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = f.Close() }()
		if err := volumeFault(allocate(t.Context(), f, 2<<20, 64<<20), "grow", path, 0); !errors.Is(err, unix.ENOSPC) || mvm.HintOf(err) == "" {
			t.Errorf("allocate: %v", err)
		}
		big := filepath.Join(dir, "big")
		err = MakeVolume(t.Context(), &run.Host{}, Volume{Path: big, Format: Raw, Size: 64 << 20, Sparse: true, FS: "ext4"})
		if err != nil && mvm.KindOf(err) != mvm.ErrUnavailable {
			t.Errorf("mkfs: %v", err)
		}
		if err := errors.Join(RemoveVolume(big), RemoveVolume(path)); err != nil || len(names(t, dir)) > 0 {
			t.Errorf("%v, left are %v", err, names(t, dir))
		}
	})
}
