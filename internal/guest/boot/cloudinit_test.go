package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/testenv"
)

func program(t *testing.T, root, name string) {
	t.Helper()
	write(t, root, name, "#!/bin/sh\n")
	must(t, os.Chmod(filepath.Join(root, name), 0o755))
}

func TestPrepareCloudInit(t *testing.T) {
	testenv.Require(t, "root") // files of the guest's root belong to root
	seed := map[string][]byte{"meta-data": []byte("instance-id: a\n"), "user-data": []byte("#cloud-config\n{}\n"), "../../../../../outside": []byte("no")}
	r, root := tree(t, func(root string) {
		program(t, root, "usr/bin/cloud-init")
		write(t, root, "var/lib/cloud/seed/nocloud/network-config", "another VM's")
		must(t, os.Symlink("/etc/passwd", filepath.Join(root, "var/lib/cloud/seed/nocloud/user-data")))
		write(t, root, "etc/passwd", "root:x:0:0::/root:/bin/sh\n")
	})
	for range 2 {
		must(t, PrepareCloudInit(r, &guest.CloudInit{Seed: seed}))
	}
	must(t, PrepareCloudInit(r, &guest.CloudInit{})) // where the documents come from elsewhere
	got := map[string]string{}
	names, err := r.ReadDir(guest.CloudInitSeed)
	must(t, err)
	for _, n := range names {
		got[n] = read(t, root, guest.CloudInitSeed+"/"+n)
		if st, err := os.Lstat(filepath.Join(root, guest.CloudInitSeed, n)); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", n, st.Mode(), err)
		}
	}
	if diff := cmp.Diff(map[string]string{"meta-data": "instance-id: a\n", "user-data": "#cloud-config\n{}\n"}, got); diff != "" {
		t.Error(diff)
	}
	if got := read(t, root, "etc/passwd"); got != "root:x:0:0::/root:/bin/sh\n" {
		t.Errorf("written through a link: %q", got)
	}
}

func TestImageWithoutCloudInit(t *testing.T) {
	testenv.Require(t, "root")
	r, _ := tree(t, func(root string) { write(t, root, "etc/passwd", me("u", "/home/u")) })
	if err := PrepareCloudInit(r, &guest.CloudInit{Seed: map[string][]byte{"user-data": nil}}); err == nil || !strings.Contains(err.Error(), "the image has none") {
		t.Errorf("got %v", err)
	}
	if r.IsDir("/var/lib/cloud") {
		t.Error("a seed was written for nobody")
	}
	cfg := config(t)
	cfg.SSH.User, cfg.CloudInit = "nobody-yet", &guest.CloudInit{}
	if err := FirstBoot(r, cfg); err == nil {
		t.Error("keys for a user whom nobody makes are no error")
	}
}

// A user whom cloud-init makes does not keep a first boot from being one.
func TestUserThatCloudInitMakes(t *testing.T) {
	testenv.Require(t, "root")
	r, _ := tree(t, func(root string) {
		program(t, root, "usr/bin/cloud-init")
		write(t, root, "etc/passwd", me("u", "/home/u"))
	})
	cfg := config(t)
	cfg.SSH.User = "alice"
	if err := FirstBoot(r, cfg); err == nil {
		t.Error("without cloud-init an unknown user is no error")
	}
	cfg.CloudInit = &guest.CloudInit{}
	must(t, FirstBoot(r, cfg))
	if IsFirstBoot(r, cfg.InstanceID) {
		t.Error("the first boot does not count")
	}
}

func TestWhoConfiguresTheInterface(t *testing.T) {
	for _, c := range []struct {
		programs []string
		config   *guest.CloudInit
		want     bool
	}{
		{[]string{"usr/bin/cloud-init", "usr/sbin/ifup"}, &guest.CloudInit{Network: true}, true},
		{[]string{"usr/bin/cloud-init", "sbin/ifup"}, &guest.CloudInit{Network: true}, true},
		{[]string{"usr/bin/cloud-init", "sbin/ifup"}, &guest.CloudInit{}, false},
		{[]string{"usr/bin/cloud-init", "sbin/ifup"}, nil, false},
		{[]string{"usr/bin/cloud-init", "usr/sbin/netplan"}, &guest.CloudInit{Network: true}, false},
		{[]string{"sbin/ifup"}, &guest.CloudInit{Network: true}, false},
	} {
		r, _ := tree(t, func(root string) {
			for _, p := range c.programs {
				program(t, root, p)
			}
		})
		if got := leftToIfupdown(r, c.config); got != c.want {
			t.Errorf("%v, %+v: %v", c.programs, c.config, got)
		}
	}
}
