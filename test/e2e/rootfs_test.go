package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/image/imagetest"
)

// TestRootFileSystemsBoot boots roots that are no ext4, with a stock kernel, which has
// these file systems as modules: as Rocky and Fedora have them in their images. They are
// grown to their disks, and what they would mount of disks that they were cut out of
// is not waited for.
func TestRootFileSystemsBoot(t *testing.T) {
	imagetest.Require(t)
	m := newMachine(t)
	mk := imagetest.New(t)
	tree := mk.Path("tree")
	mk.Run("", "mkdir", tree)
	mk.Run("", "debugfs", "-R", "rdump / "+tree, m.imageFile("tiny"))
	mk.Run("UUID=0-1 / btrfs subvol=root 0 0\nUUID=0-2 /boot ext4 defaults 1 2\n/dev/vda /home btrfs subvol=home 0 0\n", "tee", tree+"/etc/fstab")
	for layout, want := range map[string]struct {
		mounts    []string
		subvolume string
	}{
		"xfs":    {[]string{" / xfs "}, ""},
		"fedora": {[]string{"subvol=/root ", " /home btrfs ", "subvol=/home "}, "root"},
	} {
		t.Run(layout, func(t *testing.T) {
			m, mk := *m, imagetest.Maker{T: t, Dir: mk.Dir}
			m.t = t
			m.must("image", "import", layout, mk.Disk("gpt", mk.Root(layout, tree, 320)))
			var seen struct {
				Image struct {
					Subvolume string `json:"fs_subvolume"`
				} `json:"image"`
			}
			if err := json.Unmarshal([]byte(m.must("image", "inspect", layout, "--json")), &seen); err != nil || seen.Image.Subvolume != want.subvolume {
				t.Errorf("inspect shows %+v, %v", seen, err)
			}
			m.must("vm", "create", layout, "--image", layout, "--mem", "256", "--disk-size", "640M", "--wait")
			got := m.must("exec", layout, "--", "sh", "-c", "cat /etc/fstab; grep vda /proc/mounts; df -m / | tail -1 | awk '{print $2}'")
			lines := strings.Split(strings.TrimSpace(got), "\n")
			if len(lines) < 4 || lines[0] != "/dev/vda / btrfs subvol=root 0 0" || !strings.HasPrefix(lines[1], "# mvm: not a disk of this VM: UUID=0-2") ||
				lines[len(lines)-1] < "500" {
				t.Errorf("the guest has %s", got)
			}
			for _, mount := range want.mounts {
				if !strings.Contains(got, mount) {
					t.Errorf("of %q there is nothing in %s", mount, got)
				}
			}
			m.must("vm", "rm", "--force", layout)
		})
	}
}
