package format

import (
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"

	"github.com/mvmctl/mvm"
)

// mostDictionary is how much memory a compressed file may ask for, in bytes: what
// 'xz -9' and 'zstd --long=26' do.
const mostDictionary = 64 << 20

// Open reads a file of the given compression, or of none, as a stream of at most
// limit bytes; more is an error that says so. Closing it does not close r.
func Open(ctx context.Context, r io.Reader, compression string, limit int64) (io.ReadCloser, error) {
	in, err := decompressor(bufio.NewReaderSize(&cancelled{ctx, r}, 256<<10), compression)
	if err != nil {
		return nil, explain(err, compression)
	}
	return &stream{in: in, compression: compression, left: limit, limit: limit}, nil
}

// stream is what Open returns.
type stream struct {
	in          io.ReadCloser
	compression string
	left, limit int64
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	if s.left -= int64(n); s.left < 0 {
		return 0, mvm.Errorf(mvm.ErrInvalid, "it unpacks to more than the %d GiB that are allowed", s.limit>>30).
			WithHint("see whether this is the file that you meant; an image larger than that has to be made smaller first")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = explain(err, s.compression)
	}
	return n, err
}

func (s *stream) Close() error { return s.in.Close() }

// cancelled ends reading when the context does.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func decompressor(r io.Reader, compression string) (io.ReadCloser, error) {
	switch compression {
	case "":
		return io.NopCloser(r), nil
	case "gz":
		return gzip.NewReader(r)
	case "bz2":
		return io.NopCloser(bzip2.NewReader(r)), nil
	case "xz":
		// Not ulikunitz/xz: it takes any size of dictionary, and a file that is cut
		// between two blocks for a whole one.
		x, err := xz.NewReader(r, mostDictionary)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	case "zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(mostDictionary))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("compression %q is not known", compression)
}

// explain says of what a decoder reports that the file is at fault.
func explain(err error, compression string) error {
	var known *mvm.Error
	if compression == "" || errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, xz.ErrMemlimit) || errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return mvm.Errorf(mvm.ErrInvalid, "unpacking it takes more than %d MiB of memory", mostDictionary>>20).
			WithHint("compress it again with a smaller window, such as zstd -19 without --long")
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, xz.ErrBuf) {
		return mvm.Errorf(mvm.ErrBroken, "it is cut short: the %s stream does not end", compression).WithHint("get the file again")
	}
	return mvm.Errorf(mvm.ErrBroken, "its %s stream is damaged: %w", compression, err).WithHint("get the file again")
}

// peek unpacks the beginning of a stream.
func peek(r io.Reader, compression string) ([]byte, error) {
	s, err := Open(context.Background(), r, compression, 1<<40)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	b := make([]byte, headBytes)
	n, err := io.ReadFull(s, b)
	if n == 0 && errors.Is(err, io.EOF) {
		return nil, mvm.Errorf(mvm.ErrInvalid, "there is nothing in it").WithHint("check how the file was made")
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return b[:n], nil
}
