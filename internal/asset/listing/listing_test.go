package listing

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mvmctl/mvm"
)

const base = "https://h.invalid/pub/images/"

// pages are directory pages as servers write them.
var pages = []struct {
	name, page string
	want       []Entry // nil with fails
	fails      bool
}{
	{"nginx", `<html>
<head><title>Index of /pub/images/</title></head>
<body>
<h1>Index of /pub/images/</h1><hr><pre><a href="../">../</a>
<a href="20260101/">20260101/</a>                                          01-Jan-2026 10:00                   -
<a href="a%20b.img">a b.img</a>                                            01-Jan-2026 10:00                1234
<a href="c%2B%2B.img">c++.img</a>                                          01-Jan-2026 10:00                1234
</pre><hr></body>
</html>`, []Entry{{"20260101", true}, {"a b.img", false}, {"c++.img", false}}, false},
	{"Apache", `<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html><body><table>
<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th></tr>
<tr><td><a href="/pub/">Parent Directory</a></td></tr>
<tr><td><a href="noble/">noble/</a></td></tr>
<tr><td><a href="SHA256SUMS">SHA256SUMS</a></td></tr>
<tr><td><A HREF='x&amp;y.img'>x&amp;y.img</A></td></tr>
</table></body></html>`, []Entry{{"noble", true}, {"SHA256SUMS", false}, {"x&y.img", false}}, false},
	{"absolute links", `<a href="/pub/images/a">a</a><a href="https://h.invalid/pub/images/b/">b</a><a class="x" href=c>c</a>`,
		[]Entry{{"a", false}, {"b", true}, {"c", false}}, false},
	{"links that lead elsewhere", `<a href="https://evil.invalid/pub/images/a">a</a><a href="../b">b</a><a href="c/d">c</a><a href="/etc/passwd">d</a>
<a href="..%2f..%2fe">e</a><a href="javascript:f()">f</a><a href="g%00">g</a><a href=".">h</a><a href="">i</a><a href="#top">j</a><a href="k%0a">k</a>`, nil, false},
	{"twice", `<a href="a">icon</a><a href="a">a</a>`, []Entry{{"a", false}}, false},
	{"an empty directory", `<html><body><pre><a href="../">../</a></pre></body></html>`, nil, false},
	{"no page", `{"message": "no"}`, nil, true},
	{"nothing", ``, nil, true},
}

func TestDirectory(t *testing.T) {
	for _, tt := range pages {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Directory([]byte(tt.page), base)
			if (err != nil) != tt.fails {
				t.Fatalf("got %v, %v", got, err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if err != nil && (!errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "") {
				t.Errorf("%v (hint %q)", err, mvm.HintOf(err))
			}
		})
	}
	if got, err := Directory([]byte(pages[0].page), strings.TrimSuffix(base, "/")); err != nil || len(got) != 3 {
		t.Errorf("without a slash at the end: %v, %v", got, err)
	}
}

func FuzzDirectory(f *testing.F) {
	for _, tt := range pages {
		f.Add([]byte(tt.page), base)
	}
	f.Fuzz(func(t *testing.T, page []byte, base string) {
		entries, err := Directory(page, base)
		if err != nil && len(entries) > 0 {
			t.Fatal("entries with an error")
		}
		for _, e := range entries {
			if e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\\\x00\n") {
				t.Fatalf("an entry leads elsewhere: %q", e.Name)
			}
		}
	})
}

const bucket = `<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>spec.ccfc.min</Name><Prefix>p/</Prefix><KeyCount>2</KeyCount><MaxKeys>2</MaxKeys>
<IsTruncated>%v</IsTruncated>%s<Contents><Key>p/vmlinux-6.1.102</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;x&quot;</ETag><Size>1234</Size><StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key>p/a&amp;b</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><Size>1</Size></Contents></ListBucketResult>`

