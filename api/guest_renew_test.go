package api

import "testing"

func TestNewerVersion(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"v1.2.3", "v1.2.2", true}, {"1.2.3", "v1.2.3", false}, {"v1.10.0", "v1.9.9", true}, {"v2.0.0", "v10.0.0", false},
		{"v1.2.3-4-gabc", "v1.2.3", true}, {"v1.2.3", "v1.2.3-4-gabc", false}, {"v1.2.3-10-gabc-dirty", "v1.2.3-9-gdef", true},
		{"v1.2.3", "", false}, {"v1.2.3", "0.1.0-dev", false}, {"0.1.0-dev", "v0.0.1", false}, {"a3f8eda", "b3f8eda", false}, {"v1.2.3", "v1.2.2 x", false},
	} {
		if got := newerVersion(c.a, c.b); got != c.want {
			t.Errorf("newerVersion(%q, %q) = %v", c.a, c.b, got)
		}
	}
}
