package tree

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Unpack puts the files of a stream in place. They are written beside their
// destination first and moved when the stream has ended well: one that breaks off,
// and a file that is in the way, leave the destination as it was. Directories that
// exist are merged into. Only files, directories and links are made.
func Unpack(r io.Reader, t Target) (Stats, error) {
	u, err := prepare(t)
	if err != nil {
		return Stats{}, err
	}
	err = u.receive(tar.NewReader(bufio.NewReaderSize(r, 256<<10)))
	if err == nil {
		err = u.merge(".")
	}
	if err == nil {
		err = u.finish()
	}
	return u.stats, errors.Join(err, u.close())
}

type unpacker struct {
	t      Target
	base   *os.Root // what the names in the stream are relative to
	where  string   // base's path
	rename string   // the only top name becomes this; "" keeps names
	top    string   // the only top name, when there is a rename
	list   *guestList

	staged  string   // name of stage in base
	stage   *os.Root // where files wait
	dirs    []directory
	made    map[string]bool // directories in stage
	fresh   map[string]bool // those that base does not have
	stats   Stats
	scratch []byte
}

// directory is what a directory gets when all is in it.
type directory struct {
	name     string
	mode     fs.FileMode
	uid, gid int
	mtime    time.Time
}

func prepare(t Target) (*unpacker, error) {
	u := &unpacker{t: t, list: t.guestList(), where: t.Path, made: map[string]bool{".": true}, fresh: map[string]bool{}, scratch: make([]byte, 64<<10)}
	mustBeDir := t.Dir || strings.HasSuffix(t.Path, "/")
	fi, err := os.Stat(t.Path)
	switch {
	case err == nil && fi.IsDir():
	case err == nil && mustBeDir:
		return nil, &Error{NotDir, t.Path, "it is not a directory"}
	case err == nil:
		file, err := filepath.EvalSymlinks(t.Path)
		if err != nil {
			return nil, failed(t.Path, err)
		}
		u.where, u.rename = filepath.Dir(file), filepath.Base(file)
	case errors.Is(err, unix.ENOTDIR):
		return nil, &Error{NotDir, t.Path, "it is not a directory"}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, failed(t.Path, err)
	case mustBeDir:
		return nil, &Error{NotDir, t.Path, "there is no such directory"}
	default:
		u.where, u.rename = filepath.Dir(t.Path), filepath.Base(t.Path)
		if parent, err := os.Stat(u.where); err != nil || !parent.IsDir() {
			return nil, &Error{NotDir, u.where, "there is no such directory"}
		}
	}
	if u.base, err = os.OpenRoot(u.where); err != nil {
		return nil, failed(u.where, err)
	}
	u.staged = StageName()
	if err = u.base.Mkdir(u.staged, 0o700); err == nil {
		u.stage, err = u.base.OpenRoot(u.staged)
	}
	if err != nil {
		return nil, errors.Join(failed(u.where, err), u.base.RemoveAll(u.staged), u.base.Close())
	}
	return u, nil
}

func (u *unpacker) close() error {
	err := errors.Join(u.stage.Close(), u.base.RemoveAll(u.staged))
	return errors.Join(err, u.base.Close())
}

// path is how a name in base is called in messages.
func (u *unpacker) path(name string) string { return filepath.Join(u.where, name) }

// receive stages everything in the stream.
func (u *unpacker) receive(tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return &Error{Other, "", "the transfer broke off"}
			}
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			if h.PAXRecords[endRecord] != "" {
				return nil
			}
			continue
		}
		name, err := u.place(h.Name)
		if err == nil {
			err = u.free(name, h.Typeflag == tar.TypeDir)
		}
		if err == nil {
			err = u.put(name, h, tr)
		}
		if err != nil {
			return err
		}
		u.stats.Files++
	}
}

// place turns a name in the stream into one in base.
func (u *unpacker) place(name string) (string, error) {
	clean := path.Clean(name)
	if clean == "." || !filepath.IsLocal(clean) || strings.ContainsRune(clean, 0) {
		return "", errOutside()
	}
	top, rest, _ := strings.Cut(clean, "/")
	if err := u.list.check(top); err != nil {
		return "", err
	}
	if u.rename == "" {
		return clean, nil
	}
	if u.top == "" {
		u.top = top
	}
	if top != u.top {
		return "", &Error{Other, "", "the sender sends more than what was asked for"}
	}
	return path.Join(u.rename, rest), nil
}

// maxDirs bounds what is remembered of a stream: directories are finished last.
const maxDirs = 1 << 21

func errOutside() error {
	return &Error{Other, "", "the sender names a file outside of what was asked for"}
}