func TestS3(t *testing.T) {
	last := fmt.Sprintf(bucket, false, "")
	p, err := S3([]byte(last))
	if err != nil || len(p.Objects) != 2 || p.Objects[0].Key != "p/vmlinux-6.1.102" || p.Objects[0].Size != 1234 || p.Objects[0].Modified.Year() != 2026 || p.Objects[1].Key != "p/a&b" || p.Next != "" {
		t.Errorf("got %+v, %v", p, err)
	}
	p, err = S3(fmt.Appendf(nil, bucket, true, "<NextContinuationToken>tok/1=</NextContinuationToken>"))
	if err != nil || p.Next != "tok/1=" {
		t.Errorf("got %+v, %v", p, err)
	}
	for name, page := range map[string]string{
		"cut off": last[:200], "without token": fmt.Sprintf(bucket, true, ""), "empty": "", "a page": "<html></html>",
		"refused":   `<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>no</Message></Error>`,
		"an entity": `<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><ListBucketResult><Contents><Key>&e;</Key></Contents></ListBucketResult>`,
	} {
		if p, err := S3([]byte(page)); !errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "" || len(p.Objects) > 0 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func FuzzS3(f *testing.F) {
	f.Add(fmt.Appendf(nil, bucket, false, ""))
	f.Add(fmt.Appendf(nil, bucket, true, "<NextContinuationToken>t</NextContinuationToken>"))
	f.Add([]byte(`<Error><Code>AccessDenied</Code></Error>`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := S3(data); err != nil && (len(p.Objects) > 0 || p.Next != "") {
			t.Fatal("objects with an error")
		}
	})
}

const releases = `[{"tag_name":"v1.17.0","draft":true,"prerelease":false,"published_at":null,"assets":[]},
{"tag_name":"v1.16.1","draft":false,"prerelease":false,"published_at":"2026-01-02T03:04:05Z","assets":[
 {"name":"firecracker-v1.16.1-x86_64.tgz","browser_download_url":"https://h.invalid/f.tgz","size":12,"digest":"sha256:aa"},
 {"name":"../evil","browser_download_url":"https://h.invalid/e","size":1}]},
{"tag_name":"v1.16.0-rc1","draft":false,"prerelease":true,"published_at":"2026-01-01T03:04:05Z","assets":[]},
{"tag_name":"../../x","draft":false}]`

func TestGitHubReleases(t *testing.T) {
	got, err := GitHubReleases([]byte(releases))
	if err != nil || len(got) != 2 || got[0].Tag != "v1.16.1" || len(got[0].Assets) != 1 || got[0].Assets[0].Digest != "sha256:aa" || !got[1].Prerelease {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err = GitHubReleases([]byte(`{"message":"API rate limit exceeded"}`))
	if !errors.Is(err, mvm.ErrBroken) || !strings.Contains(err.Error(), "rate limit") {
		t.Errorf("refused: %v", err)
	}
	if _, err := GitHubReleases([]byte(releases[:100])); !errors.Is(err, mvm.ErrBroken) {
		t.Errorf("cut off: %v", err)
	}
}

func FuzzGitHubReleases(f *testing.F) {
	f.Add([]byte(releases))
	f.Add([]byte(`{"message":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, _ := GitHubReleases(data)
		for _, r := range all {
			if !validName(r.Tag) {
				t.Fatalf("a tag leads elsewhere: %q", r.Tag)
			}
		}
	})
}

const kernels = `{"latest_stable":{"version":"6.19.9"},"releases":[
{"iseol":false,"version":"7.0-rc3","moniker":"mainline","source":"https://git.kernel.org/torvalds/t/linux-7.0-rc3.tar.gz","released":{"timestamp":1,"isodate":"2026-03-15"}},
{"iseol":false,"version":"6.19.9","moniker":"stable","source":"https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.19.9.tar.xz","released":{"timestamp":1,"isodate":"2026-03-12"}},
{"iseol":true,"version":"6.18.12","moniker":"stable","source":null,"released":{"isodate":"2026-02-12"}},
{"iseol":false,"version":"next-20260312","moniker":"linux-next","source":null,"released":{"isodate":"2026-03-12"}}]}`

func TestKernelOrg(t *testing.T) {
	got, err := KernelOrg([]byte(kernels))
	want := []KernelRelease{
		{"7.0-rc3", "mainline", "https://git.kernel.org/torvalds/t/linux-7.0-rc3.tar.gz", "2026-03-15", false},
		{"6.19.9", "stable", "https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.19.9.tar.xz", "2026-03-12", false},
		{"6.18.12", "stable", "", "2026-02-12", true},
	}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Error(err, d)
	}
	for _, bad := range []string{"", "{}", "[]", "<html>", kernels[:100]} {
		if _, err := KernelOrg([]byte(bad)); !errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "" {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func FuzzKernelOrg(f *testing.F) {
	f.Add([]byte(kernels))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := KernelOrg(data)
		if (err == nil) != (len(all) > 0) {
			t.Fatalf("%d releases with %v", len(all), err)
		}
		for _, r := range all {
			if !kernelVersion.MatchString(r.Version) {
				t.Fatalf("%q is no version", r.Version)
			}
		}
	})
}
