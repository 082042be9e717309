package api

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/key"
	"github.com/mvmctl/mvm/internal/store"
)

// sshPort is where SSH servers listen.
const sshPort = 22

// networkFirst is how long a guest's SSH server has to answer before its agent is
// asked instead.
const networkFirst = time.Second

// dialSSH logs in over the network or, where no SSH server answers there or we have
// no key for it, through the agent. A guest that shows another host key than its own
// is refused.
func (c *core) dialSSH(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, in SSHInput) (*agentConn, error) {
	if err := running(vm); err != nil {
		return nil, err
	}
	if !vm.HasAgent || in.Key != "" {
		return c.dialNetwork(ctx, st, vm, in, 0)
	}
	if in.Timeout > 0 {
		limited, cancel := context.WithTimeout(ctx, time.Duration(in.Timeout)*time.Second)
		defer cancel()
		ctx = limited
	}
	try, cancel := context.WithTimeout(ctx, networkFirst)
	defer cancel()
	err := guest.Greets(try, net.JoinHostPort(vm.IPv4, strconv.Itoa(sshPort)))
	if err == nil {
		var conn *agentConn
		if conn, err = c.dialNetwork(ctx, st, vm, in, 0); err == nil || mvm.KindOf(err) != mvm.ErrNotFound && mvm.KindOf(err) != mvm.ErrUnavailable {
			return conn, err
		}
	}
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return nil, ctx.Err()
	}
	return c.dialVM(ctx, st, vm, agentLoginAs{user: firstOf(in.User, deref(vm.SSHUser))})
}

// dialNetwork logs in to a guest's SSH server over the network, which may come late
// in its boot.
func (c *core) dialNetwork(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem, in SSHInput, port int) (*agentConn, error) {
	inv, err := loadInventory(ctx, st)
	if err != nil {
		return nil, err
	}
	if in.User != "" && strings.ContainsAny(in.User, ":") {
		return nil, mvm.Errorf(mvm.ErrUnsupported, "it has no agent, and over the network one logs in as a user only, not with a group").WithHint("name the user alone")
	}
	login, err := c.netLogin(vm, inv, in)
	if err != nil {
		return nil, err
	}
	if port == 0 {
		port = sshPort
	}
	m, err := c.attach(ctx, vm)
	if err != nil {
		return nil, err
	}
	defer func() { _ = m.Close() }()
	limited, cancel := context.WithTimeout(ctx, sshTimeout(vm, inv.set, in.Timeout))
	defer cancel()
	addr := net.JoinHostPort(vm.IPv4, strconv.Itoa(port))
	client, err := reach(limited, m, vm, func(ctx context.Context) (*guest.Client, error) {
		if err := guest.WaitTCP(ctx, addr); err != nil {
			return nil, err
		}
		return guest.DialNet(ctx, addr, login)
	})
	if err != nil {
		return nil, err
	}
	again := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
	return &agentConn{Client: client, dial: again, release: func() error { return nil }}, nil
}

// sshTimeout is how long a login may take. A guest that was started a moment ago
// has as long as it has to get ready: its SSH server may come late in its boot.
func sshTimeout(vm *mvm.VMInstanceItem, set settings, asked int) time.Duration {
	if asked > 0 {
		return time.Duration(asked) * time.Second
	}
	limit := time.Duration(set.num("settings.vm", "ssh_timeout_sec")) * time.Second
	if vm.ProcessStartTime == nil {
		return limit
	}
	booted := time.UnixMilli(*vm.ProcessStartTime).Add(time.Duration(set.num("settings.vm", "ready_timeout_sec")) * time.Second)
	return max(limit, time.Until(booted))
}

// netLogin collects the private keys that the guest may accept: the one named,
// or those that the VM was created with.
func (c *core) netLogin(vm *mvm.VMInstanceItem, inv *inventory, in SSHInput) (guest.Login, error) {
	l := guest.Login{User: firstOf(in.User, deref(vm.SSHUser), "root")}
	id, err := c.loadIdentity(vm.ID)
	if err != nil {
		return l, err
	}
	if l.HostKey, _, _, _, err = ssh.ParseAuthorizedKey([]byte(id.HostPublic)); err != nil {
		return l, mvm.Errorf(mvm.ErrBroken, "the VM's identity is damaged: %w", err).WithHint("remove the VM and create it anew")
	}
	files, err := keyFiles(vm, inv, in.Key)
	if err != nil {
		return l, err
	}
	for _, f := range files {
		signer, err := key.LoadSigner(f)
		if err != nil {
			return l, err
		}
		l.Signers = append(l.Signers, signer)
	}
	return l, nil
}

// privateKey returns the file of a private key that a guest may accept.
func (c *core) privateKey(ctx context.Context, st *store.Store, vm *mvm.VMInstanceItem) (string, error) {
	inv, err := loadInventory(ctx, st)
	if err != nil {
		return "", err
	}
	files, err := keyFiles(vm, inv, "")
	if err != nil {
		return "", err
	}
	return files[0], nil
}

// keyFiles returns the files of private keys that a guest may accept, at least one:
// that of the one named, or those of the keys that the VM was created with.
func keyFiles(vm *mvm.VMInstanceItem, inv *inventory, named string) ([]string, error) {
	var files []string
	names := vm.SSHKeys
	if named != "" {
		names = []string{named}
	}
	for _, name := range names {
		k, err := pickKey(name, "see 'mvm key ls'", inv.keys)
		switch {
		case err == nil && k.PrivateKeyPath != nil:
			files = append(files, *k.PrivateKeyPath)
		case err == nil:
			continue // only its public half is here
		case named != "" && strings.ContainsRune(named, filepath.Separator):
			files = append(files, named)
		case named != "":
			return nil, err
		}
	}
	if len(files) == 0 {
		return nil, mvm.Errorf(mvm.ErrNotFound, "no private key for it is on this host").WithHint("name one with --key, or create VMs with a key made by 'mvm key create'")
	}
	return files, nil
}
