package kernel

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/mvmctl/mvm"
)

// setup is the part of the x86 boot protocol's header that we use
// (Documentation/arch/x86/boot.rst, "The real-mode kernel header").
type setup struct {
	protocol   uint16
	is64       bool   // XLF_KERNEL_64: has the 64-bit entry point
	version    uint16 // where the version string is, less 0x200
	payload    int64  // where the compressed kernel begins in the file
	payloadLen int64
}

// parseSetup reads the setup header of a bzImage; ok says that it is one.
func parseSetup(head []byte) (s setup, ok bool) {
	if len(head) < 0x250 || string(head[0x202:0x206]) != "HdrS" || head[0x1fe] != 0x55 || head[0x1ff] != 0xaa {
		return s, false
	}
	le := binary.LittleEndian
	sects := int64(head[0x1f1])
	if sects == 0 {
		sects = 4 // so says the protocol, for the oldest kernels
	}
	s.protocol = le.Uint16(head[0x206:])
	s.version = le.Uint16(head[0x20e:])
	if s.protocol >= 0x020c {
		s.is64 = le.Uint16(head[0x236:])&1 != 0
	}
	if s.protocol >= 0x0208 {
		s.payload = (sects+1)*512 + int64(le.Uint32(head[0x248:]))
		s.payloadLen = int64(le.Uint32(head[0x24c:]))
	}
	return s, true
}

// ExtractVmlinux reads a bzImage from r and writes the ELF kernel in it to w.
// It knows gzip, xz (without branch filter), zstd, lzma, bzip2 and lz4.
//
// Errors: mvm.ErrInvalid for what is no bzImage or is damaged, and
// mvm.ErrUnsupported for a compression that it cannot unpack; what w got
// before is then of no use.
func ExtractVmlinux(r io.Reader, w io.Writer) error {
	data, err := io.ReadAll(io.LimitReader(r, maxKernel+1))
	if err != nil {
		return err
	}
	if len(data) > maxKernel {
		return mvm.Errorf(mvm.ErrInvalid, "the file is larger than 1 GiB")
	}
	return extract(data, w)
}

func extract(data []byte, w io.Writer) error {
	s, ok := parseSetup(data)
	if !ok {
		return mvm.Errorf(mvm.ErrInvalid, "the file is no bzImage").WithHint("check the file")
	}
	end := s.payload + s.payloadLen
	if s.payloadLen == 0 || end > int64(len(data)) {
		return mvm.Errorf(mvm.ErrInvalid, "the bzImage is truncated").WithHint("fetch the file again")
	}
	payload := data[s.payload:end]
	if c := compression(payload); c != "gzip" && c != "" && len(payload) > 8 {
		payload = payload[:len(payload)-4] // the unpacked size, which only gzip has inside
	}
	head := &headWriter{w: w}
	if string(payload[:min(4, len(payload))]) == "\x7fELF" { // CONFIG_KERNEL_UNCOMPRESSED
		_, err := io.Copy(head, bytes.NewReader(payload))
		return err
	}
	if err := decompress(head, payload, bound(len(payload))); err != nil {
		if mvm.HintOf(err) != "" {
			return err
		}
		return mvm.Errorf(mvm.ErrInvalid, "cannot unpack the bzImage: %w", err).WithHint("fetch the file again")
	}
	if string(head.head) != "\x7fELF" {
		return mvm.Errorf(mvm.ErrInvalid, "the bzImage holds no ELF kernel").WithHint("fetch the file again")
	}
	return nil
}

// bound returns what a payload of n bytes may unpack to: kernels shrink to a
// tenth at best, so what grows a hundredfold is none, and a small file cannot
// keep us busy for long.
func bound(n int) int64 { return min(maxKernel, 100*int64(n)+1<<20) }

// headWriter passes data on and keeps the first four bytes.
type headWriter struct {
	w    io.Writer
	head []byte
}

func (h *headWriter) Write(p []byte) (int, error) {
	if n := 4 - len(h.head); n > 0 {
		h.head = append(h.head, p[:min(n, len(p))]...)
	}
	return h.w.Write(p)
}

// extractImage unpacks an arm64 kernel that is a compressed Image: gzip, as
// the kernel's own build calls Image.gz, or an EFI image that unpacks itself
// (drivers/firmware/efi/libstub/zboot-header.S). Other data is passed as it is.
func extractImage(data []byte, w io.Writer) error {
	payload := data
	if len(data) >= 64 && string(data[:2]) == "MZ" && string(data[4:8]) == "zimg" {
		off, size := int64(binary.LittleEndian.Uint32(data[8:])), int64(binary.LittleEndian.Uint32(data[12:]))
		if off+size > int64(len(data)) {
			return mvm.Errorf(mvm.ErrInvalid, "the EFI image is truncated").WithHint("fetch the file again")
		}
		payload = data[off : off+size]
	}
	if compression(payload) == "" {
		_, err := w.Write(data)
		return err
	}
	if err := decompress(w, payload, bound(len(payload))); err != nil {
		if mvm.HintOf(err) != "" {
			return err
		}
		return mvm.Errorf(mvm.ErrInvalid, "cannot unpack the Image: %w", err).WithHint("fetch the file again")
	}
	return nil
}
