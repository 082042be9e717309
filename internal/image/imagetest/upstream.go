package imagetest

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/xml"
	"fmt"
	"html"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
)

// Upstream is a web server with the directories of those who publish images, as
// theirs look: pages with links among others, buckets, lists of checksums. It
// stands in for all of their hosts, as MVM_ASSET_MIRROR does.
type Upstream struct {
	mu    sync.Mutex
	files map[string][]byte
	Gets  map[string]int // how often each path was asked for
}

// NewUpstream returns one without files.
func NewUpstream() *Upstream {
	return &Upstream{files: map[string][]byte{}, Gets: map[string]int{}}
}

// Put publishes a file.
func (u *Upstream) Put(name string, data []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.files[name] = data
}

// Count returns how often a path was asked for.
func (u *Upstream) Count(name string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.Gets[name]
}

// ServeHTTP implements http.Handler.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.Gets[r.URL.Path]++
	if r.URL.Query().Get("list-type") == "2" {
		u.bucket(w, strings.Trim(r.URL.Path, "/"), r.URL.Query().Get("prefix"))
		return
	}
	if data, ok := u.files[r.URL.Path]; ok {
		_, _ = w.Write(data)
		return
	}
	u.page(w, strings.TrimSuffix(r.URL.Path, "/")+"/")
}

