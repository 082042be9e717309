package op_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// On a full disk an operation fails before any effect, or takes back what it
// has done, and leaves the disk usable.
func TestFullDisk(t *testing.T) {
	for _, at := range []string{"before", "in the middle"} {
		t.Run(at, func(t *testing.T) {
			disk := t.TempDir()
			if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
				t.Skipf("root: a small disk cannot be mounted: %v", err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			w := newWorld(t, disk)
			filler := filepath.Join(disk, "filler")
			o := w.create()
			n := 0
			if at == "before" {
				fillUp(t, filler)
			} else {
				o.OnStep = func(string) {
					if n++; n == 3 {
						fillUp(t, filler)
					}
				}
			}
			// A step that needs more space than there can be: the failure is certain.
			o.Steps = append(o.Steps, &fileStep{Path: w.file(9), Owner: strings.Repeat("x", 2<<20)})
			if err := w.j.Run(t.Context(), o); err == nil {
				t.Error("no error")
			} else if at == "before" && (mvm.KindOf(err) != mvm.ErrUnavailable || !strings.Contains(err.Error(), "is full")) {
				t.Errorf("error is %v", err)
			}
			if got := strings.Count(w.state(t), "host/"); got != 0 {
				t.Errorf("left is\n%s", w.state(t))
			}
			must(t, os.Remove(filler))
			_, err := w.j.Recover(t.Context())
			must(t, err)
			w.want(t, nothing)
			must(t, w.j.Run(t.Context(), w.create()))
			w.want(t, created)
		})
	}
}

func fillUp(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	must(t, err)
	for size := 1 << 16; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	_ = f.Close()
}
