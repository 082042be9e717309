package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBadInputIsRefused tries what can never work. Each is refused in one line
// with what to do, and leaves no trace.
func TestBadInputIsRefused(t *testing.T) {
	m := newMachine(t)
	m.must("init", "--non-interactive", "--skip-host")
	m.must("vm", "create", "taken", "--image", "tiny", "--mem", "128", "--ip", "172.27.0.77", "--mac", "02:fc:00:00:00:77")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho no kernel\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := m.listing()
	create := func(name string, more ...string) []string {
		args := append([]string{"vm", "create", name}, more...)
		if !strings.Contains(strings.Join(more, " "), "--image") {
			args = append(args, "--image", "tiny")
		}
		return args
	}
	for what, c := range map[string]struct {
		words []string
		args  []string
	}{
		"unknown image, near":    {[]string{"tinny", "did you mean tiny"}, create("a", "--image", "tinny")},
		"unknown kernel, near":   {[]string{"debain", "did you mean debian"}, create("a", "--kernel", "debain")},
		"unknown network":        {[]string{"nowhere"}, create("a", "--network", "nowhere")},
		"unknown key":            {[]string{"nokey"}, create("a", "--ssh-key", "nokey")},
		"name with /":            {[]string{"a/b"}, create("a/b")},
		"name is ..":             {[]string{".."}, create("..")},
		"name of 64 characters":  {[]string{"64 characters"}, create(strings.Repeat("a", 64))},
		"name with control":      {[]string{"control character"}, create("a\x1b[31m")},
		"name taken":             {[]string{"taken", "exists"}, create("taken")},
		"memory 1 MiB":           {[]string{"1 MiB"}, create("a", "--mem", "1")},
		"more memory than here":  {[]string{"this host has"}, create("a", "--mem", "99999999")},
		"0 vCPUs":                {[]string{"0 vCPUs"}, create("a", "--vcpu", "0")},
		"10000 vCPUs":            {[]string{"10000 vCPUs"}, create("a", "--vcpu", "10000")},
		"address outside":        {[]string{"192.0.2.1", "172.27.0.0/24"}, create("a", "--ip", "192.0.2.1")},
		"address of the gateway": {[]string{"172.27.0.1"}, create("a", "--ip", "172.27.0.1")},
		"address taken":          {[]string{"172.27.0.77"}, create("a", "--ip", "172.27.0.77")},
		"no address":             {[]string{"nonsense"}, create("a", "--ip", "nonsense")},
		"MAC taken":              {[]string{"02:FC:00:00:00:77"}, create("a", "--mac", "02:fc:00:00:00:77")},
		"MAC multicast":          {[]string{"multicast"}, create("a", "--mac", "01:00:5e:00:00:01")},
		"disk too small":         {[]string{"smaller than"}, create("a", "--disk-size", "1M")},
		"disk no size":           {[]string{"lots"}, create("a", "--disk-size", "lots")},
		"boot args with newline": {[]string{"control"}, create("a", "--boot-args", "a\nb")},
		"no kernel file":         {[]string{"script"}, []string{"kernel", "import", "bad", script}},
		"no such VM, near":       {[]string{"did you mean taken"}, []string{"vm", "stop", "takn"}},
		"no such hypervisor":     {[]string{"xen"}, create("a", "--hypervisor", "xen")},
	} {
		t.Run(what, func(t *testing.T) {
			sub := *m
			sub.t = t
			sub.refused(c.words, c.args...)
		})
	}
	m.sameListing(before)
}

// TestCacheThatCannotBeWritten names the directory and what to do.
func TestCacheThatCannotBeWritten(t *testing.T) {
	m := newMachine(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.cache = filepath.Join(file, "cache")
	r := m.run("vm", "create", "a", "--image", "tiny")
	if r.code != 1 || !strings.Contains(r.stderr, m.cache) || !strings.Contains(r.stderr, "hint: ") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
	m.cache = t.TempDir() // for the clean-up
}
