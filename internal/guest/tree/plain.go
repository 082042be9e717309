package tree

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Plain turns a stream of Pack into an archive that any tar(1) unpacks, busybox's
// too, which knows no PAX headers. Its last entry is an empty file with the name
// end: where that was unpacked, the stream was whole. Of the target, what is expected
// and whether owners are kept counts.
func Plain(w io.Writer, r io.Reader, end string, t Target) (Stats, error) {
	buf := bufio.NewWriterSize(w, 256<<10)
	p := &plain{tw: tar.NewWriter(buf), owners: t.Owners, tops: map[string]bool{}, list: t.guestList()}
	tr := tar.NewReader(bufio.NewReaderSize(r, 256<<10))
	for {
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return p.stats, &Error{Other, "", "the transfer broke off"}
		case err != nil:
			return p.stats, err
		case h.Typeflag == tar.TypeXGlobalHeader && h.PAXRecords[endRecord] != "":
			return p.stats, errors.Join(p.finish(end), buf.Flush())
		case h.Typeflag == tar.TypeXGlobalHeader:
			continue
		}
		if err := p.add(h, tr); err != nil {
			return p.stats, err
		}
	}
}

// plain is one Plain while it runs.
type plain struct {
	tw     *tar.Writer
	owners bool
	stats  Stats
	tops   map[string]bool
	list   *guestList
	dirs   []*tar.Header
}

func (p *plain) add(h *tar.Header, content io.Reader) error {
	name := path.Clean(h.Name)
	if !filepath.IsLocal(name) {
		return errOutside()
	}
	top, _, _ := strings.Cut(name, "/")
	if err := p.list.check(top); err != nil {
		return err
	}
	if !strings.Contains(name, "/") {
		if p.tops[name] {
			return &Error{Exists, name, "two sources have this name"}
		}
		p.tops[name] = true
	}
	if !p.owners {
		h.Mode &= 0o777
	}
	if h.Typeflag == tar.TypeDir {
		last := *h
		p.dirs = append(p.dirs, &last)
		h.Mode |= 0o700 // something comes into it
	}
	n, err := copyEntry(p.tw, content, h, h.Name, p.owners, tar.FormatGNU)
	p.stats.Bytes += n
	p.stats.Files++
	return err
}

// finish gives directories their modes and times once all is in them, innermost
// first: not every tar does that by itself.
func (p *plain) finish(end string) error {
	for _, h := range slices.Backward(p.dirs) {
		if _, err := copyEntry(p.tw, strings.NewReader(""), h, h.Name, p.owners, tar.FormatGNU); err != nil {
			return err
		}
	}
	err := p.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: end, Mode: 0o600, Format: tar.FormatGNU})
	return errors.Join(err, p.tw.Close())
}

// copyEntry writes one file, directory or link under another name.
func copyEntry(tw *tar.Writer, content io.Reader, h *tar.Header, name string, owners bool, format tar.Format) (int64, error) {
	out := tar.Header{Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, ModTime: h.ModTime, Format: format}
	if format == tar.FormatGNU {
		out.ModTime = h.ModTime.Truncate(time.Second)
	}
	if owners {
		out.Uid, out.Gid = h.Uid, h.Gid
	}
	if h.Typeflag == tar.TypeDir && !strings.HasSuffix(name, "/") {
		out.Name += "/"
	}
	if err := tw.WriteHeader(&out); err != nil {
		return 0, failed(name, err)
	}
	n, err := io.Copy(tw, content)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = &Error{Other, "", "the transfer broke off"}
	}
	return n, err
}

// Gatherer makes a stream for Unpack of archives that tar(1) made.
type Gatherer struct {
	buf   *bufio.Writer
	tw    *tar.Writer
	stats Stats
}

// NewGatherer writes the stream to w.
func NewGatherer(w io.Writer) *Gatherer {
	buf := bufio.NewWriterSize(w, 256<<10)
	return &Gatherer{buf: buf, tw: tar.NewWriter(buf)}
}

// Add adds an archive under a name. What is in it is that directory, or with one
// that file, whatever it is called there. Of files with several names only the first
// has content in an archive: the others are returned, to be added each by an archive
// of its own.
func (g *Gatherer) Add(archive io.Reader, name string, one bool) (again []string, err error) {
	tr := tar.NewReader(bufio.NewReaderSize(archive, 256<<10))
	for {
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF):
			return again, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return again, &Error{Other, "", "the transfer broke off"}
		case err != nil:
			return again, &Error{Other, "", "the guest's tar sends no archive"}
		}
		rel := path.Clean(h.Name)
		if !filepath.IsLocal(rel) {
			return again, errOutside()
		}
		as := path.Join(name, rel)
		if one {
			as = name
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeDir, tar.TypeSymlink:
			n, err := copyEntry(g.tw, tr, h, as, true, tar.FormatPAX)
			g.stats.Bytes += n
			if err != nil {
				return again, err
			}
			g.stats.Files++
		case tar.TypeLink:
			again = append(again, rel)
		case tar.TypeXGlobalHeader:
		default:
			if len(g.stats.Skipped) < maxSkipped {
				g.stats.Skipped = append(g.stats.Skipped, as)
			}
		}
	}
}

// Close ends the stream, which is whole now.
func (g *Gatherer) Close() (Stats, error) {
	err := writeEnd(g.tw)
	return g.stats, errors.Join(err, g.tw.Close(), g.buf.Flush())
}
