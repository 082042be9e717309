// Package kernel gets guest kernels: the distribution's cloud kernel, fetched
// as a package without installing it, and files that the user brings. It tells
// a bootable kernel from any other file, takes the ELF image out of a bzImage,
// and puts a kernel's modules in load order.
//
// It must not know VMs, images, the store or a VMM. What modules a guest loads
// after its boot (modprobe in the guest) is the business of the guest's image.
package kernel

import "github.com/mvmctl/mvm"

// Format is how a kernel file is packed.
type Format string

// The formats that a VMM can boot.
const (
	ELF     Format = "elf"     // vmlinux: both VMMs
	BzImage Format = "bzimage" // QEMU only; ExtractVmlinux makes an ELF of it
	Image   Format = "image"   // arm64 Image: both VMMs
)

// The architectures of kernels, as uname -m has them on x86.
const (
	X86_64 = "x86_64"
	ARM64  = "arm64"
)

// Info is what Inspect finds out about a kernel file.
type Info struct {
	Format  Format
	Arch    string            // X86_64 or ARM64
	Version string            // "6.1.0-56-cloud-amd64"; "" when the file does not say
	Bytes   int64             // the file's size
	PVH     bool              // has the 32-bit entry point that lets QEMU boot an ELF kernel (XEN_ELFNOTE_PHYS32_ENTRY)
	Config  map[string]string // CONFIG_X=y of a kernel built with IKCONFIG; nil when it holds none
}

// PVMGuest reports whether the kernel says of itself that it boots under the
// pagetable-based KVM of hosts without hardware virtualisation (CONFIG_PVM_GUEST).
func (i Info) PVMGuest() bool { return i.Config["CONFIG_PVM_GUEST"] == "y" }

// notKernel is the one error for files that are no kernels.
func notKernel(path, what string) error {
	return mvm.Errorf(mvm.ErrInvalid, "%s %s, not a bootable kernel", path, what).
		WithHint("a kernel is an ELF vmlinux or a bzImage for x86_64, or an arm64 Image: try /boot/vmlinuz-*, or 'mvm kernel pull debian'")
}
