package ext4

import (
	"strings"
)

// node is a file by one of its names.
type node struct {
	*file
	layer uint16 // that named it last
}

// file is what the names of an inode have in common.
type file struct {
	ino    uint32
	kind   uint16 // sIF…
	links  uint16
	target string   // of a symbolic link
	dir    *dirFile // of a directory
}

// dirFile is a directory, whose inode is written in the end.
type dirFile struct {
	attr     Attr
	parent   *node
	children map[string]*node
}

// The kinds of files, as in i_mode.
const (
	sIFIFO  = 0o010000
	sIFCHR  = 0o020000
	sIFDIR  = 0o040000
	sIFBLK  = 0o060000
	sIFREG  = 0o100000
	sIFLNK  = 0o120000
	sIFSOCK = 0o140000
)

// fileType is the kind as directory entries have it.
var fileType = map[uint16]byte{sIFREG: 1, sIFDIR: 2, sIFCHR: 3, sIFBLK: 4, sIFIFO: 5, sIFSOCK: 6, sIFLNK: 7}

// maxFollow is how many symbolic links one path may lead through, as in path_resolution(7).
const maxFollow = 40

func (w *Writer) newDir(ino uint32, parent *node, a Attr) *node {
	return &node{&file{ino: ino, kind: sIFDIR, dir: &dirFile{attr: a, parent: parent, children: map[string]*node{}}}, w.layer}
}

// split cuts a path into names. The tree's own root is no name at all.
func split(path string) ([]string, error) {
	var names []string
	for _, name := range strings.Split(path, "/") {
		switch {
		case name == "" || name == ".":
		case name == "..":
			return nil, ErrPath
		case len(name) > maxName || strings.IndexByte(name, 0) >= 0:
			return nil, ErrName
		default:
			names = append(names, name)
		}
	}
	return names, nil
}

// place finds the directory of a path and the last name of it. Symbolic links on the
// way are followed within the tree, as chroot(2) would: there is nothing outside.
// With missing, directories that are not there are made.
func (w *Writer) place(path string, missing bool) (dir *node, name string, err error) {
	names, err := split(path)
	if err != nil || len(names) == 0 {
		return w.root, "", err
	}
	name, names = names[len(names)-1], names[:len(names)-1]
	dir, err = w.walk(names, missing)
	return dir, name, err
}

func (w *Writer) walk(names []string, missing bool) (*node, error) {
	dir, followed := w.root, 0
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		if name == ".." { // of a link
			dir = dir.dir.parent
			continue
		}
		next := dir.dir.children[name]
		switch {
		case next == nil && !missing:
			return nil, nil
		case next == nil:
			var err error
			if next, err = w.addDir(dir, name, Attr{Mode: 0o755, Modified: w.root.dir.attr.Modified}); err != nil {
				return nil, err
			}
		case next.kind == sIFLNK:
			if followed++; followed > maxFollow {
				return nil, ErrLinks
			}
			if strings.HasPrefix(next.target, "/") {
				dir = w.root
			}
			more := names
			names = nil
			for _, n := range strings.Split(next.target, "/") {
				if n != "" && n != "." {
					names = append(names, n)
				}
			}
			names = append(names, more...)
			if len(names) > maxTarget {
				return nil, ErrLinks
			}
			continue
		case next.dir == nil:
			return nil, ErrNotDir
		}
		if len(name) > maxName {
			return nil, ErrName
		}
		dir = next
	}
	return dir, nil
}

func (w *Writer) addDir(dir *node, name string, a Attr) (*node, error) {
	if err := checkXattrs(a.Xattrs); err != nil {
		return nil, err
	}
	ino, err := w.newInode()
	if err != nil {
		return nil, err
	}
	n := w.newDir(ino, dir, a)
	dir.dir.children[name] = n
	return n, nil
}

