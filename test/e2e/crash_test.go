package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func kill9(t *testing.T, pid int) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("no process: pid %d", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// maxSteps ends the loop should a create ever have no last step: a fault at a
// step that does not exist never fires, and so ends it earlier.
const maxSteps = 20

// TestCreateDiesAnywhere kills, cancels and fails `vm create` before and after
// each step of its plan. The next command finds nothing left, and the name and the
// address are free again.
func TestCreateDiesAnywhere(t *testing.T) {
	m := newMachine(t)
	m.must("init", "--non-interactive", "--skip-host")
	before := m.listing()
	points := 0
	for _, action := range []string{"kill", "cancel", "error"} {
		for n := -1; n < maxSteps; n++ {
			step, whens := strconv.Itoa(n), []string{"before", "after"}
			if n < 0 {
				step, whens = "reserve", []string{"after"}
			}
			fired := false
			for _, when := range whens {
				m.env = []string{"MVM_FAULT=" + strings.Join([]string{action, "vm.create", step, when}, ":")}
				r := m.run("vm", "create", "victim", "--image", "tiny", "--mem", "128", "--ip", "172.27.0.99")
				m.env = nil
				if r.code == 0 { // no such step
					m.must("vm", "rm", "--force", "victim")
					continue
				}
				fired = true
				points++
				t.Logf("%s %s step %s: exit %d %s", action, when, step, r.code, strings.SplitN(r.stderr, "\n", 2)[0])
				m.sameListing(before)
				if t.Failed() {
					return
				}
			}
			if !fired {
				break
			}
		}
	}
	if points < 3*(1+2*6) {
		t.Errorf("only %d points were tried", points)
	}
	m.must("vm", "create", "victim", "--image", "tiny", "--mem", "128", "--ip", "172.27.0.99")
	m.must("vm", "rm", "--force", "victim")
	m.sameListing(before)
}

// TestRemoveDiesAnywhere kills `vm rm` at each step; the next command finishes it.
func TestRemoveDiesAnywhere(t *testing.T) {
	m := newMachine(t)
	m.must("init", "--non-interactive", "--skip-host")
	before := m.listing()
	for _, step := range []string{"revert:0", "revert:1", "revert:2", "finish"} {
		for _, when := range []string{"before", "after"} {
			m.must("vm", "create", "victim", "--image", "tiny", "--mem", "128")
			m.env = []string{"MVM_FAULT=kill:vm.remove:" + step + ":" + when}
			if r := m.run("vm", "rm", "--force", "victim"); r.code == 0 {
				t.Fatalf("the fault at %s %s did not fire", when, step)
			}
			m.env = nil
			m.sameListing(before)
		}
	}
}

// TestFullDisk creates on a cache that has no room: the error says so, and
// nothing is left.
func TestFullDisk(t *testing.T) {
	m := newMachine(t)
	m.must("init", "--non-interactive", "--skip-host")
	if err := os.RemoveAll(filepath.Join(m.cache, "downloads")); err != nil {
		t.Fatal(err)
	}
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=512m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	m.ns.Run("cp", "--sparse=always", "-a", m.cache+"/.", small)
	m.cache = small
	t.Cleanup(func() { m.run("vm", "rm", "--force", "big") })          // before the disk goes
	m.must("vm", "create", "first", "--image", "tiny", "--mem", "128") // what is shared is made anew for this place
	m.must("vm", "rm", "--force", "first")
	var fs syscall.Statfs_t
	if err := syscall.Statfs(small, &fs); err != nil {
		t.Fatal(err)
	}
	const left = 3 << 20 // less than a VM's initrd
	filler, err := os.Create(filepath.Join(small, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Fallocate(int(filler.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-left); err != nil {
		t.Fatal(err)
	}
	if err := filler.Close(); err != nil {
		t.Fatal(err)
	}
	before := m.listing()
	r := m.run("vm", "create", "big", "--image", "tiny", "--mem", "128")
	if r.code == 0 || !strings.Contains(r.stderr, "full") && !strings.Contains(r.stderr, "no space") && !strings.Contains(r.stderr, "space left") {
		t.Errorf("create on a full disk: exit %d, %q", r.code, r.stderr)
	}
	m.sameListing(before)
}

// TestManyWantOneName has ten commands ask for the same name and address at
// once: one wins, nine are told why not.
func TestManyWantOneName(t *testing.T) {
	m := newMachine(t)
	m.must("init", "--non-interactive", "--skip-host")
	results := make([]result, 10)
	done := make(chan int)
	for i := range results {
		go func() {
			results[i] = m.run("vm", "create", "one", "--image", "tiny", "--mem", "128", "--ip", "172.27.0.50")
			done <- i
		}()
	}
	winners := 0
	for range results {
		r := results[<-done]
		switch {
		case r.code == 0:
			winners++
		case !strings.Contains(r.stderr, "error: ") || !strings.Contains(r.stderr, "exists") && !strings.Contains(r.stderr, "taken"):
			t.Errorf("a loser is not told why: %q", r.stderr)
		}
	}
	if winners != 1 {
		t.Errorf("%d commands won", winners)
	}
	if all := m.vms(); len(all) != 1 || all[0].IPv4 != "172.27.0.50" {
		t.Errorf("the VMs are %+v", all)
	}
}

// TestInterrupted sends SIGINT to creates at various moments: each leaves the VM
// whole or nothing at all.
func TestInterrupted(t *testing.T) {
	m := newMachine(t)
	m.must("init", "--non-interactive", "--skip-host")
	before := m.listing()
	gone := 0
	for delay := 5 * time.Millisecond; delay < 300*time.Millisecond; delay *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		cmd := m.command(ctx, nil, "vm", "create", "victim", "--image", "tiny", "--mem", "128")
		var err error
		m.ns.Do(func() { err = cmd.Start() })
		if err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(delay, func() { _ = cmd.Process.Signal(os.Interrupt) })
		_ = cmd.Wait()
		timer.Stop()
		cancel()
		switch vms := m.vms(); len(vms) {
		case 0:
			gone++
		default:
			if vms[0].Status != "running" {
				t.Errorf("after SIGINT at %s the VM is %s", delay, vms[0].Status)
			}
			m.must("vm", "rm", "--force", "victim")
		}
		m.sameListing(before)
	}
	t.Logf("%d of the creates were taken back", gone)
}
