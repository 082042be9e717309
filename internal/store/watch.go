package store

import (
	"context"
	"database/sql"
)

// Watcher notices that somebody has changed the database, in whichever process.
// Looking costs a read of shared memory, no query.
type Watcher struct {
	st   *Store
	c    *sql.Conn
	last int64
}

// Watch begins to watch: Changed tells of what is committed from here on.
func (s *Store) Watch(ctx context.Context) (*Watcher, error) {
	c, err := s.db.Conn(ctx)
	if err != nil {
		return nil, s.fail(err)
	}
	w := &Watcher{st: s, c: c}
	if _, err := w.Changed(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return w, nil
}

// Changed reports whether a transaction was committed since the last call
// (sqlite.org/pragma.html#pragma_data_version: by another connection than this
// one, which writes nothing).
func (w *Watcher) Changed(ctx context.Context) (bool, error) {
	before := w.last
	if err := w.c.QueryRowContext(ctx, "pragma data_version").Scan(&w.last); err != nil {
		return false, w.st.fail(err)
	}
	return w.last != before, nil
}

// Close ends watching.
func (w *Watcher) Close() error { return w.st.fail(w.c.Close()) }
