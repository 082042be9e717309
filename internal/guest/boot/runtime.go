package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest"
)

// mountRun gives the root a fresh /run. Inits that know the convention
// (systemd, OpenRC) keep a /run that is mounted already.
func mountRun(r *Rootfs) (*Rootfs, error) {
	d, err := r.OpenDir("/run")
	if err != nil {
		return nil, err
	}
	err = unix.Mount("tmpfs", procFD(d), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size="+runSize())
	_ = d.Close()
	if err != nil {
		return nil, fmt.Errorf("mount /run: %w", err)
	}
	d, err = r.OpenDir("/run") // again: the new mount is on top now
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	return OpenRootfs(procFD(d))
}

// runSize is a quarter of the memory, or more where the agent would not fit: an mvm
// without one built in is its own agent, and large. The copy in the initramfs goes.
func runSize() string {
	const spare = 8 << 20
	self, err := os.Stat("/proc/self/exe")
	var mem unix.Sysinfo_t
	if err != nil || unix.Sysinfo(&mem) != nil {
		return "25%"
	}
	return strconv.FormatUint(max(mem.Totalram*uint64(mem.Unit)/4, uint64(self.Size())+spare), 10)
}

// inRun is p's path within /run.
func inRun(p string) string { return strings.TrimPrefix(p, "/run") }

// installAgent puts the agent and what it runs with into /run/mvm.
func installAgent(run *Rootfs, p *guest.AgentParams) error {
	params, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := run.MkdirAll(inRun(guest.RuntimeDir), 0o755); err != nil {
		return err
	}
	if err := copySelf(run, inRun(guest.AgentPath)); err != nil {
		return err
	}
	return run.WriteFile(inRun(guest.AgentConfig), params, 0o600, Owner{})
}

func copySelf(r *Rootfs, p string) error {
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	// One write from the page cache: on an emulated CPU half the time of a loop.
	text, err := unix.Mmap(int(src.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(text) }()
	dir, err := r.OpenDir(path.Dir(p))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	fd, err := unix.Openat(int(dir.Fd()), path.Base(p), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o755)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(fd), p)
	_, err = dst.Write(text)
	if err = errors.Join(err, dst.Chmod(0o755), dst.Close()); err != nil {
		_ = r.Remove(p) // half a program is none
	}
	return err
}

// WriteRunConfig tells systemd's network services what is set already, so that
// they neither undo it nor wait for DHCP. Other inits do not look there.
func WriteRunConfig(root, run *Rootfs, n *guest.NetConfig) error {
	if n == nil {
		return nil
	}
	err := run.WriteFile("/systemd/network/10-mvm.network", networkdFile(n), 0o644, Owner{})
	if len(n.DNS) == 0 || !ownedByResolved(root) {
		return err
	}
	drop := "[Resolve]\nDNS=" + strings.Join(n.DNS, " ") + "\n"
	return errors.Join(err, run.WriteFile("/systemd/resolved.conf.d/10-mvm.conf", []byte(drop), 0o644, Owner{}))
}

// networkdFile is the configuration in systemd.network(5)'s words.
func networkdFile(n *guest.NetConfig) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "[Match]\nMACAddress=%s\n", n.MAC)
	if n.MTU > 0 {
		fmt.Fprintf(&b, "\n[Link]\nMTUBytes=%d\n", n.MTU)
	}
	fmt.Fprintf(&b, "\n[Network]\nDHCP=no\nAddress=%s\n", n.Address)
	for _, s := range n.DNS {
		fmt.Fprintf(&b, "DNS=%s\n", s)
	}
	if n.Gateway != "" {
		fmt.Fprintf(&b, "\n[Route]\nGateway=%s\nGatewayOnLink=yes\n", n.Gateway)
	}
	return []byte(b.String())
}

// AddEntropy credits what the host gave to the kernel's pool (random(4),
// RNDADDENTROPY), so that nothing in the guest waits for randomness and clones
// of a disk do not share a seed.
func AddEntropy(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	fd, err := unix.Open("/dev/urandom", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	info := append(u32(uint32(len(seed)*8)), u32(uint32(len(seed)))...) // struct rand_pool_info
	info = append(info, seed...)
	for len(info)%4 != 0 {
		info = append(info, 0)
	}
	if err := ioctlBytes(uintptr(fd), unix.RNDADDENTROPY, info); err != nil {
		return err
	}
	_ = unix.IoctlSetInt(fd, rndReseedCRNG, 0) // kernels before 4.14 do not have it
	return nil
}

// rndReseedCRNG is RNDRESEEDCRNG of linux/random.h: what was credited is used at
// once, also by a generator that a clone shares the state of.
const rndReseedCRNG = 0x5207
