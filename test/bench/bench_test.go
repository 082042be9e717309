// Package bench measures mvm against the best that was found by hand, as ratios
// in one run: machines differ, and are noisy. Run it with `make bench`.
package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/testenv"
)

// rounds is how often each thing is done; the median counts.
const rounds = 5

type bench struct {
	t     testing.TB
	ns    *nettest.Namespace
	bin   string
	cache string
}

func newBench(t testing.TB) *bench {
	t.Helper()
	testenv.Require(t, "root", "netns", "qemu", "apt", "e2fsprogs")
	b := &bench{t: t, bin: os.Getenv("MVM_TEST_MVM"), cache: t.TempDir()}
	if b.bin == "" {
		b.bin = "../../bin/mvm"
	}
	var err error
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		t.Fatal(err)
	}
	b.mvm("kernel", "pull", "debian") // needs the host's own network
	b.mvm("image", "build", "tiny")
	b.ns = nettest.NewNamespace(t)
	b.mvm("init", "--non-interactive", "--skip-host")
	t.Cleanup(func() { b.run("vm", "rm", "--force", "bench") })
	return b
}

func (b *bench) run(args ...string) (string, error) {
	cmd := exec.Command(b.bin, args...)
	cmd.Env = append(os.Environ(), "MVM_CACHE_DIR="+b.cache, "MVM_CONFIG_DIR="+b.cache+"/config")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return out.String(), b.do(cmd)
}

// do runs a command in the namespace, once there is one.
func (b *bench) do(cmd *exec.Cmd) error {
	if b.ns == nil {
		return cmd.Run()
	}
	var err error
	b.ns.Do(func() { err = cmd.Start() })
	if err != nil {
		return err
	}
	return cmd.Wait()
}

