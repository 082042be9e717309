package mvm_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

// wantRefusal checks that a value is accepted, or refused as invalid with a hint.
func wantRefusal(t *testing.T, err error, ok bool) {
	t.Helper()
	switch {
	case ok && err != nil:
		t.Errorf("refused: %v", err)
	case !ok && !errors.Is(err, mvm.ErrInvalid):
		t.Errorf("got %v, want a refusal", err)
	case !ok && (mvm.HintOf(err) == "" || strings.Contains(err.Error(), "\n")):
		t.Errorf("no hint, or more than one line: %q", err)
	}
}

func TestValidateName(t *testing.T) {
	for _, tc := range []struct {
		name string
		ok   bool
	}{
		{"a", true}, {"7", true}, {"web-1", true}, {"Web", true}, {"a--b", true},
		{strings.Repeat("a", 63), true}, {strings.Repeat("a", 64), false}, {strings.Repeat("ä", 40), false},
		{"", false}, {"-a", false}, {"a-", false}, {"-", false}, {"a_b", false}, {"a.b", false}, {"a b", false}, {"a/b", false}, {"..", false},
		{"a\n", false}, {"a\x00b", false}, {"a\x7fb", false}, {"a\u0085b", false}, {"\x1b[2J", false}, {"zoë", false}, {"\xff", false},
	} {
		t.Run(mvm.Quote(tc.name), func(t *testing.T) { wantRefusal(t, mvm.ValidateName("VM", tc.name), tc.ok) })
	}
	if err := mvm.ValidateName("volume", "x_y"); !strings.Contains(err.Error(), "volume") {
		t.Errorf("%q does not say what kind of name it is", err)
	}
	if err := mvm.ValidateName("VM", strings.Repeat("x", 5000)); len(err.Error()) > 300 {
		t.Errorf("the message repeats all %d bytes", len(err.Error()))
	}
}

func TestParseSize(t *testing.T) {
	const k, m, g = int64(1) << 10, int64(1) << 20, int64(1) << 30
	for _, tc := range []struct {
		in   string
		want int64 // 0: refused
	}{
		{"512M", 512 * m}, {"512m", 512 * m}, {"512MB", 512 * m}, {"512MiB", 512 * m}, {"10G", 10 * g}, {" 10G ", 10 * g}, {"2T", 2 << 40},
		{"64K", 64 * k}, {"1.5GiB", g + g/2}, {"0.5M", m / 2}, {"2048", 2048 * m},
		{"", 0}, {"G", 0}, {"B", 0}, {"iB", 0}, {"0", 0}, {"-1G", 0}, {"nan", 0}, {"inf", 0}, {"1e400", 0}, {"9999999999T", 0}, {"ten", 0}, {"10X", 0}, {"1 0G", 0},
		{"1,5G", 0}, {"10GG", 0}, {"0.0000001K", 0}, {strings.Repeat("9", 4000), 0},
		{"512B", 0}, {"512i", 0}, // bytes, which no disk is measured in; certainly not MiB
	} {
		t.Run(tc.in[:min(len(tc.in), 20)], func(t *testing.T) {
			got, err := mvm.ParseSize(tc.in)
			wantRefusal(t, err, tc.want > 0)
			if got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"512M", "1.5GiB", "", "-1", "0x1p-2", "1e9", "Inf"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := mvm.ParseSize(s)
		if (err == nil) != (n > 0) {
			t.Errorf("%q gives %d, %v", s, n, err)
		}
	})
}

func TestParseGuestMAC(t *testing.T) {
	for _, tc := range []struct {
		in, want string
	}{
		{"02:FC:00:00:00:01", "02:fc:00:00:00:01"}, {"02-fc-00-00-00-01", "02:fc:00:00:00:01"}, {"52:54:00:12:34:56", "52:54:00:12:34:56"},
		{"", ""}, {"02:fc:00:00:00", ""}, {"02:fc:00:00:00:01:02:03", ""}, {"01:00:5e:00:00:01", ""}, {"ff:ff:ff:ff:ff:ff", ""}, {"00:00:00:00:00:00", ""}, {"02:fc:00:00:00:0g", ""},
	} {
		t.Run(tc.in, func(t *testing.T) {
			mac, err := mvm.ParseGuestMAC(tc.in)
			wantRefusal(t, err, tc.want != "")
			if mac.String() != tc.want {
				t.Errorf("got %q, want %q", mac, tc.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		ok   bool
	}{
		{"0 vCPUs", mvm.ValidateVCPUs(0), false},
		{"1 vCPU", mvm.ValidateVCPUs(1), true},
		{"32 vCPUs", mvm.ValidateVCPUs(32), true},
		{"33 vCPUs", mvm.ValidateVCPUs(33), false},
		{"-1 vCPUs", mvm.ValidateVCPUs(-1), false},
		{"63 MiB", mvm.ValidateMem(63, 1000), false},
		{"64 MiB", mvm.ValidateMem(64, 1000), true},
		{"all there is", mvm.ValidateMem(1000, 1000), true},
		{"more than there is", mvm.ValidateMem(1001, 1000), false},
		{"unknown host", mvm.ValidateMem(1<<30, 0), true},
		{"no arguments", mvm.ValidateBootArgs(""), true},
		{"arguments", mvm.ValidateBootArgs("mitigations=off quiet"), true},
		{"a line break", mvm.ValidateBootArgs("a\nb"), false},
		{"a tab", mvm.ValidateBootArgs("a\tb"), false},
		{"not ASCII", mvm.ValidateBootArgs("name=zoë"), false},
		{"invalid UTF-8", mvm.ValidateBootArgs("a\xff"), false},
		{"1400 bytes", mvm.ValidateBootArgs(strings.Repeat("a", 1400)), true},
		{"1401 bytes", mvm.ValidateBootArgs(strings.Repeat("a", 1401)), false},
	} {
		t.Run(tc.name, func(t *testing.T) { wantRefusal(t, tc.err, tc.ok) })
	}
}

func TestNearest(t *testing.T) {
	names := []string{"web", "web-1", "web-2", "web-3", "database", "inspect"}
	for _, tc := range []struct {
		typed string
		want  []string
	}{
		{"wbe", []string{"web"}}, // letters swapped
		{"WEB", []string{"web"}},
		{"inspct", []string{"inspect"}},
		{"insepct", []string{"inspect"}},
		{"data", []string{"database"}}, // a beginning
		{"zzz", nil},
		{"web", []string{"web", "web-1", "web-2"}}, // nearest first, three at most
	} {
		t.Run(tc.typed, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, mvm.Nearest(tc.typed, names)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if got := mvm.Nearest("web", []string{"web", "web"}); len(got) != 1 {
		t.Errorf("a name that stands there twice is told twice: %q", got)
	}
}
