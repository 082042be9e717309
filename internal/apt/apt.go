// Package apt fetches Debian packages with the host's package client, and
// unpacks them, without installing anything: no maintainer script runs, and
// the host's package lists and database are only read. Signatures and hashes
// are checked by the client itself, against the keys that the host trusts.
//
// It must not know what the packages are for: kernels and images do.
package apt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/run"
)

// Client fetches packages into one cache directory. Its methods may be called
// from several processes at once; they take turns.
type Client struct {
	Runner   run.Runner
	Dir      string           // cache: NAME_VERSION_ARCH.deb, and .apt with state of our own; made if missing
	Progress mvm.ProgressFunc // may be nil
}

// Deb is a package file in the cache.
type Deb struct {
	Name    string // "linux-image-cloud-amd64"
	Version string // "6.1.192-2", with epoch
	Arch    string // "amd64", "all"
	Path    string
}

// Download fetches the candidate versions of the named packages, without their
// dependencies, and returns them in the client's order. "name=version" asks for
// a version, "name:arch" for an architecture. What is in the cache already is
// not fetched again.
//
// Errors: mvm.ErrUnsupported on hosts without apt, mvm.ErrNotFound for a name
// that no package source has, mvm.ErrUnavailable when no mirror answers.
func (c *Client) Download(ctx context.Context, names ...string) ([]Deb, error) {
	return c.fetch(ctx, names, []string{"download"})
}

// DownloadClosure is Download for the packages and everything that they depend
// on, directly or not, as if nothing were installed; recommended packages are
// left out. The packages that are essential on every Debian system (dpkg,
// bash, coreutils) come only if something names them.
func (c *Client) DownloadClosure(ctx context.Context, names ...string) ([]Deb, error) {
	return c.fetch(ctx, names, []string{"install", "--yes", "--no-install-recommends", "--download-only"})
}

// Candidate returns the version of a package that Download would fetch.
// The errors are those of Download.
func (c *Client) Candidate(ctx context.Context, name string) (string, error) {
	fields, err := c.show(ctx, name)
	return fields["Version"], err
}

// dependency is one alternative in a Depends field: name, then what restricts it.
var dependency = regexp.MustCompile(`^\s*([a-z0-9][a-z0-9+.-]*)`)

// Depends returns the names of the packages that the candidate of a package
// depends on directly; of alternatives the first. The errors are those of Download.
func (c *Client) Depends(ctx context.Context, name string) ([]string, error) {
	fields, err := c.show(ctx, name)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, field := range []string{"Pre-Depends", "Depends"} {
		for part := range strings.SplitSeq(fields[field], ",") {
			if m := dependency.FindStringSubmatch(part); m != nil {
				names = append(names, m[1])
			}
		}
	}
	return names, nil
}

// show returns the fields of a package's candidate.
func (c *Client) show(ctx context.Context, name string) (map[string]string, error) {
	if err := checkNames([]string{name}); err != nil {
		return nil, err
	}
	var fields map[string]string
	err := c.locked(ctx, func(s *session) error {
		res, err := s.withLists(ctx, func(lists []string) (run.Result, error) {
			return s.apt(ctx, "apt-cache", s.dir, lists, "show", "--no-all-versions", name)
		})
		fields = parseFields(string(res.Stdout))
		if err == nil && fields["Version"] == "" {
			err = notFound(name)
		}
		return err
	})
	return fields, err
}

// parseFields reads the first stanza of a deb822 file; continued lines are left out.
func parseFields(s string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, "\n")
		if line == "" && len(fields) > 0 {
			break
		}
		if name, value, ok := strings.Cut(line, ":"); ok && line[0] != ' ' && line[0] != '\t' {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields
}

