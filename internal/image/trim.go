package image

import (
	"regexp"
	"strconv"
	"strings"
)

// trimScript makes a tree small, quick to boot and nobody's: it runs in the
// tree, in the box. $ and backquotes in what it writes come from us only.
func trimScript(entry Entry, src sources) string {
	return strings.NewReplacer("@SOURCES@", quote(withoutSecrets(src.list, origins[entry.Type].keyring))).Replace(trimTemplate)
}

// quote makes s one word for sh(1).
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Notes on trimTemplate:
//
//   - Timers and services that are for long-lived hosts are masked, so that a
//     guest's first minutes are its user's.
//   - A getty would only ask for passwords that nobody has.
//   - .updated newer than /usr keeps systemd from running ldconfig, hwdb and the
//     like at first boot (systemd-update-done.service(8)).
//   - cloud-init would fail to make a locale whose sources are left out.
//   - An empty machine-id is filled per guest, and is no first boot (machine-id(5)).
const trimTemplate = `
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. /etc/os-release
echo "release $ID ${VERSION_ID:-}"
[ -r /etc/debian_version ] && echo "point $(cat /etc/debian_version)"
echo "packages $(dpkg-query -f '.\n' -W | wc -l)"

rm -f /etc/ssh/ssh_host_* /etc/apt/apt.conf.d/99mmdebstrap /etc/dpkg/dpkg.cfg.d/99mmdebstrap /etc/apt/sources.list.d/*
rm -f /etc/resolv.conf /etc/hostname /etc/machine-id /var/lib/dbus/machine-id
rm -rf /var/lib/apt/lists /var/cache/apt /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/* /tmp/* /var/tmp/* /run/* /root/.bash_history
mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log /etc/apt/sources.list.d
printf '%s' @SOURCES@ >/etc/apt/sources.list
echo localhost >/etc/hostname
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >/etc/hosts
echo '# the initramfs mounts the root' >/etc/fstab
: >/etc/machine-id
chmod 0444 /etc/machine-id
usermod -p '*' root
mkdir -p -m 0700 /root/.ssh

printf 'path-exclude=/usr/share/%s/*\n' doc man info lintian locale >/etc/dpkg/dpkg.cfg.d/50-minimal
printf 'path-include=%s\n' '/usr/share/doc/*/copyright' /usr/share/locale/locale.alias >>/etc/dpkg/dpkg.cfg.d/50-minimal
echo 'APT::Install-Recommends "false";' >/etc/apt/apt.conf.d/50-minimal

units=/etc/systemd/system
mkdir -p "$units" /etc/systemd/system-generators /etc/systemd/journald.conf.d
for u in apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	fstrim.timer motd-news.timer man-db.timer systemd-firstboot.service systemd-pstore.service systemd-networkd-wait-online.service \
	getty@tty1.service serial-getty@ttyS0.service console-getty.service ssh.socket sys-kernel-debug.mount sys-kernel-tracing.mount \
	modprobe@configfs.service modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service modprobe@loop.service \
	modprobe@dm_mod.service systemd-repart.service; do
	rm -rf "$units"/*.wants/"$u" "$units/$u"
	ln -s /dev/null "$units/$u"
done
ln -sf /dev/null /etc/systemd/system-generators/systemd-getty-generator
ln -sf /dev/null /etc/systemd/system-generators/systemd-ssh-generator
mkdir -p /etc/default
[ -e /etc/default/locale ] || echo 'LANG=C.UTF-8' >/etc/default/locale
[ ! -d /etc/cloud/cloud.cfg.d ] || echo 'locale: false' >/etc/cloud/cloud.cfg.d/50-minimal.cfg
mkdir -p "$units/multi-user.target.wants"
ssh=/lib/systemd/system/ssh.service
ln -sf "$ssh" "$units/multi-user.target.wants/ssh.service"
ln -sf multi-user.target "$units/default.target"
printf '[Journal]\nSystemMaxUse=64M\nRuntimeMaxUse=16M\n' >/etc/systemd/journald.conf.d/50-minimal.conf
touch /etc/.updated /var/.updated
`

var (
	pointLine   = regexp.MustCompile(`(?m)^point ([0-9]+\.[0-9]+)$`)
	packageLine = regexp.MustCompile(`(?m)^packages ([0-9]{1,6})$`)
)

// trimReport reads what the script printed, of which only what has the expected
// form is believed.
func trimReport(out string, entry Entry) (distro string, packages int) {
	distro = entry.Type + " " + entry.Version
	if m := pointLine.FindStringSubmatch(out); m != nil && entry.Type == "debian" {
		distro = "debian " + m[1]
	}
	if m := packageLine.FindStringSubmatch(out); m != nil {
		packages, _ = strconv.Atoi(m[1]) // six digits at most
	}
	return distro, packages
}
