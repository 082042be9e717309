package image

import (
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/internal/image/imagetest"
)

// TestImportSubvolumes finds the root where distributions have it.
func TestImportSubvolumes(t *testing.T) {
	imagetest.Require(t)
	for like, want := range map[string]string{"fedora": "root", "opensuse": ""} {
		t.Run(like, func(t *testing.T) {
			m := imagetest.New(t)
			b, err := importOne(t, ImportOptions{Path: m.Disk("gpt", m.Root(like, m.Tree("tree", 62), 64))})
			if err != nil || b.FSType != "btrfs" || b.Subvolume != want || b.Distro != "debian 12" || b.Arch != "x86_64" || len(b.Warnings) > 0 {
				t.Errorf("%+v, %v", b, err)
			}
		})
	}
}

const rootTree = `	item 4 key (FS_TREE ROOT_REF 256) itemoff 2639 itemsize 22
		root ref key dirid 256 sequence 2 name home
	item 5 key (FS_TREE ROOT_REF 257) itemoff 2617 itemsize 22
		root ref key dirid 256 sequence 3 name @
	item 5 key (FS_TREE ROOT_REF 258) itemoff 2617 itemsize 22
		root ref key dirid 300 sequence 3 name deeper
	item 8 key (ROOT_TREE_DIR DIR_ITEM 2378154706) itemoff 2408 itemsize 37
		location key (FS_TREE ROOT_ITEM 18446744073709551615) type DIR
		name: default
	item 13 key (256 ROOT_REF 259) itemoff 630 itemsize 22
		root ref key dirid 256 sequence 2 name below
`

func TestParseRootTree(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		mounted string
		top     string
	}{
		"usual first":      {rootTree, "FS_TREE", "@ home"},
		"another default":  {strings.Replace(rootTree, "(FS_TREE ROOT_ITEM", "(268 ROOT_ITEM", 1), "268", "@ home"},
		"no default":       {"", "FS_TREE", ""},
		"syntax in a name": {strings.NewReplacer("name home", "name a,ro", "name @", "name -x").Replace(rootTree), "FS_TREE", ""},
		"twice":            {rootTree + rootTree, "FS_TREE", "@ home"},
	} {
		got := parseRootTree(c.text)
		if got.mounted != c.mounted || strings.Join(got.top, " ") != c.top {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// FuzzRootTree: whatever an image has put there, no name is syntax elsewhere, and what
// is mounted is a number or the top level.
func FuzzRootTree(f *testing.F) {
	f.Add(rootTree)
	f.Fuzz(func(t *testing.T, text string) {
		got := parseRootTree(text)
		if len(got.top) > maxSubvolumes || !defaultLine.MatchString("\tlocation key ("+got.mounted+" ROOT_ITEM ") ||
			slices.ContainsFunc(got.top, func(s string) bool { return s == "" || strings.ContainsAny(s, ",=/ \n\\|()") }) {
			t.Errorf("%+v", got)
		}
	})
}
