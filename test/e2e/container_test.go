package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/apt"
	"github.com/mvmctl/mvm/internal/run"
)

// entryScript is the entrypoint of the container image: it tells how it runs.
const entryScript = `#!/bin/sh
echo "$GREETING $1 $(id -u):$(id -g) $(pwd)"
case $1 in
exit) exit $2 ;;
serve)
	trap 'echo bye; exit 0' QUIT
	trap 'exit 3' USR1
	echo $$ > /srv/pid
	while :; do sleep 0.2; done ;;
esac
`

// TestContainerImage pulls an image from a registry that wants a password, and boots it.
func TestContainerImage(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() {
		logs, _ := filepath.Glob(filepath.Join(m.cache, "vms", "*", "*console.log"))
		for _, l := range logs {
			if data, err := os.ReadFile(l); err == nil && t.Failed() {
				t.Logf("%s", data)
			}
		}
	})
	host := m.serveRegistry("team/app:1", containerImage(t))
	ref := "oci://" + host + "/team/app:1"
	m.must("init", "--non-interactive", "--skip-host")

	// The image is not there: run gets it.
	r := m.run("run", "--mem", "192", "-e", "GREETING=hey", ref, "--", "exit", "7")
	if r.code != 7 || r.stdout != "hey exit 1000:1000 /srv\n" {
		t.Errorf("run: %+v", r)
	}
	if vms := m.vms(); len(vms) > 0 {
		t.Errorf("left: %+v", vms)
	}
	before := m.listing()
	var shown struct{ Image mvm.ImageItem }
	if err := json.Unmarshal([]byte(m.must("image", "inspect", ref, "--json")), &shown); err != nil || shown.Image.Container == nil ||
		strings.Join(shown.Image.Container.Entrypoint, " ") != "/entry" || shown.Image.Container.StopSignal != "QUIT" || shown.Image.Verification != mvm.VerifiedChecksum {
		t.Errorf("inspect: %+v, %v", shown.Image, err)
	}
	if again := m.must("image", "pull", ref); again != "oci://"+host+"/team/app:1\n" {
		t.Errorf("pulled again: %q", again)
	}

	m.must("vm", "create", "box", "--image", ref, "--mem", "192", "--wait", "--", "serve")
	t.Run("main", func(t *testing.T) { m.of(t).containerMain() })
	t.Run("exec", func(t *testing.T) { m.of(t).containerExec() })
	t.Run("end", func(t *testing.T) { m.of(t).containerEnds() })
	t.Run("stop", func(t *testing.T) { m.of(t).containerStops() })
	t.Run("file system", func(t *testing.T) { m.of(t).containerDisk() })
	m.refused([]string{"no container image", "mvm exec"}, "vm", "create", "x", "--image", "tiny", "--entrypoint", "/bin/sh")
	m.must("vm", "rm", "--force", "box")
	m.sameListing(before)
}

func (m *machine) containerMain() {
	if got := m.must("exec", "-u", "0", "box", "--", "readlink", "/proc/1/exe"); got != "/run/mvm/mvm-init\n" {
		m.t.Errorf("PID 1 is %q", got)
	}
	if !m.eventually(func() bool { return strings.Contains(m.run("logs", "box").stdout, "hello serve 1000:1000 /srv") }) {
		m.t.Errorf("the log has %q", m.run("logs", "box").stdout)
	}
}

