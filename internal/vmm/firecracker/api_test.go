package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/vmm/vmmtest/fakevmm"
)

// serveAPI serves h on a unix socket, at a path that is longer than sun_path,
// and returns a client for it.
func serveAPI(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "api.sock")
	l, err := fsx.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return NewClient(path)
}

func spec(t *testing.T) *fakevmm.Spec {
	t.Helper()
	path := fakevmm.SpecPath()
	if path == "" {
		t.Skip("Firecracker's OpenAPI description is not there: set MVM_REFERENCE_DIR to the directory that has it")
	}
	s, err := fakevmm.LoadSpec(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var limiter = &RateLimiter{Bandwidth: &TokenBucket{Size: 1 << 20, OneTimeBurst: 1, RefillMillis: 100}, Ops: &TokenBucket{Size: 10, RefillMillis: 1000}}

// calls has every request that a Client can send, by the name of its method,
// with all fields set.
var calls = map[string]func(context.Context, *Client) error{
	"Info":       func(ctx context.Context, c *Client) error { _, err := c.Info(ctx); return err },
	"Version":    func(ctx context.Context, c *Client) error { _, err := c.Version(ctx); return err },
	"FullConfig": func(ctx context.Context, c *Client) error { _, err := c.FullConfig(ctx); return err },
	"CtrlAltDel": func(ctx context.Context, c *Client) error { return c.CtrlAltDel(ctx) },
	"FlushMetrics": func(ctx context.Context, c *Client) error {
		return c.FlushMetrics(ctx)
	},
	"Pause":  func(ctx context.Context, c *Client) error { return c.Pause(ctx) },
	"Resume": func(ctx context.Context, c *Client) error { return c.Resume(ctx) },
	"CreateSnapshot": func(ctx context.Context, c *Client) error {
		return c.CreateSnapshot(ctx, SnapshotCreate{State: "/s", Mem: "/m", Type: "Diff"})
	},
	"LoadSnapshot": func(ctx context.Context, c *Client) error {
		return c.LoadSnapshot(ctx, SnapshotLoad{
			State: "/s", Mem: MemBackend{Type: "File", Path: "/m"}, TrackDirty: true, Resume: true, ClockRealtime: true,
			NICs: []NetworkOverride{{ID: "eth0", Tap: "tap1"}}, Vsock: &VsockOverride{Path: "agent.sock"},
		})
	},
	"SetLogger": func(ctx context.Context, c *Client) error {
		return c.SetLogger(ctx, Logger{Path: "log", Level: "Debug", ShowLevel: true})
	},
	"SetSerial": func(ctx context.Context, c *Client) error {
		return c.SetSerial(ctx, Serial{Path: "console", Limiter: &TokenBucket{Size: 1 << 16, OneTimeBurst: 1, RefillMillis: 100}})
	},
	"SetMetrics": func(ctx context.Context, c *Client) error { return c.SetMetrics(ctx, Metrics{Path: "m"}) },
	"UpdateDrive": func(ctx context.Context, c *Client) error {
		return c.UpdateDrive(ctx, DriveUpdate{ID: "vol_1", Path: "/d", Limiter: limiter})
	},
	"AddDrive": func(ctx context.Context, c *Client) error {
		return c.AddDrive(ctx, Drive{ID: "vol_1", Path: "/d", ReadOnly: true, CacheType: "Unsafe", IOEngine: "Async", Limiter: limiter})
	},
	"RemoveDrive": func(ctx context.Context, c *Client) error { return c.RemoveDrive(ctx, "vol_1") },
	"Config":      func(ctx context.Context, c *Client) error { _, err := c.Config(ctx); return err },
	"UpdateNetwork": func(ctx context.Context, c *Client) error {
		return c.UpdateNetwork(ctx, NetworkUpdate{ID: "eth0", RX: limiter, TX: limiter})
	},
	"Balloon":         func(ctx context.Context, c *Client) error { _, err := c.Balloon(ctx); return err },
	"SetBalloon":      func(ctx context.Context, c *Client) error { return c.SetBalloon(ctx, 0) },
	"BalloonStats":    func(ctx context.Context, c *Client) error { _, err := c.BalloonStats(ctx); return err },
	"SetBalloonStats": func(ctx context.Context, c *Client) error { return c.SetBalloonStats(ctx, 5) },
	"Metadata":        func(ctx context.Context, c *Client) error { _, err := c.Metadata(ctx); return err },
	"SetMetadata": func(ctx context.Context, c *Client) error {
		return c.SetMetadata(ctx, json.RawMessage(`{"latest":{"id":"i"}}`))
	},
	"PatchMetadata": func(ctx context.Context, c *Client) error {
		return c.PatchMetadata(ctx, json.RawMessage(`{"latest":null}`))
	},
}

func TestEveryRequestIsInTheDescription(t *testing.T) {
	s := spec(t)
	client := reflect.TypeFor[*Client]()
	for i := range client.NumMethod() {
		if name := client.Method(i).Name; calls[name] == nil {
			t.Errorf("Client.%s has no request in this test", name)
		}
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			seen := 0
			c := serveAPI(t, func(w http.ResponseWriter, r *http.Request) {
				seen++
				body, _ := io.ReadAll(r.Body)
				if err := s.CheckRequest(r.Method, r.URL.Path, body); err != nil {
					t.Errorf("%s %s %s: %v", r.Method, r.URL.Path, body, err)
				}
				if r.Method == http.MethodGet {
					_, _ = io.WriteString(w, "{}")
					return
				}
				w.WriteHeader(http.StatusNoContent)
			})
			if err := call(t.Context(), c); err != nil || seen != 1 {
				t.Errorf("%d requests, error %v", seen, err)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	c := serveAPI(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"id":"ab","state":"Paused","vmm_version":"1.16.1","app_name":"Firecracker"}`)
	})
	got, err := c.Info(t.Context())
	want := InstanceInfo{App: "Firecracker", ID: "ab", State: "Paused", Version: "1.16.1"}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("error %v, differs:\n%s", err, d)
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		kind   mvm.Kind
		says   string
	}{
		{"fault", 400, `{"fault_message":"The requested operation is not supported after starting the microVM."}`, mvm.ErrUnsupported, "after starting"},
		{"fault of several lines", 400, "{\"fault_message\":\"a\\nb\"}", mvm.ErrConflict, "a b"},
		{"no JSON", 500, `oops`, mvm.ErrConflict, "500"},
		{"no fault in it", 413, `{}`, mvm.ErrConflict, "413"},
		{"answer not understood", 200, `[`, mvm.ErrBroken, "not understood"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := serveAPI(t, func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})
			_, err := c.Info(t.Context())
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want kind %q saying %q", err, tt.kind, tt.says)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error has several lines: %q", err)
			}
		})
	}
}

func TestNobodyAnswers(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "none"))
	if err := c.Pause(t.Context()); !errors.Is(err, mvm.ErrUnavailable) || mvm.HintOf(err) == "" {
		t.Errorf("got %v, hint %q", err, mvm.HintOf(err))
	}
	path := filepath.Join(t.TempDir(), "silent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := l.Accept()
		if err == nil {
			cancel() // the request is under way and never answered
			<-t.Context().Done()
			_ = conn.Close()
		}
	}()
	if err := NewClient(path).Pause(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

func TestIDsThatWouldLeaveThePath(t *testing.T) {
	c := NewClient("/nonexistent")
	for _, id := range []string{"", "../vm", "a/b", "a-b", "a?b", "ä"} {
		if err := c.UpdateDrive(t.Context(), DriveUpdate{ID: id}); !errors.Is(err, mvm.ErrInvalid) {
			t.Errorf("UpdateDrive(%q): %v", id, err)
		}
		if err := c.UpdateNetwork(t.Context(), NetworkUpdate{ID: id}); !errors.Is(err, mvm.ErrInvalid) {
			t.Errorf("UpdateNetwork(%q): %v", id, err)
		}
	}
	for _, bad := range []string{"", "null", "[]", "{", "1"} {
		if err := c.SetMetadata(t.Context(), json.RawMessage(bad)); !errors.Is(err, mvm.ErrInvalid) {
			t.Errorf("SetMetadata(%q): %v", bad, err)
		}
	}
}
