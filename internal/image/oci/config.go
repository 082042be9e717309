package oci

import (
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm"
)

// maxConfig bounds what an image says of how to run it, in bytes of JSON: a guest is
// told all of it.
const maxConfig = 64 << 10

// container reads how an image wants to be run, and refuses what a guest could not do.
func container(c v1.Config) (*mvm.ContainerConfig, error) {
	out := &mvm.ContainerConfig{
		Entrypoint: some(c.Entrypoint), Cmd: some(c.Cmd), Env: some(c.Env), User: c.User, WorkingDir: path.Join("/", c.WorkingDir),
		ExposedPorts: slices.AppendSeq([]string{}, maps.Keys(c.ExposedPorts)), Volumes: slices.AppendSeq([]string{}, maps.Keys(c.Volumes)), Labels: c.Labels,
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	slices.Sort(out.ExposedPorts)
	slices.Sort(out.Volumes)
	var err error
	if out.StopSignal, err = stopSignal(c.StopSignal); err != nil {
		return nil, err
	}
	for _, e := range out.Env {
		if strings.IndexByte(e, '=') < 1 {
			return nil, broken("its environment has %s, which sets nothing", mvm.Quote(e))
		}
	}
	data, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfig {
		return nil, broken("its configuration takes %d bytes, more than %d", len(data), maxConfig)
	}
	if strings.Contains(string(data), `\u0000`) {
		return nil, broken("its configuration has zero bytes")
	}
	return out, nil
}

func some(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// stopSignal is the name of a signal without SIG, as docker takes it: by name or number.
func stopSignal(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		name = strings.TrimPrefix(unix.SignalName(unix.Signal(n)), "SIG")
		if name == "" {
			return s, nil // a real-time signal
		}
	}
	if rest, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		if n, err := strconv.Atoi(rest); err == nil && n >= 0 && n <= 30 {
			return strconv.Itoa(34 + n), nil
		}
	}
	if unix.SignalNum("SIG"+name) == 0 {
		return "", broken("its stop signal %s is none", mvm.Quote(s))
	}
	return name, nil
}

func broken(format string, args ...any) error {
	return mvm.Errorf(mvm.ErrInvalid, format, args...).WithHint("name another image, or have it made anew")
}
