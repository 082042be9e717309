package guest

import (
	"context"
	_ "embed"
	"errors"
	"io"
	"path"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/tree"
)

// Over the network the guest's own tar does what the agent does otherwise, in
// scripts for any POSIX shell.
var (
	//go:embed pack.sh
	packScript string
	//go:embed unpack.sh
	unpackScript string
)

// copyFailed is the exit status with which the scripts say that they have said why.
const copyFailed = 41

// Pack has the guest write files, and trees, as a stream for tree.Unpack. A failure
// there is a *tree.Error; its texts, and the statistics, are the guest's and have
// been made printable, not true.
func (c *Client) Pack(ctx context.Context, sources []string, w io.Writer) (tree.Stats, error) {
	if c.agent {
		return c.Tree(ctx, tree.Args(sources, tree.Target{}), nil, w)
	}
	g := tree.NewGatherer(w)
	for _, src := range sources {
		if err := c.packOne(ctx, g, src); err != nil {
			return tree.Stats{}, err
		}
	}
	s, err := g.Close()
	for i := range s.Skipped {
		s.Skipped[i] = clean(s.Skipped[i])
	}
	return s, err
}

// maxAgain bounds how many files with several names a guest can have us ask for.
const maxAgain = 1 << 16

func (c *Client) packOne(ctx context.Context, g *tree.Gatherer, src string) error {
	if path.Clean(src) == "/" {
		return &tree.Error{Code: tree.Other, Path: src, Reason: "the root directory cannot be copied as a whole; name directories in it"}
	}
	src = shellPath(src)
	name, dir, err := c.baseName(ctx, src)
	if err != nil {
		return err
	}
	again, err := c.gather(ctx, g, name, dir, src)
	if len(again) > maxAgain {
		return mvm.Errorf(mvm.ErrBroken, "the guest's tar names %d files without content", len(again)).WithHint("look what its tar is")
	}
	for _, rel := range again {
		if err != nil {
			return err
		}
		_, err = c.gather(ctx, g, path.Join(name, rel), false, src, "./"+rel)
	}
	return err
}

// baseName is the name under which a source is copied, and whether it is a directory.
func (c *Client) baseName(ctx context.Context, src string) (string, bool, error) {
	out := &bounded{most: 4096}
	st, err := c.Exec(ctx, Cmd{Argv: []string{"sh", "-c", `[ -d "$1" ] && cd "$1" && pwd`, "sh", src}, Stdout: out})
	if err != nil {
		return "", false, err
	}
	base := path.Base(src)
	if base == "." || base == ".." {
		base = path.Base(strings.TrimSpace(out.String()))
	}
	if base == "." || base == "/" {
		return "", false, &tree.Error{Code: tree.Other, Path: src, Reason: "it has no name; name directories in it"}
	}
	return base, st.Code == 0, nil
}

// gather adds what the guest's tar says of one source.
func (c *Client) gather(ctx context.Context, g *tree.Gatherer, name string, dir bool, args ...string) ([]string, error) {
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := c.script(ctx, packScript, nil, w, args...)
		_ = w.CloseWithError(err) // nil is the end of the archive
		ended <- err
	}()
	again, err := g.Add(r, name, !dir)
	if err == nil { // what follows the archive is padding
		_, err = io.Copy(io.Discard, io.LimitReader(r, maxPadding))
	}
	_ = r.CloseWithError(errStop)
	if said := <-ended; said != nil && !errors.Is(said, errStop) {
		return again, said
	}
	return again, err
}

// maxPadding is more than any tar writes after the end of an archive.
const maxPadding = 1 << 20

// errStop ends a script whose output is of no use any more.
var errStop = errors.New("the reader has ended")

// Unpack has the guest put the files of a stream of tree.Pack in place. Errors are
// as those of Pack; what was there is then as it was.
func (c *Client) Unpack(ctx context.Context, t tree.Target, r io.Reader) (tree.Stats, error) {
	if c.agent {
		return c.Tree(ctx, tree.Args(nil, t), r, nil)
	}
	bit := map[bool]string{false: "0", true: "1"}
	stage, end := tree.StageName(), tree.StageName()
	type result struct {
		tree.Stats
		err error
	}
	plain := make(chan result, 1)
	pr, pw := io.Pipe()
	go func() {
		s, err := tree.Plain(pw, r, end, t)
		plain <- result{s, err}    // first: when the guest misses something we know why
		_ = pw.CloseWithError(err) // the guest sees an archive that breaks off
	}()
	err := c.script(ctx, unpackScript, pr, nil, shellPath(t.Path), bit[t.Dir], bit[t.Force], bit[t.Owners], stage, end)
	if err != nil {
		_ = pr.CloseWithError(errStop)
		select {
		case sent := <-plain:
			if sent.err != nil {
				err = sent.err // the guest only says that something is missing
			}
			var e *tree.Error
			if errors.As(err, &e) && e.Code == tree.Exists && !path.IsAbs(e.Path) { // two sources
				e.Path = path.Join(t.Path, e.Path)
			}
		default: // the guest would not have it, and the sender has not heard of it yet
		}
		return tree.Stats{}, err
	}
	_ = pr.CloseWithError(errStop) // tar may leave the end of the archive unread
	sent := <-plain
	return sent.Stats, nil
}

// shellPath makes a path safe to be an argument of programs in the guest.
func shellPath(p string) string {
	if strings.HasPrefix(p, "/") {
		return p
	}
	return "./" + p
}

// script runs a script in the guest's sh. Its own words for a failure become a
// *tree.Error.
func (c *Client) script(ctx context.Context, script string, in io.Reader, out io.Writer, args ...string) error {
	report := &bounded{most: maxReport}
	st, err := c.Exec(ctx, Cmd{Argv: append([]string{"sh", "-c", script, "mvm-cp"}, args...), Stdin: in, Stdout: out, Stderr: report})
	if err != nil || st.Code == 0 {
		return err
	}
	return readFailure(report.String(), st.Code)
}

// readFailure reads why a script failed, in its own words or in those of what it ran.
func readFailure(report string, code int) error {
	lines := strings.Split(strings.TrimSpace(report), "\n")
	for i, line := range lines {
		said, ok := strings.CutPrefix(line, "mvm-cp:")
		if part := strings.SplitN(said, ":", 3); ok && code == copyFailed && len(part) == 3 {
			at := strings.TrimPrefix(strings.Join(append([]string{part[2]}, lines[i+1:]...), "\n"), "./") // a path may have several lines
			return &tree.Error{Code: tree.Code(part[0]), Path: strings.ReplaceAll(at, "/./", "/"), Reason: clean(part[1])}
		}
	}
	return mvm.Errorf(mvm.ErrUnavailable, "copying in the guest ended with status %d: %s", code, clean(lines[len(lines)-1])).
		WithHint("it needs sh and tar there")
}
