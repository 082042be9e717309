package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// migrations are numbered from 1 without a gap; user_version in the file is the
// number of the last one that ran. One that was released is never changed.
//
//go:embed migrations/*.sql
var migrations embed.FS

// applicationID marks the file as ours ("mvm1"; file(1) shows it).
const applicationID = 0x6d766d31

// prepare checks the schema of the database and, where it is missing or old,
// migrates it. An up-to-date database costs one query.
func prepare(ctx context.Context, db *sql.DB, path string) error {
	steps, err := readMigrations(migrations)
	if err != nil {
		return err
	}
	there, err := exists(path)
	if err != nil {
		return err
	}
	if there {
		ok, err := current(ctx, db, path, len(steps))
		if ok || err != nil {
			return err
		}
	}
	return migrate(ctx, db, path, steps)
}

// current reports whether the schema is that of this program.
func current(ctx context.Context, q querier, path string, latest int) (bool, error) {
	var version, app, tables int
	_, err := Queries{q: q}.one(ctx, []any{&version, &app, &tables},
		`select user_version, application_id, (select count(*) from sqlite_master) from pragma_user_version, pragma_application_id`)
	switch {
	case err != nil:
		return false, err
	case app != applicationID && (version != 0 || tables != 0):
		return false, mvm.Errorf(mvm.ErrBroken, "%s is not a database of mvm", path).
			WithHint("move the file away, or set MVM_CACHE_DIR to another directory")
	case version > latest:
		return false, mvm.Errorf(mvm.ErrUnsupported, "%s was written by a newer mvm (schema %d; this one knows %d)", path, version, latest).
			WithHint("use the newer mvm, or set MVM_CACHE_DIR to another directory")
	}
	return version == latest, nil
}

// migrate makes the file if need be and runs the migrations that it lacks. Only
// one process does so at a time: switching to WAL does not wait for others.
func migrate(ctx context.Context, db *sql.DB, path string, steps []string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	lock, err := fsx.LockWait(ctx, path+".lock")
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if err := makeFile(path); err != nil {
		return err
	}
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if ok, err := current(ctx, c, path, len(steps)); ok || err != nil {
		return err
	}
	if _, err := c.ExecContext(ctx, "pragma journal_mode = wal"); err != nil {
		return err
	}
	if _, err := c.ExecContext(ctx, "begin immediate"); err != nil {
		return err
	}
	if err := runMigrations(ctx, c, steps); err != nil {
		_, err2 := c.ExecContext(context.WithoutCancel(ctx), "rollback")
		_ = err2 // a full disk has rolled it back already
		return err
	}
	return nil
}

func runMigrations(ctx context.Context, c *sql.Conn, steps []string) error {
	var version int
	if _, err := (Queries{q: c}).one(ctx, []any{&version}, "select user_version from pragma_user_version"); err != nil {
		return err
	}
	for i := version; i < len(steps); i++ {
		if _, err := c.ExecContext(ctx, steps[i]); err != nil {
			return fmt.Errorf("migration %d: %w", i+1, err)
		}
	}
	end := fmt.Sprintf("pragma application_id = %d; pragma user_version = %d; commit", applicationID, len(steps))
	_, err := c.ExecContext(ctx, end)
	return err
}

// makeFile makes an empty file with mode 0600. It must not touch a database
// that is in use: closing any descriptor of it drops the locks that SQLite holds
// in this process (fcntl(2), advisory record locking).
func makeFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// readMigrations returns the statements in order and refuses a gap.
func readMigrations(from fs.FS) ([]string, error) {
	names, err := fs.Glob(from, "migrations/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	steps := make([]string, 0, len(names))
	for i, name := range names {
		num, _, _ := strings.Cut(filepath.Base(name), "_")
		if n, err := strconv.Atoi(num); err != nil || n != i+1 {
			return nil, fmt.Errorf("migration %s is not number %d", name, i+1)
		}
		data, err := fs.ReadFile(from, name)
		if err != nil {
			return nil, err
		}
		steps = append(steps, string(data))
	}
	return steps, nil
}
