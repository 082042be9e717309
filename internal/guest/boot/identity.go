package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/account"
)

// FirstBoot makes the guest a machine of its own: name, keys, who may log in.
// It is run when the instance id on the root disk is not cfg's, and may be run
// again: every step ends in the same state. The instance id is written last,
// after a sync, and only when every step worked.
func FirstBoot(r *Rootfs, cfg *guest.BootConfig) error {
	var errs []error
	step := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	step("hostname", r.WriteFile("/etc/hostname", []byte(cfg.Hostname+"\n"), 0o644, Owner{}))
	step("hosts", writeHosts(r, cfg.Hostname))
	step("machine id", writeMachineID(r, cfg.MachineID))
	step("host keys", writeHostKeys(r, cfg))
	step("resolv.conf", writeResolv(r, cfg.Network))
	step("authorized keys", authorize(r, cfg))
	if cfg.Container == nil { // nobody reads a container's
		step("fstab", adaptFstab(r, cfg.Root.Device))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if cfg.Deblob {
		Deblob(r)
	}
	if err := r.Sync(); err != nil {
		return err
	}
	return r.WriteFile(guest.InstanceFile, []byte(cfg.InstanceID+"\n"), 0o644, Owner{})
}

// IsFirstBoot says whether the root disk was last prepared for another VM.
func IsFirstBoot(r *Rootfs, id string) bool {
	have, err := r.ReadFile(guest.InstanceFile)
	return err != nil || strings.TrimSpace(string(have)) != id
}

// readOptional reads a file of the image; one that is missing or is no regular
// file counts as empty, since it is about to be replaced.
func readOptional(r *Rootfs, p string) ([]byte, error) {
	data, err := r.ReadFile(p)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotRegular) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	var pe *fs.PathError
	if errors.As(err, &pe) && pe.Op == "open" { // a symlink loop: WriteFile replaces the link
		return nil, nil
	}
	return data, err
}

const defaultHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

// writeHosts sets the 127.0.1.1 line (Debian's convention for the own name) and
// keeps every other line.
func writeHosts(r *Rootfs, name string) error {
	have, err := readOptional(r, "/etc/hosts")
	if err != nil {
		return err
	}
	return r.WriteFile("/etc/hosts", hostsWith(have, name), 0o644, Owner{})
}

func hostsWith(have []byte, name string) []byte {
	if len(bytes.TrimSpace(have)) == 0 {
		have = []byte(defaultHosts)
	}
	own := "127.0.1.1\t" + name
	if short, _, dotted := strings.Cut(name, "."); dotted {
		own += " " + short
	}
	var out []string
	at := -1
	for _, line := range strings.Split(strings.TrimRight(string(have), "\n"), "\n") {
		f := strings.Fields(line)
		if len(f) > 0 && f[0] == "127.0.1.1" {
			if at < 0 {
				at = len(out)
			}
			continue
		}
		out = append(out, line)
		if len(f) > 0 && f[0] == "127.0.0.1" && at < 0 {
			at = len(out)
		}
	}
	if at < 0 {
		at = 0
	}
	out = append(out[:at], append([]string{own}, out[at:]...)...)
	return []byte(strings.Join(out, "\n") + "\n")
}

// writeMachineID sets machine-id(5), and D-Bus's copy where an image has a real
// file there instead of the usual symlink.
func writeMachineID(r *Rootfs, id string) error {
	if id == "" {
		return nil
	}
	if err := r.WriteFile("/etc/machine-id", []byte(id+"\n"), 0o444, Owner{}); err != nil {
		return err
	}
	const dbus = "/var/lib/dbus/machine-id"
	if _, err := r.Readlink(dbus); err == nil {
		return nil
	}
	if _, err := r.ReadFile(dbus); err != nil {
		return nil //nolint:nilerr // no D-Bus in this image
	}
	return r.WriteFile(dbus, []byte(id+"\n"), 0o444, Owner{})
}

