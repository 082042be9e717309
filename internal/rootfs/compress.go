package rootfs

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"

	"github.com/mvmctl/mvm"
)

// maxWindow bounds the memory that a zstd or xz stream may ask for. It is what
// `zstd --ultra -20` and `xz -9` need.
const (
	maxWindow = 32 << 20
	maxXZDict = 64 << 20
)

// Decompress reads what r holds, whichever of gzip, xz, zstd and bzip2 it is
// compressed with, and as it is where it is not.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	head, _ := br.Peek(6) // a short or failing reader shows below
	var out io.Reader
	var err error
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		out, err = gzip.NewReader(br)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true)); err == nil {
			return d.IOReadCloser(), nil
		}
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		// xi2's holds the limit; ulikunitz's has none, and takes a stream that is cut
		// between two blocks for a whole one.
		out, err = xz.NewReader(br, maxXZDict)
	case bytes.HasPrefix(head, []byte("BZh")):
		out = bzip2.NewReader(br)
	default:
		out = br
	}
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "the archive cannot be decompressed: %w", err).WithHint("get it anew")
	}
	return io.NopCloser(out), nil
}
