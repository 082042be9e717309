package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/tree"
)

// CPOperation copies files between the host and VMs, and from VM to VM: through
// their agents or, where they have none, by tar over SSH.
type CPOperation struct{ core *core }

// CPInput says what is copied where. A place in a VM is written NAME:/path, where
// NAME is any selector of the VM; a relative path there begins at the user's home.
// A host path that has a colon is written with a '/' before it, as in ./a:b.
type CPInput struct {
	Sources []string
	Dst     string
	User    string // in the VMs; "" is the user that the VM was made with
	Key     string // for VMs without the agent: a path, or the name of a key
	Force   bool   // replace files that exist
	NoSync  bool   // do not have a VM write its disks out after it got files
}

// CPResult is what was copied.
type CPResult struct {
	Bytes   int64    `json:"bytes"`
	Files   int      `json:"files"` // files, directories and links
	Skipped []string `json:"skipped,omitempty"`
}

// cpStall is how long a guest may neither give nor take anything.
const cpStall = 2 * time.Minute

// cpQuiet is how long a copy takes before it says so.
const cpQuiet = 500 * time.Millisecond

// Copy copies files and trees with modes, times and links. A directory that is
// there is copied into; existing directories are merged, existing files replaced
// only by Force. All files are put in place at the end of the transfer: one that
// fails leaves the destination as it was. Errors are a *CPSourceNotFoundError,
// *CPDestinationExistsError, *CPDestinationNotDirectoryError or other *CPError.
func (o *CPOperation) Copy(ctx context.Context, in CPInput, opts ...Option) (CPResult, error) {
	var res CPResult
	if len(in.Sources) == 0 || in.Dst == "" {
		return res, mvm.Errorf(mvm.ErrInvalid, "a source and a destination are needed").WithHint("write for example: mvm cp notes.txt web:/root/")
	}
	dst := cpParse(in.Dst)
	groups := cpGroups(in.Sources)
	for _, g := range groups {
		if g.vm == "" && dst.vm == "" {
			return res, mvm.Errorf(mvm.ErrInvalid, "neither %s nor %s is in a VM", mvm.Quote(g.paths[0]), mvm.Quote(in.Dst)).
				WithHint("write a place in a VM as NAME:/path; between places on the host use cp")
		}
	}
	c := &copying{o: o, in: in, target: tree.Target{Path: dst.paths[0], Dir: len(in.Sources) > 1, Force: in.Force}, ends: map[string]*agentConn{}, progress: options(opts).progress}
	defer c.close()
	for _, g := range groups {
		s, err := c.transfer(ctx, g, dst)
		res.Bytes, res.Files, res.Skipped = res.Bytes+s.Bytes, res.Files+s.Files, append(res.Skipped, s.Skipped...)
		if err != nil {
			return res, err
		}
	}
	if dst.vm != "" && !in.NoSync {
		return res, mvm.Wrap(c.ends[dst.vm].Sync(ctx), "write out the disks of", dst.vm)
	}
	return res, nil
}

// cpPlace is one or more paths on the host (vm "") or in a VM.
type cpPlace struct {
	vm    string
	paths []string
}

func cpParse(s string) cpPlace {
	vm, path, ok := strings.Cut(s, ":")
	if !ok || vm == "" || strings.ContainsAny(vm, "/") || vm == "." || vm == ".." {
		return cpPlace{paths: []string{s}}
	}
	// A MAC address has colons itself.
	if len(s) >= 17 {
		if _, err := net.ParseMAC(s[:17]); err == nil && (len(s) == 17 || s[17] == ':') {
			vm, path = s[:17], strings.TrimPrefix(s[17:], ":")
		}
	}
	if path == "" {
		path = "."
	}
	return cpPlace{vm, []string{path}}
}

// cpGroups puts together sources that are at the same place, one transfer each.
func cpGroups(sources []string) []cpPlace {
	var out []cpPlace
	at := map[string]int{}
	for _, s := range sources {
		p := cpParse(s)
		if i, ok := at[p.vm]; ok {
			out[i].paths = append(out[i].paths, p.paths...)
			continue
		}
		at[p.vm] = len(out)
		out = append(out, p)
	}
	return out
}

// copying is one Copy while it runs.
type copying struct {
	o        *CPOperation
	in       CPInput
	target   tree.Target
	ends     map[string]*agentConn // by selector
	progress mvm.ProgressFunc
	bytes    atomic.Int64
}

func (c *copying) close() {
	for _, end := range c.ends {
		_ = end.Close()
	}
}

// end returns the login to a VM.
func (c *copying) end(ctx context.Context, vm string) (*agentConn, error) {
	if end := c.ends[vm]; end != nil {
		return end, nil
	}
	st, err := c.o.core.open(ctx)
	if err != nil {
		return nil, err
	}
	item, err := c.o.core.findVM(ctx, st, vm)
	if err != nil {
		return nil, err
	}
	end, err := c.o.core.dialVM(ctx, st, item, agentLoginAs{user: firstOf(c.in.User, deref(item.SSHUser)), key: c.in.Key})
	if err != nil {
		return nil, mvm.Wrap(err, "copy files of", item.Name)
	}
	c.ends[vm] = end
	return end, nil
}

// errReceiver is what a sender sees whose receiver has failed.
var errReceiver = errors.New("the receiver gave up")