// Mkdir makes a directory, and those above it that are missing. One that is there
// keeps its files and gets the attributes; anything else in its place goes. The empty
// path is the root.
func (w *Writer) Mkdir(path string, a Attr) error {
	dir, name, err := w.place(path, true)
	if err == nil {
		err = checkXattrs(a.Xattrs)
	}
	if err != nil {
		return pathError(path, err)
	}
	old := w.root
	if name != "" {
		old = dir.dir.children[name]
	}
	if old != nil && old.dir != nil {
		old.dir.attr, old.layer = a, w.layer
		return nil
	}
	if err := w.drop(dir, name); err != nil {
		return err
	}
	_, err = w.addDir(dir, name, a)
	return pathError(path, err)
}

// put gives an inode a name, in place of what had it.
func (w *Writer) put(path string, f func() (*file, error)) error {
	if w.bad != nil {
		return w.bad
	}
	dir, name, err := w.place(path, true)
	if err == nil && name == "" {
		err = ErrName
	}
	if err != nil {
		return pathError(path, err)
	}
	made, err := f()
	if err != nil {
		return pathError(path, err)
	}
	if err := w.drop(dir, name); err != nil {
		return err
	}
	dir.dir.children[name] = &node{made, w.layer}
	return nil
}

// Link makes path another name of the file old.
func (w *Writer) Link(path, old string) error {
	dir, name, err := w.place(old, false)
	if err != nil {
		return pathError(old, err)
	}
	var n *node
	if dir != nil {
		n = dir.dir.children[name]
	}
	if n == nil || n.dir != nil {
		return pathError(path, ErrNoTarget)
	}
	if at, as, err := w.place(path, false); err == nil && at != nil && at.dir.children[as] != nil && at.dir.children[as].file == n.file {
		at.dir.children[as].layer = w.layer // it is there already
		return nil
	}
	return w.put(path, func() (*file, error) {
		if n.links == maxLinks {
			return nil, ErrTooMany
		}
		n.links++
		return n.file, w.setLinks(n.file)
	})
}

// maxLinks is EXT4_LINK_MAX.
const maxLinks = 65000

// drop removes a name with all below it.
func (w *Writer) drop(dir *node, name string) error {
	n := dir.dir.children[name]
	if n == nil {
		return nil
	}
	delete(dir.dir.children, name)
	return w.forget(n)
}

func (w *Writer) forget(n *node) error {
	if n.dir != nil {
		for _, c := range n.dir.children {
			if err := w.forget(c); err != nil {
				return err
			}
		}
		w.freeIno(n.ino)
		return nil
	}
	if n.links--; n.links > 0 {
		return w.setLinks(n.file)
	}
	return w.freeFile(n.ino)
}

// NextLayer begins another layer: Whiteout and Opaque remove what earlier layers made.
func (w *Writer) NextLayer() { w.layer++ }

// Whiteout removes a file or directory that an earlier layer made, if it is there.
// What this layer has put into such a directory stays.
func (w *Writer) Whiteout(path string) error {
	dir, name, err := w.place(path, false)
	if err == nil && name == "" {
		err = ErrName
	}
	if err != nil || dir == nil {
		return pathError(path, err)
	}
	return w.hide(dir, name)
}

// Opaque removes what earlier layers put into a directory, if that is there.
func (w *Writer) Opaque(path string) error {
	names, err := split(path)
	if err != nil {
		return pathError(path, err)
	}
	dir, err := w.walk(names, false)
	if err != nil || dir == nil {
		return pathError(path, err)
	}
	for name := range dir.dir.children {
		if dir == w.root && name == "lost+found" {
			continue
		}
		if err := w.hide(dir, name); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) hide(dir *node, name string) error {
	n := dir.dir.children[name]
	switch {
	case n == nil:
		return nil
	case n.layer != w.layer && !w.renewed(n):
		return w.drop(dir, name)
	case n.dir == nil:
		return nil
	}
	for c := range n.dir.children {
		if err := w.hide(n, c); err != nil {
			return err
		}
	}
	return nil
}

// renewed says whether this layer put something below n.
func (w *Writer) renewed(n *node) bool {
	if n.dir == nil {
		return false
	}
	for _, c := range n.dir.children {
		if c.layer == w.layer || w.renewed(c) {
			return true
		}
	}
	return false
}
