package cloudinit

import (
	"encoding/base64"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Network is the static configuration of a guest's interface.
type Network struct {
	MAC     string // which interface, whatever its name
	Address string // CIDR
	Gateway string
	DNS     []string
	MTU     int // 0 leaves it to the guest
}

// interfaceName is what the interface is called in a guest that is booted with
// net.ifnames=0.
const interfaceName = "eth0"

// YAML returns the configuration as a network-config document, version 2. The
// default route is written as 0.0.0.0/0, which all versions and renderers read.
func (n *Network) YAML() ([]byte, error) { return dump(n.tree()) }

func (n *Network) tree() *yaml.Node {
	eth := mapping("match", mapping("macaddress", text(strings.ToLower(n.MAC))), "set-name", text(interfaceName), "dhcp4", no(), "addresses", list(text(n.Address)))
	if n.Gateway != "" {
		add(eth, "routes", list(mapping("to", text("0.0.0.0/0"), "via", text(n.Gateway))))
	}
	if len(n.DNS) > 0 {
		var servers []*yaml.Node
		for _, s := range n.DNS {
			servers = append(servers, text(s))
		}
		add(eth, "nameservers", mapping("addresses", list(servers...)))
	}
	if n.MTU > 0 {
		add(eth, "mtu", number(n.MTU))
	}
	return mapping("version", number(2), "ethernets", mapping(interfaceName, eth))
}

func number(n int) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(n)}
}

// Source says where a guest's cloud-init looks for its documents.
type Source struct {
	InstanceID string
	URL        string // of a server; "" for a seed in the guest or on a disk

	// Network is handed over on the command line too where it comes from a server:
	// it has to be known before the server can be asked.
	Network   *Network
	NoNetwork bool // cloud-init leaves the network alone
}

// Disabled is the kernel argument that keeps cloud-init from starting at all: no
// search for a datasource, which on some images ends after minutes only.
const Disabled = "cloud-init=disabled"

// KernelArgs returns the kernel's arguments that lead cloud-init to its source. The
// instance id has it go on with what it has read when a guest boots again, also
// when the source is gone by then. dsmode is for versions before 24, which take
// every "nocloud" for a local source.
func (s Source) KernelArgs() ([]string, error) {
	ds := "ds=nocloud;i=" + s.InstanceID
	if s.URL != "" {
		ds += ";dsmode=net;s=" + s.URL
	}
	args := []string{"cloud-init=enabled", ds}
	switch {
	case s.NoNetwork:
		args = append(args, "network-config=disabled")
	case s.URL != "" && s.Network != nil:
		tree := s.Network.tree()
		tree.Style = yaml.FlowStyle // everything below is flow too, and so short
		data, err := dump(tree)
		if err != nil {
			return nil, err
		}
		args = append(args, "network-config="+base64.StdEncoding.EncodeToString(data))
	}
	return args, nil
}
