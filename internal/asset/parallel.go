package asset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

// inParts tells whether the rest of the file is worth several connections, and
// the server can do it. Without a digest it has to promise by a strong validator
// that all parts are of one version.
func (l *loading) inParts(resp *http.Response, offset, total int64) bool {
	return l.Parallel > 1 && !l.serial && total-offset >= 4*l.chunk && total <= l.MaxBytes &&
		(resp.StatusCode == http.StatusPartialContent || resp.Header.Get("Accept-Ranges") == "bytes") &&
		(l.Digest != "" || l.etag != "")
}

type piece struct {
	data []byte
	err  error
}

// parts loads from offset to the end with several requests at once. The first
// part comes from the answer that is there. Parts are written in order, so that
// the partial file never has a hole: whatever ends us, its length says what is there.
func (l *loading) parts(ctx context.Context, first *http.Response, part *os.File, offset, total int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from := first.Request.URL.String() // after redirects, so that each part does not repeat them
	queue := make(chan chan piece, l.Parallel-1)
	begin := offset
	go func() {
		defer close(queue)
		for at := begin; at < total; at += l.chunk {
			size := min(l.chunk, total-at)
			slot := make(chan piece, 1)
			select {
			case queue <- slot:
			case <-ctx.Done():
				return
			}
			go func() {
				if at == begin {
					slot <- readPiece(ctx, first.Body, size)
					_ = first.Body.Close()
					return
				}
				slot <- l.piece(ctx, from, at, size, total)
			}()
		}
	}()
	for slot := range queue {
		p := <-slot
		if p.err != nil {
			l.serial = true
			return p.err
		}
		if _, err := part.WriteAt(p.data, offset); err != nil {
			return diskFull(err)
		}
		offset += int64(len(p.data))
		l.report(offset, total, offset == total)
	}
	return ctx.Err() // without it, the queue ends with the file
}

// piece loads one part over a connection of its own.
func (l *loading) piece(ctx context.Context, from string, at, size, total int64) piece {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return piece{err: err}
	}
	req.Header.Set("User-Agent", "mvm")
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", at, at+size-1))
	if l.etag != "" {
		req.Header.Set("If-Range", l.etag)
	}
	resp, err := partsClient.Do(req)
	if err != nil {
		return piece{err: &temporary{err: withoutURL(err)}}
	}
	defer func() { _ = resp.Body.Close() }()
	if want := fmt.Sprintf("bytes %d-%d/%d", at, at+size-1, total); resp.StatusCode != http.StatusPartialContent || resp.Header.Get("Content-Range") != want {
		// Refused, limited, or another file by now: what a single request gets decides.
		return piece{err: &temporary{err: fmt.Errorf("the server answers %s to a request for a part", resp.Status)}}
	}
	return readPiece(ctx, resp.Body, size)
}

func readPiece(ctx context.Context, body io.Reader, size int64) piece {
	data := make([]byte, size)
	err := untilStall(ctx, body, func(r io.Reader) error {
		_, err := io.ReadFull(r, data)
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return piece{err: ctx.Err()}
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return piece{err: &temporary{err: err}}
	}
	return piece{data: data}
}

// strong returns an answer's entity tag if it is a strong validator (RFC 9110, 8.8.3).
func strong(h http.Header) string {
	if tag := h.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	return ""
}
