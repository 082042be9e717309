package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/mvmctl/mvm"
)

// found is an image in its source.
type found struct {
	v1.Image
	typ, version string
	digest       v1.Hash // of its manifest
	verified     string  // one of mvm's Verified constants
}

// find looks an image up, for one architecture.
func (r Ref) find(ctx context.Context, o Options) (found, error) {
	switch r.scheme {
	case archiveScheme:
		return r.inArchive()
	case layoutScheme:
		return r.inLayout(r.path, o.Arch)
	}
	if o.Mirror != "" && !strings.HasPrefix(o.Mirror, "http://") && !strings.HasPrefix(o.Mirror, "https://") {
		return r.inMirror(o)
	}
	return r.inRegistry(ctx, o)
}

// inMirror reads a directory that stands in for registries: it holds an OCI layout
// for each repository, at REGISTRY/REPOSITORY.
func (r Ref) inMirror(o Options) (found, error) {
	registry := r.named.Context().RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	dir := filepath.Join(o.Mirror, registry, filepath.FromSlash(r.named.Context().RepositoryStr()))
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return found{}, mvm.Errorf(mvm.ErrNotFound, "the mirror has no %s", dir).
			WithHint("put an OCI layout there, for example with 'skopeo copy', or unset MVM_ASSET_MIRROR")
	}
	in := Ref{scheme: layoutScheme, path: dir, tag: r.named.Identifier()}
	f, err := in.inLayout(dir, o.Arch)
	f.typ, f.version = typeVersion(r.named)
	return f, err
}

func (r Ref) inRegistry(ctx context.Context, o Options) (found, error) {
	ref, err := r.at(o)
	if err != nil {
		return found{}, err
	}
	base, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		return found{}, errors.New("the registry client has another transport than expected")
	}
	t := &guard{base: base.Clone(), plain: o.Insecure || strings.HasPrefix(o.Mirror, "http://")}
	keys := o.Keychain
	if keys == nil {
		keys = authn.DefaultKeychain
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithTransport(t), remote.WithAuthFromKeychain(keys), remote.WithUserAgent("mvm")}
	if o.backoff != nil {
		opts = append(opts, remote.WithRetryBackoff(*o.backoff))
	}
	d, err := remote.Get(ref, opts...)
	if err != nil {
		return found{}, registryFault(ctx, err, ref)
	}
	f := found{verified: mvm.VerifiedChecksum}
	f.typ, f.version = typeVersion(r.named)
	switch d.MediaType {
	case types.OCIImageIndex, types.DockerManifestList:
		index, err := d.ImageIndex()
		if err != nil {
			return found{}, registryFault(ctx, err, ref)
		}
		f.Image, f.digest, err = choose(index, o.Arch)
		return f, registryFault(ctx, err, ref)
	case types.OCIManifestSchema1, types.DockerManifestSchema2:
		f.digest = d.Digest
		f.Image, err = d.Image()
		return f, registryFault(ctx, err, ref)
	}
	return found{}, mvm.Errorf(mvm.ErrUnsupported, "it is of the kind %s, which is no container image", mvm.Quote(string(d.MediaType))).
		WithHint("name an image that docker can run")
}

// at is the reference with the mirror in place of its registry.
func (r Ref) at(o Options) (name.Reference, error) {
	var opts []name.Option
	registry := r.named.Context().RegistryStr()
	if o.Insecure {
		opts = append(opts, name.Insecure)
	}
	if o.Mirror != "" {
		u, err := url.Parse(o.Mirror)
		if err != nil || u.Host == "" {
			return nil, mvm.Errorf(mvm.ErrInvalid, "the mirror %s is no address", mvm.Quote(o.Mirror)).WithHint("check MVM_ASSET_MIRROR")
		}
		registry = u.Host
		if u.Scheme == "http" {
			opts = append(opts, name.Insecure)
		}
	}
	sep := ":"
	if _, ok := r.named.(name.Digest); ok {
		sep = "@"
	}
	return name.ParseReference(registry+"/"+r.named.Context().RepositoryStr()+sep+r.named.Identifier(), opts...)
}

