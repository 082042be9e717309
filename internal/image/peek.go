package image

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/ext4"
	"github.com/masahiro331/go-xfs-filesystem/xfs"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
)

// contents is what an image says about itself.
type contents struct {
	distro  string // "debian 12", "" where it does not say
	version string // "12"
	arch    string // as uname -m says it, "" where it cannot be told

	subvolume string // of a btrfs, where the root is not what is mounted without naming one
}

// maxRelease bounds what is read of os-release.
const maxRelease = 64 << 10

// Where os-release(5) is, and programs whose header tells the architecture. The
// first are no links on common distributions.
var (
	releaseFiles = []string{"usr/lib/os-release", "etc/os-release"}
	programs     = []string{"usr/bin/dash", "usr/bin/bash", "bin/busybox", "usr/bin/busybox", "bin/bash", "bin/dash", "usr/lib/systemd/systemd", "sbin/init", "bin/sh", "usr/bin/sh"}
)

// peek looks into the root file system.
func (im *importer) peek(ctx context.Context, name string) contents {
	if im.root.info.FS == "btrfs" {
		return im.peekBtrfs(ctx)
	}
	return peekFile(name, im.root.info)
}

// peekFile looks into the file system in a file, which is not mounted. The
// content is not trusted: readers that fail in whatever way tell nothing.
func peekFile(name string, info disk.Info) contents {
	f, err := os.Open(name)
	if err != nil {
		return contents{}
	}
	defer func() { _ = f.Close() }()
	return peek(func() (fs.FS, error) { return openFS(f, info) })
}

// openFS reads a file system where there is a library for it: ext4 and xfs.
func openFS(f *os.File, info disk.Info) (fs.FS, error) {
	switch info.FS {
	case "ext2", "ext3", "ext4":
		if err := sober(f); err != nil {
			return nil, err
		}
		return ext4.Read(file.New(f, true), info.SizeBytes, 0, 512)
	case "xfs":
		return xfs.NewFS(*io.NewSectionReader(f, 0, info.SizeBytes), nil)
	}
	return nil, errors.ErrUnsupported
}

// sober refuses an ext4 whose superblock would have a reader allocate memory out
// of all proportion: a group has as many blocks as a bitmap of one block has bits.
func sober(r io.ReaderAt) error {
	b := make([]byte, 1024)
	if _, err := r.ReadAt(b, 1024); err != nil {
		return err
	}
	le := binary.LittleEndian
	block := uint32(1024) << min(le.Uint32(b[0x18:]), 6)
	inodeSize := uint32(le.Uint16(b[0x58:]))
	if le.Uint32(b[0x20:]) != 8*block || inodeSize > block || le.Uint32(b[0x28:]) > 8*block {
		return errors.ErrUnsupported
	}
	return nil
}

// peek reads os-release and the header of a program.
func peek(open func() (fs.FS, error)) (c contents) {
	defer func() {
		if recover() != nil { // a library met what it did not expect
			c = contents{}
		}
	}()
	fsys, err := open()
	if err != nil {
		return contents{}
	}
	for _, name := range releaseFiles {
		if b := readUpTo(fsys, name, maxRelease); b != nil {
			r := parseRelease(string(b))
			c.version, c.distro = printable(r.Version), printable(strings.TrimSpace(r.Type+" "+r.Version))
			break
		}
	}
	for _, name := range programs {
		if b := readUpTo(fsys, name, 64); b != nil {
			if c.arch = elfArch(b); c.arch != "" {
				break
			}
		}
	}
	return c
}

// maxHops is how many links one lookup follows, as in path_resolution(7).
const maxHops = 40

// readUpTo reads the beginning of a regular file by its path in the image, or
// returns nil. Links are followed within the image.
func readUpTo(fsys fs.FS, name string, n int64) []byte {
	target, ok := resolve(fsys, name)
	if !ok {
		return nil
	}
	f, err := fsys.Open(target)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err != nil || st.IsDir() {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f, n))
	if err != nil && len(b) == 0 {
		return nil
	}
	return b
}

// resolve follows links on all parts of a path where the file system can tell
// them; elsewhere the path is what it is.
func resolve(fsys fs.FS, name string) (string, bool) {
	links, ok := fsys.(fs.ReadLinkFS)
	if !ok {
		return name, true
	}
	done, rest := "", strings.Split(name, "/")
	for hops := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		st, err := links.Lstat(next)
		if err != nil {
			return "", false
		}
		if st.Mode().Type() != fs.ModeSymlink {
			done = next
			continue
		}
		if hops++; hops > maxHops {
			return "", false
		}
		to, err := links.ReadLink(next)
		if err != nil || to == "" {
			return "", false
		}
		if !path.IsAbs(to) {
			to = path.Join("/", path.Dir(next), to)
		}
		// From the root of the image, above which ".." does not lead.
		rest = append(strings.Split(strings.TrimPrefix(path.Clean(to), "/"), "/"), rest...)
		done = ""
	}
	return done, done != ""
}

// elfArch returns for which architecture a program is.
func elfArch(head []byte) string {
	if len(head) < 20 || !bytes.HasPrefix(head, []byte(elf.ELFMAG)) {
		return ""
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if head[elf.EI_DATA] == byte(elf.ELFDATA2MSB) {
		order = binary.BigEndian
	}
	switch m := elf.Machine(order.Uint16(head[18:])); m {
	case elf.EM_X86_64:
		return "x86_64"
	case elf.EM_AARCH64:
		return "aarch64"
	case elf.EM_386:
		return "i686"
	case elf.EM_ARM:
		return "arm"
	case elf.EM_RISCV:
		return "riscv64"
	case elf.EM_PPC64:
		return "ppc64le"
	case elf.EM_S390:
		return "s390x"
	default:
		return fmt.Sprintf("machine %d", m)
	}
}

// checkArch refuses an image whose programs do not run on the architecture wanted.
func checkArch(have, want string) error {
	if have == "" || have == want {
		return nil
	}
	return mvm.Errorf(mvm.ErrUnsupported, "its programs are for %s, and guests here are %s", have, want).
		WithHint("get the image for %s", want)
}