func (m *machine) containerExec() {
	if got := m.must("exec", "box", "--", "sh", "-c", `echo "$GREETING $(id -u) $(pwd) $(hostname)"`); got != "hello 1000 /srv box\n" {
		m.t.Errorf("exec: %q", got)
	}
	if got := m.must("exec", "-u", "root", "-w", "/", "-e", "GREETING=x", "box", "--", "sh", "-c", `echo "$GREETING $(id -u) $(pwd)"`); got != "x 0 /\n" {
		m.t.Errorf("exec as root: %q", got)
	}
	// Children that nobody waits for become PID 1's, which does.
	m.must("exec", "box", "--", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do (true &); done")
	if !m.eventually(func() bool {
		return !strings.Contains(m.must("exec", "box", "--", "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true"), ") Z ")
	}) {
		m.t.Error("zombies stay")
	}
	mounts := m.must("exec", "box", "--", "cat", "/proc/mounts")
	for _, want := range []string{"/dev/pts devpts", "/dev/shm tmpfs", "/proc proc", "/sys sysfs", "/run tmpfs", "/ ext4 rw"} {
		if !strings.Contains(mounts, want) {
			m.t.Errorf("no %q in\n%s", want, mounts)
		}
	}
	if got := m.must("exec", "-u", "0", "box", "--", "sh", "-c", "df -m / | tail -1 | awk '{print ($2 > 1500)}'; dmesg | grep -c 'EXT4-fs.*err'; true"); !strings.HasPrefix(got, "1\n0") {
		m.t.Errorf("the root was not grown, or has errors: %q", got)
	}
	if got := m.must("exec", "-u", "0", "box", "--", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=300 2>/dev/null && rm /big && mkdir /d && cd /d && for i in $(seq 1 300); do echo $i > f$i; done; ls | wc -l"); strings.TrimSpace(got) != "300" {
		m.t.Errorf("writing: %q", got)
	}
}

// containerEnds has the main process end, and with it the VM.
func (m *machine) containerEnds() {
	m.must("exec", "box", "--", "sh", "-c", "kill -USR1 $(cat /srv/pid)")
	m.must("vm", "wait", "box", "--for", "stopped")
	if got := m.run("logs", "-n", "500", "box").stdout; !strings.Contains(got, "mvm: the main process ended with status 3") {
		m.t.Errorf("the log has %q", got)
	}
	if vm := m.vm("box"); vm.Status != "stopped" {
		m.t.Errorf("the VM is %s", vm.Status)
	}
}

// containerStops stops the VM: the main process gets the signal that the image names.
func (m *machine) containerStops() {
	m.must("vm", "start", "box", "--wait")
	if !m.eventually(func() bool { return m.run("exec", "box", "--", "test", "-s", "/srv/pid").code == 0 }) {
		m.t.Error("the main process did not start")
	}
	begin := time.Now()
	m.must("vm", "stop", "box")
	m.t.Logf("stopped in %s", time.Since(begin))
	if got := m.run("logs", "-n", "500", "box").stdout; !strings.Contains(got, "bye") {
		m.t.Errorf("the log has %q", got)
	}
}

// containerDisk has e2fsck look at the disk that the guest has grown and written to.
func (m *machine) containerDisk() {
	disks, err := filepath.Glob(filepath.Join(m.cache, "vms", "*", "rootfs.qcow2"))
	if err != nil || len(disks) != 1 {
		m.t.Fatalf("disks: %v, %v", disks, err)
	}
	raw := filepath.Join(m.t.TempDir(), "raw")
	if out, err := exec.Command("qemu-img", "convert", "-O", "raw", disks[0], raw).CombinedOutput(); err != nil {
		m.t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("e2fsck", "-fn", raw).CombinedOutput(); err != nil {
		m.t.Errorf("%v: %s", err, out)
	}
}

// eventually waits for a condition, as long as a guest may need for anything.
func (m *machine) eventually(ok func() bool) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

// serveRegistry runs a registry on the machine's loopback, with an image in it, which
// only those get who have the password that docker's configuration there has.
func (m *machine) serveRegistry(repo string, img v1.Image) string {
	t := m.t
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	push := httptest.NewServer(inner)
	defer push.Close()
	to, err := name.ParseReference(strings.TrimPrefix(push.URL, "http://") + "/" + repo)
	if err == nil {
		err = remote.Write(to, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := m.ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "pass-word" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	host := net.JoinHostPort("127.0.0.1", strings.TrimPrefix(l.Addr().String(), "127.0.0.1:"))
	dir := t.TempDir()
	data, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"username": "me", "password": "pass-word"}}})
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)); err != nil {
		t.Fatal(err)
	}
	m.env = append(m.env, "DOCKER_CONFIG="+dir)
	return host
}

// containerImage is busybox from its package, with a user and an entrypoint, in three
// layers, the last of which takes something away.
func containerImage(t *testing.T) v1.Image {
	t.Helper()
	ctx := context.Background()
	client := &apt.Client{Runner: &run.Host{}, Dir: filepath.Join(t.TempDir(), "apt")}
	debs, err := client.Download(ctx, "busybox-static")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := apt.Unpack(ctx, client.Runner, debs[0].Path, dir, apt.UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(dir, "*bin", "busybox"))
	if more, _ := filepath.Glob(filepath.Join(dir, "usr", "*bin", "busybox")); len(found) == 0 {
		found = more
	}
	if err != nil || len(found) == 0 {
		t.Fatalf("no busybox in %s: %v", debs[0].Path, err)
	}
	busybox, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	base := []layerFile{{name: "bin/busybox", data: string(busybox), mode: 0o755}, {name: "etc/passwd", data: "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n"},
		{name: "etc/group", data: "root:x:0:\napp:x:1000:\n"}, {name: "bin/init", data: "not to be run", mode: 0o755}}
	for _, applet := range strings.Fields("sh cat id pwd echo sleep true test readlink hostname df tail awk dmesg grep dd rm mkdir seq ls wc") {
		base = append(base, layerFile{name: "bin/" + applet, link: "busybox"})
	}
	img := v1.Image(empty.Image)
	for _, files := range [][]layerFile{base, {{name: "entry", data: entryScript, mode: 0o755}, {name: "srv/", mode: 0o755, uid: 1000}, {name: "tmp/trash", data: "x"}}, {{name: ".wh.tmp"}}} {
		data := tarOf(t, files)
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err == nil {
			img, err = mutate.AppendLayers(img, l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", runtime.GOARCH
	c.Config = v1.Config{Entrypoint: []string{"/entry"}, Cmd: []string{"nothing"}, Env: []string{"PATH=/bin", "GREETING=hello"}, User: "app", WorkingDir: "/srv", StopSignal: "SIGQUIT"}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

type layerFile struct {
	name, data, link string
	mode             int64
	uid              int
}

func tarOf(t *testing.T, files []layerFile) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: f.mode, Uid: f.uid, Gid: f.uid, Size: int64(len(f.data))}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		case f.mode == 0:
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
