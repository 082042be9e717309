package asset

import (
	"errors"
	"strings"
	"testing"

	"github.com/mvmctl/mvm"
)

var (
	a256 = strings.Repeat("a1", 32)
	b256 = strings.Repeat("b2", 32)
	c512 = strings.Repeat("c3", 64)
)

// sumLists are lists as upstreams publish them.
var sumLists = []struct {
	name, list, file string
	want             string // a digest; "" is refused
}{
	{"sha256sum", a256 + "  other\n" + b256 + "  f.img\n", "f.img", "sha256:" + b256},
	{"binary mode", b256 + " *f.img\n", "f.img", "sha256:" + b256},
	{"upper case, CRLF", strings.ToUpper(b256) + "  f.img\r\n", "f.img", "sha256:" + b256},
	{"sha512sum", c512 + "  f.img\n", "f.img", "sha512:" + c512},
	{"with directories", b256 + "  ./images/f.img\n", "f.img", "sha256:" + b256},
	{"BSD", "# f.img: 12 bytes\nSHA256 (f.img) = " + b256 + "\n", "f.img", "sha256:" + b256},
	{"BSD, SHA-512", "SHA512 (f.img) = " + c512 + "\n", "f.img", "sha512:" + c512},
	{"BSD, a name with parentheses", "SHA256 (f (1).img) = " + b256 + "\n", "f (1).img", "sha256:" + b256},
	{"BSD, the digits of another algorithm", "SHA512 (f.img) = " + b256 + "\n", "f.img", ""},
	{"the better of two", b256 + "  f.img\n" + c512 + "  f.img\n", "f.img", "sha512:" + c512},
	{"twice the same", b256 + "  f.img\n" + b256 + "  f.img\n", "f.img", "sha256:" + b256},
	{"twice, differently", a256 + "  f.img\n" + b256 + "  f.img\n", "f.img", ""},
	{"a hash alone", b256 + "\n", "f.img", "sha256:" + b256},
	{"two hashes alone", a256 + "\n" + b256 + "\n", "f.img", ""},
	{"a hash alone of another file", b256 + "  g.img\n", "f.img", ""},
	{"MD5 only", strings.Repeat("a1", 16) + "  f.img\n", "f.img", ""},
	{"another name that ends alike", b256 + "  xf.img\n", "f.img", ""},
	{"a name with more behind it", b256 + "  f.img.sig\n", "f.img", ""},
	{"no hexadecimal digits", strings.Repeat("zz", 32) + "  f.img\n", "f.img", ""},
	{"a page", "<html><body>login</body></html>", "f.img", ""},
	{"empty", "", "f.img", ""},
	{"a line without end", strings.Repeat("a", 1<<20), "f.img", ""},
}

func TestSums(t *testing.T) {
	for _, tt := range sumLists {
		t.Run(tt.name, func(t *testing.T) {
			got, err := sumFor([]byte(tt.list), tt.file)
			if string(got) != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
			if err != nil && (!errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "") {
				t.Errorf("refused by %v (hint %q)", err, mvm.HintOf(err))
			}
		})
	}
}

func FuzzSums(f *testing.F) {
	for _, tt := range sumLists {
		f.Add([]byte(tt.list), tt.file)
	}
	f.Fuzz(func(t *testing.T, list []byte, name string) {
		d, err := sumFor(list, name)
		if (err == nil) != (d != "") {
			t.Fatalf("digest %q with error %v", d, err)
		}
		if err == nil {
			if again, err := ParseDigest(string(d)); err != nil || again != d {
				t.Fatalf("%q is no digest: %v", d, err)
			}
			if !strings.Contains(strings.ToLower(string(list)), d.Hex()) {
				t.Fatalf("%q is not in the list", d)
			}
		}
	})
}

func FuzzDigest(f *testing.F) {
	for _, s := range []string{"", a256, "sha256:" + a256, "sha512:" + a256, c512, "md5:00", "sha256:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDigest(s)
		if err == nil && d != "" && (d.Algorithm() != "sha256" && d.Algorithm() != "sha512" || strings.Trim(d.Hex(), "0123456789abcdef") != "") {
			t.Errorf("%q became %q", s, d)
		}
	})
}
