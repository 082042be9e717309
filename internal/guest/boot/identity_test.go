package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/key"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

func write(t *testing.T, root, name, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
	must(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	must(t, err)
	return string(data)
}

// me is a passwd line for the user that runs the test, so that chown works
// without root.
func me(name, home string) string {
	return fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", name, os.Geteuid(), os.Getegid(), home)
}

func config(t *testing.T) *guest.BootConfig {
	t.Helper()
	p, err := key.Generate(key.ED25519, 0, "")
	must(t, err)
	return &guest.BootConfig{
		Version: 1, InstanceID: "aaaabbbbccccdddd", Hostname: "web", MachineID: strings.Repeat("0a", 16),
		Network: &guest.NetConfig{MAC: "02:00:00:00:00:01", Address: "172.27.0.2/24", Gateway: "172.27.0.1", DNS: []string{"9.9.9.9", "1.1.1.1"}},
		SSH:     guest.SSHConfig{User: "u", AuthorizedKeys: []string{"ssh-ed25519 AAAA one"}, HostKey: string(p.Private)},
	}
}

func TestFirstBoot(t *testing.T) {
	testenv.Require(t, "root") // files of the guest's root belong to root
	cfg := config(t)
	r, root := tree(t, func(root string) {
		write(t, root, "etc/passwd", me("u", "/home/u"))
		write(t, root, "etc/hosts", "127.0.0.1 localhost\n127.0.1.1 old\n10.0.0.9 kept\n")
		write(t, root, "etc/machine-id", "uninitialized\n")
		write(t, root, "var/lib/dbus/machine-id", "old\n")
		write(t, root, "etc/ssh/ssh_host_rsa_key", "image's")
		write(t, root, "etc/ssh/ssh_host_rsa_key.pub", "image's")
		write(t, root, "etc/ssh/ssh_host_ed25519_key", "image's")
		write(t, root, "etc/ssh/ssh_config", "kept")
		write(t, root, "etc/dropbear/dropbear_rsa_host_key", "image's")
		write(t, root, "home/u/.ssh/authorized_keys", "ssh-rsa AAAA image's")
		must(t, os.Symlink("/run/connman/resolv.conf", root+"/etc/resolv.conf"))
	})
	if !IsFirstBoot(r, cfg.InstanceID) {
		t.Error("a new disk is not seen as a first boot")
	}
	must(t, FirstBoot(r, cfg))
	must(t, FirstBoot(r, cfg)) // as after a power failure
	if IsFirstBoot(r, cfg.InstanceID) || !IsFirstBoot(r, "other") {
		t.Error("the instance id does not tell VMs apart")
	}
	got := map[string]string{}
	for _, f := range []string{"etc/hostname", "etc/hosts", "etc/machine-id", "var/lib/dbus/machine-id", "etc/resolv.conf", "home/u/.ssh/authorized_keys", "etc/ssh/ssh_host_ed25519_key"} {
		got[f] = read(t, root, f)
	}
	want := map[string]string{
		"etc/hostname":                 "web\n",
		"etc/hosts":                    "127.0.0.1 localhost\n127.0.1.1\tweb\n10.0.0.9 kept\n",
		"etc/machine-id":               cfg.MachineID + "\n",
		"var/lib/dbus/machine-id":      cfg.MachineID + "\n",
		"etc/resolv.conf":              "nameserver 9.9.9.9\nnameserver 1.1.1.1\n",
		"home/u/.ssh/authorized_keys":  "ssh-rsa AAAA image's\nssh-ed25519 AAAA one\n",
		"etc/ssh/ssh_host_ed25519_key": cfg.SSH.HostKey,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	names, _ := r.ReadDir("/etc/ssh")
	if len(names) != 3 {
		t.Errorf("/etc/ssh has %v", names)
	}
	if names, _ := r.ReadDir("/etc/dropbear"); len(names) != 1 || names[0] != "dropbear_ed25519_host_key" {
		t.Errorf("/etc/dropbear has %v", names)
	}
	if st, _ := os.Stat(root + "/home/u/.ssh/authorized_keys"); st.Mode().Perm() != 0o600 {
		t.Errorf("authorized_keys has mode %v", st.Mode())
	}
}

func TestFirstBootOnHostileTrees(t *testing.T) {
	testenv.Require(t, "root") // files of the guest's root belong to root
	for name, build := range map[string]func(root string) error{
		"empty": func(string) error { return nil },
		"links out": func(r string) error {
			write(t, r, "etc/passwd", "u:x:0:0::/../../outside:/bin/sh\n")
			return errors.Join(os.Symlink("../../hostname", r+"/etc/hostname"), os.Symlink("/../hostname", r+"/etc/hosts"),
				os.Symlink("../../outside", r+"/etc/ssh"), os.Symlink("../../outside", r+"/var"))
		},
		"etc is above": func(r string) error { return os.Symlink("..", r+"/etc") },
		"passwd is device": func(r string) error {
			return errors.Join(os.Mkdir(r+"/etc", 0o755), os.Symlink("/dev/zero", r+"/etc/passwd"))
		},
		"passwd endless": func(r string) error {
			return errors.Join(os.Mkdir(r+"/etc", 0o755), os.WriteFile(r+"/etc/passwd", nil, 0o644), os.Truncate(r+"/etc/passwd", 1<<40))
		},
		"ids that chown nothing": func(r string) error {
			write(t, r, "etc/passwd", "u:x:4294967295:-1::/home/u:/bin/sh\n")
			return nil
		},
		"loops everywhere": func(r string) error {
			return errors.Join(os.Symlink("etc", r+"/etc"), os.Symlink("/var", r+"/var"), os.Symlink("home", r+"/home"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			r, _ := tree(t, func(root string) { must(t, build(root)) })
			err := FirstBoot(r, cfg) // may fail; the files outside are checked at the end
			if err == nil && IsFirstBoot(r, cfg.InstanceID) {
				t.Error("no error, and yet not done")
			}
			if err != nil && !IsFirstBoot(r, cfg.InstanceID) {
				t.Errorf("marked as done in spite of: %v", err)
			}
		})
	}
}

func TestResolvedKeepsItsLink(t *testing.T) {
	testenv.Require(t, "root") // files of the guest's root belong to root
	cfg := config(t)
	cfg.SSH.User = "root"
	r, root := tree(t, func(root string) {
		must(t, os.MkdirAll(root+"/etc", 0o755))
		must(t, os.Symlink("../run/systemd/resolve/stub-resolv.conf", root+"/etc/resolv.conf"))
	})
	must(t, FirstBoot(r, cfg))
	if _, err := os.Readlink(root + "/etc/resolv.conf"); err != nil {
		t.Error("the link was replaced")
	}
	run, err := r.OpenDir("/run")
	must(t, err)
	defer func() { _ = run.Close() }()
	rr, err := OpenRootfs(procFD(run))
	must(t, err)
	defer func() { _ = rr.Close() }()
	must(t, WriteRunConfig(r, rr, cfg.Network))
	if got, want := read(t, root, "run/systemd/resolved.conf.d/10-mvm.conf"), "[Resolve]\nDNS=9.9.9.9 1.1.1.1\n"; got != want {
		t.Errorf("drop-in %q, want %q", got, want)
	}
	want := "[Match]\nMACAddress=02:00:00:00:00:01\n\n[Network]\nDHCP=no\nAddress=172.27.0.2/24\nDNS=9.9.9.9\nDNS=1.1.1.1\n\n[Route]\nGateway=172.27.0.1\nGatewayOnLink=yes\n"
	if d := cmp.Diff(want, read(t, root, "run/systemd/network/10-mvm.network")); d != "" {
		t.Errorf("network file (-want +got):\n%s", d)
	}
}

func TestHosts(t *testing.T) {
	for _, tc := range []struct{ have, name, want string }{
		{"", "a", "127.0.0.1\tlocalhost\n127.0.1.1\ta\n::1\tlocalhost ip6-localhost ip6-loopback\n"},
		{"::1 x\n", "a", "127.0.1.1\ta\n::1 x\n"},
		{"127.0.1.1 old\n127.0.0.1 localhost\n127.0.1.1 older", "a.b", "127.0.1.1\ta.b a\n127.0.0.1 localhost\n"},
	} {
		if d := cmp.Diff(tc.want, string(hostsWith([]byte(tc.have), tc.name))); d != "" {
			t.Errorf("hosts %q (-want +got):\n%s", tc.have, d)
		}
	}
}

func TestAppendMissing(t *testing.T) {
	got := string(appendMissing([]byte("a\nb"), []string{"b", " c ", "", "c", "d\nssh-rsa smuggled"}))
	if want := "a\nb\nc\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDropbearReadsOurKey(t *testing.T) {
	testenv.Require(t, "dropbear")
	host := &run.Host{}
	p, err := key.Generate(key.ED25519, 0, "")
	must(t, err)
	k, err := parseHostKey(string(p.Private))
	must(t, err)
	file := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(file, dropbearKey(k), 0o600))
	out, err := host.Run(context.Background(), run.Cmd{Name: "dropbearkey", Args: []string{"-y", "-f", file}})
	must(t, err)
	if !strings.Contains(string(out.Stdout), p.Public.Line()) {
		t.Errorf("dropbearkey says %s, want %s", out.Stdout, p.Public.Line())
	}
	if _, err := parseHostKey("noise"); err == nil {
		t.Error("noise is a key")
	}
	rsa, err := key.Generate(key.RSA, 2048, "")
	must(t, err)
	if _, err := parseHostKey(string(rsa.Private)); err == nil {
		t.Error("an RSA key was taken for ed25519")
	}
}
