package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest/account"
)

const (
	rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	userPath = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
	maxDB    = 4 << 20 // of passwd, group and environment
)

// readBounded reads a file of the guest; one that is missing is empty.
func readBounded(name string) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	data, _ := io.ReadAll(io.LimitReader(f, maxDB))
	return data
}

func lookupUser(spec string) (account.User, error) {
	return account.Lookup(readBounded("/etc/passwd"), readBounded("/etc/group"), spec)
}

// homeOf is the home directory, or / where the image has none.
func homeOf(u account.User) string {
	if st, err := os.Stat(u.Home); err == nil && st.IsDir() {
		return u.Home
	}
	return "/"
}

// loginEnv is what login(1) sets, then /etc/environment (PAM's habit), then what
// was asked for. Later ones win.
func loginEnv(u account.User, extra []string) []string {
	p := userPath
	if u.UID == 0 {
		p = rootPath
	}
	env := []string{"HOME=" + homeOf(u), "USER=" + u.Name, "LOGNAME=" + u.Name, "SHELL=" + u.Shell, "PATH=" + p}
	for _, line := range strings.Split(string(readBounded("/etc/environment")), "\n") {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		name, value, ok := strings.Cut(line, "=")
		if ok && name != "" && !strings.HasPrefix(name, "#") {
			env = append(env, name+"="+strings.Trim(value, `"'`))
		}
	}
	return dedupe(append(env, extra...))
}

// dedupe keeps the last value of each name, in the order of first appearance.
func dedupe(env []string) []string {
	at := map[string]int{}
	var out []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := at[name]; ok {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}

// lookPath finds a program in the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if name == "" {
		return "", &startError{127, errors.New("the command is empty")}
	}
	if strings.Contains(name, "/") {
		return name, nil
	}
	denied := false
	for _, e := range env {
		dirs, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range strings.Split(dirs, ":") {
			file := path.Join("/", dir, name)
			st, err := os.Stat(file)
			if err != nil || st.IsDir() {
				continue
			}
			if unix.Access(file, unix.X_OK) == nil {
				return file, nil
			}
			denied = true
		}
	}
	if denied {
		return "", &startError{126, fmt.Errorf("cannot run %q: permission denied", name)}
	}
	return "", &startError{127, fmt.Errorf("cannot run %q: there is no such program in the guest", name)}
}
