package nettest

import (
	"context"

	"github.com/mvmctl/mvm/internal/network"
)

// Within returns a Kernel whose methods run k's on the namespace's thread, so
// that it can be called from any goroutine.
func (ns *Namespace) Within(k network.Kernel) network.Kernel { return within{ns, k} }

type within struct {
	ns *Namespace
	k  network.Kernel
}

func (w within) EnsureNetwork(ctx context.Context, s network.Spec) (c []network.Change, err error) {
	w.ns.Do(func() { c, err = w.k.EnsureNetwork(ctx, s) })
	return c, err
}

func (w within) RemoveNetwork(ctx context.Context, s network.Spec) (err error) {
	w.ns.Do(func() { err = w.k.RemoveNetwork(ctx, s) })
	return err
}

func (w within) Observe(ctx context.Context, s network.Spec) (o network.Observed, err error) {
	w.ns.Do(func() { o, err = w.k.Observe(ctx, s) })
	return o, err
}

func (w within) AddTap(ctx context.Context, t network.TapSpec) (err error) {
	w.ns.Do(func() { err = w.k.AddTap(ctx, t) })
	return err
}

func (w within) RemoveTap(ctx context.Context, t network.TapSpec) (err error) {
	w.ns.Do(func() { err = w.k.RemoveTap(ctx, t) })
	return err
}

func (w within) AllowNoCloud(ctx context.Context, n network.NoCloudSpec) (err error) {
	w.ns.Do(func() { err = w.k.AllowNoCloud(ctx, n) })
	return err
}

func (w within) RemoveNoCloud(ctx context.Context, n network.NoCloudSpec) (err error) {
	w.ns.Do(func() { err = w.k.RemoveNoCloud(ctx, n) })
	return err
}

func (w within) ObserveTap(ctx context.Context, t network.TapSpec) (o network.ObservedTap, err error) {
	w.ns.Do(func() { o, err = w.k.ObserveTap(ctx, t) })
	return o, err
}

func (w within) OpenEgress(ctx context.Context, t network.TapSpec, addrs []network.OpenAddr) (err error) {
	w.ns.Do(func() { err = w.k.OpenEgress(ctx, t, addrs) })
	return err
}

func (w within) Denials(ctx context.Context, t network.TapSpec) (d network.Denials, err error) {
	w.ns.Do(func() { d, err = w.k.Denials(ctx, t) })
	return d, err
}

func (w within) Taps(ctx context.Context) (taps []network.Tap, err error) {
	w.ns.Do(func() { taps, err = w.k.Taps(ctx) })
	return taps, err
}

func (w within) HostRoutes(ctx context.Context) (routes []network.Route, err error) {
	w.ns.Do(func() { routes, err = w.k.HostRoutes(ctx) })
	return routes, err
}

func (w within) HostAddresses(ctx context.Context) (addrs []network.Address, err error) {
	w.ns.Do(func() { addrs, err = w.k.HostAddresses(ctx) })
	return addrs, err
}

func (w within) Interfaces(ctx context.Context) (names []string, err error) {
	w.ns.Do(func() { names, err = w.k.Interfaces(ctx) })
	return names, err
}