// free checks that nothing is in the way of an entry.
func (u *unpacker) free(name string, dir bool) error {
	if u.fresh[path.Dir(name)] {
		if dir {
			u.fresh[name] = true
		}
		return nil
	}
	fi, err := u.base.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if dir {
			u.fresh[name] = true
		}
		return nil
	case err != nil:
		return &Error{NotDir, u.path(path.Dir(name)), "it is not a directory"}
	case dir && fi.IsDir():
		return nil
	case dir:
		return &Error{NotDir, u.path(name), "it is not a directory"}
	case fi.IsDir():
		return &Error{Exists, u.path(name), "it is a directory"}
	case !u.t.Force:
		return &Error{Exists, u.path(name), "it exists"}
	}
	return nil
}

// put stages one entry.
func (u *unpacker) put(name string, h *tar.Header, content io.Reader) error {
	mode := h.FileInfo().Mode().Perm()
	if u.t.Owners {
		mode = h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	}
	if !u.made[path.Dir(name)] { // a link, over which a name would get past what free checked
		return &Error{Other, u.path(name), "the sender sends it without its directory"}
	}
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if len(u.dirs) == maxDirs {
			return &Error{Other, u.path(name), "the sender sends directories without end"}
		}
		err = u.stage.Mkdir(name, 0o700)
		u.made[name] = true
		u.dirs = append(u.dirs, directory{name, mode, h.Uid, h.Gid, h.ModTime})
	case tar.TypeReg:
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") { // a short stream would be a file without end
				return &Error{Other, u.path(name), "the sender sends a map of holes"}
			}
		}
		err = u.file(name, h, mode, content)
	case tar.TypeSymlink:
		if err = u.stage.Symlink(h.Linkname, name); err == nil && u.t.Owners {
			err = u.stage.Lchown(name, h.Uid, h.Gid)
		}
	default:
		return &Error{Other, u.path(name), "the sender sends something that is no file, directory or link"}
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return &Error{Exists, u.path(name), "two sources have this name"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &Error{Other, "", "the transfer broke off"}
	case err != nil:
		return failed(u.path(name), err)
	}
	return nil
}

func (u *unpacker) file(name string, h *tar.Header, mode fs.FileMode, content io.Reader) error {
	f, err := u.stage.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = u.write(f, content, h.Size)
	if err == nil && u.t.Owners {
		err = f.Chown(h.Uid, h.Gid)
	}
	if err == nil {
		err = f.Chmod(mode) // after chown, which clears the set-user-ID bits
	}
	if err == nil {
		now := unix.NsecToTimeval(h.ModTime.UnixNano())
		err = unix.Futimes(int(f.Fd()), []unix.Timeval{now, now})
	}
	return errors.Join(err, f.Close())
}

var zeros [64 << 10]byte

// write copies content, leaving holes where it is zero.
func (u *unpacker) write(f *os.File, content io.Reader, size int64) error {
	hole := false
	for left := size; left > 0; {
		buf := u.scratch[:min(left, int64(len(u.scratch)))]
		n, err := io.ReadFull(content, buf)
		u.stats.Bytes += int64(n)
		if err != nil {
			return io.ErrUnexpectedEOF
		}
		left -= int64(n)
		if hole = bytes.Equal(buf, zeros[:n]); hole {
			_, err = f.Seek(int64(n), io.SeekCurrent)
		} else {
			_, err = f.Write(buf)
		}
		if err != nil {
			return err
		}
	}
	if hole {
		return f.Truncate(size)
	}
	return nil
}

// merge moves what is staged in a directory to its place.
func (u *unpacker) merge(dir string) error {
	d, err := u.stage.Open(dir)
	if err != nil {
		return failed(u.path(dir), err)
	}
	entries, err := d.ReadDir(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return failed(u.path(dir), err)
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.IsDir() && !u.fresh[name] {
			err = u.merge(name)
		} else {
			err = u.base.Rename(path.Join(u.staged, name), name)
		}
		if err != nil {
			return failed(u.path(name), err)
		}
	}
	return nil
}

// finish gives new directories their modes and times, innermost first.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		if !u.fresh[d.name] {
			continue
		}
		var err error
		if u.t.Owners {
			err = u.base.Lchown(d.name, d.uid, d.gid)
		}
		if err == nil {
			err = u.base.Chmod(d.name, d.mode)
		}
		if err == nil {
			err = u.base.Chtimes(d.name, d.mtime, d.mtime)
		}
		if err != nil {
			return failed(u.path(d.name), err)
		}
	}
	return nil
}
