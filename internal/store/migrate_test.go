package store_test

import (
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

func TestOpenMakesPrivateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b?#%25", "cache")
	path := filepath.Join(dir, "mvm.db")
	st := openAt(t, path)
	must(t, st.SetSetting(t.Context(), "c", "k", "v"))
	for name, want := range map[string]os.FileMode{dir: 0o700, path: 0o600, path + "-wal": 0o600, path + "-shm": 0o600} {
		info, err := os.Stat(name)
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", name, info.Mode().Perm(), want)
		}
	}
	plain := filepath.Join(t.TempDir(), "mvm.db")
	openAt(t, plain)
	if got := pragma(t, plain, "journal_mode"); got != "wal" {
		t.Errorf("journal mode is %s", got)
	}
}

func TestOpenAgainKeepsContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mvm.db")
	st, err := store.Open(t.Context(), path)
	must(t, err)
	must(t, st.SetSetting(t.Context(), "c", "k", "v"))
	version := pragma(t, path, "user_version")
	must(t, st.Close())
	st = openAt(t, path)
	if v, ok, err := st.GetSetting(t.Context(), "c", "k"); v != "v" || !ok || err != nil {
		t.Errorf("setting is %q %v %v", v, ok, err)
	}
	if again := pragma(t, path, "user_version"); again != version || version == "0" {
		t.Errorf("schema was %s and is %s", version, again)
	}
}

// Killed while it made the database, mvm leaves an empty file or an empty
// database; the next one goes on from there.
func TestOpenAfterInterruptedCreation(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "empty.db"), nil, 0o600))
	raw(t, filepath.Join(dir, "wal.db"), "pragma journal_mode = wal")
	for _, name := range []string{"empty.db", "wal.db"} {
		st := openAt(t, filepath.Join(dir, name))
		if _, err := st.ListVMs(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, []byte("x"), 0o600))
	for _, tt := range []struct {
		name string
		make func(path string)
		path string
		kind mvm.Kind
		text string
	}{
		{"newer schema", func(p string) {
			openAt(t, p)
			raw(t, p, "pragma user_version = 1000")
		}, "newer.db", mvm.ErrUnsupported, "was written by a newer mvm (schema 1000; this one knows "},
		{"somebody else's", func(p string) { raw(t, p, "create table vms (x)") }, "else.db", mvm.ErrBroken, "is not a database of mvm"},
		{"not a database", func(p string) {
			must(t, os.WriteFile(p, []byte(strings.Repeat("no database ", 1000)), 0o600))
		}, "text.db", mvm.ErrBroken, "is damaged"},
		{"cut short", func(p string) {
			st, err := store.Open(t.Context(), p)
			must(t, err)
			must(t, st.Close())
			must(t, os.Truncate(p, 5000))
		}, "short.db", mvm.ErrBroken, "is damaged"},
		{"a file as directory", func(string) {}, "file/mvm.db", mvm.ErrInvalid, "not a directory"},
		{"a directory as file", func(p string) { must(t, os.Mkdir(p, 0o700)) }, "dir.db", mvm.ErrInvalid, "is not a file"},
		{"not writable", func(string) {}, "/proc/mvm/cache/mvm.db", mvm.ErrUnavailable, "/proc/mvm"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.path
			if !filepath.IsAbs(path) {
				path = filepath.Join(dir, path)
			}
			tt.make(path)
			st, err := store.Open(t.Context(), path)
			if err == nil {
				_, err = st.ListVMs(t.Context())
				_ = st.Close()
			}
			wantError(t, err, tt.kind, tt.text)
		})
	}
}

func TestOpenWithoutPermission(t *testing.T) {
	if os.Getuid() == 0 { // root may write everywhere: again, as nobody
		asNobody(t)
		return
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o500))
	_, err := store.Open(t.Context(), filepath.Join(dir, "cache", "mvm.db"))
	wantError(t, err, mvm.ErrPrivilege, "cannot be written")
	_, err = store.Open(t.Context(), filepath.Join(dir, "mvm.db"))
	wantError(t, err, mvm.ErrPrivilege, "cannot be written")
}

// asNobody runs the calling test in a process of the user nobody.
func asNobody(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "mvm-store-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	const nobody = 65534
	must(t, os.Chown(dir, nobody, nobody))
	data, err := os.ReadFile(os.Args[0])
	must(t, err)
	bin := filepath.Join(dir, "store.test")
	must(t, os.WriteFile(bin, data, 0o755)) //nolint:gosec // it is to be executed
	cmd := exec.CommandContext(t.Context(), bin, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir, cmd.Env = dir, []string{"TMPDIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	must(t, os.Chmod(dir, 0o700))
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

func raw(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	must(t, err)
	defer func() { _ = db.Close() }()
	for _, s := range statements {
		_, err := db.ExecContext(t.Context(), s)
		must(t, err)
	}
}

func pragma(t *testing.T, path, name string) string {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	must(t, err)
	defer func() { _ = db.Close() }()
	var v string
	must(t, db.QueryRowContext(t.Context(), "pragma "+name).Scan(&v))
	return v
}
