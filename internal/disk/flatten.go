package disk

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// Flatten makes the raw file dst of a qcow2 disk of ours and the raw image below it,
// which has to lie in the directory within: a disk that names another file as its
// base is refused with mvm.ErrBroken.
func Flatten(ctx context.Context, r run.Runner, src, within, dst string) error {
	base, err := BackingFile(src)
	if err != nil {
		return err
	}
	node := map[string]any{"driver": Qcow2, "backing": nil, "file": map[string]any{"driver": "file", "filename": src}}
	if base != "" {
		real, err := resolved(base)
		if err != nil {
			return fault(err, "read disk", src, 0)
		}
		root, err := resolved(within)
		if err != nil {
			return fault(err, "read disk", src, 0)
		}
		if rel, err := filepath.Rel(root, real); err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			return mvm.Errorf(mvm.ErrBroken, "it is based on %s, which is no image of ours", base).On("read disk", src).WithHint("the disk was changed by somebody else")
		}
		node["backing"] = map[string]any{"driver": Raw, "file": map[string]any{"driver": "file", "filename": real, "locking": "off"}, "read-only": true}
	}
	b, err := json.Marshal(node)
	if err != nil {
		return err
	}
	_, err = r.Run(ctx, tool("qemu-img", "convert", "-q", "-O", Raw, "json:"+string(b), dst))
	return volumeFault(err, "copy disk", src, 0)
}
