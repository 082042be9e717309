package image

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// sources say where the packages of a distribution come from.
type sources struct {
	list       string   // sources.list(5) lines
	components []string // "main"; "main", "universe"
	keyrings   []string // files that may sign them
	aptOptions []string // the host's proxy
}

// origins are the words by which a distribution signs, and its keys as Debian
// and Ubuntu package them.
var origins = map[string]struct {
	origin     string
	keyring    string
	pkg        string
	env        string
	components []string
}{
	"debian": {"Debian", "/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring", "MVM_DEBIAN_MIRROR", []string{"main"}},
	"ubuntu": {"Ubuntu", "/usr/share/keyrings/ubuntu-archive-keyring.gpg", "ubuntu-keyring", "MVM_UBUNTU_MIRROR", []string{"main", "universe"}},
}

// findSources returns where entry's packages come from: mirror, else the
// environment's MVM_DEBIAN_MIRROR or MVM_UBUNTU_MIRROR, else what the host's own
// package client is configured for, if that is the same distribution. Another
// release of it is taken from the same mirrors.
func findSources(ctx context.Context, r run.Runner, entry Entry, mirror string) (sources, error) {
	o := origins[entry.Type]
	s := sources{components: o.components}
	if _, err := os.Stat(o.keyring); err == nil {
		s.keyrings = append(s.keyrings, o.keyring)
	}
	if mirror == "" {
		mirror = os.Getenv(o.env)
	}
	var err error
	if mirror != "" {
		s.list, err = mirrorLines(mirror, entry.Codename, s.components)
	} else {
		s.list, err = hostLines(ctx, r, entry)
	}
	if err != nil {
		return sources{}, err
	}
	if len(s.keyrings) == 0 && !strings.Contains(s.list, "[") {
		return sources{}, mvm.Errorf(mvm.ErrUnavailable, "the keys that %s signs its packages with are not on this host", o.origin).
			WithHint("apt-get install %s", o.pkg)
	}
	s.aptOptions = hostProxy(ctx, r)
	return s, nil
}

// mirrorLines takes a URL, or lines of sources.list as they are.
func mirrorLines(mirror, codename string, components []string) (string, error) {
	mirror = strings.TrimSpace(mirror)
	if strings.HasPrefix(mirror, "deb ") {
		return mirror + "\n", nil
	}
	u, err := url.Parse(mirror)
	if err != nil || u.Host == "" && u.Scheme != "file" || !slices.Contains([]string{"http", "https", "file"}, u.Scheme) || strings.ContainsAny(mirror, " \t\n[]") {
		return "", mvm.Errorf(mvm.ErrInvalid, "the mirror %s is no URL", mvm.Quote(mirror)).WithHint("use something like https://mirror.example.org/debian")
	}
	return fmt.Sprintf("deb %s %s %s\n", mirror, codename, strings.Join(components, " ")), nil
}

// target is an index that the host's package client would read.
type target struct{ origin, uri, release, component string }

const targetFormat = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"

// hostLines asks the host's package client for its sources.
func hostLines(ctx context.Context, r run.Runner, entry Entry) (string, error) {
	o, host := origins[entry.Type], hostRelease()
	if host.Type != entry.Type {
		return "", mvm.Errorf(mvm.ErrUnsupported, "this host is no %s and has no mirror of it configured", o.origin).
			WithHint("set %s to the URL of a mirror, and install the package %s", o.env, o.pkg)
	}
	own, err := host.entry()
	if err != nil {
		return "", mvm.Errorf(mvm.ErrUnsupported, "this host runs %s, whose mirrors are not known", host).
			WithHint("set %s to the URL of a mirror", o.env)
	}
	res, err := r.Run(ctx, run.Cmd{Name: "apt-get", Args: []string{"indextargets", "--format", targetFormat, "Created-By: Packages"}})
	if err != nil {
		return "", err
	}
	list := renderSources(parseTargets(string(res.Stdout)), o.origin, own.Codename, entry.Codename)
	if list == "" {
		return "", mvm.Errorf(mvm.ErrUnavailable, "this host's package sources have no %s", own.Name).
			WithHint("run 'apt-get update', or set %s to the URL of a mirror", o.env)
	}
	return list, nil
}

func parseTargets(out string) []target {
	var ts []target
	for line := range strings.Lines(out) {
		if f := strings.Split(strings.TrimSpace(line), "|"); len(f) == 4 {
			ts = append(ts, target{f[0], f[1], f[2], f[3]})
		}
	}
	return ts
}

// renderSources makes the lines for a release out of those of the host's own.
// The origin is unknown ("$(ORIGIN)") until the client has read the mirror once.
func renderSources(ts []target, origin, own, want string) string {
	type place struct{ uri, suite string }
	var places []place
	components := map[place][]string{}
	for _, t := range ts {
		suite, rest := t.release, strings.TrimPrefix(t.release, own)
		if t.origin != origin && !strings.HasPrefix(t.origin, "$(") || rest == suite ||
			!slices.Contains([]string{"", "-updates", "-security", "/updates"}, rest) ||
			!slices.Contains([]string{"main", "universe"}, t.component) || strings.ContainsAny(t.uri, " []") {
			continue
		}
		p := place{t.uri, want + rest}
		if components[p] == nil {
			places = append(places, p)
		}
		if !slices.Contains(components[p], t.component) {
			components[p] = append(components[p], t.component)
		}
	}
	var b strings.Builder
	for _, p := range places {
		fmt.Fprintf(&b, "deb %s %s %s\n", p.uri, p.suite, strings.Join(components[p], " "))
	}
	return b.String()
}

// hostProxy returns the proxies that the host's package client is told to use;
// those of the environment reach the build by themselves.
func hostProxy(ctx context.Context, r run.Runner) []string {
	res, err := r.Run(ctx, run.Cmd{Name: "apt-config", Args: []string{"dump", "--format", "%f \"%v\";%n", "Acquire::http::Proxy", "Acquire::https::Proxy"}})
	if err != nil {
		return nil // the mirror may be reached without
	}
	var out []string
	for line := range strings.Lines(string(res.Stdout)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "Acquire::http") && !strings.HasSuffix(line, `"";`) {
			out = append(out, line)
		}
	}
	return out
}

// withoutSecrets is the list as it stands in the image: what the host logs in to
// its mirror with stays on the host, and so do paths of keys there.
func withoutSecrets(list, keyring string) string {
	var b strings.Builder
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) > 1 && strings.HasPrefix(f[1], "[") {
			end := slices.IndexFunc(f, func(s string) bool { return strings.HasSuffix(s, "]") })
			if end < 0 {
				continue
			}
			f = append(f[:1:1], f[end+1:]...)
		}
		if len(f) < 3 {
			continue
		}
		u, err := url.Parse(f[1])
		if err != nil {
			continue
		}
		u.User = nil
		fmt.Fprintf(&b, "%s [signed-by=%s] %s %s\n", f[0], keyring, u, strings.Join(f[2:], " "))
	}
	return b.String()
}
