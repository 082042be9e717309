package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
)

// table maps one item type to one SQL table.
type table[T any] struct {
	name   string             // of the table
	noun   string             // what users call one row
	soft   bool               // rows are marked deleted instead of removed
	cols   []string           // the first is the key
	fields func(*T) []any     // pointers to the fields, in the order of cols
	stamp  func(*T) []*string // CreatedAt and UpdatedAt; nil where there are none
	fixed  []string           // columns that follow from other tables: updates leave them alone
	unique map[string]taken   // what to say when a constraint is violated
}

// taken words the violation of a uniqueness constraint.
type taken struct {
	cols  []string // whose values are put into what, in order
	what  string   // "a VM named %q exists already"
	owner string   // query for the name of the holder, by the same values; may be ""
	hint  string
}

func (t *table[T]) list() string { return strings.Join(t.cols, ", ") }

// insert adds a row. A row that is marked deleted and has the same key is
// replaced.
func (t *table[T]) insert(ctx context.Context, q Queries, item *T) error {
	where := " do nothing"
	if t.soft {
		where = t.assign() + ", created_at = excluded.created_at where deleted_at is not null"
	}
	return t.put(ctx, q, item, where)
}

// upsert adds a row or replaces the one with the same key.
func (t *table[T]) upsert(ctx context.Context, q Queries, item *T) error {
	return t.put(ctx, q, item, t.assign())
}

func (t *table[T]) assign() string {
	set := make([]string, 0, len(t.cols))
	for _, c := range t.cols[1:] {
		if c != "created_at" {
			set = append(set, c+" = excluded."+c)
		}
	}
	return " do update set " + strings.Join(set, ", ")
}

func (t *table[T]) put(ctx context.Context, q Queries, item *T, onConflict string) error {
	t.touch(item)
	query := "insert into " + t.name + " (" + t.list() + ") values (?" + strings.Repeat(", ?", len(t.cols)-1) + ")" +
		" on conflict (" + t.cols[0] + ")" + onConflict
	n, err := q.exec(ctx, query, t.fields(item)...)
	if err != nil {
		return t.fail(ctx, q, item, err)
	}
	if n == 0 {
		return mvm.Errorf(mvm.ErrExists, "%s with the id %s exists already", article(t.noun), mvm.Quote(t.key(item))).
			WithHint("list what there is with 'ls'")
	}
	return nil
}

func (t *table[T]) update(ctx context.Context, q Queries, item *T) error {
	t.touch(item)
	set := make([]string, 0, len(t.cols))
	args := t.fields(item)
	vals := make([]any, 0, len(args))
	for i, c := range t.cols[1:] {
		if c != "created_at" && !slices.Contains(t.fixed, c) {
			set = append(set, c+" = ?")
			vals = append(vals, args[i+1])
		}
	}
	n, err := q.exec(ctx, "update "+t.name+" set "+strings.Join(set, ", ")+" where "+t.cols[0]+" = ?", append(vals, args[0])...)
	if err != nil {
		return t.fail(ctx, q, item, err)
	}
	if n == 0 {
		return t.notFound(t.key(item))
	}
	return nil
}

// get returns the row with a key, also one that is marked deleted.
func (t *table[T]) get(ctx context.Context, q Queries, key string) (*T, error) {
	items, err := t.where(ctx, q, t.cols[0]+" = ?", key)
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return nil, t.notFound(key)
	}
	return items[0], nil
}

// where returns the rows that match a condition, which may end in "order by".
func (t *table[T]) where(ctx context.Context, q Queries, cond string, args ...any) ([]*T, error) {
	items := []*T{}
	err := q.each(ctx, func(r *sql.Rows) error {
		item := new(T)
		items = append(items, item)
		return r.Scan(t.fields(item)...)
	}, "select "+t.list()+" from "+t.name+" where "+cond, args...)
	if err != nil {
		return nil, q.fail(err)
	}
	return items, nil
}

