package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The files of group(5) and gshadow(5), and the lock that those who write them take
// (lckpwdf(3)).
const (
	groupFile   = "/etc/group"
	gshadowFile = "/etc/gshadow"
	pwdLock     = "/etc/.pwd.lock"
)

// System groups have numbers from this range, from the top (login.defs(5),
// SYS_GID_MIN and SYS_GID_MAX).
const (
	minSystemGID = 101
	maxSystemGID = 999
)

// groups returns the lines of the group file.
func (m Machine) groups() ([]string, error) {
	data, err := os.ReadFile(m.path(groupFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n"), err
}

// groupID returns the number of a group, "" when there is none.
func (m Machine) groupID(name string) (string, error) {
	lines, err := m.groups()
	for _, l := range lines {
		if f := strings.Split(l, ":"); len(f) >= 3 && f[0] == name {
			return f[2], nil
		}
	}
	return "", err
}

// GroupMembers returns who is named in a group.
func (m Machine) GroupMembers(name string) ([]string, error) {
	lines, err := m.groups()
	for _, l := range lines {
		if f := strings.Split(l, ":"); len(f) >= 4 && f[0] == name {
			return strings.FieldsFunc(f[3], func(r rune) bool { return r == ',' }), nil
		}
	}
	return nil, err
}

// FreeGroupID returns a number for a new system group.
func (m Machine) FreeGroupID() (string, error) {
	lines, err := m.groups()
	if err != nil {
		return "", err
	}
	taken := map[string]bool{}
	for _, l := range lines {
		if f := strings.Split(l, ":"); len(f) >= 3 {
			taken[f[2]] = true
		}
	}
	for gid := maxSystemGID; gid >= minSystemGID; gid-- {
		if text := strconv.Itoa(gid); !taken[text] {
			return text, nil
		}
	}
	return "", fmt.Errorf("all numbers for system groups are taken in %s", m.path(groupFile))
}

// putGroup makes a group without members, or removes it with those it has. While the
// group is being removed its line in the group file goes last: whoever finds that
// there after a crash does it all again.
func (m Machine) putGroup(ctx context.Context, name string, st State) error {
	unlock, err := m.lockGroups(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if st.Exists {
		return errors.Join(
			m.rewrite(groupFile, name, name+":x:"+st.Data+":"),
			m.rewrite(gshadowFile, name, name+":!::"))
	}
	return errors.Join(m.rewrite(gshadowFile, name, ""), m.rewrite(groupFile, name, ""))
}

// rewrite puts a line of a name into a file, in place of one that it has, or takes it
// out. Owner and mode of the file stay. A file that is not there is not made.
func (m Machine) rewrite(file, name, line string) error {
	path := m.path(file)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	lines := strings.SplitAfter(string(data), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return l == "" || strings.HasPrefix(l, name+":") })
	if n := len(lines); n > 0 && !strings.HasSuffix(lines[n-1], "\n") {
		lines[n-1] += "\n"
	}
	if line != "" {
		lines = append(lines, line+"\n")
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("cannot tell whose %s is", path)
	}
	return replace(path, strings.NewReader(strings.Join(lines, "")), info.Mode().Perm(), int(owner.Uid), int(owner.Gid))
}

// lockWait is how long other programs that change groups are waited for, as long as
// lckpwdf(3) does.
const lockWait = 15 * time.Second

// lockGroups keeps other programs from changing groups meanwhile.
func (m Machine) lockGroups(ctx context.Context) (unlock func(), err error) {
	path := m.path(pwdLock)
	_, statErr := os.Lstat(path)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	unlock = func() {
		if statErr != nil { // nobody on this host has used it so far
			_ = os.Remove(path)
		}
		_ = f.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			return unlock, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			unlock()
			return nil, err
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("another program holds %s: %w", path, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
