// Package store keeps what mvm knows in one SQLite file: items, claims, leases,
// settings, events and the rows of the operation journal. What is unique in the
// world (a name, an address, a tap device) is unique here by a constraint, so
// that the database decides races between commands.
//
// It must not know how anything is made or removed: it never looks at the host,
// and holds no rule that is not about rows.
package store

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	_ "modernc.org/sqlite" // the driver named "sqlite"

	"github.com/mvmctl/mvm"
)

// Store is an open database. It is safe for concurrent use, also by several
// processes on one file. All Queries may be called on it directly; each is then
// a transaction of its own.
type Store struct {
	Queries
	db *sql.DB
}

// Tx is a write transaction, in which all Queries may be used.
type Tx struct {
	Queries
	ctx context.Context
}

// Context is the context that the transaction runs under: the one to pass to its
// queries.
func (t *Tx) Context() context.Context { return t.ctx }

// Queries are the typed queries, on the database or inside a transaction. Every
// error is an *mvm.Error. Items get CreatedAt, if it is empty, when inserted,
// and UpdatedAt at every write; times are UTC, RFC 3339.
type Queries struct {
	q    querier
	path string
	tx   func(context.Context, func(*Tx) error) error // joins the transaction that there is
}

// querier is what *sql.DB and *sql.Conn have in common.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// busyTimeout is how long a command waits for other commands' transactions,
// which take milliseconds each. SQLite has no queue: whoever comes last may be
// served first, and of fifty that write on a machine that is busy otherwise one has
// waited longer than ten seconds.
const busyTimeout = 30 * time.Second

// Open opens the database at path and brings its schema up to date. A missing
// file is made with mode 0600, a missing directory with 0700. Any number of
// processes may do so at once. Errors: ErrPrivilege where path cannot be
// written, ErrUnavailable for a full disk, ErrBroken for a file that is damaged
// or something else, ErrUnsupported for a schema newer than this program.
func Open(ctx context.Context, path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, openError(err, path)
	}
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return nil, openError(err, path)
	}
	// One connection is enough for a command; a program with many goroutines
	// gets more readers, while SQLite lets one write at a time.
	db.SetMaxIdleConns(4)
	db.SetConnMaxIdleTime(time.Minute)
	if err := prepare(ctx, db, path); err != nil {
		_ = db.Close()
		return nil, openError(err, path)
	}
	s := &Store{db: db}
	s.Queries = Queries{q: db, path: path, tx: s.Tx}
	return s, nil
}

// Close closes the database.
func (s *Store) Close() error { return s.fail(s.db.Close()) }

// Tx runs f in one write transaction: all of it or, when f returns an error or
// panics, nothing. Transactions of all processes run one after the other, so
// that what f reads stays true until it has written. f must use the Tx only: a
// write through the Store inside f waits for f's own transaction and fails.
func (s *Store) Tx(ctx context.Context, f func(*Tx) error) (err error) {
	c, err := s.db.Conn(ctx)
	if err != nil {
		return s.fail(err)
	}
	defer func() { _ = c.Close() }()
	// database/sql's own Tx hands a connection whose COMMIT failed (full disk)
	// back to the pool with the transaction still open; hence by hand.
	if _, err := c.ExecContext(ctx, "begin immediate"); err != nil {
		return s.fail(err)
	}
	done := false
	defer func() {
		if !done {
			_, _ = c.ExecContext(context.WithoutCancel(ctx), "rollback") // none is left after a full disk
		}
	}()
	t := &Tx{ctx: ctx}
	t.Queries = Queries{q: c, path: s.path, tx: func(_ context.Context, f func(*Tx) error) error { return f(t) }}
	if err := f(t); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return s.fail(err)
	}
	// From here on cancelling must not leave it open which way it went.
	if _, err := c.ExecContext(context.WithoutCancel(ctx), "commit"); err != nil {
		return s.fail(err)
	}
	done = true
	return nil
}

// Path is the database file.
func (q Queries) Path() string { return q.path }

// exec runs a statement and returns how many rows it changed.
func (q Queries) exec(ctx context.Context, query string, args ...any) (int64, error) {
	res, err := q.q.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// each calls scan for every row of a query.
func (q Queries) each(ctx context.Context, scan func(*sql.Rows) error, query string, args ...any) error {
	rows, err := q.q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// one scans the first row of a query and reports whether there was one.
func (q Queries) one(ctx context.Context, dest []any, query string, args ...any) (found bool, err error) {
	err = q.each(ctx, func(r *sql.Rows) error {
		if found {
			return nil
		}
		found = true
		return r.Scan(dest...)
	}, query, args...)
	return found && err == nil, err
}

// dsn names the file as a URI, in which a path may hold any character, and sets
// up every connection. The journal mode is kept in the file and set when it is
// made. NORMAL loses no commit when a process dies, only when the host does.
func dsn(path string) string {
	u := url.URL{Scheme: "file", Path: path}
	return u.String() + "?_pragma=busy_timeout(" + strconv.FormatInt(busyTimeout.Milliseconds(), 10) + ")&_pragma=foreign_keys(1)&_pragma=synchronous(1)"
}

// exists reports whether path is a database that has content.
func exists(path string) (bool, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && !st.Mode().IsRegular() {
		return false, mvm.Errorf(mvm.ErrInvalid, "%s is not a file", path).WithHint("move it away, or set MVM_CACHE_DIR to another directory")
	}
	return err == nil && st.Size() > 0, err
}

// now is the time as it is stored.
func now() string { return time.Now().UTC().Format("2006-01-02T15:04:05.000Z") }
