package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/supervisor"
	"github.com/mvmctl/mvm/internal/testenv"
	"github.com/mvmctl/mvm/internal/vmm"
)

// servedLaunch is a launch with two disks that are qcow2, the second read-only.
func servedLaunch(t *testing.T, b bench) vmm.Launch {
	t.Helper()
	testenv.Require(t, "qemu-disks")
	l := b.launch(t)
	l.DiskServer = host.Find(diskServer)
	for i, id := range []string{"vol-a", "vol-b"} {
		d := vmm.Disk{ID: id, Path: filepath.Join(t.TempDir(), id), Format: disk.Qcow2, ReadOnly: i == 1}
		if err := disk.MakeVolume(t.Context(), &run.Host{}, disk.Volume{Path: d.Path, Format: disk.Qcow2, Size: int64(i+1) << 20}); err != nil {
			t.Fatal(err)
		}
		l.Disks = append(l.Disks, d)
	}
	return l
}

// serversNow are the servers of a launch's VM that run.
func serversNow(t *testing.T, l vmm.Launch) []proc.Identity {
	t.Helper()
	ids, err := proc.FindByArg(supervisor.ServerToken(l.ID))
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// wantNoServers fails the test when a server, its socket, or a loan is left, and when
// a disk is not as it was.
func wantNoServers(t *testing.T, l vmm.Launch) {
	t.Helper()
	if left := serversNow(t, l); len(left) > 0 {
		t.Errorf("servers are left: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(l.Dir, "disk-*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	for _, d := range l.Disks {
		fi, err := os.Stat(d.Path)
		if err != nil || int(fi.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
			t.Errorf("the disk %s: %+v, %v", d.ID, fi, err)
		}
		if err := disk.Standalone(d.Path, d.Format); err != nil {
			t.Error(err)
		}
	}
}

func testServed(t *testing.T, b bench) {
	l := servedLaunch(t, b)
	l.PCI = true
	v := b.start(t, l)
	v.shows(t, "3 disks")
	v.shows(t, "vdb has 2048 sectors, read-only 0")
	v.shows(t, "vdc has 4096 sectors, read-only 1")
	uid := os.Geteuid()
	if l.Jail != nil {
		uid = l.Jail.UID
	}
	ids := serversNow(t, l)
	if len(ids) != 2 {
		t.Fatalf("servers: %v", ids)
	}
	for _, id := range ids {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(id.PID) + "/status")
		if err != nil || !strings.Contains(string(status), "\nUid:\t"+strconv.Itoa(uid)+"\t") {
			t.Errorf("a server is not user %d's: %v\n%s", uid, err, status)
		}
	}
	for what, err := range map[string]error{
		"pause":    v.Machine.(vmm.Pauser).Pause(t.Context()),
		"snapshot": v.Machine.(vmm.Snapshotter).Snapshot(t.Context(), vmm.SnapshotFiles{State: filepath.Join(l.Dir, "s"), Mem: filepath.Join(l.Dir, "m")}),
		"attach":   v.Machine.(vmm.DiskHotplugger).AttachDisk(t.Context(), vmm.Disk{ID: "vol-c", Path: l.Disks[1].Path, Format: disk.Qcow2}),
		"detach":   v.Machine.(vmm.DiskHotplugger).DetachDisk(t.Context(), "vol-a"),
	} {
		if !errors.Is(err, mvm.ErrUnsupported) || mvm.HintOf(err) == "" || !strings.Contains(err.Error(), "qcow2") {
			t.Errorf("%s: %v (%s)", what, err, mvm.HintOf(err))
		}
	}
	v.wantState(t, vmm.StateRunning)
	v.echo(t)
	// Each disk is locked by its server: nobody else writes to it (QEMU's image locking).
	if r, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: l.DiskServer, Args: []string{
		"--blockdev", `{"driver":"qcow2","node-name":"d","file":{"driver":"file","filename":"` + l.Disks[1].Path + `"}}`,
	}}); err == nil || !strings.Contains(string(r.Stderr)+err.Error(), "lock") {
		t.Errorf("a second writer: %v", err)
	}
	if err := v.Kill(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	wantNoServers(t, l)

	// Its supervisor is killed, then the VMM: whoever starts the VM again ends them.
	v = b.start(t, l)
	v.shows(t, "ready")
	h := v.Handle()
	for _, id := range []proc.Identity{h.Supervisor, h.VMM} {
		if err := proc.Kill(t.Context(), id, 0); err != nil {
			t.Fatal(err)
		}
	}
	if left := serversNow(t, l); len(left) != 2 {
		t.Errorf("servers that were left: %v", left)
	}
	v = b.start(t, l)
	v.shows(t, "vdc has 4096 sectors, read-only 1")
	if got := serversNow(t, l); len(got) != 2 {
		t.Errorf("servers: %v", got)
	}
	// One that is gone is told of, where people look.
	if err := proc.Signal(serversNow(t, l)[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v.until(t, "the log tells", func() bool {
		data, err := os.ReadFile(filepath.Join(l.Dir, l.Files.Log))
		return err == nil && strings.Contains(string(data), "has ended (signal: killed); what waits for it goes on when the VM is started anew")
	})
	// The VMM crashes: its supervisor ends them.
	if err := proc.Signal(v.Handle().VMM, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v.wantEnd(t, 137, "SIGKILL")
	wantNoServers(t, l)
}

// What a server cannot use is no disk, and the user is told why.
func TestServedFails(t *testing.T) {
	b := fakeBench(t)
	for name, tt := range map[string]struct {
		change func(*vmm.Launch)
		kind   mvm.Kind
		says   string
	}{
		"raw bytes":     {func(l *vmm.Launch) { l.Disks[1].Path = l.Disks[0].Path }, mvm.ErrBroken, "no qcow2 file"},
		"another file":  {func(l *vmm.Launch) { overlay(t, l) }, mvm.ErrBroken, "based on another file"},
		"no server":     {func(l *vmm.Launch) { l.DiskServer = "/none/qemu-storage-daemon" }, mvm.ErrUnavailable, "/none/qemu-storage-daemon"},
		"a bad server":  {func(l *vmm.Launch) { l.DiskServer = "/bin/false" }, mvm.ErrUnavailable, "has ended (exit status 1)"},
		"a busy disk":   {func(l *vmm.Launch) { l.Disks[2] = l.Disks[1]; l.Disks[2].ID = "vol-b" }, mvm.ErrUnavailable, `Failed to get "write" lock`},
		"a damaged one": {func(l *vmm.Launch) { damage(t, l.Disks[1].Path) }, mvm.ErrUnavailable, "the server of disk vol-a has ended (exit status 1): --blockdev"},
	} {
		t.Run(name, func(t *testing.T) {
			l := servedLaunch(t, b)
			tt.change(&l)
			m, err := newDriver(t).Start(t.Context(), l)
			if m != nil {
				defer func() { _ = m.Kill(context.Background(), 0) }()
			}
			if m != nil || !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") || mvm.HintOf(err) == "" {
				t.Fatalf("got %v, %v (%s)", m, err, mvm.HintOf(err))
			}
			wantNothing(t, l)
			if left := serversNow(t, l); len(left) > 0 {
				t.Errorf("servers are left: %v", left)
			}
		})
	}
}

func overlay(t *testing.T, l *vmm.Launch) {
	path := filepath.Join(t.TempDir(), "overlay")
	if err := disk.Overlay(t.Context(), l.Disks[0].Path, disk.Raw, path, 0); err != nil {
		t.Fatal(err)
	}
	l.Disks[1].Path = path
}

// damage writes a version into the header that there is none of.
func damage(t *testing.T, path string) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{9}, 7)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestRenderServed(t *testing.T) {
	d := New(Options{})
	l := launch()
	l.DiskServer = "/usr/bin/" + diskServer
	l.Disks = append(l.Disks[:1], vmm.Disk{ID: "vol-a", Path: "/v/a", Format: "qcow2", ReadOnly: true, Writeback: true, AsyncIO: true})
	r, err := d.Render(l)
	if err != nil {
		t.Fatal(err)
	}
	var cfg struct{ Drives []map[string]any }
	if err := json.Unmarshal(r.Config, &cfg); err != nil || len(cfg.Drives) != 2 {
		t.Fatalf("%v, %s", err, r.Config)
	}
	// Firecracker refuses a socket with anything else (VhostUserBlockConfig::try_from).
	if d := cmp.Diff(map[string]any{"drive_id": "vol_a", "socket": "disk-vol_a.sock", "is_root_device": false, "cache_type": "Writeback"}, cfg.Drives[1]); d != "" {
		t.Error(d)
	}
	argv, err := serverArgv(l, l.Disks[1])
	if d := cmp.Diff([]string{
		"/usr/bin/qemu-storage-daemon", "--blockdev",
		`{"backing":null,"driver":"qcow2","file":{"driver":"file","filename":"/proc/self/fd/4"},"node-name":"disk","read-only":true}`, "--export",
		"type=vhost-user-blk,id=mvm-server-0123456789abcdef-vol_a,node-name=disk,addr.type=fd,addr.str=3,writable=off",
	}, argv); d != "" || err != nil {
		t.Error(d, err)
	}
	for name, tt := range map[string]struct {
		change func(*vmm.Launch)
		says   string
	}{
		"the root":    {func(l *vmm.Launch) { l.Disks[0].Format = "qcow2" }, "a root disk has to be raw"},
		"no server":   {func(l *vmm.Launch) { l.DiskServer = "" }, "qemu-storage-daemon has to serve"},
		"a limit":     {func(l *vmm.Launch) { l.Disks[1].Limit.OpsPerSec = 1 }, "the limit of disk vol-a"},
		"a snapshot":  {func(l *vmm.Launch) { l.Restore = &vmm.Restore{State: "/s", Mem: "/m"} }, "a snapshot has no qcow2 disks"},
		"another":     {func(l *vmm.Launch) { l.Disks[1].Format = "vmdk" }, `"vmdk", and only raw and qcow2 are known`},
		"in the way":  {func(l *vmm.Launch) { l.Jail, l.Files.API = jailedLaunch().Jail, "disk-vol_a.sock" }, "is the name of another file"},
		"no absolute": {func(l *vmm.Launch) { l.DiskServer = "x" }, `"x" is not absolute`},
	} {
		c := l
		c.Disks = append([]vmm.Disk{}, l.Disks...)
		tt.change(&c)
		if _, err := d.Render(c); err == nil || !strings.Contains(err.Error(), tt.says) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v (%s)", name, err, mvm.HintOf(err))
		}
	}
}
