// Package account reads the user database of a guest from the text of its
// passwd and group files. The agent is static and has neither cgo nor NSS, and
// boot reads the files of a root that is not its own, so it takes text, never
// paths.
package account

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// User is one account as a process needs it.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary, GID included
	Home   string
	Shell  string
}

// ErrUnknown says that a user or group is not in the guest's files.
var ErrUnknown = errors.New("no such user in the guest")

// Lookup finds spec, which is "name", "uid", "name:group" or "uid:gid" as in
// docker's --user. root and numeric ids are answered even where the image has
// no passwd file at all.
func Lookup(passwd, group []byte, spec string) (User, error) {
	name, groupSpec, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "root"
	}
	u, ok := find(passwd, name)
	if !ok {
		id, err := parseID(name)
		switch {
		case name == "root":
			u = User{Name: "root", Home: "/root", Shell: "/bin/sh"}
		case err == nil:
			u = User{Name: name, UID: id, Home: "/", Shell: "/bin/sh"}
		default:
			return User{}, fmt.Errorf("%w: %q", ErrUnknown, name)
		}
	}
	if hasGroup {
		gid, err := lookupGroup(group, groupSpec)
		if err != nil {
			return User{}, err
		}
		u.GID, u.Groups = gid, []uint32{gid}
		return u, nil
	}
	u.Groups = groupsOf(group, u)
	return u, nil
}

func find(passwd []byte, name string) (User, bool) {
	id, idErr := parseID(name)
	var byID User
	found := false
	for _, line := range strings.Split(string(passwd), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 7 {
			continue
		}
		uid, err1 := parseID(f[2])
		gid, err2 := parseID(f[3])
		if err1 != nil || err2 != nil {
			continue
		}
		u := User{Name: f[0], UID: uid, GID: gid, Home: f[5], Shell: strings.TrimSpace(f[6])}
		if u.Home == "" {
			u.Home = "/"
		}
		if u.Shell == "" {
			u.Shell = "/bin/sh"
		}
		if f[0] == name {
			return u, true
		}
		if idErr == nil && uid == id && !found {
			byID, found = u, true
		}
	}
	return byID, found
}

func lookupGroup(group []byte, spec string) (uint32, error) {
	for _, line := range strings.Split(string(group), "\n") {
		f := strings.Split(line, ":")
		if len(f) >= 3 && f[0] == spec {
			if id, err := parseID(f[2]); err == nil {
				return id, nil
			}
		}
	}
	if id, err := parseID(spec); err == nil {
		return id, nil
	}
	return 0, fmt.Errorf("no such group in the guest: %q", spec)
}

// maxGroups bounds what a hostile group file makes us collect; the kernel takes
// 65536 (NGROUPS_MAX).
const maxGroups = 1024

func groupsOf(group []byte, u User) []uint32 {
	out := []uint32{u.GID}
	for _, line := range strings.Split(string(group), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 4 || len(out) >= maxGroups {
			continue
		}
		id, err := parseID(f[2])
		if err != nil || id == u.GID {
			continue
		}
		for _, member := range strings.Split(strings.TrimSpace(f[3]), ",") {
			if member == u.Name {
				out = append(out, id)
				break
			}
		}
	}
	return out
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		return 0, errors.New("the id -1 names nobody") // setuid(-1) means "leave as it is"
	}
	return uint32(n), err
}
