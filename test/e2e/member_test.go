package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/testenv"
)

// assetsVariable names a cache with a kernel and an image, for a test inside.
const assetsVariable = "MVM_TEST_INSIDE_ASSETS"

// newUser makes somebody with a home, and returns who types as that.
func newUser(t *testing.T, name string) *user {
	t.Helper()
	shell(t, "useradd", "--create-home", "--user-group", name)
	return &user{t: t, name: name}
}

// refused fails the test unless a command fails with an error and a hint that have
// the words.
func (u *user) refused(words []string, args ...string) {
	u.t.Helper()
	r := u.run(args...)
	if r.code == 0 {
		u.t.Errorf("%s: %s succeeded:\n%s", u.name, strings.Join(args, " "), r.stdout)
	}
	says(u.t, r.stderr, words...)
}

// ask sends the helper a request as a user would who leaves mvm out, and returns what
// it answers.
func (u *user) ask(request string, sudo ...string) result {
	u.t.Helper()
	words := append(append([]string{"sudo", "-n"}, sudo...), "/usr/local/lib/mvm/mvm-helper")
	return u.run("sh", "-c", `printf %s "$1" | { shift; "$@"; }`, "sh", request, words[0], words[1], words[len(words)-1])
}

// A member of the group makes a network and a VM, uses it and removes both; whoever is
// not in it is told what to do, and gets nothing by the helper either.
func TestMembersOfTheGroup(t *testing.T) {
	if os.Getenv(insideVariable) == "" {
		testenv.Require(t, "root", "netns", "qemu", "apt", "e2fsprogs", "sudo")
		t.Setenv(assetsVariable, assets(t))
	}
	if !inside(t) {
		return
	}
	root := &user{t: t}
	alice, bob := newUser(t, "alice"), newUser(t, "bob")
	alice.refused([]string{"needs root or the group mvm", "run: sudo mvm host init"}, "mvm", "network", "create", "lab")
	root.must("mvm", "host", "init")
	shell(t, "usermod", "-aG", "mvm", "alice")
	before := hostLines(t)

	bob.refused([]string{"needs root or the group mvm", "bob is not in", "run: sudo usermod -aG mvm bob"}, "mvm", "network", "create", "lab")
	says(t, bob.must("mvm", "host", "status"), "you are: an ordinary user", "sudo usermod -aG mvm bob")
	if r := bob.ask(`{"version":1,"do":"taps"}`); r.code == 0 || strings.Contains(r.stdout, "{") {
		t.Errorf("the helper answers bob: %+v", r)
	}
	says(t, alice.must("mvm", "host", "status"), "you are: a member of the group mvm")
	hostileHelper(t, root, alice)

	cache := "/home/alice/.cache/mvmctl"
	shell(t, "rm", "-rf", cache) // what looking at the host has begun
	shell(t, "cp", "-r", "--sparse=always", os.Getenv(assetsVariable), cache)
	shell(t, "chown", "-R", "alice:alice", "/home/alice/.cache")
	says(t, alice.must("mvm", "network", "create", "lab"), "network lab has no DNS server, which takes root")
	uid := strings.TrimSpace(shell(t, "id", "-u", "alice"))
	says(t, shell(t, "ip", "-o", "link"), "mvm-"+uid+"-lab")
	says(t, alice.must("mvm", "network", "inspect", "lab"), "masquerade", "mvm-"+uid+"-lab")
	alice.must("mvm", "vm", "create", "web", "--image", "tiny", "--network", "lab", "--hypervisor", "qemu", "--publish", "18080:80", "--wait")
	says(t, alice.must("mvm", "exec", "web", "--", "uname", "-s"), "Linux")
	says(t, alice.must("mvm", "exec", "web", "--", "ping", "-c1", "-W5", alice.gateway("lab")), "1 packets received")
	var vms []struct {
		PID int    `json:"pid"`
		Tap string `json:"tap_device"`
	}
	if err := json.Unmarshal([]byte(alice.run("mvm", "vm", "ls", "--json").stdout), &vms); err != nil || len(vms) != 1 {
		t.Fatalf("alice has %v, %v", vms, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", vms[0].PID))
	if err != nil || !strings.Contains(string(status), "\nUid:\t"+uid+"\t"+uid+"\t") {
		t.Errorf("the VMM is not alice's: %s, %v", status, err)
	}
	if vms := bob.run("mvm", "vm", "ls", "--json").stdout; strings.TrimSpace(vms) != "[]" {
		t.Errorf("bob sees %s", vms)
	}
	root.refused([]string{"of user " + uid, "--force"}, "mvm", "host", "reset")
	alice.must("mvm", "vm", "stop", "--force", "web")
	alice.must("mvm", "vm", "rm", "web")
	alice.must("mvm", "network", "rm", "lab")
	after := hostLines(t)
	for _, l := range after {
		if !slices.Contains(before, l) && !strings.HasPrefix(l, "sysctl |") {
			t.Errorf("left behind: %.300s", l)
		}
	}

	// What root runs is not run once others could have put it there.
	shell(t, "chmod", "g+w", "/usr/local/lib/mvm")
	alice.refused([]string{"can be written by others than root", "sudo mvm host init"}, "mvm", "network", "create", "lab")
}

// hostileHelper asks the helper what mvm never would.
func hostileHelper(t *testing.T, root, alice *user) {
	t.Helper()
	var nets []struct {
		ID, Bridge, Subnet string
		Gateway            string `json:"ipv4_gateway"`
	}
	if err := json.Unmarshal([]byte(root.run("mvm", "network", "ls", "--json").stdout), &nets); err != nil || len(nets) != 1 {
		t.Fatalf("root has %v, %v", nets, err)
	}
	n := nets[0]
	removal := fmt.Sprintf(`{"version":1,"do":"remove-network","network":{"id":%q,"name":"default","bridge":%q,"subnet":%q,"gateway":%q,"nat":true,"published":false,"loopback":false}}`,
		n.ID, n.Bridge, n.Subnet, n.Gateway)
	for name, r := range map[string]result{
		"as she is":            alice.ask(removal),
		"as root by a name":    alice.run("sh", "-c", `printf %s "$1" | env SUDO_UID=0 SUDO_USER=root sudo -n /usr/local/lib/mvm/mvm-helper`, "sh", removal),
		"with sudo's own -E":   alice.run("sh", "-c", `printf %s "$1" | SUDO_UID=0 sudo -n -E /usr/local/lib/mvm/mvm-helper`, "sh", removal),
		"with a variable":      alice.run("sh", "-c", `printf %s "$1" | sudo -n SUDO_UID=0 /usr/local/lib/mvm/mvm-helper`, "sh", removal),
		"with an argument":     alice.run("sudo", "-n", "/usr/local/lib/mvm/mvm-helper", "--help"),
		"by another path":      alice.run("sudo", "-n", "/usr/local/lib/mvm/../mvm/mvm-helper"),
		"another program":      alice.run("sudo", "-n", "/bin/sh", "-c", "id"),
		"without sudo":         alice.run("/usr/local/lib/mvm/mvm-helper"),
		"a copy of the helper": alice.run("sh", "-c", `cp /usr/local/lib/mvm/mvm-helper /tmp/mvm-helper.$$ && sudo -n /tmp/mvm-helper.$$; rm -f /tmp/mvm-helper.$$; exit 1`),
	} {
		if r.code == 0 && !strings.Contains(r.stdout, `"error"`) {
			t.Errorf("%s: the helper did it: %+v", name, r)
		}
	}
	says(t, shell(t, "ip", "-o", "link"), n.Bridge)
}

func (u *user) gateway(name string) string {
	u.t.Helper()
	var in struct {
		Network struct {
			Gateway string `json:"ipv4_gateway"`
		}
	}
	if err := json.Unmarshal([]byte(u.run("mvm", "network", "inspect", name, "--json").stdout), &in); err != nil {
		u.t.Fatal(err)
	}
	return in.Network.Gateway
}
