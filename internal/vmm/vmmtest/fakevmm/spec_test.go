package fakevmm

import (
	"slices"
	"strings"
	"testing"
)

func TestSpec(t *testing.T) {
	path := SpecPath()
	if path == "" {
		t.Skip("Firecracker's OpenAPI description is not there: set MVM_REFERENCE_DIR")
	}
	s, err := LoadSpec(path)
	if err != nil {
		t.Fatal(err)
	}
	if ops := s.Operations(); !slices.Contains(ops, "PATCH /vm") {
		t.Errorf("the description's operations lack PATCH /vm: %v", ops)
	}
	tests := []struct {
		name, method, path, body string
		bad                      string // part of the error; "" allows the request
	}{
		{"info", "GET", "/", "", ""},
		{"pause", "PATCH", "/vm", `{"state":"Paused"}`, ""},
		{"wrong word", "PATCH", "/vm", `{"state":"paused"}`, "state"},
		{"no body", "PATCH", "/vm", "", "required"},
		{"other field", "PATCH", "/vm", `{"state":"Paused","x":1}`, "x"},
		{"no such path", "PUT", "/nothing", `{}`, "no such operation"},
		{"no such method", "DELETE", "/vm", "", "no such operation"},
		{"drive", "PUT", "/drives/rootfs", `{"drive_id":"rootfs","is_root_device":true,"path_on_host":"/d","cache_type":"Writeback"}`, ""},
		{"drive's cache type", "PUT", "/drives/rootfs", `{"drive_id":"rootfs","is_root_device":true,"cache_type":"none"}`, "cache_type"},
		{"nested", "PATCH", "/drives/d", `{"drive_id":"d","rate_limiter":{"ops":{"size":-1,"refill_time":1}}}`, "size"},
		{"unplug", "DELETE", "/drives/d", "", ""},
		{"unplug what is there for ever", "DELETE", "/vsock", "", "no such operation"},
		{"load", "PUT", "/snapshot/load", `{"snapshot_path":"/s","mem_backend":{"backend_type":"File","backend_path":"/m"},"clock_realtime":true}`, ""},
		{"load from nowhere", "PUT", "/snapshot/load", `{"snapshot_path":"/s","mem_backend":{"backend_type":"Disk","backend_path":"/m"}}`, "backend_type"},
		{"metadata takes any object", "PUT", "/mmds", `{"a":{"b":[1]}}`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := s.CheckRequest(tt.method, tt.path, []byte(tt.body))
			switch {
			case tt.bad == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.bad != "" && err == nil:
				t.Error("allowed")
			case tt.bad != "" && !strings.Contains(err.Error(), tt.bad):
				t.Errorf("error %q does not name %q", err, tt.bad)
			}
		})
	}
}
