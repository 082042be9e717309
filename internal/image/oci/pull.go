package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/image"
	"github.com/mvmctl/mvm/internal/rootfs"
	"github.com/mvmctl/mvm/internal/run"
)

// Options say how an image is got and where it goes.
type Options struct {
	Runner   run.Runner
	Dest     string         // directory to make, which then holds the image
	Arch     string         // as uname -m says it; "" is the host's
	Have     string         // digest of what is there already: not got again
	Insecure bool           // plain HTTP, and not only to this host
	Mirror   string         // directory of OCI layouts, or URL of a registry, that stands in for all registries; "" for none
	Keychain authn.Keychain // nil has docker's credentials, or podman's
	Progress mvm.ProgressFunc

	backoff *remote.Backoff // of requests; nil has the library's
}

// Pulled is an image that is complete, or with the digest that was there already none
// but that.
type Pulled struct {
	Path          string // the raw file, in Options.Dest
	Type, Version string // "oci://alpine", "3.20"
	Arch          string // "x86_64"
	Digest        string // of the manifest: "sha256:…"
	Source        string // the name with its digest, which gets the same image again
	Verification  string // one of mvm's Verified constants
	Distro        string // "alpine 3.20.3", "" where the image does not say
	Container     *mvm.ContainerConfig
	Compressed    int64 // bytes of the layers as they came
	rootfs.Result
}

// The limits of an image. Package ext4 states those of the files in it.
const (
	maxLayers     = 512
	maxCompressed = 64 << 30
	maxContents   = 64 << 30
	downloads     = 3 // at a time
)

// RootFile is the name of the disk in Options.Dest.
const RootFile = "rootfs.ext4"

// RootLabel is that of all images which are made here.
const RootLabel = image.RootLabel

// Pull gets an image and makes a root disk of it. Digests of manifest, configuration
// and layers are verified. On an error or when it is interrupted nothing is left in
// Dest.
func Pull(ctx context.Context, ref Ref, o Options) (Pulled, error) {
	if o.Arch == "" {
		o.Arch = unameArch(runtime.GOARCH)
	}
	o.Arch = unameArch(o.Arch)
	o.Progress.Send("resolve", "looking for "+ref.String())
	f, err := ref.find(ctx, o)
	if err != nil {
		return Pulled{}, err
	}
	if o.Have != "" && o.Have == f.digest.String() {
		return Pulled{Type: f.typ, Version: f.version, Arch: o.Arch, Digest: o.Have}, nil
	}
	p, todo, err := f.plan(ctx, o)
	if err != nil {
		return Pulled{}, err
	}
	p.Source = ref.String()
	if ref.named != nil {
		p.Source = f.typ + "@" + p.Digest
	}
	err = image.Staged(ctx, o.Runner, o.Dest, p.Compressed, func(dir, out string) error {
		return f.fill(ctx, o, todo, dir, filepath.Join(out, RootFile), &p)
	})
	p.Path = filepath.Join(o.Dest, RootFile)
	return p, err
}

// layer is one that is to be applied.
type layer struct {
	v1.Layer
	digest, diffID v1.Hash
	size           int64
	ready          chan struct{} // closed once it is in its file
}

// plan reads and checks what an image says of itself.
func (f *found) plan(ctx context.Context, o Options) (Pulled, []*layer, error) {
	fail := func(err error) (Pulled, []*layer, error) {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return Pulled{}, nil, sourceFault(err)
	}
	raw, err := f.RawManifest()
	if err != nil {
		return fail(err)
	}
	if sum := sha256.Sum256(raw); f.digest.Algorithm != "sha256" || hex.EncodeToString(sum[:]) != f.digest.Hex {
		return fail(broken("its manifest is not what the digest %s says", f.digest))
	}
	m, err := f.Manifest()
	if err != nil {
		return fail(err)
	}
	rawConfig, err := f.RawConfigFile()
	if err != nil {
		return fail(err)
	}
	if sum := sha256.Sum256(rawConfig); hex.EncodeToString(sum[:]) != m.Config.Digest.Hex {
		return fail(broken("its configuration is not what the digest %s says", m.Config.Digest))
	}
	c, err := f.ConfigFile()
	if err != nil {
		return fail(err)
	}
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != goArch(o.Arch) {
		return fail(mvm.Errorf(mvm.ErrUnsupported, "it is for %s/%s, not for linux/%s", c.OS, c.Architecture, goArch(o.Arch)).WithHint("name an image for linux/%s", goArch(o.Arch)))
	}
	p := Pulled{Type: f.typ, Version: f.version, Arch: o.Arch, Digest: f.digest.String(), Verification: f.verified}
	if p.Container, err = container(c.Config); err != nil {
		return fail(err)
	}
	layers, err := f.Layers()
	if err != nil {
		return fail(err)
	}
	if len(layers) != len(m.Layers) || len(layers) != len(c.RootFS.DiffIDs) || len(layers) == 0 || len(layers) > maxLayers {
		return fail(broken("it has %d layers, and names %d; 1 to %d can be used", len(layers), len(c.RootFS.DiffIDs), maxLayers))
	}
	var todo []*layer
	for i, l := range layers {
		d := m.Layers[i]
		if !isTar(d.MediaType) {
			return fail(mvm.Errorf(mvm.ErrUnsupported, "a layer is of the kind %s", mvm.Quote(string(d.MediaType))).WithHint("name an image whose layers are tar archives, plain or compressed by gzip or zstd"))
		}
		if d.Digest.Algorithm != "sha256" || c.RootFS.DiffIDs[i].Algorithm != "sha256" || d.Size < 0 || d.Size > maxCompressed-p.Compressed {
			return fail(broken("layer %d has the digest %s and %d bytes; all layers may have %d GiB", i, d.Digest, d.Size, maxCompressed>>30))
		}
		p.Compressed += d.Size
		todo = append(todo, &layer{Layer: l, digest: d.Digest, diffID: c.RootFS.DiffIDs[i], size: d.Size, ready: make(chan struct{})})
	}
	return p, todo, nil
}

