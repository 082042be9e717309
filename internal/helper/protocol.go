// Package helper is how ordinary users in the group mvm get what only root may make:
// bridges, taps and their rules. A small program of root's (Server), started by sudo
// for one request, checks what it is asked for and has the kernel do it; Client is a
// network.Kernel that asks it.
//
// The caller is taken for hostile. A request is one JSON value of bounded size on
// standard input, with no field that is not known here. It holds no path, no command
// and no name that is used as either; whose objects it may speak of follows from the
// caller's user number, which sudo tells. What network.Spec has and a request cannot
// say is refused by the client, never left out.
//
// It must not know VMs, the store, or how the kernel is told (network.Kernel is).
package helper

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"reflect"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// Dir is where the helper is installed, and Path what it is called there. Group are
// the users who may run it.
const (
	Dir   = "/usr/local/lib/mvm"
	Name  = "mvm-helper"
	Path  = Dir + "/" + Name
	Group = "mvm"
)

// maxRequest bounds a request, in bytes: a VM with a hundred published ports has 10 KiB.
const maxRequest = 64 << 10

// version is that of requests; helper and client of one mvm have the same.
const version = 1

// Verb is what the helper is asked to do; each is a method of network.Kernel.
type Verb string

// All there are.
const (
	EnsureNetwork Verb = "ensure-network"
	RemoveNetwork Verb = "remove-network"
	Observe       Verb = "observe"
	AddTap        Verb = "add-tap"
	RemoveTap     Verb = "remove-tap"
	ObserveTap    Verb = "observe-tap"
	Denials       Verb = "denials"
	Taps          Verb = "taps"
	AllowNoCloud  Verb = "allow-nocloud"
	RemoveNoCloud Verb = "remove-nocloud"
)

// Request is what the helper is asked for: a verb, and what it is about.
type Request struct {
	Version int      `json:"version"`
	Do      Verb     `json:"do"`
	Network *Network `json:"network,omitempty"`
	Tap     *Tap     `json:"tap,omitempty"`
	NoCloud *NoCloud `json:"nocloud,omitempty"`
}

// Network is what a request can say of a network.Spec.
type Network struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Bridge    string          `json:"bridge"`
	Subnet    netip.Prefix    `json:"subnet"`
	Gateway   netip.Addr      `json:"gateway"`
	NAT       bool            `json:"nat"`
	Uplinks   []string        `json:"uplinks,omitempty"`
	Published bool            `json:"published"`
	Loopback  bool            `json:"loopback"`
	Backend   network.Backend `json:"backend,omitempty"`
}

// Tap is what a request can say of a network.TapSpec. Its owner is the caller.
type Tap struct {
	Name      string          `json:"name"`
	Bridge    string          `json:"bridge,omitempty"`
	NetworkID string          `json:"network_id,omitempty"`
	MAC       string          `json:"mac,omitempty"`
	IP        netip.Addr      `json:"ip,omitzero"`
	VMID      string          `json:"vm_id"`
	VMName    string          `json:"vm_name,omitempty"`
	Isolated  bool            `json:"isolated,omitempty"`
	Publish   []Publish       `json:"publish,omitempty"`
	Egress    *Egress         `json:"egress,omitempty"`
	Limit     Limit           `json:"limit,omitzero"`
	Backend   network.Backend `json:"backend,omitempty"`
}

// Egress is what a request can say of a network.Egress. Names are opened by a network's
// DNS server, which only root can have.
type Egress struct {
	Networks []netip.Prefix `json:"networks,omitempty"`
}

// Limit is what a request can say of a network.Limit.
type Limit struct {
	BytesPerSec   int64 `json:"bytes_per_sec,omitempty"`
	PacketsPerSec int64 `json:"packets_per_sec,omitempty"`
	BurstBytes    int64 `json:"burst_bytes,omitempty"`
}

// Publish is what a request can say of a network.Publish.
type Publish struct {
	Protocol  string     `json:"protocol"`
	HostAddr  netip.Addr `json:"host_addr,omitzero"`
	HostPort  int        `json:"host_port"`
	GuestPort int        `json:"guest_port"`
}

// NoCloud is what a request can say of a network.NoCloudSpec.
type NoCloud struct {
	VMID    string          `json:"vm_id"`
	Bridge  string          `json:"bridge,omitempty"`
	Gateway netip.Addr      `json:"gateway,omitzero"`
	IP      netip.Addr      `json:"ip,omitzero"`
	Port    int             `json:"port,omitempty"`
	Backend network.Backend `json:"backend,omitempty"`
}

