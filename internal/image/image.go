// Package image makes root file systems for guests out of the packages of the
// host's own mirror: "tiny", which is busybox and an SSH server, and a minimal
// Debian or Ubuntu. What comes out is a raw ext4 file. Nothing is mounted on
// the host, and no program of an image ever runs there as root.
//
// It must not know of VMs, the store or the VMMs.
package image

import (
	"context"
	"runtime"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// Options say where an image is made.
type Options struct {
	Runner   run.Runner
	Cache    string           // directory for downloaded packages, see package apt; made if missing
	Dest     string           // directory to make, which then holds the image; its parent is made if missing
	Mirror   string           // "URL" or sources.list lines in place of the host's own mirror; "" is the environment's MVM_DEBIAN_MIRROR or MVM_UBUNTU_MIRROR
	Packages []string         // of a distribution, besides those that its images have; see CheckPackages
	Progress mvm.ProgressFunc // may be nil
}

// Built is an image that is complete.
type Built struct {
	Path           string // the raw file, in Options.Dest
	Type           string // "tiny", "debian", …
	Version        string // "1" for tiny, "12"
	Name           string // for a person: "Debian 12 (bookworm)"
	Arch           string // as uname -m says it: "x86_64"
	FSType         string // "ext4"
	UUID           string // of the file system
	Subvolume      string // of a btrfs that has the root; "" where that is what is mounted without naming one
	Distro         string // "debian 12.11"; "busybox 1.35.0" for tiny
	SizeBytes      int64  // that a guest sees
	AllocatedBytes int64  // on the host
	MinimumMiB     int    // the least size that a disk made from it can have
	Packages       int    // how many packages are in it
	Format         string // what an import was made from: "qcow2", "tar in zst"
	PackedBytes    int64  // of the compressed file, where there is that alone; see Packed
	Warnings       []string
}

// RootLabel is the label of the file systems made here.
const RootLabel = "mvm-root"

// rootFile is the name of the image in Options.Dest.
const rootFile = "rootfs.ext4"

// Build makes the image that ref names; see Catalog. An interrupted build
// leaves no Dest, and the next one in the same place clears up behind it.
//
// Errors: mvm.ErrNotFound for a ref outside the catalog, mvm.ErrUnsupported
// where this host cannot build it, mvm.ErrUnavailable for what is missing,
// mvm.ErrExists when Dest is there; each with a hint.
func Build(ctx context.Context, ref Ref, o Options) (Built, error) {
	ref, err := ref.resolve()
	if err != nil {
		return Built{}, err
	}
	if ref.Type == Tiny {
		return BuildTiny(ctx, o)
	}
	return BuildDistro(ctx, ref, o)
}

// arch is the host's architecture as uname -m says it; images are for it.
func arch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}