// guard lets plain HTTP through to this host only, unless it was asked for.
type guard struct {
	base  http.RoundTripper
	plain bool
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !g.plain && !loopback(r.URL.Hostname()) {
		return nil, errPlain
	}
	return g.base.RoundTrip(r)
}

var errPlain = errors.New("the registry speaks plain HTTP")

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// choose takes the image for an architecture from an index.
func choose(index v1.ImageIndex, arch string) (v1.Image, v1.Hash, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, v1.Hash{}, err
	}
	return chooseOf(index, m.Manifests, arch)
}

func chooseOf(index v1.ImageIndex, all []v1.Descriptor, arch string) (v1.Image, v1.Hash, error) {
	var there []string
	for _, d := range all {
		if !d.MediaType.IsImage() || d.Platform == nil && len(all) > 1 {
			continue
		}
		if d.Platform != nil && (d.Platform.OS != "linux" || d.Platform.Architecture != goArch(arch)) {
			if p := d.Platform.OS + "/" + d.Platform.Architecture; d.Platform.OS != "unknown" && !slices.Contains(there, p) {
				there = append(there, p)
			}
			continue
		}
		img, err := index.Image(d.Digest)
		return img, d.Digest, err
	}
	e := mvm.Errorf(mvm.ErrUnsupported, "it is not there for linux/%s", goArch(arch))
	if len(there) > 0 {
		slices.Sort(there)
		return nil, v1.Hash{}, e.WithHint("it is there for %s", strings.Join(there, ", "))
	}
	return nil, v1.Hash{}, e.WithHint("name another image")
}

