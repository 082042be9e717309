package kernel

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mvmctl/mvm"
)

// maxModule bounds what a compressed module may unpack to, in bytes.
const maxModule = 256 << 20

// chooseModules unpacks the modules below dir and removes those that guests
// have no use for. What is required has to be there or built in.
func chooseModules(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unpackModules(ctx, dir); err != nil {
		return err
	}
	mods, err := ReadModules(dir)
	if err != nil {
		return err
	}
	builtin := builtinModules(dir)
	for _, name := range required {
		if _, ok := mods[name]; !ok && !slices.Contains(builtin, name) {
			return mvm.Errorf(mvm.ErrBroken, "the kernel has no %s, so a guest would not find its disk", name).
				WithHint("pull a kernel for virtual machines")
		}
	}
	keep, err := LoadOrder(mods, slices.Concat(allBootModules(), labModules))
	if err != nil {
		return err
	}
	for _, m := range keep {
		delete(mods, m.Name)
	}
	for _, m := range mods {
		if err := os.Remove(m.Path); err != nil {
			return err
		}
	}
	return removeEmptyDirs(dir)
}

// unpackModules replaces compressed modules by plain ones, which every guest
// kernel can load without a decompressor of its own.
func unpackModules(ctx context.Context, dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		plain, packed, ok := strings.Cut(path, ".ko.")
		if !ok || strings.Contains(packed, "/") {
			return ctx.Err()
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := decompress(&out, data, maxModule); err != nil {
			return fmt.Errorf("the module %s: %w", filepath.Base(path), err)
		}
		if err := os.WriteFile(plain+".ko", out.Bytes(), 0o644); err != nil {
			return err
		}
		return os.Remove(path)
	})
}

// builtinModules returns the names in modules.builtin; a missing file has none.
func builtinModules(dir string) []string {
	data, _ := os.ReadFile(filepath.Join(dir, "modules.builtin")) // what it would say is then missing
	var names []string
	for path := range strings.FieldsSeq(string(data)) {
		names = append(names, ModuleName(path))
	}
	return names
}

func removeEmptyDirs(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != dir {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Reverse(dirs) // children before parents
	for _, d := range dirs {
		if entries, err := os.ReadDir(d); err == nil && len(entries) == 0 {
			if err := os.Remove(d); err != nil {
				return err
			}
		}
	}
	return nil
}