// remove deletes a row, or marks it deleted. A row that is gone is no error:
// removing has to be repeatable.
func (t *table[T]) remove(ctx context.Context, q Queries, key string) error {
	query, args := "delete from "+t.name+" where "+t.cols[0]+" = ?", []any{key}
	if t.soft {
		query = "update " + t.name + " set deleted_at = ?, is_default = 0, is_present = 0 where " + t.cols[0] + " = ? and deleted_at is null"
		args = []any{now(), key}
	}
	_, err := q.exec(ctx, query, args...)
	return q.fail(err)
}

// setDefault makes a row the default; a trigger takes it from the others.
func (t *table[T]) setDefault(ctx context.Context, q Queries, key string) error {
	query := "update " + t.name + " set is_default = 1, updated_at = ? where " + t.cols[0] + " = ?"
	if t.soft {
		query += " and deleted_at is null"
	}
	n, err := q.exec(ctx, query, now(), key)
	if err != nil {
		return q.fail(err)
	}
	if n == 0 {
		return t.notFound(key)
	}
	return nil
}

func (t *table[T]) touch(item *T) {
	if t.stamp == nil {
		return
	}
	at := now()
	for i, s := range t.stamp(item) {
		if i > 0 || *s == "" {
			*s = at
		}
	}
}

func (t *table[T]) key(item *T) string { return fmt.Sprint(value(t.fields(item)[0])) }

func (t *table[T]) notFound(key string) error {
	return mvm.Errorf(mvm.ErrNotFound, "no %s has the id %s", t.noun, mvm.Quote(key)).
		WithHint("another command may have removed it; list what there is with 'ls'")
}

// fail words a violated constraint with the values of the item.
func (t *table[T]) fail(ctx context.Context, q Queries, item *T, err error) error {
	w, ok := t.unique[violated(err)]
	if !ok {
		return q.fail(err)
	}
	fields := t.fields(item)
	vals := make([]any, len(w.cols))
	for i, c := range w.cols {
		vals[i] = value(fields[slices.Index(t.cols, c)])
	}
	what := fmt.Sprintf(w.what, vals...)
	if w.owner != "" {
		var owner string
		if found, err := q.one(ctx, []any{&owner}, w.owner, vals...); err == nil && found {
			what += " by " + owner
		}
	}
	return &mvm.Error{Kind: mvm.ErrExists, Err: fmt.Errorf("%s", what), Hint: w.hint}
}

// value reads through a field's pointer, and a second one, for messages and keys.
func value(p any) any {
	switch p := p.(type) {
	case *string:
		return *p
	case **string:
		if *p != nil {
			return **p
		}
	case *int:
		return *p
	case **int:
		if *p != nil {
			return **p
		}
	case **int64:
		if *p != nil {
			return **p
		}
	}
	return ""
}

func article(noun string) string {
	if strings.ContainsRune("AEIOUaeiou", rune(noun[0])) || strings.HasPrefix(noun, "SSH") {
		return "an " + noun
	}
	return "a " + noun
}

// asJSON stores a field as JSON text; an empty RawMessage as null.
type asJSON struct{ field any }

// Value implements driver.Valuer.
func (a asJSON) Value() (driver.Value, error) {
	switch p := a.field.(type) {
	case *json.RawMessage:
		if len(*p) == 0 {
			return nil, nil
		}
		return string(*p), nil
	case *[]string:
		if *p == nil {
			return "[]", nil // lists are never null in what users see
		}
	}
	data, err := json.Marshal(a.field)
	return string(data), err
}

// Scan implements sql.Scanner.
func (a asJSON) Scan(src any) error {
	var data []byte
	switch s := src.(type) {
	case nil:
		return nil
	case string:
		data = []byte(s)
	case []byte:
		data = s
	default:
		return fmt.Errorf("stored JSON is a %T", src)
	}
	if p, ok := a.field.(*json.RawMessage); ok {
		*p = slices.Clone(data)
		return nil
	}
	return json.Unmarshal(data, a.field)
}
