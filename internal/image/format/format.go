// Package format tells what an image file is by its content: disk formats, file
// trees and the compressions around them. It opens compressed ones as a stream
// with a limit, and refuses disk formats that would have a tool open other files.
//
// It must not know what is in an image.
package format

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
)

// The formats of images.
const (
	Raw      = "raw"
	Qcow2    = "qcow2"
	VHD      = "vhd"
	VMDK     = "vmdk"
	Tar      = "tar"
	Squashfs = "squashfs"
)

// Auto is the name that users give for detection by content; TarRootfs is what
// the reference calls Tar.
const (
	Auto      = "auto"
	TarRootfs = "tar-rootfs"
)

// Names are what a user can ask for.
var Names = []string{Auto, Qcow2, Raw, TarRootfs, VHD, VMDK, Squashfs}

// Parse returns the format that a user named, "" for detection.
func Parse(name string) (string, error) {
	switch {
	case name == "" || name == Auto:
		return "", nil
	case name == TarRootfs || name == Tar:
		return Tar, nil
	case slices.Contains(Names, name):
		return name, nil
	}
	return "", mvm.Errorf(mvm.ErrInvalid, "format %s is not known", mvm.Quote(name)).WithHint("use one of %s", strings.Join(Names, ", "))
}

// Kind is what a file was found to be.
type Kind struct {
	Format      string
	Compression string // "gz", "xz", "zst", "bz2"; "" for none
}

// String is for people: "qcow2", "tar in zst".
func (k Kind) String() string {
	if k.Compression == "" {
		return k.Format
	}
	return k.Format + " in " + k.Compression
}

// Detect looks at a file of size bytes, and into it where it is compressed. What
// has no magic number of ours is a raw disk.
func Detect(r io.ReaderAt, size int64) (Kind, error) {
	head, err := window(r, 0, headBytes)
	if err != nil {
		return Kind{}, err
	}
	if size == 0 {
		return Kind{}, mvm.Errorf(mvm.ErrInvalid, "it is empty").WithHint("check how the file was made or downloaded")
	}
	k := Kind{Compression: compression(head)}
	if k.Compression != "" {
		if head, err = peek(io.NewSectionReader(r, 0, size), k.Compression); err != nil {
			return Kind{}, err
		}
	}
	k.Format, err = of(head)
	if err == nil && k == (Kind{Format: Raw}) && fixedVHD(r, size) {
		k.Format = VHD
	}
	return k, err
}

// headBytes hold every magic number that we look for.
const headBytes = 1024

// of names the format that a file begins like.
func of(head []byte) (string, error) {
	has := func(off int, magic string) bool {
		return len(head) >= off+len(magic) && string(head[off:off+len(magic)]) == magic
	}
	switch {
	case has(0, "QFI\xfb"):
		return Qcow2, nil
	case has(0, "KDMV"):
		return VMDK, nil
	case has(0, "conectix"):
		return VHD, nil
	case has(0, "hsqs"):
		return Squashfs, nil
	case has(257, "ustar"):
		return Tar, nil
	case has(0, "# Disk DescriptorFile"):
		return "", mvm.Errorf(mvm.ErrInvalid, "it is the description of a VMDK disk, whose data is in other files").
			WithHint("make one file of it with 'qemu-img convert -O qcow2', and import that")
	case has(0, "COWD"), has(0, "vhdxfile"), has(0, "sqsh"), has(0, "<<< "), has(0, "QED\x00"):
		return "", mvm.Errorf(mvm.ErrUnsupported, "images in this format are not taken").
			WithHint("convert it with 'qemu-img convert -O qcow2', and import that")
	case has(0, "PK\x03\x04"), has(0, "7z\xbc\xaf\x27\x1c"), has(0, "Rar!"):
		return "", mvm.Errorf(mvm.ErrUnsupported, "it is an archive of a kind that is not taken").WithHint("unpack it, and import what is in it")
	case has(0, "\x04\x22\x4d\x18"), has(0, "\x89LZO"), has(0, "\x5d\x00\x00\x80\x00"), has(0, "LZIP"):
		return "", mvm.Errorf(mvm.ErrUnsupported, "it is compressed in a way that is not taken").WithHint("compress it with gzip, xz, zstd or bzip2 instead")
	case compression(head) != "":
		return "", mvm.Errorf(mvm.ErrInvalid, "it is compressed twice").WithHint("unpack it once, and import the result")
	}
	return Raw, nil
}

// window reads up to n bytes at off.
func window(r io.ReaderAt, off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := r.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:got], nil
}

// magics maps the first bytes of a compressed stream to its name.
var magics = []struct{ magic, name string }{
	{"\x1f\x8b", "gz"}, {"\xfd7zXZ\x00", "xz"}, {"\x28\xb5\x2f\xfd", "zst"}, {"BZh", "bz2"},
}

func compression(head []byte) string {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.name
		}
	}
	// A frame that decoders skip may come first (RFC 8878, 3.1.2); pzstd writes one.
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18 {
		return "zst"
	}
	return ""
}
