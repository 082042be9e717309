package store

import (
	"context"
	"database/sql"
	"encoding/json"

	"github.com/mvmctl/mvm"
)

// SettingValue is a setting that the user has overridden.
type SettingValue struct{ Category, Key, Value string }

// GetSetting returns what a setting is overridden with, and whether it is.
func (q Queries) GetSetting(ctx context.Context, category, key string) (value string, ok bool, err error) {
	ok, err = q.one(ctx, []any{&value}, "select value from settings where category = ? and key = ?", category, key)
	return value, ok, q.fail(err)
}

// SetSetting overrides a setting.
func (q Queries) SetSetting(ctx context.Context, category, key, value string) error {
	_, err := q.exec(ctx, "insert into settings (category, key, value) values (?, ?, ?) on conflict do update set value = excluded.value",
		category, key, value)
	return q.fail(err)
}

// ResetSetting returns a setting to its default; key "" means all of the
// category, category "" all there are.
func (q Queries) ResetSetting(ctx context.Context, category, key string) error {
	_, err := q.exec(ctx, "delete from settings where ? in ('', category) and ? in ('', key)", category, key)
	return q.fail(err)
}

// ListSettings returns all overrides by category and key.
func (q Queries) ListSettings(ctx context.Context) ([]SettingValue, error) {
	var all []SettingValue
	err := q.each(ctx, func(r *sql.Rows) error {
		var s SettingValue
		err := r.Scan(&s.Category, &s.Key, &s.Value)
		all = append(all, s)
		return err
	}, "select category, key, value from settings order by category, key")
	return all, q.fail(err)
}

// GetHostState reads the JSON value kept under a key into v and reports whether
// there is one.
func (q Queries) GetHostState(ctx context.Context, key string, v any) (bool, error) {
	var text string
	ok, err := q.one(ctx, []any{&text}, "select value from host_state where key = ?", key)
	if err != nil || !ok {
		return false, q.fail(err)
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return false, mvm.Errorf(mvm.ErrBroken, "the host state %s in %s cannot be read: %w", mvm.Quote(key), q.path, err).
			WithHint("run 'mvm host init' again")
	}
	return true, nil
}

// SetHostState keeps a value as JSON under a key.
func (q Queries) SetHostState(ctx context.Context, key string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "host state %s: %w", mvm.Quote(key), err)
	}
	_, err = q.exec(ctx, `insert into host_state (key, value, updated_at) values (?, ?, ?)
		on conflict do update set value = excluded.value, updated_at = excluded.updated_at`, key, string(text), now())
	return q.fail(err)
}

// DeleteHostState forgets the value kept under a key.
func (q Queries) DeleteHostState(ctx context.Context, key string) error {
	_, err := q.exec(ctx, "delete from host_state where key = ?", key)
	return q.fail(err)
}
