// Package oci gets container images, from registries, from archives of `docker
// save` and from OCI layouts, and makes root disks of them: digests are verified,
// layers applied in order, and how the image wants to be run is kept. No program of
// an image runs, and nothing of it is unpacked on the host.
//
// It must not know of VMs or the store.
package oci

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/mvmctl/mvm"
)

// Scheme begins the names of images of registries.
const Scheme = "oci://"

const (
	archiveScheme = "docker-archive:"
	layoutScheme  = "oci-layout:"
)

// Ref says where a container image is.
type Ref struct {
	scheme string
	path   string // of an archive or a layout, absolute
	tag    string // which image in there; "" for the only one
	named  name.Reference
}

// IsRef says whether s is meant as the name of a container image.
func IsRef(s string) bool {
	return strings.HasPrefix(s, Scheme) || strings.HasPrefix(s, archiveScheme) || strings.HasPrefix(s, layoutScheme)
}

// ParseRef reads "oci://[REGISTRY/]REPOSITORY[:TAG|@DIGEST]" with docker's defaults,
// "docker-archive:PATH[:REPOSITORY:TAG]" or "oci-layout:PATH[:TAG]".
func ParseRef(s string) (Ref, error) {
	if rest, ok := strings.CutPrefix(s, Scheme); ok {
		n, err := name.ParseReference(rest)
		if err != nil || slices.ContainsFunc(strings.Split(n.Context().Name(), "/"), dots) {
			return Ref{}, mvm.Errorf(mvm.ErrInvalid, "%s is not the name of a container image", mvm.Quote(s)).
				WithHint("write for example oci://alpine:3.20, oci://ghcr.io/owner/app:tag or oci://name@sha256:DIGEST")
		}
		return Ref{scheme: Scheme, named: n}, nil
	}
	for _, scheme := range []string{archiveScheme, layoutScheme} {
		rest, ok := strings.CutPrefix(s, scheme)
		if !ok {
			continue
		}
		path, tag := rest, ""
		if _, err := os.Stat(path); err != nil {
			path, tag, _ = strings.Cut(rest, ":")
		}
		abs, err := filepath.Abs(path)
		if err != nil || path == "" {
			return Ref{}, mvm.Errorf(mvm.ErrInvalid, "%s names no path", mvm.Quote(s)).WithHint("write %sPATH", scheme)
		}
		return Ref{scheme: scheme, path: abs, tag: tag}, nil
	}
	return Ref{}, mvm.Errorf(mvm.ErrInvalid, "%s is not the name of a container image", mvm.Quote(s)).WithHint("write for example oci://alpine:3.20")
}

// dots tells names that would mean another directory in a mirror.
func dots(s string) bool { return strings.Trim(s, ".") == "" }

// String is the name in full.
func (r Ref) String() string {
	if r.named != nil {
		typ, version := typeVersion(r.named)
		if strings.HasPrefix(version, "sha256:") {
			return typ + "@" + version
		}
		return typ + ":" + version
	}
	if r.tag != "" {
		return r.scheme + r.path + ":" + r.tag
	}
	return r.scheme + r.path
}

// TypeVersion is under which type and version the image is kept. Of an archive or a
// layout only its content says, and ok is false.
func (r Ref) TypeVersion() (typ, version string, ok bool) {
	if r.named == nil {
		return "", "", false
	}
	typ, version = typeVersion(r.named)
	return typ, version, true
}

// typeVersion has the names that docker shows: without the registry and the
// "library/" that it takes for granted.
func typeVersion(n name.Reference) (typ, version string) {
	return Scheme + familiar(n.Context()), n.Identifier()
}

func familiar(r name.Repository) string {
	if r.RegistryStr() == name.DefaultRegistry {
		return strings.TrimPrefix(r.RepositoryStr(), "library/")
	}
	return r.Name()
}
