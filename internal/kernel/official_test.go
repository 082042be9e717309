package kernel

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/ulikunitz/xz"
)

// makefile is a kernel's as far as Build goes: it configures by taking what is
// wanted, but for options named NOT_HERE, and "compiles" a file that is there. Its real
// twin is the kernel that the vm lane builds and boots.
const makefile = `.PHONY: allnoconfig olddefconfig vmlinux
allnoconfig:
	grep -v NOT_HERE $(KCONFIG_ALLCONFIG) > $(O)/.config
olddefconfig:
	grep -v NOT_HERE $(O)/.config > $(O)/.config.new
	mv $(O)/.config.new $(O)/.config
vmlinux:
	@echo '  CC      init/main.o'
	@if grep -q CONFIG_BREAKS=y $(O)/.config; then echo 'init/main.c:1:1: error: it breaks' >&2; false; fi
	@if grep -q CONFIG_WAITS=y $(O)/.config; then touch $(O)/waits; sleep 600; fi
	cp image $(O)/vmlinux
	echo built >> $(O)/../../times
`

func sourceArchive(t *testing.T, version string) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := xz.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for name, body := range map[string]string{
		"Makefile": makefile, "image": string(vmlinux("Linux version " + version + " (mvm@mvm) #1\n")), "Kconfig": "config WITHOUT_PROMPT\n\tbool\n",
	} {
		h := &tar.Header{Name: "linux-" + version + "/" + name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// kernelOrgMirror lays kernel.org's directory out, with checksums signed by a key
// that is put among the trusted ones of the fetcher.
func kernelOrgMirror(t *testing.T, version string) *asset.Fetcher {
	t.Helper()
	f := &asset.Fetcher{Dir: t.TempDir(), Keys: t.TempDir(), Mirror: t.TempDir(), Backoff: time.Microsecond}
	key, err := openpgp.NewEntity("autosigner", "", "a@example.invalid", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return time.Now().Add(-time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	var pub, sums bytes.Buffer
	archive := sourceArchive(t, version)
	w, err := clearsign.Encode(&sums, key.PrivateKey, nil)
	if err == nil {
		_, err = fmt.Fprintf(w, "%x  linux-%s.tar.gz\n%x  linux-%s.tar.xz\n", sha256.Sum256(nil), version, sha256.Sum256(archive), version)
		err = errors.Join(err, w.Close(), key.Serialize(&pub))
	}
	dir := filepath.Join(f.Mirror, "pub", "linux", "kernel", "v"+version[:1]+".x")
	err = errors.Join(err, os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(f.Keys, "kernel.org.gpg"), pub.Bytes(), 0o600),
		os.WriteFile(filepath.Join(dir, "sha256sums.asc"), sums.Bytes(), 0o600), os.WriteFile(filepath.Join(dir, "linux-"+version+".tar.xz"), archive, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func buildOptions(t *testing.T) BuildOptions {
	t.Helper()
	dir := t.TempDir()
	return BuildOptions{
		Version: "6.19.9", Base: BaseMinimal, Jobs: 2, Runner: &run.Host{}, Fetcher: kernelOrgMirror(t, "6.19.9"), WorkDir: filepath.Join(dir, "work"),
		BuildDir: filepath.Join(dir, "build"), LogDir: filepath.Join(dir, "logs"), DestDir: filepath.Join(dir, "kernels"),
	}
}

// built counts how often the compiler ran.
func built(o BuildOptions) int {
	data, _ := os.ReadFile(filepath.Join(o.BuildDir, "times")) // none yet
	return strings.Count(string(data), "built")
}

func ownConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "my.config")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// visible are the names in a directory that are no locks.
func visible(t *testing.T, dir string) []string {
	t.Helper()
	all, _ := filepath.Glob(filepath.Join(dir, "*"))
	return slices.DeleteFunc(all, func(s string) bool { return strings.HasSuffix(s, ".lock") || strings.HasSuffix(s, "/times") })
}

func TestBuild(t *testing.T) {
	testenv.Require(t, "kernel-build")
	o := buildOptions(t)
	b, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	info, err := Inspect(b.Path)
	if err != nil || info.Version != "6.19.9" || b.Version != "6.19.9" || b.Verification != mvm.VerifiedSignature || b.SignedBy == "" || b.Reused {
		t.Errorf("got %+v, %v", b, err)
	}
	final, err := finalOptions(filepath.Join(b.Dir, "config"))
	if err != nil || final["CONFIG_VIRTIO_BLK"] != "y" || final["CONFIG_EXPERT"] != "y" {
		t.Errorf("the configuration lacks what guests need: %v", err)
	}
	if left := visible(t, o.BuildDir); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
	if again, err := Build(t.Context(), o); err != nil || !again.Reused || again.Path != b.Path || again.SignedBy != b.SignedBy || built(o) != 1 {
		t.Errorf("again: %+v, %v; built %d times", again, err, built(o))
	}
	o.Features, o.Config, o.Keep = []string{"kvm"}, ownConfig(t, "CONFIG_MINE=y\n# CONFIG_IPV6 is not set\n"), true
	other, err := Build(t.Context(), o)
	if err != nil || other.Path == b.Path || built(o) != 2 {
		t.Fatalf("other options: %+v, %v; built %d times", other, err, built(o))
	}
	if final, _ = finalOptions(filepath.Join(other.Dir, "config")); final["CONFIG_KVM"] != "y" || final["CONFIG_MINE"] != "y" {
		t.Error("the feature and the user's option are not in the configuration")
	}
	if left := visible(t, o.BuildDir); len(left) != 1 {
		t.Errorf("to be kept, left are %q", left)
	}
	o.Clean = true
	if again, err := Build(t.Context(), o); err != nil || again.Reused || again.Path != other.Path || built(o) != 3 {
		t.Errorf("--clean-build: %+v, %v; built %d times", again, err, built(o))
	}
}

func TestBuildWithFirecrackersBase(t *testing.T) {
	testenv.Require(t, "kernel-build")
	o := buildOptions(t)
	o.Base = ""
	b, err := Build(t.Context(), o)
	if err != nil || b.Base != BaseMinimal || len(b.Warnings) != 1 || !strings.Contains(b.Warnings[0], "minimal") {
		t.Fatalf("where it cannot be had: %+v, %v", b, err)
	}
	var text strings.Builder
	for i := range 150 {
		fmt.Fprintf(&text, "CONFIG_OPTION_%d=y\n", i)
	}
	text.WriteString("CONFIG_NOT_HERE_1=y\nCONFIG_A_MODULE=m\n")
	name := filepath.Join(o.Fetcher.Mirror, "microvm-kernel-ci-x86_64-6.1.config")
	if err := os.WriteFile(name, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err = Build(t.Context(), o)
	if err != nil || b.Base != BaseFirecracker || len(b.Warnings) != 2 {
		t.Fatalf("got %+v, %v", b, err)
	}
	if final, _ := finalOptions(filepath.Join(b.Dir, "config")); final["CONFIG_OPTION_7"] != "y" || final["CONFIG_PVH"] != "y" {
		t.Error("base and fragments are not both in the configuration")
	}
}

func TestBuildFails(t *testing.T) {
	testenv.Require(t, "kernel-build")
	tests := []struct {
		name   string
		change func(*testing.T, *BuildOptions)
		kind   mvm.Kind
		say    string
	}{
		{"no such feature", func(_ *testing.T, o *BuildOptions) { o.Features = []string{"x"} }, mvm.ErrInvalid, "feature"},
		{"no such configuration", func(_ *testing.T, o *BuildOptions) { o.Config = "/nonexistent" }, mvm.ErrNotFound, "configuration"},
		{"a configuration that is none", func(t *testing.T, o *BuildOptions) { o.Config = ownConfig(t, "KVM=y") }, mvm.ErrInvalid, "line 1"},
		{"no version", func(_ *testing.T, o *BuildOptions) { o.Version = "../6" }, mvm.ErrInvalid, "version"},
		{"no such release", func(_ *testing.T, o *BuildOptions) { o.Version = "6.19.10" }, mvm.ErrBroken, "6.19.10"},
		{"no such series", func(_ *testing.T, o *BuildOptions) { o.Version = "5.19.10" }, mvm.ErrNotFound, "5.19.10"},
		{"another architecture", func(_ *testing.T, o *BuildOptions) { o.Arch = "arm64x" }, mvm.ErrUnsupported, "cannot be built"},
		{"an option that this version has not", func(t *testing.T, o *BuildOptions) { o.Config = ownConfig(t, "CONFIG_NOT_HERE=y\n") }, mvm.ErrInvalid, "CONFIG_NOT_HERE=y for "},
		{"it does not compile", func(t *testing.T, o *BuildOptions) { o.Config = ownConfig(t, "CONFIG_BREAKS=y\n") }, mvm.ErrBroken, "error: it breaks"},
		{"another key", func(_ *testing.T, o *BuildOptions) { o.Fetcher.Keys = "" }, mvm.ErrBroken, "not signed by a key of kernel.org"},
		{"a changed archive", func(t *testing.T, o *BuildOptions) {
			name := filepath.Join(o.Fetcher.Mirror, "pub", "linux", "kernel", "v6.x", "linux-6.19.9.tar.xz")
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}, mvm.ErrBroken, "SHA-256"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := buildOptions(t)
			tt.change(t, &o)
			b, err := Build(t.Context(), o)
			if !errors.Is(err, tt.kind) || mvm.HintOf(err) == "" || !strings.Contains(err.Error(), tt.say) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %+v, %v (hint %q); want kind %q saying %q", b, err, mvm.HintOf(err), tt.kind, tt.say)
			}
			if left := append(visible(t, o.BuildDir), visible(t, o.DestDir)...); len(left) > 0 {
				t.Errorf("left are %q", left)
			}
			var failed *mvm.BuildError
			if errors.As(err, &failed) {
				if log, err := os.ReadFile(failed.Log); err != nil || !bytes.Contains(log, []byte("it breaks")) || len(failed.Tail) == 0 {
					t.Errorf("the log: %q, %v; its tail %q", log, err, failed.Tail)
				}
			}
		})
	}
}

func TestBuildIsInterrupted(t *testing.T) {
	testenv.Require(t, "kernel-build")
	o := buildOptions(t)
	o.Config = ownConfig(t, "CONFIG_WAITS=y\n")
	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = func(e mvm.ProgressEvent) {
		if e.Phase == "compile" {
			cancel()
		}
	}
	if _, err := Build(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left := append(visible(t, o.BuildDir), visible(t, o.DestDir)...); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
}

func TestMissingToolsAreNamed(t *testing.T) {
	was := tools
	defer func() { tools = was }()
	none := func() bool { return false }
	tools = []tool{{"flex", "flex", none}, {"make", "make", func() bool { return true }}, {"libelf's headers", "libelf-dev", none}}
	o := buildOptions(t)
	_, err := Build(t.Context(), o)
	if !errors.Is(err, mvm.ErrUnavailable) || !strings.Contains(err.Error(), "flex, libelf's headers") || mvm.HintOf(err) != "apt-get install flex libelf-dev" {
		t.Errorf("got %v (hint %q)", err, mvm.HintOf(err))
	}
	if _, err := os.Stat(o.BuildDir); !errors.Is(err, os.ErrNotExist) {
		t.Error("something was begun")
	}
}
