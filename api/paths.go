package api

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/disk"
)

// paths names every place below the cache and configuration directories.
type paths struct {
	cache, config, temp string
}

func newPaths(cfg Config) (paths, error) {
	p := paths{cache: envOr(cfg.CacheDir, "MVM_CACHE_DIR"), config: envOr(cfg.ConfigDir, "MVM_CONFIG_DIR"), temp: envOr(cfg.TempDir, "MVM_TEMP_DIR")}
	home, homeErr := os.UserHomeDir()
	for _, d := range []struct {
		dir      *string
		fallback string
		env      string
	}{
		{&p.cache, filepath.Join(home, ".cache", "mvmctl"), "MVM_CACHE_DIR"},
		{&p.config, filepath.Join(home, ".config", "mvmctl"), "MVM_CONFIG_DIR"},
	} {
		if *d.dir == "" {
			if homeErr != nil {
				return p, mvm.Errorf(mvm.ErrInvalid, "there is no home directory: %w", homeErr).WithHint("set %s to a directory", d.env)
			}
			*d.dir = d.fallback
		}
		abs, err := filepath.Abs(*d.dir)
		if err != nil {
			return p, mvm.Errorf(mvm.ErrInvalid, "cannot resolve %s: %w", *d.dir, err)
		}
		*d.dir = abs
	}
	if p.temp == "" {
		p.temp = filepath.Join(p.cache, "tmp")
	}
	return p, nil
}

func (p paths) db() string        { return filepath.Join(p.cache, "mvmdb.db") }
func (p paths) ops() string       { return filepath.Join(p.cache, "ops") }
func (p paths) kernels() string   { return filepath.Join(p.cache, "kernels") }
func (p paths) images() string    { return filepath.Join(p.cache, "images") }
func (p paths) binaries() string  { return filepath.Join(p.cache, "bin") }
func (p paths) snapshots() string { return filepath.Join(p.cache, "snapshots") }
func (p paths) snapshot(id string) string {
	return filepath.Join(p.snapshots(), id)
}
func (p paths) volumes() string   { return filepath.Join(p.cache, "volumes") }
func (p paths) downloads() string { return filepath.Join(p.cache, "downloads") }
func (p paths) initramfs() string { return filepath.Join(p.cache, "initramfs") }
func (p paths) vms() string       { return filepath.Join(p.cache, "vms") }
func (p paths) vm(id string) string {
	return filepath.Join(p.vms(), id)
}
func (p paths) trustedKeys() string { return filepath.Join(p.config, "trusted-keys") }

// memory has copies of images in a tmpfs. Each user and each cache has its own.
func (p paths) memory() disk.Memory {
	sum := sha256.Sum256([]byte(p.cache))
	return disk.Memory{Dir: fmt.Sprintf("/dev/shm/mvm-%d-%x", os.Geteuid(), sum[:8])}
}

// dnsRoot has a directory for each network whose DNS server runs.
func (p paths) dnsRoot() string             { return filepath.Join(p.cache, "dns") }
func (p paths) dns(networkID string) string { return filepath.Join(p.dnsRoot(), networkID) }

func (p paths) keys() string { return filepath.Join(p.config, "keys") }

// abs returns the absolute path of something stored relative to the cache.
func (p paths) abs(rel string) string {
	if rel == "" || filepath.IsAbs(rel) {
		return rel
	}
	return filepath.Join(p.cache, rel)
}

// rel returns how a path below the cache is stored.
func (p paths) rel(abs string) string {
	r, err := filepath.Rel(p.cache, abs)
	if err != nil {
		return abs
	}
	return r
}