// writeHostKeys gives sshd and dropbear the one host key that the host knows,
// and removes those that came with the image: they are the same in every VM.
func writeHostKeys(r *Rootfs, cfg *guest.BootConfig) error {
	if cfg.SSH.HostKey == "" {
		return nil
	}
	key, err := parseHostKey(cfg.SSH.HostKey)
	if err != nil {
		return err
	}
	pub, err := publicLine(key, "root@"+cfg.Hostname)
	if err != nil {
		return err
	}
	const own = "ssh_host_ed25519_key"
	if r.IsDir("/etc/ssh") {
		if err := removeOthers(r, "/etc/ssh", "ssh_host_", own); err != nil {
			return err
		}
		pem := strings.TrimRight(cfg.SSH.HostKey, "\n") + "\n"
		err := errors.Join(
			r.WriteFile("/etc/ssh/"+own, []byte(pem), 0o600, Owner{}),
			r.WriteFile("/etc/ssh/"+own+".pub", pub, 0o644, Owner{}))
		if err != nil {
			return err
		}
	}
	if !hasDropbear(r) {
		return nil
	}
	const bear = "dropbear_ed25519_host_key"
	if err := r.MkdirAll("/etc/dropbear", 0o755); err != nil {
		return err
	}
	if err := removeOthers(r, "/etc/dropbear", "dropbear_", bear); err != nil {
		return err
	}
	return r.WriteFile("/etc/dropbear/"+bear, dropbearKey(key), 0o600, Owner{})
}

func hasDropbear(r *Rootfs) bool {
	for _, p := range []string{"/usr/sbin/dropbear", "/sbin/dropbear", "/usr/bin/dropbear", "/bin/dropbear"} {
		if r.Executable(p) {
			return true
		}
	}
	return r.IsDir("/etc/dropbear")
}

// removeOthers removes the key files in dir that start with prefix and contain
// "key", except keep and keep.pub.
func removeOthers(r *Rootfs, dir, prefix, keep string) error {
	names, err := r.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !strings.HasPrefix(n, prefix) || !strings.Contains(n, "key") || n == keep || n == keep+".pub" {
			continue
		}
		if err := r.Remove(dir + "/" + n); err != nil {
			return err
		}
	}
	return nil
}

// ownedByResolved says whether the image leaves resolv.conf to systemd-resolved.
func ownedByResolved(r *Rootfs) bool {
	target, err := r.Readlink("/etc/resolv.conf")
	return err == nil && strings.Contains(target, "run/systemd/resolve")
}

// writeResolv sets the name servers, except where systemd-resolved owns the
// file: it gets its drop-in at every boot, see WriteRunConfig.
func writeResolv(r *Rootfs, n *guest.NetConfig) error {
	if n == nil || len(n.DNS) == 0 || ownedByResolved(r) {
		return nil
	}
	var b strings.Builder
	for _, s := range n.DNS {
		b.WriteString("nameserver " + s + "\n")
	}
	return r.WriteFile("/etc/resolv.conf", []byte(b.String()), 0o644, Owner{})
}

// authorize lets the configured keys log in. Lines that are there stay. A user whom
// cloud-init has yet to make gets them from cloud-init.
func authorize(r *Rootfs, boot *guest.BootConfig) error {
	cfg := boot.SSH
	if len(cfg.AuthorizedKeys) == 0 {
		return nil
	}
	passwd, err := readOptional(r, "/etc/passwd")
	if err != nil {
		return err
	}
	u, err := account.Lookup(passwd, nil, cfg.User)
	if errors.Is(err, account.ErrUnknown) && boot.CloudInit != nil && hasCloudInit(r) {
		return nil
	}
	if err != nil {
		return err
	}
	own := Owner{u.UID, u.GID}
	home := path.Clean("/" + u.Home)
	if err := r.EnsureDir(home, 0o700, own); err != nil {
		return err
	}
	dir := home + "/.ssh"
	if err := r.EnsureDir(dir, 0o700, own); err != nil {
		return err
	}
	file := dir + "/authorized_keys"
	have, err := readOptional(r, file)
	if err != nil {
		return err
	}
	return r.WriteFile(file, appendMissing(have, cfg.AuthorizedKeys), 0o600, own)
}

func appendMissing(have []byte, lines []string) []byte {
	out := bytes.Clone(have)
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	seen := map[string]bool{}
	for _, l := range strings.Split(string(have), "\n") {
		seen[strings.TrimSpace(l)] = true
	}
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if l == "" || seen[l] || strings.ContainsAny(l, "\n\r\x00") {
			continue
		}
		seen[l] = true
		out = append(out, l+"\n"...)
	}
	return out
}
