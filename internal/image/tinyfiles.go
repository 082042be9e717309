package image

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"regexp"

	"github.com/mvmctl/mvm"
)

// tinyDirs is the frame of the tree. /bin and its like are links into /usr, as
// the packages of newer releases expect; those of older ones fit as well.
var tinyDirs = []struct {
	name string
	mode fs.FileMode
}{
	{"usr/bin", 0o755}, {"usr/sbin", 0o755}, {"usr/lib", 0o755}, {"usr/lib64", 0o755},
	{"dev", 0o755}, {"proc", 0o555}, {"sys", 0o555}, {"run", 0o755}, {"mnt", 0o755}, {"home", 0o755},
	{"root", 0o700}, {"root/.ssh", 0o700}, {"tmp", 0o777 | fs.ModeSticky},
	{"etc", 0o755}, {"etc/init.d", 0o755}, {"etc/dropbear", 0o700},
	{"var", 0o755}, {"var/lib", 0o755}, {"var/log", 0o755}, {"var/cache", 0o755}, {"var/spool", 0o755},
}

var tinyLinks = [][2]string{
	{"usr/bin", "bin"}, {"usr/sbin", "sbin"}, {"usr/lib", "lib"}, {"usr/lib64", "lib64"},
	{"/run", "var/run"}, {"/tmp", "var/tmp"}, {"/proc/mounts", "etc/mtab"},
}

// tinyText are the files of the tree that no package has. Nobody can log in with
// a password, and there is no shell on the console: the root account has "*".
var tinyText = []struct {
	name    string
	mode    fs.FileMode
	content string
}{
	{"etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"},
	{"etc/shadow", 0o600, "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n"},
	{"etc/group", 0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"},
	{"etc/shells", 0o644, "/bin/sh\n"},
	{"etc/hostname", 0o644, "localhost\n"},
	{"etc/hosts", 0o644, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"},
	{"etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"},
	{"etc/machine-id", 0o444, ""},
	{"etc/fstab", 0o644, "# the initramfs mounts the root\n"},
	{"etc/profile", 0o644, "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPS1='\\u@\\h:\\w\\$ '\n"},
	{"etc/os-release", 0o644, "ID=mvm-tiny\nNAME=\"Tiny Linux\"\nPRETTY_NAME=\"Tiny Linux 1\"\nVERSION_ID=1\n"},
	{"etc/inittab", 0o644, `# busybox init: id, runlevels (unused), action, process
::sysinit:/etc/init.d/rcS
::respawn:/usr/sbin/dropbear -F -s -r /etc/dropbear/dropbear_ed25519_host_key
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
`},
	// proc, sys, dev and run come mounted from the initramfs.
	{"etc/init.d/rcS", 0o755, `#!/bin/sh
export PATH=/usr/sbin:/usr/bin
mkdir -p /dev/pts /dev/shm
grep -q ' /dev/pts ' /proc/mounts || mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
grep -q ' /dev/shm ' /proc/mounts || mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /dev/shm
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
hostname -F /etc/hostname
echo "Tiny Linux is up; log in over SSH, there is no login here." >/dev/console
`},
}

// tinyLayout makes the frame, before any package is unpacked into it.
func tinyLayout(t *tree) error {
	for _, d := range tinyDirs {
		if err := t.mkdir(d.name, d.mode); err != nil {
			return err
		}
	}
	for _, l := range tinyLinks {
		if err := t.symlink(l[0], l[1]); err != nil {
			return err
		}
	}
	return nil
}

// tinyFiles completes the tree: our own files, and a link for each applet that
// no package has a program for.
func tinyFiles(t *tree) error {
	for _, f := range tinyText {
		if err := t.write(f.name, f.content, f.mode); err != nil {
			return err
		}
	}
	f, err := t.root.Open("usr/bin/busybox")
	if err != nil {
		return t.escape("usr/bin/busybox", err)
	}
	defer func() { _ = f.Close() }()
	names, err := applets(io.LimitReader(f, maxBusybox))
	if err != nil {
		return err
	}
	for _, name := range names {
		dir := "usr/bin/"
		if sbin[name] {
			dir = "usr/sbin/"
		}
		if _, err := t.root.Lstat(dir + name); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return t.escape(dir+name, err)
		}
		if err := t.symlink("/bin/busybox", dir+name); err != nil {
			return err
		}
	}
	return nil
}

// sbin are the applets that programs and people look for in /sbin.
var sbin = map[string]bool{"init": true, "halt": true, "poweroff": true, "reboot": true, "getty": true, "ip": true, "ifconfig": true,
	"route": true, "nologin": true, "modprobe": true, "insmod": true, "rmmod": true, "lsmod": true, "mke2fs": true, "sysctl": true, "losetup": true, "blkid": true}

const maxBusybox = 16 << 20

var appletName = regexp.MustCompile(`^([a-z0-9][a-z0-9._+-]{0,31}|\[\[?)$`)

// applets reads the names of a busybox's applets out of the program, where they
// are one sorted table (busybox, include/applet_tables.h: applet_names). It is
// not asked, since no program of an image runs on the host.
func applets(r io.Reader) ([]string, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	_, table, ok := bytes.Cut(data, []byte("\x00[\x00[[\x00"))
	end := bytes.Index(table, []byte("\x00\x00"))
	if !ok || end < 0 {
		return nil, noTable()
	}
	names := []string{"[", "[["}
	for name := range bytes.SplitSeq(table[:end], []byte{0}) {
		if !appletName.Match(name) {
			return nil, noTable()
		}
		names = append(names, string(name))
	}
	return names, nil
}

func noTable() error {
	return mvm.Errorf(mvm.ErrUnsupported, "the busybox of this host's package sources is built in a way that is not known").
		WithHint("build debian instead")
}
