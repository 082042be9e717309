package disk

import (
	"context"
	"encoding/json"
	"errors"
	"os"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// VolumeInfo is what qemu-img says of a volume, in its words (qapi/block-core.json,
// ImageInfo). Sizes are in bytes.
type VolumeInfo struct {
	Filename       string         `json:"filename"`
	Format         string         `json:"format"`
	VirtualSize    int64          `json:"virtual-size"`
	ActualSize     int64          `json:"actual-size"`
	ClusterSize    int64          `json:"cluster-size,omitempty"`
	DirtyFlag      bool           `json:"dirty-flag"`
	Snapshots      []any          `json:"snapshots,omitempty"`
	FormatSpecific map[string]any `json:"format-specific,omitempty"`
}

// InspectVolume asks qemu-img about a volume in its recorded format, also while a
// VM uses it. Without qemu-img it tells what can be read without. A file that
// points to another one is refused before any tool opens it.
func InspectVolume(ctx context.Context, r run.Runner, path, format string) (VolumeInfo, error) {
	if err := Standalone(path, format); err != nil {
		return VolumeInfo{}, err
	}
	virtual, allocated, err := volumeSizes(path, format)
	if err != nil {
		return VolumeInfo{}, err
	}
	plain := VolumeInfo{Filename: path, Format: format, VirtualSize: virtual, ActualSize: allocated}
	// The driver is named, so that nothing is guessed from what a guest wrote.
	res, err := r.Run(ctx, tool("qemu-img", "info", "--output=json", "--force-share", "-f", format, path))
	var exit *run.ExitError
	switch {
	case errors.As(err, &exit), ctx.Err() != nil:
		return plain, volumeFault(err, "inspect volume", path, 0)
	case err != nil:
		return plain, nil //nolint:nilerr // it is not installed
	}
	return readInfo(res.Stdout)
}

// readInfo reads qemu-img's answer, and refuses it once more when the file points
// elsewhere: the header may have changed since it was looked at.
func readInfo(data []byte) (VolumeInfo, error) {
	var info struct {
		VolumeInfo
		Backing     string `json:"backing-filename"`
		FullBacking string `json:"full-backing-filename"`
	}
	if err := json.Unmarshal(data, &info); err != nil {
		return VolumeInfo{}, mvm.Errorf(mvm.ErrBroken, "qemu-img's answer is no JSON: %w", err).WithHint("check the qemu-img on this host")
	}
	specific, _ := info.FormatSpecific["data"].(map[string]any)
	if info.Backing != "" || info.FullBacking != "" || specific["data-file"] != nil {
		return VolumeInfo{}, mvm.Errorf(mvm.ErrBroken, "it takes content from another file, and a volume never does").On("use volume", info.Filename).
			WithHint("somebody else changed the file; put back the one that mvm made")
	}
	return info.VolumeInfo, nil
}

// VolumeSize returns how many bytes a guest sees, by the recorded format.
func VolumeSize(path, format string) (int64, error) {
	virtual, _, err := volumeSizes(path, format)
	return virtual, err
}

// volumeSizes is Sizes by the recorded format: a guest may have written the header
// of another one into its raw disk.
func volumeSizes(path, format string) (virtual, allocated int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, volumeFault(err, "read volume", path, 0)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return 0, 0, volumeFault(err, "read volume", path, 0)
	}
	if virtual = st.Size(); format == Qcow2 {
		if virtual, err = qcowSize(f); err != nil {
			return 0, 0, volumeFault(err, "read volume", path, 0)
		}
	}
	return virtual, allocatedBytes(st), nil
}
