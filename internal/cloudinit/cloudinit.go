// Package cloudinit makes what a guest's cloud-init reads: the four documents of
// its NoCloud datasource, with a user's data merged into ours, the ISO image that
// carries them, and the HTTP server that hands them to one guest and goes away.
//
// It must not know of VMs, the store or the VMMs, and it sets no password. What
// cloud-init reads how is in docs.cloud-init.io, "Datasources: NoCloud".
package cloudinit

import (
	"go.yaml.in/yaml/v4"

	"github.com/mvmctl/mvm"
)

// The names of the documents, in the seed directory, on the ISO and in URLs.
const (
	MetaData      = "meta-data"
	UserDataName  = "user-data"
	VendorData    = "vendor-data"
	NetworkConfig = "network-config"
)

// names are the documents in the order in which cloud-init asks for them.
var names = []string{MetaData, UserDataName, VendorData, NetworkConfig}

// Documents are the documents of one guest by name. One that is not there is not
// offered.
type Documents map[string][]byte

// Instance is what a guest is to become.
type Instance struct {
	ID       string // a change of it makes cloud-init set the guest up anew
	Hostname string
	User     string   // who gets Keys, and is made where the image has no such user
	Keys     []string // lines of authorized_keys
	Network  *Network // nil leaves the network alone
}

// Render makes the documents of a guest; data is the user's own, nil for none.
func Render(in Instance, data *UserData) (Documents, error) {
	docs := Documents{VendorData: {}}
	var err error
	if docs[MetaData], err = dump(mapping("instance-id", text(in.ID), "local-hostname", text(in.Hostname))); err != nil {
		return nil, err
	}
	if docs[UserDataName], err = compose(in, data); err != nil {
		return nil, err
	}
	if in.Network != nil {
		if docs[NetworkConfig], err = in.Network.YAML(); err != nil {
			return nil, err
		}
	}
	return docs, nil
}

const configHeader = "#cloud-config\n"

// base is the cloud-config that makes a guest ours. hasUsers says that the user's
// data says itself who there is; otherwise the image's own default user stays.
//
// The SSH host key stays too: the initramfs has put it there, and the host knows it.
func base(in Instance, hasUsers bool) *yaml.Node {
	user := mapping("name", text(in.User), "lock_passwd", yes())
	if len(in.Keys) > 0 {
		var keys []*yaml.Node
		for _, k := range in.Keys {
			keys = append(keys, text(k))
		}
		add(user, "ssh_authorized_keys", list(keys...))
	}
	users := list(user)
	if !hasUsers {
		users = list(plain("default"), user)
	}
	c := mapping("hostname", text(in.Hostname), "users", users)
	if in.User == "root" {
		add(c, "disable_root", no()) // else its keys would only print that one must log in as another user
	} else {
		add(user, "sudo", text("ALL=(ALL) NOPASSWD:ALL"))
	}
	add(c, "ssh_pwauth", no())
	add(c, "ssh_deletekeys", no())
	add(c, "ssh_genkeytypes", list(text("ed25519")))
	return c
}

// compose merges a user's data into ours: into one cloud-config where it is one,
// else as parts of a MIME message, which cloud-init merges by the same rules.
func compose(in Instance, data *UserData) ([]byte, error) {
	if data == nil {
		return dumpConfig(base(in, false))
	}
	ours := base(in, data.hasUsers)
	if data.config != nil {
		merged := merge(ours, data.config)
		out, err := dumpConfig(merged)
		if err == nil && readsBack(out, merged) {
			return out, nil
		}
		// The writer changed something: then the user's document goes as it is.
	}
	out, err := dumpConfig(ours)
	if err != nil {
		return nil, err
	}
	return multipartOf(append(data.parts, mergePart(out))), nil
}

// dumpConfig writes a tree as a cloud-config.
func dumpConfig(n *yaml.Node) ([]byte, error) {
	out, err := dump(n)
	return append([]byte(configHeader), out...), err
}

// readsBack says whether a written document says what the tree does.
func readsBack(out []byte, want *yaml.Node) bool {
	got, err := parseConfig(out)
	return err == nil && same(got, want)
}

func dump(n *yaml.Node) ([]byte, error) {
	out, err := yaml.Dump(clone(n), yaml.WithLineWidth(-1)) // it takes the tags out of what it writes
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrBroken, "a cloud-init document cannot be written: %w", err).WithHint("leave the user data out, or simplify it")
	}
	return out, nil
}
