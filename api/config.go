package api

import (
	"context"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
	"github.com/mvmctl/mvm/internal/store"
)

// ConfigOperation reads and changes the settings that are kept in the database:
// what is taken where a command or a call does not say.
type ConfigOperation struct{ core *core }

// ConfigEntry is a setting as it is in force.
type ConfigEntry struct {
	Category string   `json:"category"`
	Key      string   `json:"key"`
	Value    any      `json:"value"` // an int, a bool or a string, as Type says
	Type     string   `json:"type"`
	Default  any      `json:"default"`
	Source   string   `json:"source"` // SourceDefault or SourceDatabase
	Min      *int     `json:"min"`    // null but for type int
	Max      *int     `json:"max"`
	Choices  []string `json:"choices"` // null where any text goes
	Help     string   `json:"help"`
}

// Where the value of a setting comes from.
const (
	SourceDefault  = "default"  // built in
	SourceDatabase = "database" // set by Config.Set
)

// Text is the value as it is typed.
func (e ConfigEntry) Text() string {
	switch v := e.Value.(type) {
	case int:
		return strconv.Itoa(v)
	case bool:
		return strconv.FormatBool(v)
	case string:
		return v
	}
	return ""
}

// ConfigResetInput says what goes back to its default.
type ConfigResetInput struct {
	Category string
	Key      string // "" means all of the category
	All      bool   // everything; Category and Key have to be ""
}

// ListAll returns all settings, by category in the order of their importance.
func (o *ConfigOperation) ListAll(ctx context.Context) ([]ConfigEntry, error) {
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	over, err := overrides(ctx, st.Queries)
	if err != nil {
		return nil, err
	}
	entries := []ConfigEntry{}
	for _, s := range mvm.Settings() {
		entries = append(entries, over.entry(s))
	}
	return entries, nil
}

// Get returns a setting, or with key "" all of a category. mvm.ErrNotFound when
// there is none of that name.
func (o *ConfigOperation) Get(ctx context.Context, category, key string) ([]ConfigEntry, error) {
	if err := knownSetting(category, key); err != nil {
		return nil, err
	}
	all, err := o.ListAll(ctx)
	if err != nil {
		return nil, err
	}
	var some []ConfigEntry
	for _, e := range all {
		if e.Category == category && (key == "" || e.Key == key) {
			some = append(some, e)
		}
	}
	return some, nil
}

// Set overrides a setting and returns it. The value is checked against its type,
// its range and what it goes together with.
func (o *ConfigOperation) Set(ctx context.Context, category, key, value string) (*ConfigEntry, error) {
	if key == "" {
		return nil, mvm.Errorf(mvm.ErrInvalid, "no key was named").WithHint("see 'mvm config get %s'", category)
	}
	if err := knownSetting(category, key); err != nil {
		return nil, err
	}
	s, _ := mvm.SettingOf(category, key)
	stored, err := s.Parse(value)
	if err != nil {
		return nil, err
	}
	if check, ok := settingChecks[s.Name()]; ok {
		if err := check(stored); err != nil {
			return nil, mvm.Wrap(err, "set", s.Name())
		}
	}
	st, err := o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	var entry ConfigEntry
	change := func(tx *store.Tx) error {
		if err := tx.SetSetting(ctx, category, key, stored); err != nil {
			return err
		}
		over, err := overrides(ctx, tx.Queries)
		if err != nil {
			return err
		}
		entry = over.entry(s)
		return over.hangTogether()
	}
	if s.Category == firewallCategory && s.Key == firewallKey {
		if err = o.core.checkBackend(ctx, network.Backend(stored)); err == nil {
			err = o.core.setFirewall(ctx, network.Backend(stored), change)
		}
	} else {
		err = st.Tx(ctx, change)
	}
	if err != nil {
		return nil, mvm.Wrap(err, "set", s.Name())
	}
	return &entry, nil
}

