package fsx

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestACL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, []byte("x"), 0o600))
	if err := AllowRead(path, 70001); errors.Is(err, ErrNoACL) {
		t.Skip(err)
	}
	var wg sync.WaitGroup
	for uid := range 8 {
		wg.Go(func() {
			for range 2 {
				if err := AllowRead(path, 70001+uid); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	l, err := readACL(f)
	must(t, err)
	if len(l) != 3+1+8 || l.of(aclOwner) != 6 || l.of(aclGroup) != 0 || l.of(aclMask) != aclRead || l.of(aclOther) != 0 {
		t.Errorf("the list is %v", l)
	}
	for uid := range 8 {
		wg.Go(func() {
			for range 2 {
				if err := DenyRead(path, 70001+uid); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := unix.Fgetxattr(int(f.Fd()), aclName, nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("a list is left: %v", err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestACLOfALink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	must(t, os.WriteFile(target, nil, 0o600))
	must(t, os.Symlink(target, link))
	if err := AllowRead(link, 70001); err == nil {
		t.Error("a symlink was followed")
	}
	if err := DenyRead(filepath.Join(dir, "none"), 70001); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("err = %v", err)
	}
}

func TestACLReader(t *testing.T) {
	// What somebody else set stays as it is.
	l := acl{{aclOwner, 6, aclNobody}, {aclUser, 6, 5}, {aclGroup, 4, aclNobody}, {aclMask, 6, aclNobody}, {aclOther, 0, aclNobody}}
	got := l.withReader(3)
	if len(got) != 6 || got[1] != (aclEntry{aclUser, aclRead, 3}) || got[2].ID != 5 || got.of(aclMask) != 6 {
		t.Errorf("the list became %v", got)
	}
	if got = got.without(3); len(got) != 5 || got.of(aclMask) != 6 {
		t.Errorf("the list became %v", got)
	}
	for _, data := range []string{"", "\x02\x00\x00", "\x01\x00\x00\x00", "\x02\x00\x00\x00\x01"} {
		if _, err := decodeACL([]byte(data)); err == nil {
			t.Errorf("%q is understood", data)
		}
	}
	if back, err := decodeACL(l.encode()); err != nil || len(back) != len(l) || back[1] != l[1] {
		t.Errorf("%v, %v", back, err)
	}
}
