package boot

import (
	"slices"
	"strings"
	"testing"
)

// TestFstab adapts what distributions have in their images.
func TestFstab(t *testing.T) {
	const gone = "# mvm: not a disk of this VM: "
	bare := disks{nodes: []string{"/dev/vda", "/dev/vdb"}, uuids: []string{"", "0a1b-2c"}, labels: []string{"", "cloudimg-rootfs", "my data"}}
	parts := disks{nodes: bare.nodes, partitioned: true}
	for name, c := range map[string]struct {
		have     disks
		in, want string
	}{
		"ubuntu": {bare,
			"LABEL=cloudimg-rootfs\t/\t ext4\tdiscard,commit=30,errors=remount-ro\t0 1\nLABEL=BOOT\t/boot\text4\tdefaults\t0 2\nLABEL=UEFI\t/boot/efi\tvfat\tumask=0077\t0 1\n",
			"LABEL=cloudimg-rootfs\t/\t ext4\tdiscard,commit=30,errors=remount-ro\t0 1\n" + gone + "LABEL=BOOT\t/boot\text4\tdefaults\t0 2\n" + gone + "LABEL=UEFI\t/boot/efi\tvfat\tumask=0077\t0 1\n"},
		"debian": {bare,
			"PARTUUID=1 / ext4 rw,discard 0 1\nPARTUUID=2 /boot/efi vfat defaults 0 0\n",
			"/dev/vda / ext4 rw,discard 0 1\n" + gone + "PARTUUID=2 /boot/efi vfat defaults 0 0\n"},
		"fedora": {bare,
			"UUID=0A1B-2C / btrfs subvol=root,compress=zstd:1 0 0\nUUID=7 /boot ext4 defaults 1 2\nUUID=\"0a1b-2c\" /home btrfs subvol=home 0 0",
			"UUID=0A1B-2C / btrfs subvol=root,compress=zstd:1 0 0\n" + gone + "UUID=7 /boot ext4 defaults 1 2\nUUID=\"0a1b-2c\" /home btrfs subvol=home 0 0"},
		"the disks as links": {bare, "/dev/disk/by-uuid/0a1b-2c /srv ext4 ro 0 0\n/dev/disk/by-label/x /opt ext4 ro 0 0\n/dev/disk/by-id/virtio-7 /mnt ext4 ro 0 0\n",
			"/dev/disk/by-uuid/0a1b-2c /srv ext4 ro 0 0\n" + gone + "/dev/disk/by-label/x /opt ext4 ro 0 0\n/dev/disk/by-id/virtio-7 /mnt ext4 ro 0 0\n"},
		"swap, and disks by name": {bare, "/dev/sda2 none swap sw 0 0\n/dev/vdb /srv xfs defaults\nLABEL=my\\040data /d ext4\n", gone + "/dev/sda2 none swap sw 0 0\n/dev/vdb /srv xfs defaults\nLABEL=my\\040data /d ext4\n"},
		"what may be missing":     {bare, "UUID=7 /a ext4 nofail\nUUID=7 /b ext4 ro,noauto\nUUID=7 /c ext4 x-systemd.automount\n", "UUID=7 /a ext4 nofail\nUUID=7 /b ext4 ro,noauto\nUUID=7 /c ext4 x-systemd.automount\n"},
		"no disks":                {bare, "# UUID=7 /a ext4\n\ntmpfs /tmp tmpfs\nhost:/x /x nfs\n/swapfile none swap sw\n//host/a=b /m cifs\n/dev/null /n none\n", "# UUID=7 /a ext4\n\ntmpfs /tmp tmpfs\nhost:/x /x nfs\n/swapfile none swap sw\n//host/a=b /m cifs\n/dev/null /n none\n"},
		"partitions there":        {parts, "PARTUUID=1 /a ext4 ro\nPARTLABEL=b /b ext4\nUUID=7 /c ext4\n", "PARTUUID=1 /a ext4 ro\nPARTLABEL=b /b ext4\n" + gone + "UUID=7 /c ext4\n"},
	} {
		got := fstabFor(c.in, "/dev/vda", c.have)
		if got != c.want {
			t.Errorf("%s:\n%q, want\n%q", name, got, c.want)
		}
		if again := fstabFor(got, "/dev/vda", c.have); again != got {
			t.Errorf("%s, again:\n%q", name, again)
		}
	}
}

func TestHomesIn(t *testing.T) {
	here := disks{nodes: []string{"/dev/vda"}, uuids: []string{"7"}, labels: []string{"fedora"}}
	got := homesIn(`UUID=7 / btrfs subvol=root,compress=zstd:1 0 0
UUID=7 /home btrfs subvol=home,compress=zstd:1,x-systemd.device-timeout=0 0 0
LABEL=fedora /root btrfs noatime,subvol=/@/root
/dev/vda /home btrfs noatime
UUID=8 /home btrfs subvol=home
UUID=7 /var btrfs subvol=var
UUID=7 /home ext4 subvol=x
# UUID=7 /home btrfs subvol=x
`, here)
	want := []home{{"/home", "subvol=home,compress=zstd:1"}, {"/root", "noatime,subvol=/@/root"}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

// FuzzFstab: whatever an image has there, no line is lost, and the second time nothing
// changes any more.
func FuzzFstab(f *testing.F) {
	f.Add("LABEL=a\t/\text4\tdefaults\t0 1\nUUID=7 /boot ext4\n# x\n/dev/vda / btrfs subvol=@")
	f.Add("/dev/disk/by-uuid/7 /\\040a ext4\r\n\x00=/ / /")
	have := disks{nodes: []string{"/dev/vda"}, uuids: []string{"7"}, labels: []string{"a"}}
	f.Fuzz(func(t *testing.T, text string) {
		got := fstabFor(text, "/dev/vda", have)
		if strings.Count(got, "\n") != strings.Count(text, "\n") {
			t.Errorf("%q became %q", text, got)
		}
		if again := fstabFor(got, "/dev/vda", have); again != got {
			t.Errorf("%q became %q", got, again)
		}
	})
}
