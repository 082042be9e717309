package binary

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/run"
)

// Repository is where Firecracker's source is.
const Repository = "https://github.com/firecracker-microvm/firecracker.git"

// BuildOptions say what to build and where to.
type BuildOptions struct {
	Dir        string // where the binaries go; made if missing
	Repository string // URL or path of a git repository; "" is Firecracker's
	BuildDir   string // for the source and objects; removed at the end
	LogDir     string // made if missing
	Runner     run.Runner
	Progress   mvm.ProgressFunc
}

var (
	refForm     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}$`)
	versionLine = regexp.MustCompile(`^(?:Firecracker|Jailer) v([0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}(?:[-+.][0-9A-Za-z.+-]{1,64})?)$`)
	commitForm  = regexp.MustCompile(`^[0-9a-f]{40,64}$`)
)

// CheckRef refuses what is no git reference, or could be taken for an option.
func CheckRef(ref string) error {
	if !refForm.MatchString(ref) || strings.Contains(ref, "..") || strings.Contains(ref, "//") {
		return mvm.Errorf(mvm.ErrInvalid, "%s is no git reference", mvm.Quote(ref)).WithHint("use a tag like v1.16.1, a branch or a commit")
	}
	return nil
}

// BuildFirecracker builds Firecracker and its jailer from a git reference with cargo,
// and leaves firecracker-vVERSION and jailer-vVERSION in o.Dir, by the version that
// both say. warning is what the user should know of how it was built, mostly "".
//
// Errors: mvm.ErrInvalid for what is no reference, mvm.ErrUnavailable for missing
// tools or a repository that does not answer, mvm.ErrNotFound for a reference that it
// does not have, *mvm.BuildError with the end of the log where the build fails.
func BuildFirecracker(ctx context.Context, ref string, o BuildOptions) (rel Release, warning string, err error) {
	if err := CheckRef(ref); err != nil {
		return Release{}, "", err
	}
	rel, warning, err = o.build(ctx, ref)
	return rel, warning, mvm.Wrap(err, "build", "firecracker at "+ref)
}

func (o BuildOptions) build(ctx context.Context, ref string) (Release, string, error) {
	if o.Repository == "" {
		o.Repository = Repository
	}
	if strings.HasPrefix(o.Repository, "-") || strings.Contains(o.Repository, "::") {
		return Release{}, "", mvm.Errorf(mvm.ErrInvalid, "%s is no git repository", mvm.Quote(o.Repository)).WithHint("set defaults.binary repository to a URL or path")
	}
	if err := needTools("git", "cargo", "rustc", "cc"); err != nil {
		return Release{}, "", err
	}
	for _, dir := range []string{o.Dir, o.LogDir, filepath.Dir(o.BuildDir)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return Release{}, "", mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("check that it can be written")
		}
	}
	lock, err := fsx.LockWait(ctx, o.BuildDir+".lock")
	if err != nil {
		return Release{}, "", err
	}
	defer lock.Unlock()
	if err := os.RemoveAll(o.BuildDir); err != nil { // of a build that was killed
		return Release{}, "", err
	}
	defer func() { _ = os.RemoveAll(o.BuildDir) }()
	source := filepath.Join(o.BuildDir, "source")
	if err := os.MkdirAll(source, 0o700); err != nil {
		return Release{}, "", err
	}
	commit, err := o.checkout(ctx, source, ref)
	if err != nil {
		return Release{}, "", err
	}
	programs, warning, err := o.cargo(ctx, source, ref)
	if err != nil {
		return Release{}, "", err
	}
	rel, err := o.place(ctx, programs)
	rel.Provenance = mvm.Provenance{Source: shown(o.Repository) + "#" + ref + "@" + commit, Verification: mvm.VerifiedLocal}
	return rel, warning, err
}

func needTools(names ...string) error {
	packages := map[string]string{"git": "git", "cargo": "cargo", "rustc": "rustc", "cc": "gcc"}
	var missing, install []string
	for _, n := range names {
		if !host.Has(n) {
			missing, install = append(missing, n), append(install, packages[n])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return mvm.Errorf(mvm.ErrUnavailable, "building Firecracker needs %s", strings.Join(missing, ", ")).
		WithHint("apt-get install %s; Firecracker may want a newer Rust than the distribution has: see rustup.rs", strings.Join(install, " "))
}

// shown is a repository's address without what may be a password.
func shown(repository string) string {
	scheme, rest, ok := strings.Cut(repository, "://")
	if !ok {
		return repository
	}
	if at := strings.LastIndex(rest, "@"); at >= 0 {
		rest = rest[at+1:]
	}
	return scheme + "://" + rest
}

// checkout brings one commit of the repository, without its history.
func (o BuildOptions) checkout(ctx context.Context, dir, ref string) (commit string, err error) {
	o.Progress.Send("clone", "fetching "+ref+" from "+shown(o.Repository))
	git := func(args ...string) (string, error) {
		env := append(os.Environ(), "LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_ALLOW_PROTOCOL=file:git:http:https:ssh", "GIT_CONFIG_NOSYSTEM=1")
		res, err := o.Runner.Run(ctx, run.Cmd{Name: "git", Args: append([]string{"-C", dir, "-c", "core.hooksPath=/dev/null", "-c", "protocol.file.allow=always"}, args...), Env: env})
		return strings.TrimSpace(string(res.Stdout)), err
	}
	if _, err := git("init", "--quiet"); err != nil {
		return "", err
	}
	if _, err := git("fetch", "--quiet", "--depth=1", "--no-tags", "--", o.Repository, ref); err != nil {
		return "", fetchFailed(err, ref)
	}
	if _, err := git("checkout", "--quiet", "--detach", "FETCH_HEAD"); err != nil {
		return "", err
	}
	commit, err = git("rev-parse", "HEAD")
	if err == nil && !commitForm.MatchString(commit) {
		err = mvm.Errorf(mvm.ErrBroken, "git names the commit %s", mvm.Quote(commit))
	}
	return commit, err
}

func fetchFailed(err error, ref string) error {
	var exit *run.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if strings.Contains(exit.Stderr, "couldn't find remote ref") || strings.Contains(exit.Stderr, "not our ref") {
		return mvm.Errorf(mvm.ErrNotFound, "the repository has no %s", mvm.Quote(ref)).WithHint("use a tag like v1.16.1, a branch or a whole commit")
	}
	last := strings.TrimSpace(exit.Stderr)
	if i := strings.LastIndex(last, "\n"); i >= 0 {
		last = last[i+1:]
	}
	return mvm.Errorf(mvm.ErrUnavailable, "the repository cannot be fetched: %s", last).
		WithHint("check the network and 'mvm config get defaults.binary repository'")
}

// cargo builds the two programs, static, because the jailer's root directory has no
// libraries. Firecracker has system call filters for musl only: where that is not
// installed for Rust, the build does without them, and says so.
func (o BuildOptions) cargo(ctx context.Context, source, ref string) (programs [2]string, warning string, err error) {
	out := filepath.Join(o.BuildDir, "target")
	triple, musl, err := o.target(ctx)
	if err != nil {
		return programs, "", err
	}
	flags := ""
	if !musl {
		flags = "-C target-feature=+crt-static"
		warning = "built for " + triple + ", for which Firecracker has no system call filters: 'rustup target add " +
			strings.Replace(triple, "-gnu", "-musl", 1) + "' and build it again to have them"
	}
	log := filepath.Join(o.LogDir, "firecracker-"+strings.NewReplacer("/", "_").Replace(ref)+".log")
	file, err := os.Create(log)
	if err != nil {
		return programs, "", mvm.Errorf(mvm.ErrUnavailable, "%w", err).WithHint("check that %s can be written", o.LogDir)
	}
	defer func() { _ = file.Close() }()
	w := &cargoLog{to: file, progress: o.Progress}
	o.Progress.Send("compile", "compiling "+ref)
	env := append(os.Environ(), "LC_ALL=C", "CARGO_TARGET_DIR="+out, "CARGO_TERM_COLOR=never", "RUSTFLAGS="+flags)
	_, err = o.Runner.Run(ctx, run.Cmd{
		Name: "cargo", Args: []string{"build", "--release", "--locked", "--target", triple, "--package", "firecracker", "--package", "jailer"},
		Dir: source, Env: env, Stdout: w, Stderr: w,
	})
	if errors.As(err, new(*run.ExitError)) {
		_ = file.Sync()
		cause, tail := w.tail()
		return programs, "", &mvm.BuildError{Log: log, Cause: cause, Tail: tail}
	}
	dir := filepath.Join(out, triple, "release")
	return [2]string{filepath.Join(dir, "firecracker"), filepath.Join(dir, "jailer")}, warning, err
}

// target returns what to build for: musl where Rust has it here.
func (o BuildOptions) target(ctx context.Context) (triple string, musl bool, err error) {
	ask := func(args ...string) (string, error) {
		res, err := o.Runner.Run(ctx, run.Cmd{Name: "rustc", Args: args})
		return strings.TrimSpace(string(res.Stdout)), err
	}
	about, err := ask("-vV")
	if err != nil {
		return "", false, err
	}
	for line := range strings.Lines(about) {
		if h, ok := strings.CutPrefix(strings.TrimSpace(line), "host: "); ok {
			triple = h
		}
	}
	if triple == "" {
		return "", false, mvm.Errorf(mvm.ErrBroken, "rustc does not say what it compiles for").WithHint("install Rust again")
	}
	static := strings.Replace(triple, "-gnu", "-musl", 1)
	if dir, err := ask("--print", "target-libdir", "--target", static); err == nil {
		if found, _ := filepath.Glob(filepath.Join(dir, "libstd-*")); len(found) > 0 {
			return static, true, nil
		}
	}
	return triple, false, nil
}

// place asks both programs for their version and puts them in place.
func (o BuildOptions) place(ctx context.Context, programs [2]string) (Release, error) {
	var said [2]string
	for i, name := range []string{"Firecracker", "Jailer"} {
		v, err := Version(ctx, o.Runner, programs[i], name)
		if err != nil {
			return Release{}, err
		}
		said[i] = v
	}
	if said[0] != said[1] {
		return Release{}, mvm.Errorf(mvm.ErrBroken, "the jailer is version %s, and Firecracker %s", said[1], said[0]).WithHint("choose another reference")
	}
	rel := Release{Version: said[0], Firecracker: filepath.Join(o.Dir, "firecracker-v"+said[0]), Jailer: filepath.Join(o.Dir, "jailer-v"+said[0])}
	tmp, err := os.MkdirTemp(o.Dir, ".firecracker-*.tmp")
	if err != nil {
		return Release{}, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	for _, p := range []struct{ from, to string }{{programs[1], rel.Jailer}, {programs[0], rel.Firecracker}} {
		in, err := os.Open(p.from)
		if err != nil {
			return Release{}, err
		}
		copied := filepath.Join(tmp, filepath.Base(p.to))
		err = errors.Join(writeProgram(copied, in), in.Close())
		if err == nil {
			err = os.Rename(copied, p.to)
		}
		if err != nil {
			return Release{}, err
		}
	}
	return rel, fsx.SyncDir(o.Dir)
}

// Version asks a program for its version; name is what it has to call itself,
// "Firecracker" or "Jailer".
func Version(ctx context.Context, r run.Runner, path, name string) (string, error) {
	res, err := r.Run(ctx, run.Cmd{Name: path, Args: []string{"--version"}, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		return "", mvm.Errorf(mvm.ErrBroken, "%s does not run: %w", filepath.Base(path), err).WithHint("is it for this machine?")
	}
	first, _, _ := strings.Cut(string(res.Stdout), "\n")
	first = strings.TrimSpace(first)
	m := versionLine.FindStringSubmatch(first)
	if m == nil || !strings.HasPrefix(first, name+" ") {
		return "", mvm.Errorf(mvm.ErrBroken, "%s says that it is %s, not %s", filepath.Base(path), mvm.Quote(first[:min(len(first), 60)]), name).
			WithHint("is it the right program?")
	}
	return m[1], nil
}

// cargoLog writes what a build says into a file, tells which crate it is at, and
// keeps the first error and the last lines.
type cargoLog struct {
	mu       sync.Mutex
	to       io.Writer
	progress mvm.ProgressFunc
	line     []byte
	last     []string
	first    string // error
	crates   int64
}

// Write implements io.Writer.
func (c *cargoLog) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.line = append(c.line, p...)
	for {
		line, rest, ok := bytes.Cut(c.line, []byte("\n"))
		if !ok {
			break
		}
		c.take(strings.TrimRight(string(line), " \r"))
		c.line = rest
	}
	return c.to.Write(p)
}

func (c *cargoLog) take(line string) {
	if crate, ok := strings.CutPrefix(strings.TrimSpace(line), "Compiling "); ok {
		c.crates++
		if c.progress != nil {
			c.progress(mvm.ProgressEvent{Phase: "compile", Message: crate, Current: c.crates, Unit: "crates"})
		}
	}
	if line == "" {
		return
	}
	if c.first == "" && strings.HasPrefix(line, "error") {
		c.first = line
	}
	if c.last = append(c.last, line); len(c.last) > 12 {
		c.last = c.last[1:]
	}
}

func (c *cargoLog) tail() (cause string, lines []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == "" || slices.Contains(c.last, c.first) {
		return c.first, c.last
	}
	return c.first, append([]string{c.first}, c.last...)
}