// Response is what came of it.
type Response struct {
	Changes     []network.Change     `json:"changes,omitempty"`
	Observed    *network.Observed    `json:"observed,omitempty"`
	ObservedTap *network.ObservedTap `json:"observed_tap,omitempty"`
	Taps        []network.Tap        `json:"taps,omitempty"`
	Denials     *network.Denials     `json:"denials,omitempty"`
	Error       *Failure             `json:"error,omitempty"`
}

// Failure is an error with its kind and hint.
type Failure struct {
	Kind    mvm.Kind `json:"kind"`
	Message string   `json:"message"`
	Hint    string   `json:"hint,omitempty"`
}

// readRequest reads the one request on a stream.
func readRequest(in io.Reader) (Request, error) {
	data, err := io.ReadAll(io.LimitReader(in, maxRequest+1))
	if err != nil {
		return Request{}, mvm.Errorf(mvm.ErrUnavailable, "the request cannot be read: %w", err)
	}
	if len(data) > maxRequest {
		return Request{}, mvm.Errorf(mvm.ErrInvalid, "the request is longer than %d bytes", maxRequest)
	}
	return parse(data)
}

// parse reads a request strictly: one value, with no field that is not known.
func parse(data []byte) (Request, error) {
	var r Request
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, mvm.Errorf(mvm.ErrInvalid, "the request cannot be read: %w", err)
	}
	if _, err := d.Token(); err != io.EOF { //nolint:errorlint // a decoder returns it bare
		return r, mvm.Errorf(mvm.ErrInvalid, "something follows the request")
	}
	if r.Version != version {
		return r, mvm.Errorf(mvm.ErrUnsupported, "the request has version %d; this helper knows %d", r.Version, version).
			WithHint("have root run 'mvm host init' again, which installs the helper of this mvm")
	}
	return r, nil
}

// ofSpec says a network in a request, and whether that says all of it.
func ofSpec(s network.Spec) (*Network, bool) {
	n := &Network{
		ID: s.NetworkID, Name: s.Name, Bridge: s.Bridge, Subnet: s.Subnet, Gateway: s.Gateway, NAT: s.NAT, Uplinks: s.NATGateways,
		Published: s.Published, Loopback: s.Loopback, Backend: s.Backend,
	}
	return n, reflect.DeepEqual(n.spec(), s)
}

func (n Network) spec() network.Spec {
	return network.Spec{
		NetworkID: n.ID, Name: n.Name, Bridge: n.Bridge, Subnet: n.Subnet, Gateway: n.Gateway, NAT: n.NAT, NATGateways: n.Uplinks,
		Published: n.Published, Loopback: n.Loopback, Backend: n.Backend,
	}
}

// ofTap says a tap of a user in a request, and whether that says all of it.
func ofTap(t network.TapSpec, uid int) (*Tap, bool) {
	r := &Tap{
		Name: t.Name, Bridge: t.Bridge, NetworkID: t.NetworkID, IP: t.IP, VMID: t.VMID, VMName: t.VMName, Isolated: t.Isolated, Backend: t.Backend,
		Limit: Limit(t.Limit),
	}
	if len(t.MAC) > 0 {
		r.MAC = t.MAC.String()
	}
	for _, p := range t.Publish {
		r.Publish = append(r.Publish, Publish(p))
	}
	if t.Egress != nil {
		r.Egress = &Egress{t.Egress.Networks}
	}
	if t.OwnerUID == 0 {
		t.OwnerUID = uid
	}
	back, err := r.spec(uid)
	return r, err == nil && reflect.DeepEqual(back, t)
}

func (r Tap) spec(uid int) (network.TapSpec, error) {
	t := network.TapSpec{
		Name: r.Name, Bridge: r.Bridge, NetworkID: r.NetworkID, IP: r.IP, VMID: r.VMID, VMName: r.VMName, Isolated: r.Isolated, OwnerUID: uid,
		Backend: r.Backend, Limit: network.Limit(r.Limit),
	}
	if r.Egress != nil {
		t.Egress = &network.Egress{Networks: r.Egress.Networks}
	}
	if r.MAC != "" {
		mac, err := net.ParseMAC(r.MAC)
		if err != nil {
			return t, mvm.Errorf(mvm.ErrInvalid, "%s is not a MAC address", mvm.Quote(clip(r.MAC)))
		}
		t.MAC = mac
	}
	for _, p := range r.Publish {
		t.Publish = append(t.Publish, network.Publish(p))
	}
	return t, nil
}

func ofNoCloud(n network.NoCloudSpec) (*NoCloud, bool) {
	r := NoCloud(n)
	return &r, true
}

func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most-3] + "..."
	}
	return s
}
