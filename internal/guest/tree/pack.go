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

	"golang.org/x/sys/unix"
)

// maxPseudo bounds what is read of a file that says it is empty, as those of
// /proc do.
const maxPseudo = 4 << 20

// Pack writes sources, each under its last name, as a stream to w. Links that are
// sources themselves are followed, those within trees are copied. Sockets, pipes
// and devices are skipped.
func Pack(w io.Writer, sources []string) (Stats, error) {
	buf := bufio.NewWriterSize(w, 256<<10)
	p := &packer{tw: tar.NewWriter(buf)}
	for _, src := range sources {
		if err := p.source(src); err != nil {
			return p.stats, err
		}
	}
	err := writeEnd(p.tw)
	if err == nil {
		err = errors.Join(p.tw.Close(), buf.Flush())
	}
	return p.stats, err
}

type packer struct {
	tw    *tar.Writer
	stats Stats
}

func (p *packer) source(src string) error {
	abs, err := filepath.Abs(src)
	if err != nil {
		return failed(src, err)
	}
	name := filepath.Base(abs)
	if name == "/" {
		return &Error{Other, src, "the root directory cannot be copied as a whole; name directories in it"}
	}
	fi, err := os.Stat(abs)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return &Error{NotFound, src, "there is no such file or directory"}
	}
	if err != nil {
		return failed(src, err)
	}
	if !fi.IsDir() {
		if !fi.Mode().IsRegular() {
			return &Error{Other, src, "it is neither a file nor a directory"}
		}
		return p.file(abs, name, fi, 0)
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return failed(src, err)
	}
	return filepath.WalkDir(abs, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return failed(file, err)
		}
		rel, err := filepath.Rel(abs, file)
		if err != nil {
			return failed(file, err)
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return failed(file, err)
		}
		return p.entry(file, path.Join(name, filepath.ToSlash(rel)), fi)
	})
}

func (p *packer) entry(file, name string, fi fs.FileInfo) error {
	switch fi.Mode().Type() {
	case 0:
		return p.file(file, name, fi, unix.O_NOFOLLOW)
	case fs.ModeDir:
		return p.header(file, name, fi, "", 0)
	case fs.ModeSymlink:
		link, err := os.Readlink(file)
		if err != nil {
			return failed(file, err)
		}
		return p.header(file, name, fi, link, 0)
	}
	if len(p.stats.Skipped) < maxSkipped {
		p.stats.Skipped = append(p.stats.Skipped, file)
	}
	return nil
}

func (p *packer) header(file, name string, fi fs.FileInfo, link string, size int64) error {
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return failed(file, err)
	}
	h.Name, h.Size, h.Format = name, size, tar.FormatPAX // PAX keeps fractions of seconds
	h.Uname, h.Gname = "", ""
	p.stats.Files++
	return p.tw.WriteHeader(h)
}

func (p *packer) file(file, name string, fi fs.FileInfo, flags int) error {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|flags, 0)
	if err != nil {
		return failed(file, err)
	}
	defer func() { _ = f.Close() }()
	var in io.Reader = f
	size := fi.Size()
	if size == 0 {
		data, err := io.ReadAll(io.LimitReader(f, maxPseudo))
		if err != nil {
			return failed(file, err)
		}
		in, size = bytes.NewReader(data), int64(len(data))
	}
	if err := p.header(file, name, fi, "", size); err != nil {
		return err
	}
	n, err := io.CopyN(p.tw, in, size)
	p.stats.Bytes += n
	if errors.Is(err, io.EOF) {
		return &Error{Other, file, "it became shorter while it was read"}
	}
	return err
}
