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
	"golang.org/x/net/http/httpproxy"
)

// isHTTP tells addresses from directories.
func isHTTP(place string) bool {
	return strings.HasPrefix(place, "http://") || strings.HasPrefix(place, "https://")
}

// places are where a URL's file may be: at the URL; or in the mirror under the
// URL's path, under its host and path, or plainly under the file's name.
func places(raw, mirror string) ([]string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, mvm.Errorf(mvm.ErrInvalid, "%q is no http or https address", Shown(raw)).WithHint("give the whole address of the file")
	}
	if mirror == "" {
		return []string{raw}, nil
	}
	clean := path.Clean("/" + u.Path) // no way out of the mirror
	query, mirror := "", strings.TrimSuffix(mirror, "/")
	names := []string{clean, "/" + u.Hostname() + clean, "/" + path.Base(clean)}
	if strings.HasSuffix(u.Path, "/") && isHTTP(mirror) {
		names = []string{clean + "/", "/" + u.Hostname() + clean + "/"} // a listing
	}
	if isHTTP(mirror) && u.RawQuery != "" {
		query = "?" + u.RawQuery
	}
	var all []string
	for _, name := range names {
		if isHTTP(mirror) {
			name = (&url.URL{Path: name}).EscapedPath()
		}
		all = append(all, mirror+name+query)
	}
	return all, nil
}

// attempt goes on with the partial file, which has offset bytes, from the first
// place that has the file.
func (l *loading) attempt(ctx context.Context, part *os.File, offset int64) error {
	all, err := places(l.URL, l.Mirror)
	if err != nil {
		return err
	}
	for _, place := range all {
		if isHTTP(place) {
			err = l.overHTTP(ctx, place, part, offset)
		} else {
			err = l.fromFile(ctx, place, part)
		}
		if !errors.Is(err, mvm.ErrNotFound) {
			return err
		}
	}
	return err
}

// fromFile copies from a mirror in the file system, from the beginning.
func (l *loading) fromFile(ctx context.Context, name string, part *os.File) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return mvm.Errorf(mvm.ErrNotFound, "the mirror %s has no %s", l.Mirror, filepath.Base(name)).
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
	return l.copy(ctx, part, f, 0, info.Size())
}

// client and partsClient honour HTTP_PROXY, HTTPS_PROXY and NO_PROXY. Parts go
// over connections of their own, which HTTP/2 would not give them.
var (
	client      = &http.Client{Transport: transport(true), CheckRedirect: checkRedirect}
	partsClient = &http.Client{Transport: transport(false), CheckRedirect: checkRedirect}
)

func transport(http2 bool) *http.Transport {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetHTTP2(http2)
	return &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) {
			return httpproxy.FromEnvironment().ProxyFunc()(r.URL)
		},
		Protocols:             &p,
		ResponseHeaderTimeout: 30 * time.Second,
		TLSHandshakeTimeout:   30 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   workers,
		DisableCompression:    true, // a Range counts bytes of the file itself
	}
}

// checkRedirect lets a server send us elsewhere, but not to where anybody on the
// way could change what we get.
func checkRedirect(req *http.Request, via []*http.Request) error {
	was := via[len(via)-1].URL
	switch {
	case len(via) >= 10:
		return mvm.Errorf(mvm.ErrUnavailable, "%s sends us on more than 10 times", via[0].URL.Host).WithHint("check the address")
	case req.URL.Scheme != "https" && req.URL.Scheme != was.Scheme:
		return mvm.Errorf(mvm.ErrInvalid, "%s sends us from %s to %s, which is refused", was.Host, was.Scheme, req.URL.Scheme).
			WithHint("check the address and the proxy; a network that wants a login does that, too")
	}
	return nil
}

// withoutURL takes the address out of an error: after a redirect its query may
// hold what lets its bearer in.
func withoutURL(err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	if parsed, perr := url.Parse(u.URL); perr == nil {
		return fmt.Errorf("%s: %w", parsed.Host, u.Err)
	}
	return u.Err
}

// get asks for a file from offset on. The caller closes the answer's body.
func (l *loading) get(ctx context.Context, from string, offset int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "it is no address").WithHint("check it, and MVM_ASSET_MIRROR")
	}
	req.Header.Set("User-Agent", "mvm")
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		if l.etag != "" {
			req.Header.Set("If-Range", l.etag)
		}
	}
	resp, err := client.Do(req)
	switch {
	case err == nil:
		return resp, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case mvm.HintOf(err) != "": // ours: a redirect that we refuse
		return nil, withoutURL(err)
	}
	return nil, &temporary{err: withoutURL(err)}
}