// Reset returns settings to their defaults, and how many had been overridden.
func (o *ConfigOperation) Reset(ctx context.Context, in ConfigResetInput) (int, error) {
	switch {
	case in.All && (in.Category != "" || in.Key != ""):
		return 0, mvm.Errorf(mvm.ErrInvalid, "all and a category were asked for").WithHint("leave one out")
	case in.All:
	case in.Category == "":
		return 0, mvm.Errorf(mvm.ErrInvalid, "nothing to reset was named").WithHint("name a category, or use --all")
	default:
		if err := knownSetting(in.Category, in.Key); err != nil {
			return 0, err
		}
	}
	st, err := o.core.open(ctx)
	if err != nil {
		return 0, err
	}
	count := 0
	change := func(tx *store.Tx) error {
		before, err := tx.ListSettings(ctx)
		if err != nil {
			return err
		}
		if err := tx.ResetSetting(ctx, in.Category, in.Key); err != nil {
			return err
		}
		after, err := overrides(ctx, tx.Queries)
		if err != nil {
			return err
		}
		count = len(before) - len(after)
		return after.hangTogether()
	}
	if in.All || in.Category == firewallCategory && (in.Key == "" || in.Key == firewallKey) {
		d, _ := mvm.SettingOf(firewallCategory, firewallKey)
		err = o.core.setFirewall(ctx, network.Backend(d.Default), change)
	} else {
		err = st.Tx(ctx, change)
	}
	if err != nil {
		return 0, mvm.Wrap(err, "reset", strings.TrimSuffix(in.Category+"."+in.Key, "."))
	}
	return count, nil
}

// knownSetting refuses names that no setting has; key "" stands for all.
func knownSetting(category, key string) error {
	var categories, keys []string
	for _, s := range mvm.Settings() {
		if s.Category == category {
			keys = append(keys, s.Key)
			if key == "" || s.Key == key {
				return nil
			}
		}
		categories = append(categories, s.Category)
	}
	if len(keys) == 0 {
		e := mvm.Errorf(mvm.ErrNotFound, "there are no settings %s", mvm.Quote(category))
		if near := mvm.Nearest(category, categories); len(near) > 0 {
			return e.WithHint("did you mean %s?", strings.Join(near, " or "))
		}
		return e.WithHint("see 'mvm config ls'")
	}
	e := mvm.Errorf(mvm.ErrNotFound, "there is no setting %s in %s", mvm.Quote(key), category)
	if near := mvm.Nearest(key, keys); len(near) > 0 {
		return e.WithHint("did you mean %s?", strings.Join(near, " or "))
	}
	return e.WithHint("see 'mvm config get %s'", category)
}

// overridden are the settings that the database has, by category and key.
type overridden map[[2]string]string

func overrides(ctx context.Context, q store.Queries) (overridden, error) {
	list, err := q.ListSettings(ctx)
	over := overridden{}
	for _, s := range list {
		over[[2]string{s.Category, s.Key}] = s.Value
	}
	return over, err
}

func (o overridden) entry(s mvm.Setting) ConfigEntry {
	e := ConfigEntry{Category: s.Category, Key: s.Key, Type: s.Type, Default: typed(s, s.Default), Source: SourceDefault, Choices: s.Choices(), Help: s.Help}
	e.Value = e.Default
	if v, ok := o[[2]string{s.Category, s.Key}]; ok {
		e.Value, e.Source = typed(s, v), SourceDatabase
	}
	if least, most, ok := s.Range(); ok {
		e.Min, e.Max = &least, &most
	}
	return e
}

// typed is a stored value in its type. One that does not fit, which Set lets
// nobody store, counts as the default, as it does for all who use it.
func typed(s mvm.Setting, value string) any {
	switch s.Type {
	case "int":
		if n, err := strconv.Atoi(value); err == nil {
			return n
		}
		n, _ := strconv.Atoi(s.Default)
		return n
	case "bool":
		return value == "true"
	}
	return value
}
