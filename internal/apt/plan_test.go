package apt

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mvmctl/mvm"
)

func TestParsePlan(t *testing.T) {
	sum := strings.Repeat("0f", 32)
	out := "Reading package lists...\n" +
		"'http://mirror.example/pool/b/busybox_1.35%2b1_amd64.deb' busybox_1%3a1.35.0-4+deb12u1_amd64.deb 928188 SHA256:" + sum + "\n" +
		"'file:/repo/a.deb' adduser_3.134_all.deb 7 \n"
	got, err := parsePlan(out)
	if err != nil {
		t.Fatal(err)
	}
	want := []item{
		{"busybox_1%3a1.35.0-4+deb12u1_amd64.deb", "busybox", "1:1.35.0-4+deb12u1", "amd64", 928188, sum},
		{"adduser_3.134_all.deb", "adduser", "3.134", "all", 7, ""},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(item{})); d != "" {
		t.Fatal(d)
	}
	var specs []string
	for _, it := range got {
		specs = append(specs, it.spec())
	}
	if d := cmp.Diff([]string{"busybox:amd64=1:1.35.0-4+deb12u1", "adduser=3.134"}, specs); d != "" {
		t.Error(d)
	}
}

func TestParsePlanRefuses(t *testing.T) {
	for _, line := range []string{
		"'http://m/x' ../../etc/passwd_1_all.deb 7 ",
		"'http://m/x' .hidden_1_all.deb 7 ",
		"'http://m/x' noversion.deb 7 ",
		"'http://m/x' a_1_all.deb 99999999999999999999 ",
		"'http://m/x' a_1_all.deb 7 MD5Sum:00",
		"'http://m/x' a_%zz_all.deb 7 ",
	} {
		if got, err := parsePlan(line + "\n"); !errors.Is(err, mvm.ErrUnavailable) {
			t.Errorf("parsePlan(%q) = %v, %v; want an error", line, got, err)
		}
	}
}

func TestCheckNames(t *testing.T) {
	for _, n := range []string{"busybox-static", "g++", "libc6:amd64", "a2=1:2.0~rc1-1+b1", "linux-image-6.1.0-56-cloud-amd64"} {
		if err := checkNames([]string{n}); err != nil {
			t.Errorf("checkNames(%q) = %v", n, err)
		}
	}
	for _, n := range []string{"", "-o", "--force-yes", "bash-", "./x.deb", "/tmp/x.deb", "a b", "a;b", "A", "a*", "a=", "a\n"} {
		if err := checkNames([]string{n}); !errors.Is(err, mvm.ErrInvalid) {
			t.Errorf("checkNames(%q) = %v, want ErrInvalid", n, err)
		}
	}
	if err := checkNames(nil); !errors.Is(err, mvm.ErrInvalid) {
		t.Errorf("no names: %v", err)
	}
}

func FuzzParsePlan(f *testing.F) {
	f.Add("'u' a_1_all.deb 7 \n")
	f.Add("'u' busybox_1%3a1_amd64.deb 7 SHA256:" + strings.Repeat("a", 64))
	f.Fuzz(func(t *testing.T, out string) {
		plan, err := parsePlan(out)
		for _, it := range plan {
			if err == nil && (strings.ContainsAny(it.file, "/\x00") || strings.HasPrefix(it.file, ".") || it.size < 0) {
				t.Errorf("%+v", it)
			}
		}
	})
}
