package bench

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/mvmctl/mvm/internal/rootfs"
	"github.com/mvmctl/mvm/internal/testenv"
)

const (
	rootfsChild  = "MVM_BENCH_ROOTFS" // names the archive, and has the test binary be the program that is measured
	rootfsMemory = 64 << 10           // KiB
)

// TestRootfsFromTar measures making ext4 of a tar.zst against tar and mke2fs -d, and the
// memory that it takes.
func TestRootfsFromTar(t *testing.T) {
	if archive := os.Getenv(rootfsChild); archive != "" {
		f, err := os.Open(archive)
		if err == nil {
			_, err = rootfs.FromTar(context.Background(), f, archive+".ext4", rootfs.Options{})
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	testenv.Require(t, "root", "e2fsprogs")
	dir := t.TempDir()
	archive := filepath.Join(dir, "rootfs.tar.zst")
	packHost(t, archive)
	var ours, theirs []time.Duration
	var memory int64
	for range rounds {
		begin := time.Now()
		cmd := exec.Command(os.Args[0], "-test.run=^TestRootfsFromTar$")
		cmd.Env = append(os.Environ(), rootfsChild+"="+archive)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		ours = append(ours, time.Since(begin))
		if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			memory = max(memory, u.Maxrss)
		}
		begin = time.Now()
		unpackAndMake(t, archive, filepath.Join(dir, "tree"), filepath.Join(dir, "twin.ext4"))
		theirs = append(theirs, time.Since(begin))
		for _, path := range []string{archive + ".ext4", filepath.Join(dir, "tree"), filepath.Join(dir, "twin.ext4")} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	a, b := median(ours), median(theirs)
	t.Logf("tar.zst to ext4: %s against %s by tar and mke2fs: %.2f; %d MiB of memory", a, b, a.Seconds()/b.Seconds(), memory>>10)
	if a > b || memory > rootfsMemory {
		t.Errorf("at most 1.0 and %d MiB are allowed", rootfsMemory>>10)
	}
}

// packHost makes an archive of programs and documents that every host has.
func packHost(t *testing.T, archive string) {
	t.Helper()
	out, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	enc, err := zstd.NewWriter(out)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tar", "-C", "/usr", "-cf", "-", "bin", "share/doc", "share/perl", "include")
	cmd.Stdout = enc
	_ = cmd.Run() // a file that changes meanwhile is no reason to stop
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
}

func unpackAndMake(t *testing.T, archive, tree, image string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	dec, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	untar := exec.Command("tar", "-C", tree, "-xf", "-")
	untar.Stdin = dec
	for _, cmd := range []*exec.Cmd{untar, exec.Command("mke2fs", "-q", "-t", "ext4", "-d", tree, image, "4G"), exec.Command("sync", image)} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}
