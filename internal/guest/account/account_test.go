package account

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const passwd = `root:x:0:0:root:/root:/bin/bash
broken line
neg:x:-1:0::/:/bin/sh
all:x:4294967295:0::/:/bin/sh
u:x:1000:1000:User,,,:/home/u:
1000:x:7:7::/seven:/bin/sh
`

const group = "root:x:0:\nu:x:1000:\nstaff:x:50:a,u\nbad:x:x:u\ndocker:x:99:u\n"

func TestLookup(t *testing.T) {
	u := User{Name: "u", UID: 1000, GID: 1000, Groups: []uint32{1000, 50, 99}, Home: "/home/u", Shell: "/bin/sh"}
	for _, tc := range []struct {
		spec string
		want User
	}{
		{"u", u},
		{"", User{"root", 0, 0, []uint32{0}, "/root", "/bin/bash"}},
		{"0", User{"root", 0, 0, []uint32{0}, "/root", "/bin/bash"}},
		{"1000", User{"1000", 7, 7, []uint32{7}, "/seven", "/bin/sh"}}, // a name goes before an id
		{"u:staff", User{"u", 1000, 50, []uint32{50}, "/home/u", "/bin/sh"}},
		{"5:6", User{"5", 5, 6, []uint32{6}, "/", "/bin/sh"}},
	} {
		got, err := Lookup([]byte(passwd), []byte(group), tc.spec)
		if err != nil {
			t.Errorf("%q: %v", tc.spec, err)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%q (-want +got):\n%s", tc.spec, d)
		}
	}
	for _, spec := range []string{"nobody", "neg", "all", "4294967295", "-1", "u:nogroup", "u:4294967295"} {
		if got, err := Lookup([]byte(passwd), []byte(group), spec); err == nil {
			t.Errorf("%q is %+v", spec, got)
		}
	}
	if _, err := Lookup(nil, nil, "x"); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v, want ErrUnknown", err)
	}
	if got, err := Lookup(nil, nil, "root"); err != nil || got.Home != "/root" {
		t.Errorf("root without a passwd file: %+v %v", got, err)
	}
}

func FuzzLookup(f *testing.F) {
	f.Add(passwd, group, "u")
	f.Add(strings.Repeat("g:x:1:u\n", 3), passwd, "1:2")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		u, err := Lookup([]byte(passwd), []byte(group), spec)
		if err == nil && (u.UID == 1<<32-1 || u.GID == 1<<32-1 || u.Home == "" || u.Shell == "" || len(u.Groups) > maxGroups) {
			t.Errorf("%+v", u)
		}
	})
}
