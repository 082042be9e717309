// Package dns is the DNS server of a network: a small process on the gateway that
// answers for the VMs of that network and asks the host's resolvers for the rest.
// For VMs that may reach certain names only it asks for no others, and has the
// addresses that it gives out opened before the answer goes.
//
// It knows a network by a file, the zone, which is replaced as a whole whenever VMs
// come and go. It must not know the store, VMs beyond what that file says, or how
// addresses are opened.
package dns

import (
	"context"
	"net/netip"
	"time"
)

// Opener opens addresses for a VM: until then packets to them are dropped. A VM
// that has no such limits (any more) is an error.
type Opener interface {
	Open(ctx context.Context, vmID string, addrs []Address) error
}

// Address is one that a VM may reach for a time.
type Address struct {
	Addr netip.Addr
	For  time.Duration
}

// Bounds. A guest may send what it likes.
const (
	// maxUDP is the largest answer by UDP: it passes without fragments everywhere
	// (the DNS Flag Day of 2020).
	maxUDP = 1232

	maxQueries      = 512 // under way at once
	maxGuestQueries = 64  // of one guest
	maxConns        = 128 // TCP connections
	maxGuestConns   = 8
	maxConnQueries  = 128 // one after the other on a connection

	idleLimit = 8 * time.Second // of a connection
	readLimit = 2 * time.Second // for a query that has begun to come

	// attemptLimit is how long one resolver has to answer, askLimit all together:
	// resolvers in guests wait five seconds and then ask again (resolv.conf(5)).
	attemptLimit = 1500 * time.Millisecond
	askLimit     = 4500 * time.Millisecond

	// restLimit is how long a resolver that did not answer is asked last.
	restLimit = 15 * time.Second

	// minOpen and maxOpen bound how long an address is open: a connection has to be
	// begun within that time, and may go on afterwards. Answers to those VMs are not
	// valid for longer.
	minOpen = 60 * time.Second
	maxOpen = time.Hour

	// localTTL is how long answers about VMs are valid: a name may soon be another
	// VM's.
	localTTL = 5
)
