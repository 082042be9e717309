package kernel

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/asset"
)

// bucket serves a bucket in the shape of Firecracker's: by path, listed in pages of
// two, with kernels, their configurations and variants.
func bucket(t *testing.T, objects map[string][]byte) (url string, count func(string) int) {
	t.Helper()
	hits := map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := strings.TrimPrefix(r.URL.Path, "/spec.ccfc.min/")
		hits[key]++
		if r.URL.Query().Get("list-type") == "2" {
			list(w, objects, r.URL.Query().Get("prefix"), r.URL.Query().Get("continuation-token"))
			return
		}
		data, ok := objects[key]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, func(key string) int { return hits[key] }
}

func list(w http.ResponseWriter, objects map[string][]byte, prefix, after string) {
	var keys []string
	for k := range objects {
		if strings.HasPrefix(k, prefix) && k > after {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	more := len(keys) > 2
	keys = keys[:min(len(keys), 2)]
	_, _ = fmt.Fprintf(w, `<ListBucketResult><IsTruncated>%v</IsTruncated>`, more)
	if more {
		_, _ = fmt.Fprintf(w, `<NextContinuationToken>%s</NextContinuationToken>`, keys[1])
	}
	for _, k := range keys {
		_, _ = fmt.Fprintf(w, `<Contents><Key>%s</Key><Size>%d</Size><LastModified>2026-01-02T03:04:05Z</LastModified></Contents>`, k, len(objects[k]))
	}
	_, _ = fmt.Fprint(w, `</ListBucketResult>`)
}

func TestFetchCI(t *testing.T) {
	const dir = "firecracker-ci/v1.16/x86_64/"
	image := func(version string) []byte { return vmlinux("Linux version " + version + " (x@y) #1\n") }
	newest := image("6.1.155+")
	sum := fmt.Sprintf("%x", sha256.Sum256(newest))
	objects := map[string][]byte{
		dir + "vmlinux-5.10.239": image("5.10.239"), dir + "vmlinux-5.10.239.config": []byte("x"), dir + "vmlinux-6.1.141": image("6.1.141"),
		dir + "vmlinux-6.1.155": newest, dir + "vmlinux-6.1.155.config": []byte("x"), dir + "vmlinux-6.1.155-no-acpi": image("6.1.155"),
		dir + "vmlinux-6.1.90": image("6.1.90"), dir + "vmlinux-6.1.90.sha256": fmt.Appendf(nil, "%x  vmlinux-6.1.90\n", sha256.Sum256(image("6.1.90"))),
		dir + "vmlinux-6.1.91": image("6.2.0"), dir + "vmlinux-6.1.92": []byte("<html>log in</html>"), dir + "debug/vmlinux-6.1.999": image("6.1.999"),
	}
	url, count := bucket(t, objects)
	options := func() CIOptions {
		return CIOptions{
			Series: "1.16.1", Arch: X86_64, TTL: time.Hour, DestDir: filepath.Join(t.TempDir(), "kernels"),
			Fetcher: &asset.Fetcher{Dir: t.TempDir(), Mirror: url, Backoff: time.Microsecond},
		}
	}
	all, err := ListCI(t.Context(), options())
	var names []string
	for _, k := range all {
		names = append(names, k.Version)
	}
	if want := "6.1.155 6.1.155-no-acpi 6.1.141 6.1.92 6.1.91 6.1.90 5.10.239"; err != nil || strings.Join(names, " ") != want {
		t.Errorf("listed are %q, %v; want %q", names, err, want)
	}
	tests := []struct {
		name, version string
		change        func(*CIOptions)
		got           string   // version; "" is refused
		how           string   // the verification
		kind          mvm.Kind // of the refusal
	}{
		{name: "no checksum", version: "6.1", kind: mvm.ErrBroken},
		{name: "unchecked", version: "6.1", change: func(o *CIOptions) { o.SkipChecksum = true }, got: "6.1.155", how: mvm.VerifiedNot},
		{name: "the user knows it", change: func(o *CIOptions) { o.Digest = asset.Digest(sum) }, got: "6.1.155", how: mvm.VerifiedChecksum},
		{name: "the user knows another", change: func(o *CIOptions) { o.Digest = asset.Digest(strings.Repeat("0", 64)) }, kind: mvm.ErrBroken},
		{name: "published", version: "6.1.90", got: "6.1.90", how: mvm.VerifiedChecksum},
		{name: "a variant", version: "6.1-no-acpi", change: func(o *CIOptions) { o.SkipChecksum = true }, got: "6.1.155-no-acpi", how: mvm.VerifiedNot},
		{name: "not there", version: "6.2", kind: mvm.ErrNotFound},
		{name: "no such series", change: func(o *CIOptions) { o.Series = "9.9" }, kind: mvm.ErrNotFound},
		{name: "no version", version: "../6.1", kind: mvm.ErrInvalid},
		{name: "no architecture", change: func(o *CIOptions) { o.Arch = "riscv" }, kind: mvm.ErrUnsupported},
		{name: "another kernel", version: "6.1.91", change: func(o *CIOptions) { o.SkipChecksum = true }, kind: mvm.ErrBroken},
		{name: "no kernel", version: "6.1.92", change: func(o *CIOptions) { o.SkipChecksum = true }, kind: mvm.ErrBroken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := options()
			o.Version = tt.version
			if tt.change != nil {
				tt.change(&o)
			}
			b, err := FetchCI(t.Context(), o)
			if tt.got == "" {
				if !errors.Is(err, tt.kind) || mvm.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
					t.Errorf("got %+v, %v (hint %q); want kind %q", b, err, mvm.HintOf(err), tt.kind)
				}
				if left, _ := filepath.Glob(filepath.Join(o.DestDir, "[^.]*")); len(left) > 0 {
					t.Errorf("left are %q", left)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if info, err := Inspect(b.Path); err != nil || b.Version != tt.got || b.Verification != tt.how || info.Format != ELF {
				t.Errorf("got %+v, %v", b, err)
			}
			before := count("firecracker-ci/v1.16/x86_64/vmlinux-" + tt.got)
			again, err := FetchCI(t.Context(), o)
			if err != nil || !again.Reused || again.Path != b.Path || again.Verification != tt.how || count("firecracker-ci/v1.16/x86_64/vmlinux-"+tt.got) != before {
				t.Errorf("again: %+v, %v", again, err)
			}
		})
	}
	// One that was taken unchecked is no answer to somebody who wants it checked.
	o := options()
	o.SkipChecksum, o.Version = true, "6.1.90"
	if _, err := FetchCI(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	o.SkipChecksum = false
	if b, err := FetchCI(t.Context(), o); err != nil || b.Reused || b.Verification != mvm.VerifiedChecksum {
		t.Errorf("got %+v, %v", b, err)
	}
	if stale, _ := os.ReadDir(o.DestDir); len(stale) != 2 { // the kernel and the lock
		t.Errorf("left are %v", stale)
	}
}