// goArch is what images call an architecture of uname(1).
func goArch(arch string) string {
	switch arch {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return arch
}

// unameArch is the reverse.
func unameArch(arch string) string {
	switch arch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return arch
}

// refName is the annotation with a tag in an OCI layout.
const refName = "org.opencontainers.image.ref.name"

func (r Ref) inLayout(dir, arch string) (found, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return found{}, mvm.Errorf(mvm.ErrInvalid, "%s is no OCI layout: %w", dir, err).WithHint("give the directory that has oci-layout and index.json in it")
	}
	m, err := index.IndexManifest()
	if err != nil {
		return found{}, mvm.Errorf(mvm.ErrInvalid, "%s is no OCI layout: %w", dir, err).WithHint("make it anew")
	}
	var fit []v1.Descriptor
	var tags []string
	for _, d := range m.Manifests {
		tag := d.Annotations[refName]
		tags = append(tags, tag)
		if r.tag == "" || tag == r.tag || d.Digest.String() == r.tag {
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return found{}, mvm.Errorf(mvm.ErrNotFound, "%s has no image %s", dir, mvm.Quote(r.tag)).WithHint("it has %s", strings.Join(tags, ", "))
	}
	f := found{typ: Scheme + pathName(dir), version: firstOf(fit[0].Annotations[refName], r.tag, "latest"), verified: mvm.VerifiedLocal}
	if i := strings.LastIndexAny(f.version, ":/"); i >= 0 { // some write the whole name there
		if n, err := name.NewTag(f.version); err == nil {
			f.typ, f.version = typeVersion(n)
		}
	}
	switch {
	case len(fit) > 1:
		f.Image, f.digest, err = chooseOf(index, fit, arch)
	case fit[0].MediaType.IsIndex():
		var inner v1.ImageIndex
		if inner, err = index.ImageIndex(fit[0].Digest); err == nil {
			f.Image, f.digest, err = choose(inner, arch)
		}
	default:
		f.digest = fit[0].Digest
		f.Image, err = index.Image(f.digest)
	}
	return f, localFault(err, dir)
}

func (r Ref) inArchive() (found, error) {
	opener := tarball.Opener(func() (readCloser, error) { return os.Open(r.path) })
	all, err := tarball.LoadManifest(opener)
	if err != nil {
		return found{}, localFault(fmt.Errorf("it is no archive of 'docker save': %w", err), r.path)
	}
	var tag *name.Tag
	f := found{typ: Scheme + pathName(r.path), version: "latest", verified: mvm.VerifiedLocal}
	if r.tag == "" && len(all) == 1 && len(all[0].RepoTags) > 0 {
		if n, err := name.NewTag(all[0].RepoTags[0]); err == nil {
			f.typ, f.version = typeVersion(n)
		}
	}
	if r.tag != "" {
		n, err := name.NewTag(r.tag)
		if err != nil {
			return found{}, mvm.Errorf(mvm.ErrInvalid, "%s is not the name of an image in the archive", mvm.Quote(r.tag)).WithHint("write %s%s:NAME:TAG", archiveScheme, r.path)
		}
		tag = &n
		f.typ, f.version = typeVersion(n)
	} else if len(all) > 1 {
		var names []string
		for _, m := range all {
			names = append(names, m.RepoTags...)
		}
		return found{}, mvm.Errorf(mvm.ErrAmbiguous, "%s holds %d images", r.path, len(all)).WithHint("add one of %s to the path, behind a colon", strings.Join(names, ", "))
	}
	f.Image, err = tarball.Image(opener, tag)
	if err == nil {
		f.digest, err = f.Digest()
	}
	return f, localFault(err, r.path)
}

// pathName makes a name for an image out of the path that it came from.
func pathName(path string) string {
	base := strings.ToLower(filepath.Base(path))
	for _, end := range []string{".gz", ".tar", ".tgz", ".oci"} {
		base = strings.TrimSuffix(base, end)
	}
	clean := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, base), "._-")
	return firstOf(clean, "image")
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// localFault words an error of a file that the user named.
func localFault(err error, path string) error {
	var e *mvm.Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return mvm.Errorf(mvm.ErrNotFound, "%s: %w", path, err).WithHint("check the path")
	case errors.Is(err, fs.ErrPermission):
		return mvm.Errorf(mvm.ErrPrivilege, "%s: %w", path, err).WithHint("check its owner and mode")
	}
	return mvm.Errorf(mvm.ErrInvalid, "%s: %w", path, err).WithHint("make it anew")
}

// registryFault words what a registry, or the way to it, said.
func registryFault(ctx context.Context, err error, ref name.Reference) error {
	var e *mvm.Error
	var said *transport.Error
	registry := ref.Context().RegistryStr()
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errPlain):
		return mvm.Errorf(mvm.ErrUnavailable, "%s does not speak HTTPS: %w", registry, err).WithHint("add --insecure if the way to it is safe")
	case errors.As(err, &said) && (said.StatusCode == http.StatusUnauthorized || said.StatusCode == http.StatusForbidden):
		return mvm.Errorf(mvm.ErrPrivilege, "%s lets only those in who log in, or has no such image (status %d)", registry, said.StatusCode).
			WithHint("check the name; log in with 'docker login %s', or set DOCKER_CONFIG to the directory with your config.json", registry)
	case errors.As(err, &said) && said.StatusCode == http.StatusNotFound:
		return mvm.Errorf(mvm.ErrNotFound, "%s has no such image", registry).WithHint("check its name and tag")
	case errors.As(err, &said) && said.StatusCode == http.StatusTooManyRequests:
		return mvm.Errorf(mvm.ErrUnavailable, "%s takes no more requests for now", registry).WithHint("try again later, or log in with 'docker login %s'", registry)
	}
	return mvm.Errorf(mvm.ErrUnavailable, "%s: %w", registry, err).WithHint("check the network and HTTPS_PROXY, or set MVM_ASSET_MIRROR")
}