// packageName is what the client takes for a package: it cannot be an option,
// a file name, a pattern or a removal ("name-").
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*[a-z0-9+.](:[a-z0-9-]*[a-z0-9])?(=[A-Za-z0-9.+~:-]+)?$`)

func checkNames(names []string) error {
	if len(names) == 0 {
		return mvm.Errorf(mvm.ErrInvalid, "no package is named")
	}
	for _, n := range names {
		// apt takes a final + or - for "install" and "remove" where no such package exists (g++ does).
		if !packageName.MatchString(n) {
			return mvm.Errorf(mvm.ErrInvalid, "%q is no package name", n).
				WithHint("a package name has lower-case letters, digits and + - . only")
		}
	}
	return nil
}

// locked calls f while no other process works in the cache directory.
func (c *Client) locked(ctx context.Context, f func(*session) error) error {
	s := &session{Client: c, dir: filepath.Join(c.Dir, ".apt")}
	for _, d := range []string{"incoming", "cache/archives/partial", "lists/partial"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return mvm.Errorf(mvm.ErrUnavailable, "cannot make the package cache: %w", err).
				WithHint("check that %s can be written", c.Dir)
		}
	}
	lock, err := fsx.LockWait(ctx, filepath.Join(s.dir, "mvm.lock"))
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "waiting for the package cache: %w", err)
	}
	defer lock.Unlock()
	if err := s.prepare(); err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot prepare the package cache: %w", err).
			WithHint("check that %s can be written", c.Dir)
	}
	return f(s)
}

// fetch plans what verb would fetch, and fetches what the cache lacks.
func (c *Client) fetch(ctx context.Context, names, verb []string) ([]Deb, error) {
	if err := checkNames(names); err != nil {
		return nil, err
	}
	var debs []Deb
	err := c.locked(ctx, func(s *session) error {
		_, err := s.withLists(ctx, func(lists []string) (run.Result, error) {
			c.Progress.Send("resolve", "resolving packages "+strings.Join(names, " "))
			args := append([]string{verb[0], "--print-uris", "-qq"}, verb[1:]...)
			res, err := s.apt(ctx, "apt-get", s.dir, lists, append(args, names...)...)
			if err != nil {
				return res, err
			}
			plan, err := parsePlan(string(res.Stdout))
			if err != nil {
				return res, err
			}
			if len(plan) == 0 {
				return res, notFound(strings.Join(names, " "))
			}
			var got run.Result
			debs, got, err = s.get(ctx, lists, plan)
			return got, err
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return debs, nil
}

// get brings the planned files into the cache and returns them in plan order.
func (s *session) get(ctx context.Context, lists []string, plan []item) ([]Deb, run.Result, error) {
	var debs []Deb
	var missing []item
	var specs []string
	var bytes int64
	for _, it := range plan {
		debs = append(debs, it.deb(s.Dir))
		if err := it.check(filepath.Join(s.Dir, it.file)); err != nil {
			missing, specs, bytes = append(missing, it), append(specs, it.spec()), bytes+it.size
		}
	}
	if len(missing) == 0 {
		return debs, run.Result{}, nil
	}
	s.Progress.Send("download", fmt.Sprintf("downloading %d packages, %.1f MiB", len(missing), float64(bytes)/(1<<20)))
	incoming := filepath.Join(s.dir, "incoming")
	res, err := s.apt(ctx, "apt-get", incoming, lists, append([]string{"download", "-qq"}, specs...)...)
	if err != nil {
		return nil, res, err
	}
	for _, it := range missing {
		from := filepath.Join(incoming, it.file)
		err := it.check(from)
		if err == nil {
			err = os.Rename(from, filepath.Join(s.Dir, it.file))
		}
		if err != nil {
			return nil, res, mvm.Errorf(mvm.ErrUnavailable, "the package client did not fetch %s: %w", it.file, err).
				WithHint("run 'apt-get download %s' to see why", it.name)
		}
	}
	return debs, res, fsx.SyncDir(s.Dir)
}

func notFound(names string) error {
	return mvm.Errorf(mvm.ErrNotFound, "the host's package sources have no package %s", names).
		WithHint("check the name, and the sources in /etc/apt/sources.list and /etc/apt/sources.list.d")
}

// isTool reports whether err is a tool's own failure.
func isTool(err error) (*run.ExitError, bool) {
	var e *run.ExitError
	ok := errors.As(err, &e)
	return e, ok
}
