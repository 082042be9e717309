package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// state lists, in a stable order, all that the tests could leave on the host:
// links, network namespaces, nftables tables, loop devices, mounts, cgroups and
// processes of VMs, and files in the checkout.
func state(out io.Writer) error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	var lines []string
	for _, l := range links {
		lines = append(lines, "link "+l.Name)
	}
	names, err := filepath.Glob("/run/netns/*")
	if err != nil {
		return err
	}
	for _, n := range names {
		lines = append(lines, "netns "+n)
	}
	if os.Geteuid() == 0 {
		tables, err := (&nftables.Conn{}).ListTables()
		if err != nil {
			return fmt.Errorf("list nftables tables: %w", err)
		}
		for _, t := range tables {
			lines = append(lines, fmt.Sprintf("table %d %s", t.Family, t.Name))
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, l := range loops {
		lines = append(lines, "loop "+l)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		lines = append(lines, "mount "+strings.Fields(line)[1])
	}
	for _, pattern := range []string{"/sys/fs/cgroup/mvm*", "/sys/fs/cgroup/*/mvm*"} {
		groups, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, g := range groups {
			lines = append(lines, "cgroup "+g)
		}
	}
	lines = append(append(lines, processes()...), files()...)
	forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err == nil {
		lines = append(lines, "ip_forward "+strings.TrimSpace(string(forward)))
	}
	slices.Sort(lines)
	_, err = fmt.Fprintln(out, strings.Join(lines, "\n"))
	return err
}

// processes lists what runs for a VM: supervisors, and VMMs by the name that the
// drivers give them.
func processes() []string {
	var out []string
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // fails on a bad pattern only
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			continue // it ended meanwhile
		}
		argv := strings.ReplaceAll(string(data), "\x00", " ")
		if strings.Contains(argv, "__supervise") || strings.Contains(argv, "qemu-system") || strings.Contains(argv, "firecracker --") {
			out = append(out, "process "+strings.TrimSpace(argv))
		}
	}
	return out
}

// files lists the checkout's files with their sizes, but for git's own and what
// a build leaves.
func files() []string {
	var out []string
	_ = filepath.WalkDir(".", func(p string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil //nolint:nilerr // a file that vanished is not there
		case d.IsDir() && (p == ".git" || p == "bin"):
			return filepath.SkipDir
		case !d.IsDir():
			if fi, err := d.Info(); err == nil {
				out = append(out, fmt.Sprintf("file %s %d", p, fi.Size()))
			}
		}
		return nil
	})
	return out
}
