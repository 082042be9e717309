package helper

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/network"
)

// Access tells whether this process may ask the helper. If not, the error is an
// *mvm.NeedsInteraction with the command that changes this; what, such as "creating
// a VM", says for what it is.
func Access(what string) error {
	needs := func(why string, command ...string) error {
		return &mvm.NeedsInteraction{What: what + " needs root or the group " + Group + why, Command: command}
	}
	uid := os.Getuid()
	if !network.IsMember(uid) {
		return needs(", and user "+strconv.Itoa(uid)+" cannot have networks of its own", "sudo", "mvm", "--help")
	}
	group, err := user.LookupGroup(Group)
	if err == nil {
		_, err = os.Lstat(Path)
	}
	var unknown user.UnknownGroupError
	if errors.As(err, &unknown) || errors.Is(err, fs.ErrNotExist) {
		return needs(", which this host was not set up for yet", "sudo", "mvm", "host", "init")
	}
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot tell who is in the group %s: %w", Group, err)
	}
	gids, err := os.Getgroups()
	if err != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "cannot tell which groups this process has: %w", err)
	}
	for _, gid := range append(gids, os.Getgid()) {
		if strconv.Itoa(gid) == group.Gid {
			return nil
		}
	}
	name := strconv.Itoa(uid)
	if me, err := user.LookupId(name); err == nil {
		name = me.Username
		if listed, err := me.GroupIds(); err == nil && slices.Contains(listed, group.Gid) {
			return needs(", which "+name+" has from the next login on", "newgrp", Group)
		}
	}
	return needs(", which "+name+" is not in (from the next login after this on)", "sudo", "usermod", "-aG", Group, name)
}
