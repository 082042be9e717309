package kernel

import "slices"

// fsOptions are the kernel's build options for file systems.
var fsOptions = map[string]string{"ext4": "CONFIG_EXT4_FS", "xfs": "CONFIG_XFS_FS", "btrfs": "CONFIG_BTRFS_FS", "iso9660": "CONFIG_ISO9660_FS"}

// Mounts says whether a guest of a kernel can mount file systems of a type, by the
// modules that are kept of it, or by what the kernel tells of its build. known is
// false where neither says anything.
func Mounts(file, modulesDir, fsType string) (can, known bool) {
	if modulesDir != "" {
		mods, err := ReadModules(modulesDir)
		if err != nil {
			return false, false
		}
		builtin := builtinModules(modulesDir)
		return !slices.ContainsFunc(fsModules[fsType], func(name string) bool {
			_, module := mods[name]
			return !module && !slices.Contains(builtin, name)
		}), true
	}
	info, err := Inspect(file)
	if err != nil || info.Config == nil {
		return false, false
	}
	return info.Config[fsOptions[fsType]] == "y", true
}
