package agent_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/guest/tree"
)

func TestTree(t *testing.T) {
	c, dir := connect(t, start(t)), t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.WriteFile(src, []byte(strings.Repeat("x", 3<<20)), 0o640); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	s, err := c.Tree(limit(t), tree.Args([]string{src}, tree.Target{}), nil, &stream)
	if err != nil || s.Files != 1 || s.Bytes != 3<<20 {
		t.Fatalf("pack: %+v, %v", s, err)
	}
	whole := bytes.Clone(stream.Bytes())
	to := tree.Args(nil, tree.Target{Path: dir + "/new"})
	if s, err = c.Tree(limit(t), to, &stream, nil); err != nil || s.Bytes != 3<<20 {
		t.Fatalf("unpack: %+v, %v", s, err)
	}
	if data, err := os.ReadFile(dir + "/new"); err != nil || len(data) != 3<<20 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	for _, tc := range []struct {
		name string
		args []string
		in   []byte
		code tree.Code
	}{
		{"no source", tree.Args([]string{dir + "/none"}, tree.Target{}), nil, tree.NotFound},
		{"in the way", to, whole, tree.Exists},
		{"not a directory", tree.Args(nil, tree.Target{Path: src + "/"}), whole, tree.NotDir},
		{"broken off", tree.Args(nil, tree.Target{Path: dir + "/part"}), whole[:2<<20], tree.Other},
	} {
		var e *tree.Error
		if _, err := c.Tree(limit(t), tc.args, bytes.NewReader(tc.in), nil); !errors.As(err, &e) || e.Code != tc.code {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.code)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
}
