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

	// Network is handed over on the command line, for a server cannot be asked before
	// the network is configured; nil where the documents hold it.
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
func (s Source) KernelArgs() []string {
	ds := "ds=nocloud;i=" + s.InstanceID
	if s.URL != "" {
		ds += ";dsmode=net;s=" + s.URL
	}
	args := []string{"cloud-init=enabled", ds}
	switch {
	case s.NoNetwork:
		args = append(args, "network-config=disabled")
	case s.Network != nil:
		args = append(args, "network-config="+base64.StdEncoding.EncodeToString([]byte(inline(s.Network.tree()))))
	}
	return args
}

// inline writes a tree on one line, without blanks: a command line is short.
func inline(n *yaml.Node) string {
	var items []string
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			items = append(items, strconv.Quote(n.Content[i].Value)+":"+inline(n.Content[i+1]))
		}
		return "{" + strings.Join(items, ",") + "}"
	case yaml.SequenceNode:
		for _, c := range n.Content {
			items = append(items, inline(c))
		}
		return "[" + strings.Join(items, ",") + "]"
	}
	if n.ShortTag() == "!!str" {
		return strconv.Quote(n.Value)
	}
	return n.Value
}