// transfer moves one group of sources as a stream that nothing stores on its way.
func (c *copying) transfer(ctx context.Context, from, to cpPlace) (tree.Stats, error) {
	for _, vm := range []string{from.vm, to.vm} {
		if vm == "" {
			continue
		}
		if _, err := c.end(ctx, vm); err != nil {
			return tree.Stats{}, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(cpStall, func() {
		cancel(mvm.Errorf(mvm.ErrUnavailable, "no data was moved for %s", cpStall).WithHint("see 'mvm vm ls' whether the VM runs, and 'mvm logs VM'"))
	})
	defer watch.Stop()
	for _, end := range c.ends {
		defer end.closeLate(ctx)()
	}
	r, w := io.Pipe()
	stop := context.AfterFunc(ctx, func() { _ = r.CloseWithError(context.Cause(ctx)) })
	defer stop()
	meter := &meter{w: w, watch: watch, total: &c.bytes, progress: c.progress, told: time.Now().Add(cpQuiet)}
	type outcome struct {
		tree.Stats
		err error
	}
	sender := make(chan outcome, 1)
	go func() {
		s, err := c.send(ctx, from, meter)
		_ = w.CloseWithError(err) // nil is the end of the stream
		sender <- outcome{s, err}
	}()
	target := c.target
	target.Expect = tree.Names(from.paths)
	target.Owners = from.vm != "" && to.vm != "" && c.in.User == ""
	got, err := c.receive(ctx, to, target, r)
	_ = r.CloseWithError(errReceiver)
	sent := <-sender
	got.Skipped = sent.Skipped
	switch cause := context.Cause(ctx); {
	case cause != nil:
		return got, mvm.Wrap(cause, "copy files of", firstOf(from.vm, to.vm))
	case sent.err != nil && !errors.Is(sent.err, errReceiver):
		return got, cpError(sent.err, from.vm)
	}
	return got, cpError(err, to.vm)
}

func (c *copying) send(ctx context.Context, from cpPlace, w io.Writer) (tree.Stats, error) {
	if from.vm == "" {
		return tree.Pack(w, from.paths)
	}
	return c.ends[from.vm].Pack(ctx, from.paths, w)
}

func (c *copying) receive(ctx context.Context, to cpPlace, t tree.Target, r io.Reader) (tree.Stats, error) {
	if to.vm == "" {
		t.Path = hostPath(t.Path)
		return tree.Unpack(r, t)
	}
	return c.ends[to.vm].Unpack(ctx, t, r)
}

// hostPath makes a path absolute without losing a '/' at its end.
func hostPath(p string) string {
	abs, err := filepath.Abs(p)
	if err != nil {
		return p
	}
	if os.IsPathSeparator(p[len(p)-1]) && abs != "/" {
		abs += "/"
	}
	return abs
}

// meter counts what is moved, and shows that something is.
type meter struct {
	w        io.Writer
	watch    *time.Timer
	total    *atomic.Int64
	progress mvm.ProgressFunc
	told     time.Time
}

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.w.Write(p)
	m.watch.Reset(cpStall)
	sum := m.total.Add(int64(n))
	if now := time.Now(); m.progress != nil && now.Sub(m.told) > 100*time.Millisecond {
		m.told = now
		m.progress(mvm.ProgressEvent{Phase: "copy", Message: "copying", Current: sum})
	}
	return n, err
}

// CPError is a copy that failed; its kinds below are CPErrors too.
type CPError struct {
	VM   string // where; "" is the host
	Path string // "" where it concerns the whole
	Err  *mvm.Error
}

// Error returns place and reason on one line.
func (e *CPError) Error() string { return e.Err.Error() }

// Unwrap returns the *mvm.Error, with kind and hint.
func (e *CPError) Unwrap() error { return e.Err }

// The failures of a copy that have a name.
type (
	// CPSourceNotFoundError is a source that does not exist; mvm.ErrNotFound.
	CPSourceNotFoundError struct{ CPError }
	// CPDestinationExistsError is a file that is in the way; mvm.ErrExists.
	CPDestinationExistsError struct{ CPError }
	// CPDestinationNotDirectoryError is a destination that has to be a directory,
	// and is none or does not exist; mvm.ErrInvalid.
	CPDestinationNotDirectoryError struct{ CPError }
)

// Unwrap returns the CPError.
func (e *CPSourceNotFoundError) Unwrap() error { return &e.CPError }

// Unwrap returns the CPError.
func (e *CPDestinationExistsError) Unwrap() error { return &e.CPError }

// Unwrap returns the CPError.
func (e *CPDestinationNotDirectoryError) Unwrap() error { return &e.CPError }

// cpError gives a failure on either side its type.
func cpError(err error, vm string) error {
	var t *tree.Error
	switch {
	case errors.As(err, &t):
	case vm == "":
		return err
	default:
		return mvm.Wrap(err, "copy files of", vm)
	}
	place := t.Path
	if vm != "" && place != "" {
		place = vm + ":" + place
	}
	e := CPError{VM: vm, Path: t.Path}
	fail := func(kind mvm.Kind, hint string) {
		e.Err = mvm.Errorf(kind, "%s", t.Reason).On("copy", place).WithHint("%s", hint)
		if place == "" {
			e.Err = mvm.Errorf(kind, "cannot copy: %s", t.Reason).WithHint("%s", hint)
		}
	}
	switch t.Code {
	case tree.NotFound:
		fail(mvm.ErrNotFound, fmt.Sprintf("look with 'mvm exec %s -- ls -la DIRECTORY'", firstOf(vm, "VM")))
		if vm == "" {
			e.Err.Hint = "see 'ls -la' for what is there"
		}
		return &CPSourceNotFoundError{e}
	case tree.Exists:
		fail(mvm.ErrExists, "replace files with --force, or name another destination")
		return &CPDestinationExistsError{e}
	case tree.NotDir:
		fail(mvm.ErrInvalid, "make the directory first, or name another destination")
		return &CPDestinationNotDirectoryError{e}
	}
	fail(mvm.ErrUnavailable, "the destination is as it was before")
	return &e
}