func isTar(t types.MediaType) bool {
	switch t {
	case types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer, types.DockerLayer, types.DockerUncompressedLayer, "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return true
	}
	return false
}

// sourceFault words an error of reading an image that was found.
func sourceFault(err error) error {
	var e *mvm.Error
	if err == nil || errors.As(err, &e) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return mvm.Errorf(mvm.ErrUnavailable, "reading the image: %w", err).WithHint("try again; check the network")
}

// fill downloads layers into dir, some at a time, and applies each as soon as all
// before it are.
func (f *found) fill(ctx context.Context, o Options, todo []*layer, dir, dest string, p *Pulled) error {
	b, err := rootfs.New(ctx, dest, rootfs.Options{Label: RootLabel, MaxBytes: maxContents})
	if err != nil {
		return err
	}
	defer b.Discard()
	show := &meter{to: o.Progress, total: p.Compressed}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for i, l := range todo {
			select {
			case <-l.ready:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := l.apply(b, l.file(dir)); err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(todo), err)
			}
		}
		return nil
	})
	slots := make(chan struct{}, downloads)
	for _, l := range todo {
		g.Go(func() error {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := l.download(ctx, l.file(dir), show); err != nil {
				return sourceFault(err)
			}
			close(l.ready)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	o.Progress.Send("build", "making the file system")
	p.Distro = distro(b.OSRelease())
	p.Result, err = b.Close()
	return err
}

// file is where a layer is until it has been applied. A layer may be there twice.
func (l *layer) file(dir string) string { return filepath.Join(dir, fmt.Sprintf("layer-%p", l)) }

// attempts is how often the download of a layer is begun.
const attempts = 3

func (l *layer) download(ctx context.Context, path string, show *meter) (err error) {
	for range attempts {
		var n int64
		n, err = l.copyTo(ctx, path, show)
		var e *mvm.Error
		if err == nil || ctx.Err() != nil || errors.As(err, &e) {
			return err
		}
		show.add(-n)
	}
	return err
}

// copyTo writes the layer as it comes to a file, and checks size and digest.
func (l *layer) copyTo(ctx context.Context, path string, show *meter) (int64, error) {
	r, err := l.Compressed()
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum, show), io.LimitReader(r, l.size+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return n, err
	}
	if n != l.size || hex.EncodeToString(sum.Sum(nil)) != l.digest.Hex {
		return n, mvm.Errorf(mvm.ErrBroken, "a layer is not what its digest %s says", l.digest).WithHint("try again; if that does not help, the image or its registry is damaged")
	}
	return n, nil
}

// apply adds a layer to the file system and removes its file.
func (l *layer) apply(b *rootfs.Builder, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	plain, err := rootfs.Decompress(f)
	if err != nil {
		return err
	}
	defer func() { _ = plain.Close() }()
	sum := &sumReader{r: io.LimitReader(plain, maxContents+maxContents/4), sum: sha256.New()}
	if err := b.Layer(sum); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, sum); err != nil {
		return broken("it is damaged: %w", err)
	}
	if hex.EncodeToString(sum.sum.Sum(nil)) != l.diffID.Hex {
		return mvm.Errorf(mvm.ErrBroken, "its content is not what the digest %s says", l.diffID).WithHint("the image is damaged: name another, or have it made anew")
	}
	return os.Remove(path)
}

type sumReader struct {
	r   io.Reader
	sum hash.Hash
}

func (s *sumReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	_, _ = s.sum.Write(p[:n])
	return n, err
}

// meter adds up what downloads bring, and tells it.
type meter struct {
	to    mvm.ProgressFunc
	total int64
	mu    sync.Mutex
	now   int64
}

func (m *meter) Write(p []byte) (int, error) { m.add(int64(len(p))); return len(p), nil }

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now += n
	if m.to != nil {
		m.to(mvm.ProgressEvent{Phase: "download", Message: "getting the layers", Current: m.now, Total: m.total})
	}
}

// distro is the system that an image says it is: ID and VERSION_ID of os-release(5).
func distro(data []byte) string {
	var id, version string
	for line := range strings.Lines(string(data)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		v = strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return -1
			}
			return r
		}, strings.Trim(v, `"'`))
		switch k {
		case "ID":
			id = v
		case "VERSION_ID":
			version = v
		}
	}
	return strings.TrimSpace(id + " " + version)
}

type readCloser = io.ReadCloser
