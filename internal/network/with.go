package network

import "context"

// With returns a Kernel that has rules stand in the backend that choose names at each
// call; a spec that names one itself keeps it.
func With(k Kernel, choose func(context.Context) (Backend, error)) Kernel { return with{k, choose} }

type with struct {
	Kernel
	choose func(context.Context) (Backend, error)
}

func (w with) fill(ctx context.Context, b *Backend) (err error) {
	if *b == "" {
		*b, err = w.choose(ctx)
	}
	return err
}

func (w with) EnsureNetwork(ctx context.Context, s Spec) ([]Change, error) {
	if err := w.fill(ctx, &s.Backend); err != nil {
		return nil, err
	}
	return w.Kernel.EnsureNetwork(ctx, s)
}

func (w with) Observe(ctx context.Context, s Spec) (Observed, error) {
	if err := w.fill(ctx, &s.Backend); err != nil {
		return Observed{}, err
	}
	return w.Kernel.Observe(ctx, s)
}

func (w with) AddTap(ctx context.Context, t TapSpec) error {
	if err := w.fill(ctx, &t.Backend); err != nil {
		return err
	}
	return w.Kernel.AddTap(ctx, t)
}

func (w with) ObserveTap(ctx context.Context, t TapSpec) (ObservedTap, error) {
	if err := w.fill(ctx, &t.Backend); err != nil {
		return ObservedTap{}, err
	}
	return w.Kernel.ObserveTap(ctx, t)
}

func (w with) AllowNoCloud(ctx context.Context, n NoCloudSpec) error {
	if err := w.fill(ctx, &n.Backend); err != nil {
		return err
	}
	return w.Kernel.AllowNoCloud(ctx, n)
}
