package ext4

import (
	"fmt"
	"slices"
	"strings"
)

// xattr is an extended attribute as it is stored (struct ext4_xattr_entry).
type xattr struct {
	index byte
	name  string
	value []byte
}

const (
	xattrMagic  = 0xea020000
	xattrHeader = 32 // of a block
	xattrEntry  = 16 // and the name
)

// prefixes are the namespaces with their numbers; the longest that fits is taken.
var prefixes = []struct {
	prefix string
	index  byte
}{
	{"system.posix_acl_access", 2}, {"system.posix_acl_default", 3},
	{"user.", 1}, {"trusted.", 4}, {"security.", 6}, {"system.", 7},
}

// encode brings attributes into the order and the form that the disk has.
func encode(all map[string]string) ([]xattr, error) {
	var out []xattr
	for name, value := range all {
		x := xattr{value: []byte(value)}
		for _, p := range prefixes {
			if rest, ok := strings.CutPrefix(name, p.prefix); ok && (rest == "") == !strings.HasSuffix(p.prefix, ".") {
				x.index, x.name = p.index, rest
				break
			}
		}
		if x.index == 0 || len(x.name) > 255 || strings.IndexByte(x.name, 0) >= 0 {
			return nil, fmt.Errorf("%w: %q", ErrXattr, name)
		}
		if x.index == 2 || x.index == 3 {
			acl, ok := encodeACL(x.value)
			if !ok {
				return nil, fmt.Errorf("%w: %q", ErrXattr, name)
			}
			x.value = acl
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b xattr) int { // as the kernel searches
		if a.index != b.index {
			return int(a.index) - int(b.index)
		}
		if len(a.name) != len(b.name) {
			return len(a.name) - len(b.name)
		}
		return strings.Compare(a.name, b.name)
	})
	return out, nil
}

// encodeACL turns the form of system calls (posix_acl_xattr_header) into that of the
// disk (ext4_acl_header), which has ids only where they mean something.
func encodeACL(v []byte) ([]byte, bool) {
	if len(v) < 4 || le.Uint32(v) != 2 || (len(v)-4)%8 != 0 {
		return nil, false
	}
	out := le.AppendUint32(nil, 1)
	for e := v[4:]; len(e) > 0; e = e[8:] {
		out = append(out, e[:4]...)
		switch le.Uint16(e) {
		case 0x02, 0x08: // ACL_USER, ACL_GROUP
			out = append(out, e[4:8]...)
		case 0x01, 0x04, 0x10, 0x20:
		default:
			return nil, false
		}
	}
	return out, true
}

func size(all []xattr) int {
	n := 4 // zeros behind the last entry
	for _, x := range all {
		n += xattrEntry + pad4(len(x.name)) + pad4(len(x.value))
	}
	return n
}

func pad4(n int) int { return (n + 3) &^ 3 }

// checkXattrs refuses what placeXattrs could not store.
func checkXattrs(all map[string]string) error {
	if len(all) == 0 {
		return nil
	}
	enc, err := encode(all)
	if err == nil && xattrHeader+size(enc) > blockSize {
		err = fmt.Errorf("%w: they take more than %d bytes", ErrXattr, blockSize)
	}
	return err
}

// placeXattrs puts attributes into the inode where they fit, else into a block.
func (w *Writer) placeXattrs(n *inode) error {
	if len(n.attr.Xattrs) == 0 {
		return nil
	}
	all, err := encode(n.attr.Xattrs)
	if err != nil {
		return err
	}
	if 4+size(all) <= xattrSpace {
		n.inline = make([]byte, xattrSpace)
		le.PutUint32(n.inline, xattrMagic)
		putXattrs(n.inline[4:], 0, all)
		return nil
	}
	b := make([]byte, blockSize)
	le.PutUint32(b[0:], xattrMagic)
	le.PutUint32(b[4:], 1) // references
	le.PutUint32(b[8:], 1) // blocks
	le.PutUint32(b[12:], putXattrs(b, xattrHeader, all))
	n.acl = w.alloc(1).phys
	n.blocks++
	var at [8]byte
	le.PutUint64(at[:], n.acl)
	le.PutUint32(b[16:], crc32c(crc32c(w.seed, at[:]), b))
	return w.writeBlocks(n.acl, b)
}

// putXattrs writes entries at first and their values down from the end of b, and
// returns the hash of all.
func putXattrs(b []byte, first int, all []xattr) uint32 {
	var hash uint32
	end := len(b) &^ 3
	for _, x := range all {
		e := b[first:]
		if len(x.value) > 0 {
			end -= pad4(len(x.value))
			copy(b[end:], x.value)
			le.PutUint16(e[2:], uint16(end))
		}
		e[0], e[1] = byte(len(x.name)), x.index
		le.PutUint32(e[8:], uint32(len(x.value)))
		h := x.hash()
		le.PutUint32(e[12:], h)
		copy(e[xattrEntry:], x.name)
		first += xattrEntry + pad4(len(x.name))
		hash = hash<<16 ^ hash>>16 ^ h
	}
	return hash
}

// hash is ext4_xattr_hash_entry.
func (x xattr) hash() uint32 {
	var h uint32
	for _, c := range []byte(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(c)
	}
	v := append(slices.Clone(x.value), 0, 0, 0)
	for ; len(v) >= 4; v = v[4:] {
		h = h<<16 ^ h>>16 ^ le.Uint32(v)
	}
	return h
}
