package api

import (
	"context"
	"strconv"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// settings are all settings as they are in force: overrides over defaults.
type settings map[[2]string]string

// openSet opens the store and reads the settings.
func (c *core) openSet(ctx context.Context) (*store.Store, settings, error) {
	st, err := c.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	set, err := loadSettings(ctx, st)
	return st, set, err
}

func loadSettings(ctx context.Context, st *store.Store) (settings, error) {
	s := settings{}
	for _, d := range mvm.Settings() {
		s[[2]string{d.Category, d.Key}] = d.Default
	}
	over, err := st.ListSettings(ctx)
	if err != nil {
		return nil, err
	}
	for _, o := range over {
		s[[2]string{o.Category, o.Key}] = o.Value
	}
	return s, nil
}

func (s settings) str(category, key string) string { return s[[2]string{category, key}] }

// num returns an int setting. A stored value that is no number counts as the
// default: set refuses such values, so it can only be a damaged row.
func (s settings) num(category, key string) int {
	if n, err := strconv.Atoi(s.str(category, key)); err == nil {
		return n
	}
	d, _ := mvm.SettingOf(category, key)
	n, _ := strconv.Atoi(d.Default)
	return n
}

func (s settings) flag(category, key string) bool { return s.str(category, key) == "true" }

// or returns *v when it was given, else the default.
func or[T any](v *T, def T) T {
	if v != nil {
		return *v
	}
	return def
}
