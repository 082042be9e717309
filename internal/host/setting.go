package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/mvmctl/mvm/internal/run"
)

// Kind says what sort of thing of the host a setting is.
type Kind string

// The kinds of setting, and what Name and State.Data are for each.
const (
	Sysctl  Kind = "sysctl"  // net.ipv4.ip_forward; its value now, in this network namespace
	File    Kind = "file"    // an absolute path; the content
	Program Kind = "program" // an absolute path; the SHA-256 of the content, in hex
	Dir     Kind = "directory"
	Symlink Kind = "symlink" // an absolute path; the target
	Group   Kind = "group"   // a name; the number
	Module  Kind = "module"  // a kernel module's name
)

// Setting is one thing of the host that can be there or not, and hold something.
type Setting struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
}

func (s Setting) String() string { return string(s.Kind) + " " + s.Name }

// State is how a setting is.
type State struct {
	Exists bool        `json:"exists"`
	Data   string      `json:"data,omitempty"`
	Mode   fs.FileMode `json:"mode,omitempty"` // of files, programs and directories
}

// Change is a setting that is to be changed, or was.
type Change struct {
	Setting
	Old  State  `json:"old"`
	New  State  `json:"new"`
	From string `json:"from,omitempty"` // where a program is copied from
}

// Machine is where settings are: this host, or for tests a directory that looks like
// one. Sysctls and modules are those of /proc and /sys below it.
type Machine struct {
	Root   string // "/" for this host; it ends in a slash
	Runner run.Runner
}

func (m Machine) path(name string) string { return m.Root + strings.TrimPrefix(name, "/") }

func (m Machine) sysctl(name string) string {
	return m.Root + "proc/sys/" + strings.ReplaceAll(name, ".", "/")
}

// Observe tells how a setting is now.
func (m Machine) Observe(s Setting) (State, error) {
	switch s.Kind {
	case Sysctl:
		data, err := os.ReadFile(m.sysctl(s.Name))
		return absentOr(State{Exists: true, Data: strings.TrimSpace(string(data))}, err)
	case File, Program, Dir, Symlink:
		return m.observeFile(s)
	case Group:
		gid, err := m.groupID(s.Name)
		return State{Exists: gid != "", Data: gid}, err
	case Module:
		_, err := os.Stat(m.Root + "sys/module/" + s.Name)
		return absentOr(State{Exists: true}, err)
	}
	return State{}, fmt.Errorf("settings of kind %q are not known", s.Kind)
}

func absentOr(st State, err error) (State, error) {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	return st, nil
}

func (m Machine) observeFile(s Setting) (State, error) {
	path := m.path(s.Name)
	info, err := os.Lstat(path)
	if err != nil {
		return absentOr(State{}, err)
	}
	st := State{Exists: true, Mode: info.Mode().Perm()}
	switch {
	case s.Kind == Dir && info.IsDir():
		return st, nil
	case s.Kind == Symlink && info.Mode()&fs.ModeSymlink != 0:
		st.Mode = 0
		st.Data, err = os.Readlink(path)
		return st, err
	case (s.Kind == File || s.Kind == Program) && info.Mode().IsRegular():
		f, err := os.Open(path)
		if err != nil {
			return State{}, err
		}
		defer func() { _ = f.Close() }()
		st.Data, err = content(f, s.Kind)
		return st, err
	}
	return State{}, fmt.Errorf("%s is something else than a %s (%s)", path, s.Kind, info.Mode().Type())
}

// content is what State.Data says of a file.
func content(r io.Reader, kind Kind) (string, error) {
	if kind == Program {
		h := sha256.New()
		_, err := io.Copy(h, r)
		return hex.EncodeToString(h.Sum(nil)), err
	}
	const most = 1 << 20
	data, err := io.ReadAll(io.LimitReader(r, most))
	return string(data), err
}

// Digest is State.Data of a program.
func Digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return content(f, Program)
}

// Apply brings a setting from its old state to the new one.
func (m Machine) Apply(ctx context.Context, c Change) error {
	return m.put(ctx, c.Setting, c.New, c.From)
}

// Restore brings a setting back to its old state, if it is still as Apply left it; one
// that somebody has changed since is left alone, and so is a program that there was
// an earlier version of. It may be called after an Apply that was killed, and again.
func (m Machine) Restore(ctx context.Context, c Change) error {
	if err := m.clear(c.Setting); err != nil {
		return err
	}
	what, err := m.Outlook(c)
	if err != nil || what != WillRestore {
		return err
	}
	return m.put(ctx, c.Setting, c.Old, "")
}

// Outlook is what Restore would do.
type Outlook string

// The outlooks.
const (
	WillRestore Outlook = "restore"
	IsBack      Outlook = "it is as it was before"
	IsChanged   Outlook = "it was changed since"
)

// Outlook tells what Restore would do to a setting as it is now.
func (m Machine) Outlook(c Change) (Outlook, error) {
	now, err := m.Observe(c.Setting)
	switch {
	case err != nil:
		return IsChanged, err
	case now == c.Old:
		return IsBack, nil
	case now != c.New, c.Kind == Program && c.Old.Exists:
		return IsChanged, nil
	}
	return WillRestore, nil
}

func (m Machine) put(ctx context.Context, s Setting, st State, from string) error {
	path := m.path(s.Name)
	switch s.Kind {
	case Sysctl:
		return os.WriteFile(m.sysctl(s.Name), []byte(st.Data+"\n"), 0)
	case Group:
		return m.putGroup(ctx, s.Name, st)
	case Module:
		return m.putModule(ctx, s.Name, st.Exists)
	case Dir:
		return putDir(path, st)
	}
	if !st.Exists {
		return removeSynced(path)
	}
	switch s.Kind {
	case Symlink:
		tmp := temp(path)
		if err := errors.Join(os.Symlink(st.Data, tmp), os.Rename(tmp, path)); err != nil {
			return err
		}
		return syncDir(filepath.Dir(path))
	case Program:
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		return replace(path, f, st.Mode, 0, 0)
	}
	return replace(path, strings.NewReader(st.Data), st.Mode, 0, 0)
}

// putDir makes a directory, or removes one that is empty: what others have put in
// stays, and the directory with it.
func putDir(path string, st State) error {
	if st.Exists {
		if err := os.Mkdir(path, st.Mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return errors.Join(os.Chmod(path, st.Mode), syncDir(filepath.Dir(path)))
	}
	err := os.Remove(path)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (m Machine) putModule(ctx context.Context, name string, loaded bool) error {
	args := []string{"--", name}
	if !loaded {
		args = []string{"-r", "--", name}
	}
	_, err := m.Runner.Run(ctx, run.Cmd{Name: "modprobe", Args: args})
	if !loaded && err != nil {
		return nil // it is in use by now, and stays until the next boot
	}
	return err
}
