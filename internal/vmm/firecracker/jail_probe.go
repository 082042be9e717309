package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/vmm"
)

// FindJailer returns the first of the programs that is a jailer of the version;
// "" when there is none. Programs that are not there are passed over; what is wrong
// with the others is the error. cache is a file that keeps what they said between
// processes; "" keeps nothing.
func FindJailer(ctx context.Context, r run.Runner, cache, version string, programs ...string) (string, error) {
	var errs []error
	for _, path := range programs {
		got, err := jailerVersion(ctx, r, cache, path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		case got != version:
			errs = append(errs, mvm.Errorf(mvm.ErrUnsupported, "%s is version %s, and Firecracker is %s", path, got, version).
				WithHint("mvm binary pull firecracker"))
		default:
			return path, nil
		}
	}
	return "", errors.Join(errs...)
}

// jailerVersion asks a jailer for its version, unless the answer for just this file
// is known from before. It prints "Jailer v1.16.1".
func jailerVersion(ctx context.Context, r run.Runner, cache, path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	now := known{Path: path, Size: info.Size(), Time: info.ModTime().UnixNano()}
	var before known
	if data, err := os.ReadFile(cache); err == nil {
		_ = json.Unmarshal(data, &before) // a damaged cache is an empty one
	}
	if now.Version = before.Version; now.Version != "" && now == before {
		return now.Version, nil
	}
	res, err := r.Run(ctx, run.Cmd{Name: path, Args: []string{"--version"}, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		return "", mvm.Errorf(mvm.ErrUnavailable, "%s does not run: %w", path, err).WithHint("mvm binary pull firecracker")
	}
	first, _, _ := strings.Cut(string(res.Stdout), "\n")
	version, ok := strings.CutPrefix(strings.TrimSpace(first), "Jailer v")
	if !ok || version == "" {
		return "", mvm.Errorf(mvm.ErrUnsupported, "%s is no jailer: it says %q", path, first).WithHint("mvm binary pull firecracker")
	}
	now.Version = version
	if data, err := json.Marshal(now); err == nil && cache != "" {
		_ = fsx.WriteFile(cache, data, 0o600) // without it the next one just asks again
	}
	return version, nil
}

// CheckJail says why VMMs whose VMs' directories are below dir cannot be jailed;
// nil when nothing is known to be in the way.
func CheckJail(dir string) error {
	if err := notRoot(os.Geteuid()); err != nil {
		return err
	}
	users, _ := os.ReadFile("/proc/self/uid_map")
	groups, _ := os.ReadFile("/proc/self/gid_map")
	if !mapped(string(users)) || !mapped(string(groups)) {
		return unsupported("jailer", fmt.Sprintf("the user namespace has no users from %d on", vmm.FirstJailUID)).
			WithHint("map them, or leave the jailer off: --no-jailer")
	}
	var st unix.Statfs_t
	for ; ; dir = filepath.Dir(dir) { // what is not there yet will be made
		err := unix.Statfs(dir, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || dir == filepath.Dir(dir) {
			return &fs.PathError{Op: "statfs", Path: dir, Err: err}
		}
	}
	for _, f := range []struct {
		flag int64
		name string
	}{{unix.ST_NODEV, "nodev"}, {unix.ST_NOEXEC, "noexec"}} {
		if int64(st.Flags)&f.flag != 0 { //nolint:unconvert // its type differs between platforms
			return unsupported("jailer", dir+" is on a file system that is mounted "+f.name).
				WithHint("mount it without that, or leave the jailer off: --no-jailer")
		}
	}
	return nil
}

// mapped reports whether a map of ids (user_namespaces(7)) has those of jails.
func mapped(table string) bool {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.ParseInt(f[0], 10, 64)
		count, err2 := strconv.ParseInt(f[2], 10, 64)
		if err1 == nil && err2 == nil && first <= vmm.FirstJailUID && first+count >= vmm.FirstJailUID+vmm.JailUIDs {
			return true
		}
	}
	return false
}