// page lists a directory as Apache and nginx do, with links that are no entries.
func (u *Upstream) page(w http.ResponseWriter, dir string) {
	var names []string
	for f := range u.files {
		if rest, ok := strings.CutPrefix(f, dir); ok {
			name, _, sub := strings.Cut(rest, "/")
			if sub {
				name += "/"
			}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(names) == 0 {
		http.Error(w, "404 Not Found", http.StatusNotFound)
		return
	}
	slices.Sort(names)
	_, _ = fmt.Fprintf(w, "<html><head><title>Index of %s</title></head><body><h1>Index of %s</h1><pre>\n<a href=\"?C=M;O=A\">Last modified</a>\n<a href=\"../\">../</a>\n", dir, dir)
	for _, n := range names {
		_, _ = fmt.Fprintf(w, "<a href=\"%s\">%s</a>   2026-01-02 03:04   -\n", html.EscapeString(n), html.EscapeString(n))
	}
	_, _ = fmt.Fprint(w, "</pre></body></html>\n")
}

// bucket lists objects as S3's ListObjectsV2 does, in one page.
func (u *Upstream) bucket(w http.ResponseWriter, bucket, prefix string) {
	type object struct {
		Key, LastModified string
		Size              int
	}
	var out struct {
		XMLName     xml.Name `xml:"ListBucketResult"`
		Name        string
		IsTruncated bool
		Contents    []object
	}
	out.Name = bucket
	for f, data := range u.files {
		if key, ok := strings.CutPrefix(f, "/"+bucket+"/"); ok && strings.HasPrefix(key, prefix) {
			out.Contents = append(out.Contents, object{key, "2026-01-02T03:04:05.000Z", len(data)})
		}
	}
	slices.SortFunc(out.Contents, func(a, b object) int { return strings.Compare(a.Key, b.Key) })
	_ = xml.NewEncoder(w).Encode(out) // to whoever went away
}

// SHA256 and SHA512 are lists of checksums as sha256sum(1) prints them; BSD is one
// in the other common form.
func SHA256(name string, data []byte) []byte {
	return fmt.Appendf(nil, "%x  %s\n", sha256.Sum256(data), name)
}

// SHA512 is SHA256 with the longer one.
func SHA512(name string, data []byte) []byte {
	return fmt.Appendf(nil, "%x  %s\n", sha512.Sum512(data), name)
}

// BSD is SHA256 in the form "SHA256 (NAME) = HASH".
func BSD(name string, data []byte) []byte {
	return fmt.Appendf(nil, "# %s: %d bytes\nSHA256 (%s) = %x\n", name, len(data), name, sha256.Sum256(data))
}

// publication is where a type's files are, for x86-64.
type publication struct {
	file  string // of the version that is newest
	sums  string // "" for none
	list  func(string, []byte) []byte
	older []string // other files and directories that the listing has
}

// publications are the layouts of the upstreams in the shipped catalog.
var publications = map[string]publication{
	"ubuntu":         {"/releases/24.04/release/ubuntu-24.04-server-cloudimg-amd64.img", "SHA256SUMS", SHA256, []string{"/releases/22.04/release/ubuntu-22.04-server-cloudimg-amd64.img", "/releases/noble/x", "/releases/24.04/release/ubuntu-24.04-server-cloudimg-arm64.img", "/releases/24.04/release/ubuntu-24.04-server-cloudimg-amd64.img.manifest"}},
	"ubuntu-minimal": {"/minimal/releases/noble/release/ubuntu-24.04-minimal-cloudimg-amd64.img", "SHA256SUMS", SHA256, []string{"/minimal/releases/jammy/release/x", "/minimal/releases/zesty/release/x"}},
	"debian":         {"/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2", "SHA512SUMS", SHA512, []string{"/images/cloud/bullseye/latest/x", "/images/cloud/sid/daily/x", "/images/cloud/bookworm/latest/debian-12-generic-amd64.qcow2", "/images/cloud/bookworm/latest/debian-12-genericcloud-arm64.qcow2"}},
	"alpine":         {"/alpine/v3.20/releases/cloud/nocloud_alpine-3.20.10-x86_64-bios-cloudinit-r0.qcow2", "=.sha512", SHA512, []string{"/alpine/v3.9/releases/x86_64/x", "/alpine/edge/x", "/alpine/v3.20/releases/cloud/nocloud_alpine-3.20.9-x86_64-bios-cloudinit-r0.qcow2", "/alpine/v3.20/releases/cloud/aws_alpine-3.20.10-x86_64-bios-cloudinit-r0.vhd"}},
	"archlinux":      {"/images/v20260115.300001/Arch-Linux-x86_64-cloudimg.qcow2", "=.SHA256", SHA256, []string{"/images/v20251215.1/Arch-Linux-x86_64-cloudimg.qcow2", "/images/latest/x"}},
	"fedora":         {"/pub/fedora/linux/releases/43/Cloud/x86_64/images/Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2", "Fedora-Cloud-43-1.6-x86_64-CHECKSUM", BSD, []string{"/pub/fedora/linux/releases/9/x", "/pub/fedora/linux/releases/test/x", "/pub/fedora/linux/releases/43/Cloud/x86_64/images/Fedora-Cloud-Base-UEFI-UKI-43-1.6.x86_64.qcow2"}},
	"rocky":          {"/pub/rocky/10.1/images/x86_64/Rocky-10-GenericCloud-Base.latest.x86_64.qcow2", "=.CHECKSUM", BSD, []string{"/pub/rocky/9.7/images/x86_64/x", "/pub/rocky/RPM-GPG-KEY-rockyofficial", "/pub/rocky/10.1/images/x86_64/Rocky-10-GenericCloud-LVM.latest.x86_64.qcow2"}},
	"opensuse":       {"/distribution/leap/15.6/appliances/openSUSE-Leap-15.6-Minimal-VM.x86_64-Cloud.qcow2", "=.sha256", SHA256, []string{"/distribution/leap/15.5/appliances/x", "/distribution/leap/15.6/appliances/openSUSE-Leap-15.6-Minimal-VM.x86_64-kvm-and-xen.qcow2"}},
	"amazonlinux":    {"/al2023/os-images/latest/kvm/al2023-kvm-2023.9.20260105.0-kernel-6.1-x86_64.xfs.gpt.qcow2", "SHA256SUMS", SHA256, nil},
	"firecracker":    {"/spec.ccfc.min/firecracker-ci/v1.15/x86_64/ubuntu-24.04.squashfs", "", nil, []string{"/spec.ccfc.min/firecracker-ci/v1.9/x86_64/ubuntu-22.04.squashfs", "/spec.ccfc.min/firecracker-ci/v1.15/x86_64/vmlinux-6.1.155", "/spec.ccfc.min/firecracker-ci/v1.15/aarch64/ubuntu-24.04.squashfs"}},
}

// Newest is the version of a type that Publish makes the newest.
var Newest = map[string]string{
	"ubuntu": "24.04", "ubuntu-minimal": "24.04", "debian": "12", "alpine": "3.20", "archlinux": "20260115.300001", "fedora": "43", "rocky": "10.1",
	"opensuse": "15.6", "amazonlinux": "2023", "firecracker": "1.15",
}

// Publish puts an image up as its upstream does, among others that are not it, and
// returns its path.
func (u *Upstream) Publish(typ string, image []byte) string {
	p := publications[typ]
	for _, other := range p.older {
		u.Put(other, []byte("something else"))
	}
	u.Put(p.file, image)
	if p.sums != "" {
		name, dir := path.Base(p.file), path.Dir(p.file)
		sums := p.sums
		if ending, beside := strings.CutPrefix(sums, "="); beside {
			sums = name + ending
		}
		u.Put(dir+"/"+sums, append(p.list("another-file.qcow2", []byte("x")), p.list(name, image)...))
	}
	return p.file
}

// Types are the types that can be published.
func Types() []string {
	var out []string
	for t := range publications {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}
