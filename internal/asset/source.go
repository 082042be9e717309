package asset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
)

// temporary marks a failure after which another attempt may succeed.
type temporary struct{ err error }

func (t *temporary) Error() string { return t.err.Error() }
func (t *temporary) Unwrap() error { return t.err }

// places are where a URL's file may be: at the URL, or in the mirror under the
// URL's path or plainly under the file's name.
func places(raw, mirror string) ([]string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, mvm.Errorf(mvm.ErrInvalid, "%q is no http or https address", raw).WithHint("give the whole address of the file")
	}
	if mirror == "" {
		return []string{raw}, nil
	}
	clean := path.Clean("/" + u.Path) // no way out of the mirror
	mirror = strings.TrimSuffix(mirror, "/")
	return []string{mirror + clean, mirror + "/" + path.Base(clean)}, nil
}

// attempt goes on with the partial file, which has offset bytes, from the first
// place that has the file.
func (o *Options) attempt(ctx context.Context, part *os.File, offset int64) error {
	all, err := places(o.URL, o.Mirror)
	if err != nil {
		return err
	}
	for _, place := range all {
		if strings.HasPrefix(place, "http://") || strings.HasPrefix(place, "https://") {
			err = o.overHTTP(ctx, place, part, offset)
		} else {
			err = o.fromFile(ctx, place, part)
		}
		if !errors.Is(err, mvm.ErrNotFound) {
			return err
		}
	}
	return err
}

// fromFile copies from a mirror in the file system, from the beginning.
func (o *Options) fromFile(ctx context.Context, name string, part *os.File) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return mvm.Errorf(mvm.ErrNotFound, "the mirror %s has no %s", o.Mirror, filepath.Base(name)).
			WithHint("put the file into the directory that MVM_ASSET_MIRROR names, or unset it")
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return mvm.Errorf(mvm.ErrInvalid, "%s is no regular file", name).WithHint("put the file itself into the mirror")
	}
	if err := part.Truncate(0); err != nil {
		return err
	}
	return o.copy(ctx, part, f, 0, info.Size())
}

// client honours HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
var client = &http.Client{Transport: &http.Transport{
	Proxy:                 http.ProxyFromEnvironment,
	ResponseHeaderTimeout: 30 * time.Second,
	TLSHandshakeTimeout:   30 * time.Second,
	ForceAttemptHTTP2:     true,
	DisableCompression:    true, // a Range counts bytes of the file itself
}}

func (o *Options) overHTTP(ctx context.Context, from string, part *os.File, offset int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "%w", err)
	}
	req.Header.Set("User-Agent", "mvm")
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &temporary{err}
	}
	defer func() { _ = resp.Body.Close() }()
	total := resp.ContentLength
	switch {
	case resp.StatusCode == http.StatusPartialContent && starts(resp, offset):
		if total >= 0 {
			total += offset
		}
	case resp.StatusCode == http.StatusOK:
		offset = 0
		if err := part.Truncate(0); err != nil {
			return err
		}
	case resp.StatusCode == http.StatusPartialContent, resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		// What is there is the whole file or longer; let the whole decide.
		if offset == 0 {
			return mvm.Errorf(mvm.ErrUnavailable, "the server answers %s", resp.Status).WithHint("try again later")
		}
		if err := part.Truncate(0); err != nil {
			return err
		}
		return &temporary{fmt.Errorf("the server answers %s", resp.Status)}
	default:
		return refused(resp, from)
	}
	timer := time.AfterFunc(stall, func() { cancel(fmt.Errorf("no data for %v", stall)) })
	defer timer.Stop()
	err = o.copy(ctx, part, &watched{resp.Body, timer}, offset, total)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return &temporary{cause}
	}
	return err
}

// starts tells whether an answer of parts begins where it was asked to.
func starts(resp *http.Response, offset int64) bool {
	return offset > 0 && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset))
}

func refused(resp *http.Response, from string) error {
	err := fmt.Errorf("the server answers %s", resp.Status)
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return mvm.Errorf(mvm.ErrNotFound, "%s: %w", from, err).WithHint("check the version; the remote listing shows what there is")
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout:
		return &temporary{err}
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%s: %w", from, err).WithHint("check the proxy, or set MVM_ASSET_MIRROR")
}

// watched puts off the stall with every read that brings something.
type watched struct {
	r     io.Reader
	timer *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.timer.Reset(stall)
	}
	return n, err
}

// copy appends to the partial file from done on. What the disk says is final,
// what the network says may pass.
func (o *Options) copy(ctx context.Context, part *os.File, from io.Reader, done, total int64) error {
	if total > o.MaxBytes {
		return o.tooLarge()
	}
	buf := make([]byte, 128<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, rerr := from.Read(buf)
		if done+int64(n) > o.MaxBytes {
			return o.tooLarge()
		}
		if _, err := part.WriteAt(buf[:n], done); err != nil {
			return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("free space with 'mvm cache prune'")
		}
		done += int64(n)
		if o.Progress != nil && n > 0 {
			o.Progress(mvm.ProgressEvent{Phase: "download", Message: path.Base(o.URL), Current: done, Total: max(total, 0)})
		}
		switch {
		case errors.Is(rerr, io.EOF) && total >= 0 && done < total:
			return &temporary{io.ErrUnexpectedEOF}
		case errors.Is(rerr, io.EOF):
			return nil
		case rerr != nil && ctx.Err() != nil:
			return ctx.Err()
		case rerr != nil:
			return &temporary{rerr}
		}
	}
}

func (o *Options) tooLarge() error {
	return mvm.Errorf(mvm.ErrInvalid, "it is larger than %d bytes", o.MaxBytes).WithHint("check the address")
}