func (l *loading) overHTTP(ctx context.Context, from string, part *os.File, offset int64) error {
	resp, err := l.get(ctx, from, offset)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	total := resp.ContentLength
	switch {
	case resp.StatusCode == http.StatusPartialContent && starts(resp, offset):
		if total >= 0 {
			total += offset
		}
	case resp.StatusCode == http.StatusOK:
		offset, l.etag = 0, strong(resp.Header)
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
		return &temporary{err: fmt.Errorf("the server answers %s", resp.Status)}
	default:
		return refused(resp, from)
	}
	if l.inParts(resp, offset, total) {
		return l.parts(ctx, resp, part, offset, total)
	}
	return untilStall(ctx, resp.Body, func(r io.Reader) error { return l.copy(ctx, part, r, offset, total) })
}

// starts tells whether an answer of parts begins where it was asked to.
func starts(resp *http.Response, offset int64) bool {
	return offset > 0 && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset))
}

func refused(resp *http.Response, from string) error {
	err := fmt.Errorf("the server answers %s", resp.Status)
	wait := retryAfter(resp.Header, time.Now())
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return mvm.Errorf(mvm.ErrNotFound, "%s: %w", Shown(from), err).WithHint("check the version; the remote listing shows what there is")
	case passing(resp.StatusCode):
		return &temporary{err, wait}
	case resp.Header.Get("X-RateLimit-Remaining") == "0": // GitHub's answer to too many questions
		return mvm.Errorf(mvm.ErrUnavailable, "%s answers no more questions for now", resp.Request.URL.Host).
			WithHint("try again in an hour, or set MVM_ASSET_MIRROR")
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%s: %w", Shown(from), err).WithHint("check the proxy, or set MVM_ASSET_MIRROR")
}

// untilStall calls read with what reads from body, and closes body when nothing
// has come for a minute or ctx ends, which fails the read.
func untilStall(ctx context.Context, body io.Reader, read func(io.Reader) error) error {
	stalled := make(chan struct{})
	closer, _ := body.(io.Closer)
	end := func() {
		if closer != nil {
			_ = closer.Close()
		}
	}
	timer := time.AfterFunc(stall, func() { close(stalled); end() })
	defer timer.Stop()
	defer context.AfterFunc(ctx, end)()
	err := read(&watched{body, timer})
	select {
	case <-stalled:
		if err != nil {
			return &temporary{err: fmt.Errorf("no data for %v", stall)}
		}
	default:
	}
	return err
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
func (l *loading) copy(ctx context.Context, part *os.File, from io.Reader, done, total int64) error {
	if total > l.MaxBytes {
		return l.tooLarge()
	}
	buf := make([]byte, 128<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, rerr := from.Read(buf)
		if done+int64(n) > l.MaxBytes {
			return l.tooLarge()
		}
		if _, err := part.WriteAt(buf[:n], done); err != nil {
			return diskFull(err)
		}
		done += int64(n)
		if n > 0 || errors.Is(rerr, io.EOF) {
			l.report(done, total, errors.Is(rerr, io.EOF))
		}
		switch {
		case errors.Is(rerr, io.EOF) && total >= 0 && done < total:
			return &temporary{err: io.ErrUnexpectedEOF}
		case errors.Is(rerr, io.EOF):
			return nil
		case rerr != nil && ctx.Err() != nil:
			return ctx.Err()
		case rerr != nil:
			return &temporary{err: rerr}
		}
	}
}

func diskFull(err error) error {
	return mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("free space with 'mvm cache prune'")
}

func (l *loading) report(done, total int64, end bool) {
	if l.Progress == nil {
		return
	}
	if e, ok := l.meter.event(fileName(l.URL), done, total, end); ok {
		l.Progress(e)
	}
}

// fileName is the last element of a URL's path.
func fileName(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "file"
	}
	return path.Base(path.Clean("/" + u.Path))
}

func (l *loading) tooLarge() error {
	return mvm.Errorf(mvm.ErrInvalid, "it is larger than %d bytes", l.MaxBytes).WithHint("check the address")
}
