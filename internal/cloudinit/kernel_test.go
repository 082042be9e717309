package cloudinit

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/network/linux"
	"github.com/mvmctl/mvm/internal/network/nettest"
	"github.com/mvmctl/mvm/internal/proc"
	"github.com/mvmctl/mvm/internal/testenv"
)

// A server on the gateway, with the rules that belong to it, answers the one guest
// that it is for: not its neighbour, not another network, not the outside.
func TestServerInANetwork(t *testing.T) {
	testenv.Require(t, "netns", "nft", "ip")
	host := nettest.NewHost(t, linux.New())
	out := nettest.Outside(t, host.Namespace)
	red, blue := nettest.SpecOf("red", "172.27.0.0/24"), nettest.SpecOf("blue", "172.27.1.0/24")
	for _, s := range []network.Spec{red, blue} {
		if _, err := host.EnsureNetwork(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	own, peer := netip.MustParseAddr("172.27.0.2"), netip.MustParseAddr("172.27.0.3")
	guest, neighbour := nettest.Guest(t, host.Namespace, "g2", red, own), nettest.Guest(t, host.Namespace, "g3", red, peer)
	stranger := nettest.Guest(t, host.Namespace, "b2", blue, netip.MustParseAddr("172.27.1.2"))
	out.Run("ip", "route", "add", "172.27.0.0/16", "via", nettest.HostAddr.String())

	dir := t.TempDir()
	docs := filepath.Join(dir, "cloud-init")
	if err := documents.Write(docs); err != nil {
		t.Fatal(err)
	}
	vmID := "kernel-lane"
	rules := nettest.NoCloudOf(vmID, red, own.String(), 8000)
	if err := host.AllowNoCloud(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = StopServer(context.Background(), vmID) })
	at := netip.AddrPortFrom(red.Gateway, 8000)
	var id proc.Identity
	var err error
	host.Do(func() {
		id, err = Server{VMID: vmID, Exe: os.Args[0], Documents: docs, Listen: at, Peer: own, Ended: filepath.Join(dir, "exit.json")}.Start(t.Context())
	})
	if err != nil {
		t.Fatal(err)
	}
	reach := func(from *nettest.Namespace, wait time.Duration) int {
		c := http.Client{Timeout: wait, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(t.Context(), wait) // the client lets its dialling run on
			defer cancel()
			return from.Dial(ctx, "tcp4", addr)
		}}}
		status, _, err := fetch(&c, "GET", "http://"+at.String()+"/"+MetaData)
		if err != nil {
			return 0
		}
		return status
	}
	// That something does not arrive can only be seen by waiting; the guest itself is
	// the control.
	const silence = 300 * time.Millisecond
	for what, from := range map[string]*nettest.Namespace{"its neighbour": neighbour, "another network": stranger, "the outside": out, "the host": host.Namespace} {
		if got := reach(from, silence); got != 0 {
			t.Errorf("%s is answered with %d", what, got)
		}
	}
	if got := reach(guest, patience); got != http.StatusOK {
		t.Errorf("the guest is answered with %d", got)
	}
	// Without the rules guests reach nothing on the host, this server neither.
	if err := host.RemoveNoCloud(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	for what, from := range map[string]*nettest.Namespace{"its neighbour": neighbour, "the guest": guest} {
		if got := reach(from, silence); got != 0 {
			t.Errorf("without rules, %s is answered with %d", what, got)
		}
	}
	if err := StopServer(t.Context(), vmID); err != nil {
		t.Fatal(err)
	}
	wantGone(t, id)
}
