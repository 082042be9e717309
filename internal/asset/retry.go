package asset

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/mvmctl/mvm"
)

// temporary marks a failure after which another attempt may succeed.
type temporary struct {
	err   error
	after time.Duration // how long the server asks to wait; 0 when it does not say
}

func (t *temporary) Error() string { return t.err.Error() }
func (t *temporary) Unwrap() error { return t.err }

// maxWait is how long a server may make us wait before we give up and say so.
const maxWait = 2 * time.Minute

// retry counts attempts that brought nothing.
type retry struct {
	pause  time.Duration
	failed int
	again  bool // what next decided
}

// next waits before another attempt where err is temporary, and returns what
// ends the attempts otherwise.
func (r *retry) next(ctx context.Context, err error, progress mvm.ProgressFunc) error {
	var t *temporary
	if r.again = errors.As(err, &t); !r.again {
		return err
	}
	if r.failed++; r.failed == attempts {
		return mvm.Errorf(mvm.ErrUnavailable, "%w", t.err).
			WithHint("check the network and HTTPS_PROXY, or set MVM_ASSET_MIRROR to a directory or URL that has the file")
	}
	if t.after > maxWait {
		return mvm.Errorf(mvm.ErrUnavailable, "%w and asks to wait for %v", t.err, t.after.Round(time.Second)).
			WithHint("try again then, or set MVM_ASSET_MIRROR")
	}
	wait := max(r.pause+rand.N(r.pause/4+1), t.after) // clients that failed together do not come back together
	r.pause *= 2
	progress.Send("download", fmt.Sprintf("%v; trying again", t.err))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// retryAfter reads the header of that name: seconds or a date (RFC 9110, 10.2.3).
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}

// passing tells whether a status may be another one soon.
func passing(code int) bool {
	return code >= 500 && code != http.StatusNotImplemented || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout
}

// Transport sends requests by base, and those that change nothing and have no
// body again when the network or the server fails for a moment: after pauses that
// double, or as long as Retry-After says.
type Transport struct {
	Base    http.RoundTripper // nil honours HTTP_PROXY, HTTPS_PROXY and NO_PROXY
	Backoff time.Duration     // 0 means half a second
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	base := t.Base
	if base == nil {
		base = client.Transport
	}
	r := retry{pause: t.Backoff}
	if r.pause == 0 {
		r.pause = time.Second / 2
	}
	once := req.Method != http.MethodGet && req.Method != http.MethodHead || req.Body != nil && req.Body != http.NoBody
	for {
		resp, err := base.RoundTrip(req)
		if once || err == nil && !passing(resp.StatusCode) || req.Context().Err() != nil {
			return resp, err
		}
		failure := &temporary{err: err}
		if err == nil {
			failure = &temporary{fmt.Errorf("the server answers %s", resp.Status), retryAfter(resp.Header, time.Now())}
			if r.failed+1 == attempts || failure.after > maxWait {
				return resp, nil // the caller says what it means
			}
			_ = resp.Body.Close()
		}
		if err := r.next(req.Context(), failure, nil); err != nil {
			return nil, err
		}
	}
}
