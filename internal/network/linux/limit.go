package linux

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// A tap's limits. What the guest sends is policed by the guard, and what it receives
// is shaped by a token bucket filter on the tap (tc-tbf(8)), which knows bytes only:
// packets are policed on the tap's way out.
//
// The usual way to shape what comes in, an ifb device, is not open to us: what an
// ifb hands back passes neither the guard nor any other rule at the tap's ingress
// (net/core/dev.c: skip_classify).

// limitChain is the chain of the guard's table that looks at what the guest receives.
const limitChain = "MVM-LIMIT"

// largest is more than a packet of a tap can have: segments of a connection come as
// one (64 KiB), and one that does not fit into the bucket never passes.
const largest = 128 << 10

// fastest is more than a tap can pass in a second; nft counts little more (it
// multiplies by a billion nanoseconds in 64 bits).
const fastest = 8 << 30

// limitRules are the rules that drop what exceeds a limit.
func limitRules(c *chain, tag string, l network.Limit, toGuest bool) {
	over := func(comment string, kind expr.LimitType, rate, burst int64) {
		if rate > 0 {
			c.rules = append(c.rules, rule{comment: tag + comment, exprs: exprs{
				&expr.Limit{Type: kind, Rate: uint64(min(rate, fastest)), Over: true, Unit: expr.LimitTimeSecond, Burst: uint32(min(burst, math.MaxUint32))}, //nolint:gosec // not negative
				&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
	}
	if !toGuest {
		// The bucket holds what passes in a second, and the burst.
		over(limitComment("bytes", l), expr.LimitTypePktBytes, l.BytesPerSec, max(l.BurstBytes, largest-l.BytesPerSec, 0))
	}
	over(limitComment("packets", l), expr.LimitTypePkts, l.PacketsPerSec, max(l.PacketsPerSec/10, 5))
}

// limitComment has the limit in it, so that another one is another rule.
func limitComment(what string, l network.Limit) string {
	return fmt.Sprintf("limit_%s:%d:%d:%d", what, l.BytesPerSec, l.PacketsPerSec, l.BurstBytes)
}

// limitChainOf is the chain for what the guest receives; nil without a limit of
// packets.
func limitChainOf(t network.TapSpec, tag string) *chain {
	if t.Limit.PacketsPerSec == 0 {
		return nil
	}
	accept := nftables.ChainPolicyAccept
	c := &chain{Chain: nftables.Chain{
		Name: limitChain, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookEgress,
		Priority: nftables.ChainPriorityFilter, Policy: &accept, Device: t.Name,
	}}
	limitRules(c, tag, t.Limit, true)
	return c
}

// tbfHandle is the handle of our shaper, by which we know it again.
var tbfHandle = netlink.MakeHandle(0x6d76, 0)

// shaper is the tap's token bucket filter. The bucket holds what passes in a second,
// or the burst; the queue before it what passes in a tenth of one.
func shaper(index int, l network.Limit) *netlink.Tbf {
	rate := uint64(l.BytesPerSec) //nolint:gosec // not negative
	bucket := min(max(rate, uint64(l.BurstBytes), 4096), 200*rate, 1<<30)
	bucket = max(bucket, 4096)
	queue := min(bucket+max(rate/10, largest), math.MaxUint32)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: tbfHandle, Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Limit: uint32(queue), Buffer: ticks(rate, bucket),
	}
}

// ticks is how long so many bytes take at a rate, in the unit of schedulers: 64 ns
// (include/net/pkt_sched.h: PSCHED_SHIFT).
func ticks(rate, bytes uint64) uint32 {
	return uint32(min(float64(bytes)/float64(rate)*1e9/64, math.MaxUint32))
}

// ensureShaper brings the tap's shaper in place, or removes it.
func (s *session) ensureShaper(tap netlink.Link, l network.Limit) error {
	now, err := s.shaperOf(tap)
	if err != nil {
		return err
	}
	name := tap.Attrs().Name
	if l.BytesPerSec == 0 {
		if now == nil {
			return nil
		}
		if err := s.QdiscDel(now); err != nil && !errors.Is(err, unix.ENOENT) {
			return explain(err, "remove the shaper of tap %s", name)
		}
		return nil
	}
	want := shaper(tap.Attrs().Index, l)
	if now != nil && sameShaper(now, want) {
		return nil
	}
	if err := s.QdiscReplace(want); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return mvm.Errorf(mvm.ErrUnsupported, "this kernel has no token bucket filter (sch_tbf), which limits what a VM receives").
				WithHint("use --hypervisor firecracker, which limits by itself, or another kernel")
		}
		return explain(err, "shape what tap %s gives its guest", name)
	}
	return nil
}

// shaperOf returns the tap's shaper, nil if there is none of ours.
func (s *session) shaperOf(tap netlink.Link) (*netlink.Tbf, error) {
	qdiscs, err := again(func() ([]netlink.Qdisc, error) { return s.QdiscList(tap) })
	if err != nil {
		return nil, explain(err, "read the shaper of tap %s", tap.Attrs().Name)
	}
	for _, q := range qdiscs {
		if tbf, ok := q.(*netlink.Tbf); ok && q.Attrs().Handle == tbfHandle {
			return tbf, nil
		}
	}
	return nil, nil
}

// shaped says whether a tap has the shaper that its spec asks for.
func shaped(ctx context.Context, t network.TapSpec) (bool, error) {
	s, err := open(ctx)
	if err != nil {
		return false, err
	}
	defer s.Close()
	l, err := s.link(t.Name)
	if err != nil || l == nil {
		return false, err
	}
	now, err := s.shaperOf(l)
	return now != nil && sameShaper(now, shaper(l.Attrs().Index, t.Limit)), err
}

func sameShaper(a, b *netlink.Tbf) bool {
	return a.Rate == b.Rate && a.Limit == b.Limit && near(a.Buffer, b.Buffer)
}

// near forgives what the kernel rounds.
func near(a, b uint32) bool { return max(a, b)-min(a, b) <= 1+b/1000 }