func (b *bench) mvm(args ...string) string {
	b.t.Helper()
	cmd := exec.Command(b.bin, args...)
	cmd.Env = append(os.Environ(), "MVM_CACHE_DIR="+b.cache, "MVM_CONFIG_DIR="+b.cache+"/config")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := b.do(cmd); err != nil {
		b.t.Fatalf("mvm %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// vm is what is needed of a VM to do by hand what mvm does.
type vm struct {
	ID         string `json:"id"`
	IPv4       string `json:"ipv4"`
	MAC        string `json:"mac"`
	Tap        string `json:"tap_device"`
	RootfsPath string `json:"rootfs_path"`
}

func (b *bench) vm() vm {
	b.t.Helper()
	var all []vm
	if err := json.Unmarshal([]byte(b.mvm("vm", "ls", "--json")), &all); err != nil || len(all) != 1 {
		b.t.Fatalf("vm ls: %v, %d VMs", err, len(all))
	}
	return all[0]
}

// BenchmarkCreate measures our own part of create, from the command's start to
// the VMM's, and counts the programs that it executes.
func BenchmarkCreate(tb *testing.B) {
	b := newBench(tb)
	var took []time.Duration
	b.mvm("vm", "create", "bench", "--image", "tiny", "--disk-size", "1G") // makes what is shared
	for range rounds {
		b.mvm("vm", "rm", "--force", "bench")
		begin := time.Now()
		b.mvm("vm", "create", "bench", "--image", "tiny", "--disk-size", "1G")
		took = append(took, time.Since(begin))
	}
	fmt.Printf("create, command start to vCPUs running, 1 GiB disk: median %s of %d (limit 150ms up to the start of the VMM)\n", median(took).Round(time.Millisecond), rounds)
	b.children()
	ls, version := b.median("vm", "ls"), b.median("version")
	fmt.Printf("vm ls takes %s, version %s\n", ls.Round(time.Millisecond), version.Round(time.Millisecond))
}

// median runs a command some times.
func (b *bench) median(args ...string) time.Duration {
	var took []time.Duration
	for range rounds {
		begin := time.Now()
		b.mvm(args...)
		took = append(took, time.Since(begin))
	}
	return median(took)
}

// children counts by strace what a create executes beside mvm itself.
func (b *bench) children() {
	if _, err := exec.LookPath("strace"); err != nil {
		fmt.Println("child processes were not counted: strace is not installed")
		return
	}
	b.mvm("vm", "rm", "--force", "bench")
	trace := filepath.Join(b.t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-qq", "-e", "trace=execve", "-o", trace, b.bin, "vm", "create", "bench", "--image", "tiny")
	cmd.Env = append(os.Environ(), "MVM_CACHE_DIR="+b.cache, "MVM_CONFIG_DIR="+b.cache+"/config")
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	var err error
	b.ns.Do(func() { err = cmd.Start() })
	if err != nil {
		b.t.Fatal(err)
	}
	// strace stays with the VMM: ask for the result when the VM is there, then end it.
	for ctx.Err() == nil {
		if out, _ := b.run("vm", "ls", "--json"); strings.Contains(out, `"running"`) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.mvm("vm", "rm", "--force", "bench")
	_ = cmd.Wait()
	data, err := os.ReadFile(trace)
	if err != nil {
		b.t.Fatal(err)
	}
	n := 0
	for _, line := range strings.Split(string(data), "\n") {
		if strings.Contains(line, "execve(") && strings.HasSuffix(line, "= 0") {
			n++
		}
	}
	fmt.Printf("create executes %d child processes (limit 5)\n", n-1)
}

// BenchmarkBoot measures create until SSH answers against the same kernel, initrd
// and image started by hand with the best command line found.
func BenchmarkBoot(tb *testing.B) {
	b := newBench(tb)
	var ours, hand []time.Duration
	b.mvm("vm", "create", "bench", "--image", "tiny", "--mem", "256", "--wait=ssh")
	for range rounds {
		b.mvm("vm", "rm", "--force", "bench")
		begin := time.Now()
		b.mvm("vm", "create", "bench", "--image", "tiny", "--mem", "256", "--wait=ssh")
		ours = append(ours, time.Since(begin))
		v := b.vm()
		b.mvm("vm", "stop", "--force", "bench")
		hand = append(hand, b.byHand(v))
	}
	o, h := median(ours), median(hand)
	fmt.Printf("create until SSH answers: %s; by hand: %s; ratio %.2f (limit 1.5)\n", o.Round(time.Millisecond), h.Round(time.Millisecond), float64(o)/float64(h))
}

// byHand starts QEMU on the files of a stopped VM, as a person would who knows
// exactly what is needed, and returns how long its SSH server takes to answer.
func (b *bench) byHand(v vm) time.Duration {
	b.t.Helper()
	dir := filepath.Join(b.cache, "vms", v.ID)
	overlay := filepath.Join(b.t.TempDir(), "disk.qcow2")
	var images, kernels []struct {
		Path string `json:"path"`
	}
	if err := json.Unmarshal([]byte(b.mvm("image", "ls", "--json")), &images); err != nil {
		b.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(b.mvm("kernel", "ls", "--json")), &kernels); err != nil {
		b.t.Fatal(err)
	}
	b.ns.Run("ip", "tuntap", "add", "hand0", "mode", "tap")
	b.ns.Run("ip", "link", "set", "hand0", "master", "mvm-default", "up")
	defer b.ns.Run("ip", "link", "del", "hand0")
	begin := time.Now()
	b.ns.Run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", filepath.Join(b.cache, images[0].Path), overlay)
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-bios", "qboot.rom", "-M", "q35,vmport=off,sata=off,usb=off,smbus=off", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", "1", "-m", "256", "-kernel", filepath.Join(b.cache, kernels[0].Path), "-initrd", filepath.Join(dir, "initrd"),
		"-append", "console=ttyS0 net.ifnames=0 quiet no_timer_check cryptomgr.notests tsc_early_khz="+strconv.Itoa(tscKHz()),
		"-drive", "file="+overlay+",if=none,id=d0,format=qcow2", "-device", "virtio-blk-pci,drive=d0",
		"-netdev", "tap,id=n0,ifname=hand0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,mac="+v.MAC+",romfile=",
		"-device", "virtio-rng-pci", "-serial", "null")
	var err error
	b.ns.Do(func() { err = cmd.Start() })
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for {
		if b.answers(v.IPv4) {
			return time.Since(begin)
		}
		if time.Since(begin) > 2*time.Minute {
			b.t.Fatal("the VM that was started by hand does not answer")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (b *bench) answers(ip string) bool {
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Second)
	defer cancel()
	c, err := b.ns.Dial(ctx, "tcp", net.JoinHostPort(ip, "22"))
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	var banner [4]byte
	n, _ := c.Read(banner[:])
	return string(banner[:n]) == "SSH-"
}

// tscKHz is the host's clock rate as the kernel prints it, in kHz.
func tscKHz() int {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, "cpu MHz"); ok {
			mhz, _ := strconv.ParseFloat(strings.Trim(rest, " \t:"), 64)
			return int(mhz * 1000)
		}
	}
	return 0
}
