package image

import (
	"regexp"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
)

// Tiny is the type of the image that holds busybox and an SSH server only.
const Tiny = "tiny"

// Ref names an image: "tiny", "debian:12".
type Ref struct {
	Type    string // "tiny", "debian", "ubuntu"
	Version string // "1", "12", "24.04"
}

// String returns "type:version".
func (r Ref) String() string { return r.Type + ":" + r.Version }

// Entry is an image that can be built.
type Entry struct {
	Ref
	Codename    string // "bookworm"; "" for tiny
	Name        string // "Debian 12 (bookworm)"
	Description string // one line
}

// catalog is newest first within a type.
var catalog = []Entry{
	{Ref{Tiny, "1"}, "", "Tiny Linux", "busybox and the dropbear SSH server, some megabytes, up in seconds"},
	debian("13", "trixie"),
	debian("12", "bookworm"),
	debian("11", "bullseye"),
	ubuntu("24.04", "noble"),
	ubuntu("22.04", "jammy"),
}

func debian(version, codename string) Entry {
	return Entry{Ref{"debian", version}, codename, "Debian " + version + " (" + codename + ")", "minimal Debian with systemd and OpenSSH"}
}

func ubuntu(version, codename string) Entry {
	return Entry{Ref{"ubuntu", version}, codename, "Ubuntu " + version + " (" + codename + ")", "minimal Ubuntu with systemd and OpenSSH"}
}

// Catalog returns what can be built, newest first within a type.
func Catalog() []Entry { return slices.Clone(catalog) }

var refPattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}(:[A-Za-z0-9][A-Za-z0-9._-]{0,31})?$`)

// ParseRef reads "type:version" or "type", and takes a codename for a version:
// "debian:bookworm" is debian:12. "type" alone means the release that this host
// runs, which its mirror surely has, or else the newest, as "type:latest" does.
// Both parts of the result are set. What the catalog lacks is mvm.ErrNotFound.
func ParseRef(s string) (Ref, error) {
	if !refPattern.MatchString(s) {
		return Ref{}, mvm.Errorf(mvm.ErrInvalid, "%s is not the name of an image", mvm.Quote(s)).
			WithHint("write type:version, such as debian:12, or tiny")
	}
	kind, version, _ := strings.Cut(s, ":")
	return Ref{kind, version}.resolve()
}

// on is resolve for a given host.
func (r Ref) on(host Ref) (Ref, error) {
	if r.Version == "" && r.Type == host.Type {
		if e, err := host.entry(); err == nil {
			return e.Ref, nil
		}
	}
	e, err := r.entry()
	return e.Ref, err
}

func (r Ref) resolve() (Ref, error) { return r.on(hostRelease()) }

// entry finds r in the catalog.
func (r Ref) entry() (Entry, error) {
	var versions, types []string
	for _, e := range catalog {
		if !slices.Contains(types, e.Type) {
			types = append(types, e.Type)
		}
		if e.Type != r.Type {
			continue
		}
		if r.Version == "" || r.Version == e.Version || r.Version == e.Codename || r.Version == "latest" {
			return e, nil
		}
		versions = append(versions, e.String())
	}
	if len(versions) > 0 {
		return Entry{}, mvm.Errorf(mvm.ErrNotFound, "%s has no version %s", r.Type, mvm.Quote(r.Version)).
			WithHint("there is %s", strings.Join(versions, ", "))
	}
	return Entry{}, mvm.Errorf(mvm.ErrNotFound, "there is no image type %s", mvm.Quote(r.Type)).
		WithHint("there is %s", strings.Join(types, ", "))
}
