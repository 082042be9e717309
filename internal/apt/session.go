package apt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/run"
)

// session is a client that holds the lock of its cache.
type session struct {
	*Client
	dir string // our own apt state: c.Dir/.apt
}

// quietHooks is read after the host's configuration. Hooks of the host that
// run after a list update (they empty the host's cache, or tell a desktop)
// are not for lists of our own, nor are indices that only desktops read.
const quietHooks = `#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::CNF;
#clear Acquire::IndexTargets::deb::Contents-deb;
Acquire::Languages "none";
`

// prepare makes the state that every call needs, and removes what an
// interrupted download left.
func (s *session) prepare() error {
	incoming := filepath.Join(s.dir, "incoming")
	return errors.Join(
		os.RemoveAll(incoming),
		os.Mkdir(incoming, 0o700),
		fsx.WriteFile(filepath.Join(s.dir, "apt.conf"), []byte(quietHooks), 0o600),
		fsx.WriteFile(filepath.Join(s.dir, "status"), nil, 0o600), // nothing is installed
	)
}

// apt runs one of the client's programs in dir, reading the package lists that
// the options in lists name.
func (s *session) apt(ctx context.Context, program, dir string, lists []string, args ...string) (run.Result, error) {
	opts := []string{
		"-c", filepath.Join(s.dir, "apt.conf"),
		"-o", "Dir::State::status=" + filepath.Join(s.dir, "status"),
		"-o", "Dir::State::extended_states=" + filepath.Join(s.dir, "extended_states"),
		"-o", "Dir::Cache=" + filepath.Join(s.dir, "cache"),
		"-o", "Acquire::ForceHash=sha256",
		"-o", "Acquire::Retries=2",
		"-o", "APT::Get::AllowUnauthenticated=false",
		"-o", "Acquire::AllowInsecureRepositories=false",
	}
	if os.Geteuid() == 0 {
		// As root the client would hand the transfer to the user _apt, who cannot
		// write into a private cache directory.
		opts = append(opts, "-o", "APT::Sandbox::User=root")
	}
	args = append(append(opts, lists...), args...)
	// A later assignment wins, so messages are in the language that failure() reads.
	env := append(os.Environ(), "LC_ALL=C", "LANGUAGE=", "DEBIAN_FRONTEND=noninteractive")
	res, err := s.Runner.Run(ctx, run.Cmd{Name: program, Args: args, Dir: dir, Env: env})
	if errors.Is(err, mvm.ErrUnavailable) && mvm.HintOf(err) != "" && ctx.Err() == nil {
		return res, mvm.Errorf(mvm.ErrUnsupported, "this host has no apt package client").
			WithHint("on a host that is not Debian or Ubuntu, import a kernel and an image file instead")
	}
	return res, err
}

// freshFor is how long lists of our own are used without asking the mirror.
const freshFor = time.Hour

// withLists calls try with the host's package lists, and if those are missing
// or too old for it, with lists of our own, brought up to date where needed.
func (s *session) withLists(ctx context.Context, try func(lists []string) (run.Result, error)) (run.Result, error) {
	res, err := try(nil)
	if !listsMayHelp(err) {
		return res, failure(err, "")
	}
	own := []string{"-o", "Dir::State::Lists=" + filepath.Join(s.dir, "lists")}
	stamp := filepath.Join(s.dir, "updated")
	if st, statErr := os.Stat(stamp); statErr == nil && time.Since(st.ModTime()).Abs() < freshFor {
		if res, err = try(own); !listsMayHelp(err) {
			return res, failure(err, "")
		}
	}
	s.Progress.Send("update", "reading the package lists of the host's mirror")
	upd, updErr := s.apt(ctx, "apt-get", s.dir, own, "update", "-q")
	if updErr != nil && ctx.Err() != nil {
		return upd, updErr
	}
	if updErr == nil {
		if err := fsx.WriteFile(stamp, nil, 0o600); err != nil {
			return res, err
		}
	}
	// One dead source among several is no failure: what counts is whether the package is found.
	res, err = try(own)
	return res, failure(err, string(upd.Stderr))
}

// listsMayHelp reports whether err can come from lists that are missing or old.
func listsMayHelp(err error) bool {
	if errors.Is(err, mvm.ErrNotFound) {
		return true
	}
	e, ok := isTool(err)
	if !ok {
		return false
	}
	for _, sign := range []string{"Unable to locate package", "No packages found", "Can't find a source",
		"has no installation candidate", "was not found", "404", "Failed to fetch", "Hash Sum mismatch",
		"unmet dependencies", "Couldn't find any package"} {
		if strings.Contains(e.Stderr, sign) {
			return true
		}
	}
	return false
}

// noNetwork are the words of a client whose mirror does not answer.
var noNetwork = []string{"Temporary failure resolving", "Could not resolve", "Could not connect", "Unable to connect",
	"Connection failed", "Connection refused", "Connection timed out", "Network is unreachable", "No route to host"}

// failure turns what the client says into a kind and a hint. updateLog is what
// the last list update wrote to stderr.
func failure(err error, updateLog string) error {
	e, ok := isTool(err)
	if err == nil || (!ok && !errors.Is(err, mvm.ErrNotFound)) {
		return err
	}
	log := updateLog
	if ok {
		log += e.Stderr
	}
	for _, sign := range noNetwork {
		if strings.Contains(log, sign) {
			return mvm.Errorf(mvm.ErrUnavailable, "the package mirror does not answer: %s", lastError(log)).
				WithHint("check the network and the sources in /etc/apt/sources.list and /etc/apt/sources.list.d")
		}
	}
	if !ok {
		return err
	}
	if strings.Contains(e.Stderr, "Unable to locate package") || strings.Contains(e.Stderr, "No packages found") ||
		strings.Contains(e.Stderr, "Couldn't find any package") {
		return mvm.Errorf(mvm.ErrNotFound, "the host's package sources lack it: %s", lastError(e.Stderr)).
			WithHint("check the name, and the sources in /etc/apt/sources.list and /etc/apt/sources.list.d")
	}
	return mvm.Errorf(mvm.ErrUnavailable, "the package client failed: %w", err).
		WithHint("run 'apt-get update' and try again")
}

// lastError returns the last complaint in the client's output, without its mark.
func lastError(log string) string {
	last := "no reason given"
	for line := range strings.Lines(log) {
		for _, mark := range []string{"E: ", "W: ", "Err:"} {
			if rest, ok := strings.CutPrefix(line, mark); ok && !strings.HasPrefix(rest, "Some index files failed") {
				last = strings.TrimSpace(rest)
			}
		}
	}
	return last
}
