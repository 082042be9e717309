package kernel

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/mvmctl/mvm"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxKernel bounds a kernel file and what it unpacks to, in bytes: the largest
// distribution kernels with debug symbols stay below it, a bomb does not.
const maxKernel = 1 << 30

// errTooLarge says that a limit was reached.
var errTooLarge = errors.New("it unpacks to far more than a kernel or module")

// compressions maps the first bytes of a compressed stream to its name.
var compressions = []struct{ magic, name string }{
	{"\x1f\x8b", "gzip"},
	{"\xfd7zXZ\x00", "xz"},
	{"\x28\xb5\x2f\xfd", "zstd"},
	{"BZh", "bzip2"},
	{"\x02\x21\x4c\x18", "lz4"},
	{"\x89LZO\x00", "lzo"},
	{"\x5d\x00\x00", "lzma"},
}

// compression names how data is compressed, or returns "".
func compression(data []byte) string {
	for _, c := range compressions {
		if bytes.HasPrefix(data, []byte(c.magic)) {
			return c.name
		}
	}
	return ""
}

// decompress writes what is compressed in data to w, at most limit bytes.
func decompress(w io.Writer, data []byte, limit int64) error {
	name := compression(data)
	if name == "lz4" {
		return unlz4(w, data, limit)
	}
	r, closer, err := decompressor(name, data)
	if err != nil {
		return err
	}
	defer closer()
	n, err := io.Copy(w, io.LimitReader(r, limit+1))
	if n > limit {
		return errTooLarge
	}
	if err != nil {
		return fmt.Errorf("its %s data is damaged: %w", name, err)
	}
	return nil
}

func decompressor(name string, data []byte) (io.Reader, func(), error) {
	in := bytes.NewReader(data)
	var r io.Reader
	var err error
	switch name {
	case "gzip":
		var gz *gzip.Reader
		if gz, err = gzip.NewReader(in); err == nil {
			gz.Multistream(false) // what follows in a kernel is no second stream
			r = gz
		}
	case "xz":
		// A dictionary is allocated as the stream wants it: bound it.
		r, err = xz.ReaderConfig{SingleStream: true, DictCap: 128 << 20}.NewReader(in)
	case "lzma":
		if len(data) >= 5 && binary.LittleEndian.Uint32(data[1:]) > 128<<20 {
			return nil, nil, errors.New("its lzma data wants a dictionary of more than 128 MiB")
		}
		r, err = lzma.NewReader(in)
	case "bzip2":
		r = bzip2.NewReader(in)
	case "zstd":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(256<<20)); err == nil {
			return z, z.Close, nil
		}
	default:
		if name == "" {
			name = "unknown"
		}
		return nil, nil, mvm.Errorf(mvm.ErrUnsupported, "its payload has the compression %s, which mvm cannot unpack", name).
			WithHint("import the uncompressed vmlinux of this kernel instead")
	}
	if err != nil {
		return nil, nil, mvm.Errorf(mvm.ErrUnsupported, "cannot unpack its %s payload: %w", name, err).
			WithHint("import the uncompressed vmlinux of this kernel instead")
	}
	return r, func() {}, nil
}

// lz4Block is what a block of a legacy frame unpacks to, at most
// (lz4_Frame_format.md, "Legacy frame").
const lz4Block = 8 << 20

// unlz4 unpacks a legacy LZ4 frame, which is what the kernel's build makes.
func unlz4(w io.Writer, data []byte, limit int64) error {
	data = data[4:]
	out := make([]byte, lz4Block)
	var total int64
	for len(data) >= 4 {
		size := binary.LittleEndian.Uint32(data)
		data = data[4:]
		if size == binary.LittleEndian.Uint32([]byte("\x02\x21\x4c\x18")) {
			continue // another frame begins
		}
		if uint64(size) > uint64(len(data)) {
			return errors.New("its lz4 data is truncated")
		}
		n, err := lz4.UncompressBlock(data[:size], out)
		if err != nil {
			return fmt.Errorf("its lz4 data is damaged: %w", err)
		}
		data = data[size:]
		if total += int64(n); total > limit {
			return errTooLarge
		}
		if _, err := w.Write(out[:n]); err != nil {
			return err
		}
	}
	return nil
}
