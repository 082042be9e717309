package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/mvmctl/mvm/internal/disk"
	"github.com/mvmctl/mvm/internal/run"
)

// topLevel is the id of the subvolume that every btrfs has (BTRFS_FS_TREE_OBJECTID).
const topLevel = "FS_TREE"

// subvolumes is what a btrfs says of its subvolumes.
type subvolumes struct {
	mounted string   // the id of the one that is mounted without naming one
	top     []string // the names of those in the top level, usual ones first
}

// plainSubvolume is a name that is no syntax anywhere: not in options of mount(8), nor
// in an expression.
var plainSubvolume = regexp.MustCompile(`^[A-Za-z0-9@_][A-Za-z0-9@._-]{0,63}$`)

// maxSubvolumes is how many are looked at.
const maxSubvolumes = 16

var (
	defaultLine = regexp.MustCompile(`^\tlocation key \((FS_TREE|[0-9]{1,19}) ROOT_ITEM `)
	refLine     = regexp.MustCompile(`^\t\troot ref key dirid 256 sequence [0-9]+ name (.*)$`)
)

// parseRootTree reads what `btrfs inspect-internal dump-tree -t root` prints. Names in
// it are an image's, so a line may be made up: what comes of it is another subvolume of
// the same image.
func parseRootTree(text string) subvolumes {
	s := subvolumes{mounted: topLevel}
	item := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if trimmed, ok := strings.CutPrefix(line, "\titem "); ok {
			item = trimmed
			continue
		}
		switch {
		case strings.Contains(item, " key (ROOT_TREE_DIR DIR_ITEM "):
			if m := defaultLine.FindStringSubmatch(strings.TrimPrefix(line, "\t")); m != nil {
				s.mounted = m[1]
			}
		case strings.Contains(item, " key (FS_TREE ROOT_REF "):
			m := refLine.FindStringSubmatch(line)
			if m != nil && plainSubvolume.MatchString(m[1]) && !slices.Contains(s.top, m[1]) && len(s.top) < maxSubvolumes {
				s.top = append(s.top, m[1])
			}
		}
	}
	rank := func(name string) int {
		if n := slices.Index(disk.RootSubvolumes, name); n >= 0 {
			return n
		}
		return len(disk.RootSubvolumes)
	}
	slices.SortStableFunc(s.top, func(a, b string) int { return rank(a) - rank(b) })
	return s
}

// peekPaths are the files that are taken out, as an expression in which each directory
// on the way has to match; also from the subvolumes named.
func peekPaths(top []string) string {
	const files = `usr(|/lib(|/os-release)|/bin(|/bash|/dash|/busybox))|etc(|/os-release)|bin(|/busybox)`
	if len(top) == 0 {
		return `^/(` + files + `)?$`
	}
	quoted := make([]string, len(top))
	for i, name := range top {
		quoted[i] = regexp.QuoteMeta(name)
	}
	return `^/((` + strings.Join(quoted, "|") + `)(/)?)?(` + files + `)?$`
}

// maxRootTree bounds what is read of the description of a btrfs.
const maxRootTree = 4 << 20

// peekBtrfs has btrfs(8) take out a few files, in the box, and finds the subvolume that
// has the root. Where it is not installed a guest finds those with usual names.
func (im *importer) peekBtrfs(ctx context.Context) contents {
	if _, err := run.Look("btrfs"); err != nil {
		im.note("the package btrfs-progs is not installed, so what the image holds is not told")
		return contents{}
	}
	if !im.b.root {
		im.b.single = true
	}
	if im.b.check(ctx, im.s.path("work")) != nil || im.giveToBox(im.at(rootName)) != nil {
		return contents{}
	}
	subs, err := im.subvolumes(ctx)
	if err != nil {
		return contents{}
	}
	if subs.mounted != topLevel { // the publisher has said which
		im.restore(ctx, "mounted", "-r", subs.mounted, "--path-regex", peekPaths(nil))
		return im.peekDir("mounted")
	}
	im.restore(ctx, "top", "--path-regex", peekPaths(subs.top))
	for _, name := range append([]string{""}, subs.top...) {
		if c := im.peekDir(path.Join("top", name)); c != (contents{}) {
			c.subvolume = name
			return c
		}
	}
	return contents{}
}

// subvolumes has the image's described.
func (im *importer) subvolumes(ctx context.Context) (subvolumes, error) {
	var out bytes.Buffer
	cmd := boxTool("btrfs", "inspect-internal", "dump-tree", "-t", "root", rootName)
	cmd.Stdout = &limited{&out, maxRootTree}
	if _, err := im.b.inBox(ctx, im.s.path("work"), cmd); err != nil {
		return subvolumes{}, err
	}
	return parseRootTree(out.String()), nil
}

// limited refuses what is more than left bytes.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errors.New("too much")
	}
	return l.w.Write(p)
}

// restore takes files out of the image into a directory in the work directory. What
// cannot be taken out is not there.
func (im *importer) restore(ctx context.Context, dir string, args ...string) {
	work := im.s.path("work")
	if _, err := im.b.inBox(ctx, work, run.Cmd{Name: "mkdir", Args: []string{dir}}); err == nil {
		_, _ = im.b.inBox(ctx, work, boxTool("btrfs", append(append([]string{"restore", "-s", "-i"}, args...), rootName, dir)...))
	}
}

// peekDir looks into a directory that was taken out.
func (im *importer) peekDir(dir string) contents {
	work, err := os.OpenRoot(im.s.path("work")) // what leads out of it is refused
	if err != nil {
		return contents{}
	}
	defer func() { _ = work.Close() }()
	root, err := work.OpenRoot(dir)
	if err != nil {
		return contents{}
	}
	defer func() { _ = root.Close() }()
	return peek(func() (fs.FS, error) { return root.FS(), nil })
}
