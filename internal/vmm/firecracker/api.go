package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
)

// maxAnswer bounds what is read of one answer. The largest is MMDS, whose store
// Firecracker limits to its payload size, 51,200 bytes unless told otherwise.
const maxAnswer = 1 << 20

// Client speaks Firecracker's HTTP API on its unix socket. It may be used from
// several goroutines; Firecracker answers one request after the other.
type Client struct {
	http *http.Client
	path string
}

// NewClient makes a client for the API socket at path, which may be of any
// length. It does not connect yet.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return fsx.DialUnix(ctx, path) }
	// The server keeps ten connections at most (micro_http), so none is kept idle.
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// APIError is a request that Firecracker refused.
type APIError struct {
	Method  string
	Path    string
	Status  int
	Message string // Firecracker's fault_message
}

// Error says what Firecracker said.
func (e *APIError) Error() string {
	return fmt.Sprintf("firecracker refused %s %s: %s", e.Method, e.Path, e.Message)
}

// Unwrap returns ErrUnsupported where Firecracker says that it does not do that
// at all, else ErrConflict: the request was well formed, so that the VM's state
// or its devices forbid it.
func (e *APIError) Unwrap() error {
	if strings.Contains(e.Message, "not supported") || strings.Contains(e.Message, "PCI is not enabled") {
		return mvm.ErrUnsupported
	}
	return mvm.ErrConflict
}

// refused tells whether Firecracker refused a request with these words.
func refused(err error, words ...string) bool {
	var e *APIError
	return errors.As(err, &e) && slices.ContainsFunc(words, func(w string) bool { return strings.Contains(e.Message, w) })
}

// do sends one request. A nil in sends no body, which Firecracker demands of
// GET; a nil out drops the answer.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return mvm.Errorf(mvm.ErrInvalid, "request for %s: %w", path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, body)
	if err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "request for %s: %w", path, err)
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("firecracker did not answer %s %s: %w", method, path, ctx.Err())
		}
		return mvm.Errorf(mvm.ErrUnavailable, "firecracker's API does not answer on %s: %w", c.path, err).
			WithHint("mvm logs --os shows what the VMM said")
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "firecracker's answer to %s %s broke off: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return &APIError{Method: method, Path: path, Status: resp.StatusCode, Message: fault(data, resp.Status)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return mvm.Errorf(mvm.ErrBroken, "firecracker's answer to %s %s is not understood: %w", method, path, err)
	}
	return nil
}

// fault returns the fault_message of an answer, or its status when it has none.
func fault(data []byte, status string) string {
	var f struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(data, &f) == nil && f.Message != "" {
		return strings.Join(strings.Fields(f.Message), " ")
	}
	return status
}

// checkID refuses an id that would not survive in a path. Firecracker takes
// letters, digits and underscores.
func checkID(id string) error {
	bad := strings.ContainsFunc(id, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if id == "" || bad {
		return mvm.Errorf(mvm.ErrInvalid, "%q is no device id for Firecracker", id).
			WithHint("use letters, digits and underscores")
	}
	return nil
}

// Info asks for the instance's state.
func (c *Client) Info(ctx context.Context) (InstanceInfo, error) {
	var i InstanceInfo
	return i, c.do(ctx, http.MethodGet, "/", nil, &i)
}

// Version asks for Firecracker's version.
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct {
		Version string `json:"firecracker_version"`
	}
	return v.Version, c.do(ctx, http.MethodGet, "/version", nil, &v)
}

// FullConfig asks for the configuration as Firecracker sees it.
func (c *Client) FullConfig(ctx context.Context) (json.RawMessage, error) {
	var raw json.RawMessage
	return raw, c.do(ctx, http.MethodGet, "/vm/config", nil, &raw)
}

// Config asks for the devices and the size that the VM has now. Drives and
// interfaces come in no order.
func (c *Client) Config(ctx context.Context) (Config, error) {
	var cfg Config
	return cfg, c.do(ctx, http.MethodGet, "/vm/config", nil, &cfg)
}

type action struct {
	Type string `json:"action_type"`
}

// CtrlAltDel presses Ctrl-Alt-Del in the guest; only on x86.
func (c *Client) CtrlAltDel(ctx context.Context) error {
	return c.do(ctx, http.MethodPut, "/actions", action{"SendCtrlAltDel"}, nil)
}

// FlushMetrics writes the metrics now.
func (c *Client) FlushMetrics(ctx context.Context) error {
	return c.do(ctx, http.MethodPut, "/actions", action{"FlushMetrics"}, nil)
}

type vmState struct {
	State string `json:"state"`
}

// Pause stops the vCPUs.
func (c *Client) Pause(ctx context.Context) error {
	return c.do(ctx, http.MethodPatch, "/vm", vmState{"Paused"}, nil)
}

// Resume continues the vCPUs.
func (c *Client) Resume(ctx context.Context) error {
	return c.do(ctx, http.MethodPatch, "/vm", vmState{"Resumed"}, nil)
}

// CreateSnapshot writes a snapshot of a paused VM.
func (c *Client) CreateSnapshot(ctx context.Context, s SnapshotCreate) error {
	return c.do(ctx, http.MethodPut, "/snapshot/create", s, nil)
}

// LoadSnapshot loads a snapshot into a Firecracker that was started without
// configuration file.
func (c *Client) LoadSnapshot(ctx context.Context, s SnapshotLoad) error {
	return c.do(ctx, http.MethodPut, "/snapshot/load", s, nil)
}

// SetLogger sets up the log before the VM is started.
func (c *Client) SetLogger(ctx context.Context, l Logger) error {
	return c.do(ctx, http.MethodPut, "/logger", l, nil)
}

// SetSerial sets up the serial console before the VM is started. Without it the console
// is on Firecracker's standard input and output.
func (c *Client) SetSerial(ctx context.Context, s Serial) error {
	return c.do(ctx, http.MethodPut, "/serial", s, nil)
}

// SetMetrics sets up the metrics before the VM is started.
func (c *Client) SetMetrics(ctx context.Context, m Metrics) error {
	return c.do(ctx, http.MethodPut, "/metrics", m, nil)
}
