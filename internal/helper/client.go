package helper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/run"
)

// Client is a network.Kernel for an ordinary user: what everybody may know it reads
// itself, for the rest it asks the helper.
type Client struct {
	network.Kernel // what needs no privilege

	UID int
	Ask func(ctx context.Context, request []byte) (response []byte, err error)
}

var _ network.Kernel = (*Client)(nil)

// NewClient makes a client of the installed helper for a user.
func NewClient(own network.Kernel, r run.Runner, uid int) *Client {
	return &Client{Kernel: own, UID: uid, Ask: func(ctx context.Context, request []byte) ([]byte, error) { return bySudo(ctx, r, request) }}
}

// bySudo has the helper answer one request. It is waited for whatever becomes of
// ctx: a process of root's cannot be ended, and would go on by itself.
func bySudo(ctx context.Context, r run.Runner, request []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*timeLimit)
	defer cancel()
	res, err := r.Run(ctx, run.Cmd{Name: "sudo", Args: []string{"-n", "--", Path}, Stdin: bytes.NewReader(request), Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}})
	var exit *run.ExitError
	if errors.As(err, &exit) {
		said := strings.TrimSpace(exit.Stderr)
		e := mvm.Errorf(mvm.ErrPrivilege, "the helper of mvm does not work: %s", firstOf(oneLine(said), exit.Error()))
		return nil, e.WithHint("see 'mvm host status'; an administrator mends it with 'sudo mvm host init'")
	}
	return res.Stdout, err
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// do asks for one thing.
func (c *Client) do(ctx context.Context, r Request) (Response, error) {
	r.Version = version
	data, err := json.Marshal(r)
	if err != nil {
		return Response{}, mvm.Errorf(mvm.ErrInvalid, "the request to the helper: %w", err)
	}
	answer, err := c.Ask(ctx, data)
	if err != nil {
		return Response{}, err
	}
	var res Response
	if err := json.Unmarshal(answer, &res); err != nil {
		return res, mvm.Errorf(mvm.ErrBroken, "the helper's answer cannot be read: %w", err).WithHint("have an administrator run 'sudo mvm host init' again")
	}
	if f := res.Error; f != nil {
		e := mvm.Errorf(f.Kind, "%s", f.Message)
		if f.Hint != "" {
			e = e.WithHint("%s", f.Hint)
		}
		return res, e
	}
	return res, nil
}

// beyond is the refusal of what a request cannot say.
func beyond(what string) error {
	return mvm.Errorf(mvm.ErrUnsupported, "%s asks for something that only root can have", what).WithHint("leave it out, or do it as root, with sudo")
}

func (c *Client) network(ctx context.Context, do Verb, s network.Spec) (Response, error) {
	n, all := ofSpec(s)
	if !all {
		return Response{}, beyond("network " + s.Name)
	}
	return c.do(ctx, Request{Do: do, Network: n})
}

func (c *Client) tap(ctx context.Context, do Verb, t network.TapSpec) (Response, error) {
	r, all := ofTap(t, c.UID)
	if !all {
		return Response{}, beyond("VM " + t.VMName)
	}
	return c.do(ctx, Request{Do: do, Tap: r})
}

// EnsureNetwork implements network.Kernel.
func (c *Client) EnsureNetwork(ctx context.Context, s network.Spec) ([]network.Change, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	res, err := c.network(ctx, EnsureNetwork, s)
	return res.Changes, err
}

// RemoveNetwork implements network.Kernel.
func (c *Client) RemoveNetwork(ctx context.Context, s network.Spec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	_, err := c.network(ctx, RemoveNetwork, s)
	return err
}

// Observe implements network.Kernel. Rules are asked for only where they are wanted
// (WithRules): most callers look at the bridge alone, and asking starts a process.
func (c *Client) Observe(ctx context.Context, s network.Spec) (network.Observed, error) {
	seen, err := c.Kernel.Observe(ctx, s)
	if err != nil || !seen.RulesUnknown || !rulesWanted(ctx) {
		return seen, err
	}
	res, err := c.network(ctx, Observe, s)
	if err != nil || res.Observed == nil {
		return seen, err
	}
	return *res.Observed, nil
}

// AddTap implements network.Kernel. The tap is the user's.
func (c *Client) AddTap(ctx context.Context, t network.TapSpec) error {
	if err := t.Validate(); err != nil {
		return err
	}
	_, err := c.tap(ctx, AddTap, t)
	return err
}

// RemoveTap implements network.Kernel.
func (c *Client) RemoveTap(ctx context.Context, t network.TapSpec) error {
	if err := t.ValidateRemoval(); err != nil {
		return err
	}
	_, err := c.tap(ctx, RemoveTap, network.TapSpec{Name: t.Name, VMID: t.VMID, Backend: t.Backend})
	return err
}

// ObserveTap implements network.Kernel.
func (c *Client) ObserveTap(ctx context.Context, t network.TapSpec) (network.ObservedTap, error) {
	if err := t.Validate(); err != nil {
		return network.ObservedTap{}, err
	}
	res, err := c.tap(ctx, ObserveTap, t)
	if err != nil || res.ObservedTap == nil {
		return network.ObservedTap{}, err
	}
	return *res.ObservedTap, nil
}

// Denials implements network.Kernel.
func (c *Client) Denials(ctx context.Context, t network.TapSpec) (network.Denials, error) {
	if err := t.ValidateRemoval(); err != nil {
		return network.Denials{To: []network.Denial{}}, err
	}
	res, err := c.tap(ctx, Denials, network.TapSpec{Name: t.Name, VMID: t.VMID})
	if err != nil || res.Denials == nil {
		return network.Denials{To: []network.Denial{}}, err
	}
	return *res.Denials, nil
}

// OpenEgress implements network.Kernel. Only DNS servers of networks open addresses,
// and these are root's.
func (c *Client) OpenEgress(context.Context, network.TapSpec, []network.OpenAddr) error {
	return beyond("opening addresses by name")
}

// Taps implements network.Kernel: those of the user.
func (c *Client) Taps(ctx context.Context) ([]network.Tap, error) {
	res, err := c.do(ctx, Request{Do: Taps})
	return res.Taps, err
}

// AllowNoCloud implements network.Kernel.
func (c *Client) AllowNoCloud(ctx context.Context, n network.NoCloudSpec) error {
	if err := n.Validate(); err != nil {
		return err
	}
	r, _ := ofNoCloud(n)
	_, err := c.do(ctx, Request{Do: AllowNoCloud, NoCloud: r})
	return err
}

// RemoveNoCloud implements network.Kernel.
func (c *Client) RemoveNoCloud(ctx context.Context, n network.NoCloudSpec) error {
	if err := n.ValidateRemoval(); err != nil {
		return err
	}
	_, err := c.do(ctx, Request{Do: RemoveNoCloud, NoCloud: &NoCloud{VMID: n.VMID, Backend: n.Backend}})
	return err
}

type rulesKey struct{}

// WithRules says that who observes a network wants to know its rules.
func WithRules(ctx context.Context) context.Context { return context.WithValue(ctx, rulesKey{}, true) }

func rulesWanted(ctx context.Context) bool { wanted, _ := ctx.Value(rulesKey{}).(bool); return wanted }
