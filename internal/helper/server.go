package helper

import (
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/network"
)

// Server answers requests of one user.
type Server struct {
	Host  Host
	UID   int // the caller
	Taken PortTaken
	Lock  string // file that keeps two requests apart: what one has seen stays true until it is done
}

// PortTaken tells which program listens on a port of the host, and whether one does.
type PortTaken func(protocol string, addr netip.Addr, port int) (owner string, taken bool)

// Serve reads a request and writes what came of it. It returns the exit status: 0
// also for a refusal, which the response tells.
func (s *Server) Serve(ctx context.Context, in io.Reader, out io.Writer) int {
	res := Response{}
	req, err := readRequest(in)
	if err == nil {
		res, err = s.Do(ctx, req)
	}
	if err != nil {
		res.Error = &Failure{Kind: mvm.KindOf(err), Message: strings.ReplaceAll(err.Error(), "\n", "; "), Hint: mvm.HintOf(err)}
	}
	if err := json.NewEncoder(out).Encode(res); err != nil {
		return 1
	}
	return 0
}

// Do does what a request asks for, after all of it was checked.
func (s *Server) Do(ctx context.Context, r Request) (Response, error) {
	if !network.IsMember(s.UID) {
		return Response{}, refuse("user %d has no objects of its own", s.UID)
	}
	lock, err := fsx.LockWait(ctx, s.Lock)
	if err != nil {
		return Response{}, mvm.Errorf(mvm.ErrUnavailable, "the helper is busy: %w", err).WithHint("try again")
	}
	defer lock.Unlock()
	switch r.Do {
	case EnsureNetwork, RemoveNetwork, Observe:
		return s.doNetwork(ctx, r)
	case AddTap, RemoveTap, ObserveTap, Denials:
		return s.doTap(ctx, r)
	case AllowNoCloud, RemoveNoCloud:
		return s.doNoCloud(ctx, r)
	case Taps:
		return s.doTaps(ctx, r)
	}
	return Response{}, invalid("%s is nothing that the helper does", mvm.Quote(clip(string(r.Do))))
}

// only refuses what does not belong to a verb: nothing is read that was not checked.
func only(r Request, network, tap, noCloud bool) error {
	if (r.Network != nil) != network || (r.Tap != nil) != tap || (r.NoCloud != nil) != noCloud {
		return invalid("the request does not fit to %s", r.Do)
	}
	return nil
}

func (s *Server) doNetwork(ctx context.Context, r Request) (res Response, err error) {
	if err := only(r, true, false, false); err != nil {
		return res, err
	}
	spec, err := s.network(r.Network)
	if err != nil {
		return res, err
	}
	switch r.Do {
	case RemoveNetwork:
		return res, s.Host.RemoveNetwork(ctx, spec)
	case Observe:
		seen, err := s.Host.Observe(ctx, spec)
		return Response{Observed: &seen}, err
	}
	if err := s.newNetwork(ctx, spec); err != nil {
		return res, err
	}
	res.Changes, err = s.Host.EnsureNetwork(ctx, spec)
	return res, err
}

func (s *Server) doTap(ctx context.Context, r Request) (res Response, err error) {
	if err := only(r, false, true, false); err != nil {
		return res, err
	}
	spec, err := s.tap(r.Tap)
	if err != nil {
		return res, err
	}
	switch r.Do {
	case RemoveTap:
		return res, s.Host.RemoveTap(ctx, spec)
	case ObserveTap:
		seen, err := s.Host.ObserveTap(ctx, spec)
		return Response{ObservedTap: &seen}, err
	case Denials:
		denied, err := s.Host.Denials(ctx, spec)
		return Response{Denials: &denied}, err
	}
	if err := s.newTap(ctx, spec); err != nil {
		return res, err
	}
	return res, s.Host.AddTap(ctx, spec)
}

func (s *Server) doNoCloud(ctx context.Context, r Request) (res Response, err error) {
	if err := only(r, false, false, true); err != nil {
		return res, err
	}
	spec := network.NoCloudSpec(*r.NoCloud)
	if err := s.owns("VM", spec.VMID); err != nil {
		return res, err
	}
	if r.Do == RemoveNoCloud {
		return res, s.Host.RemoveNoCloud(ctx, spec)
	}
	if err := s.noCloud(ctx, spec); err != nil {
		return res, err
	}
	return res, s.Host.AllowNoCloud(ctx, spec)
}

func (s *Server) doTaps(ctx context.Context, r Request) (res Response, err error) {
	if err := only(r, false, false, false); err != nil {
		return res, err
	}
	all, err := s.Host.Taps(ctx)
	for _, t := range all {
		if s.owns("VM", t.VMID) == nil {
			res.Taps = append(res.Taps, t)
		}
	}
	return res, err
}
