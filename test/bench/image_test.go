package bench

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/image/imagetest"
)

// imageBench imports images by the built binary and does by hand what that does.
type imageBench struct {
	*bench
	mk   imagetest.Maker
	peak int64 // bytes, the most that an mvm needed
}

func newImageBench(b *testing.B) *imageBench {
	b.Helper()
	imagetest.Require(b)
	in := &imageBench{bench: &bench{t: b, bin: os.Getenv("MVM_TEST_MVM"), cache: b.TempDir()}, mk: imagetest.New(b)}
	if in.bin == "" {
		in.bin = "../../bin/mvm"
	}
	var err error
	if in.bin, err = filepath.Abs(in.bin); err != nil {
		b.Fatal(err)
	}
	return in
}

// disk is a raw disk of size bytes with a root of a quarter of that, half full.
func (b *imageBench) disk(size int64) string {
	b.t.Helper()
	tree := b.mk.Tree("tree", 62)
	b.fill(filepath.Join(tree, "usr/share"), size/8)
	root := b.mk.Path("root")
	b.mk.Run("", "mke2fs", "-q", "-t", "ext4", "-d", tree, root, strconv.FormatInt(size/4>>10, 10)+"k")
	out := b.mk.DiskIn("gpt", root, b.mk.Path("disk"))
	if err := os.Truncate(out, size); err != nil {
		b.t.Fatal(err)
	}
	b.mk.Run("", "sfdisk", "-q", "--relocate", "gpt-bak-std", out)
	b.sync()
	return out
}

// fill makes files of 64 KiB that compress by half.
func (b *imageBench) fill(dir string, total int64) {
	b.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	r := rand.NewChaCha8([32]byte{1})
	for n := int64(0); n < total; n += 64 << 10 {
		buf := make([]byte, 64<<10)
		_, _ = r.Read(buf[:32<<10]) // never fails
		for i := 32 << 10; i < len(buf); i++ {
			buf[i] = 'a'
		}
		if err := os.WriteFile(filepath.Join(dir, strconv.FormatInt(n, 36)), buf, 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
}

// sync has the disk idle, so that nobody pays for what was written before.
func (b *imageBench) sync() { syscall.Sync() }

// both times mvm and what is done by hand, in turns; both results are durable.
func (b *imageBench) both(name, file string, byHand func(out string)) {
	b.t.Helper()
	var ours, theirs []time.Duration
	for range rounds {
		b.sync()
		start := time.Now()
		cmd := exec.Command(b.bin, "image", "import", "bench", file, "--skip-optimization")
		cmd.Env = append(os.Environ(), "MVM_CACHE_DIR="+b.cache, "MVM_CONFIG_DIR="+b.cache+"/config")
		b.watched(cmd)
		ours = append(ours, time.Since(start))
		b.mvm("image", "rm", "bench")
		b.sync()
		out := filepath.Join(b.cache, "by-hand")
		start = time.Now()
		byHand(out)
		b.mk.Run("", "sync", out)
		theirs = append(theirs, time.Since(start))
		if err := os.Remove(out); err != nil {
			b.t.Fatal(err)
		}
	}
	x, y := slices.Min(ours), slices.Min(theirs) // noise only adds
	b.t.Logf("%s: %v against %v by hand: %.2f; at most %d MiB of memory", name, x.Round(time.Millisecond), y.Round(time.Millisecond), x.Seconds()/y.Seconds(), b.peak>>20)
}

// watched runs a command and notes the most memory that it had at any time. The
// kernel's own account at its end would have this process's too, which it was
// forked from.
func (b *imageBench) watched(cmd *exec.Cmd) {
	b.t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				b.t.Fatalf("%v\n%s", err, out.String())
			}
			return
		case <-tick.C:
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			if _, rest, ok := strings.Cut(string(status), "VmHWM:"); err == nil && ok { // else it has just ended
				line, _, _ := strings.Cut(rest, "\n")
				var kib int64
				if _, err := fmt.Sscan(line, &kib); err == nil {
					b.peak = max(b.peak, kib<<10)
				}
			}
		}
	}
}

// BenchmarkImport compares imports with what copies or converts the same file.
func BenchmarkImport(b *testing.B) {
	in := newImageBench(b)
	raw := in.disk(2 << 30)
	in.both("sparse raw image of 2 GiB against cp --sparse=always", raw, func(out string) {
		in.mk.Run("", "cp", "--sparse=always", raw, out)
	})
	in.mk.Run("", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, raw+".qcow2")
	in.both("qcow2 of it against qemu-img convert", raw+".qcow2", func(out string) {
		in.mk.Run("", "qemu-img", "convert", "-f", "qcow2", "-O", "raw", raw+".qcow2", out)
	})
	in.mk.Run("", "tar", "--zstd", "-cf", in.mk.Path("tree.tar.zst"), "-C", in.mk.Path("tree"), ".")
	in.both("tar.zst against tar and mke2fs -d", in.mk.Path("tree.tar.zst"), func(out string) {
		tree := in.mk.Path("unpacked")
		if err := os.Mkdir(tree, 0o755); err != nil {
			b.Fatal(err)
		}
		in.mk.Run("", "tar", "--zstd", "-xf", in.mk.Path("tree.tar.zst"), "-C", tree)
		in.mk.Run("", "mke2fs", "-q", "-t", "ext4", "-d", tree, out, "512M")
		if err := os.RemoveAll(tree); err != nil {
			b.Fatal(err)
		}
	})
}
