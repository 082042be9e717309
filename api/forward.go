package api

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest"
)

// SSHProxyInput is where a stream into a guest ends.
type SSHProxyInput struct {
	Identifier string
	Port       int // TCP port of the guest; 0 is the SSH server of the agent
	IO         StreamIO
}

// Proxy connects stdio with the SSH server of a VM's agent, or with a port of the
// guest, until either side ends the stream. It needs no network in the guest, unless
// that has no agent: then it is the guest's own SSH server.
func (o *SSHOperation) Proxy(ctx context.Context, in SSHProxyInput) error {
	const what = "connect to"
	if in.Port < 0 || in.Port > 65535 {
		return mvm.Errorf(mvm.ErrInvalid, "%d is not a port", in.Port).WithHint("use a number from 1 to 65535")
	}
	vm, client, err := o.core.openAgent(ctx, in.Identifier, what, agentLoginAs{})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	var conn net.Conn
	if in.Port > 0 {
		conn, err = client.DialPort(ctx, "localhost", in.Port)
	} else {
		conn, err = client.dial(ctx)
	}
	if err != nil {
		return mvm.Wrap(err, what, vm.Name)
	}
	ctx, end := o.core.whileItAnswers(ctx, vm, client.Client)
	defer end()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	proxy(conn, in.IO)
	return mvm.Wrap(causeOf(ctx, ctx.Err()), what, vm.Name)
}

// proxy copies both ways until the guest's side ends.
func proxy(conn net.Conn, stdio StreamIO) {
	defer func() { _ = conn.Close() }()
	go func() {
		if stdio.Stdin != nil {
			_, _ = io.Copy(conn, stdio.Stdin)
		}
		closeWrite(conn)
	}()
	out := stdio.Stdout
	if out == nil {
		out = io.Discard
	}
	_, _ = io.Copy(out, conn) // either end of the stream is the end
}

func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	} else {
		_ = conn.Close()
	}
}

// SSHConfigInput says for which VM, and by which program, a configuration of
// OpenSSH is made.
type SSHConfigInput struct {
	Identifier string
	Program    string // the mvm command; "" is the one in PATH
}

// SSHConfig is what OpenSSH needs to reach a VM through Proxy, in the words of
// ssh_config(5).
type SSHConfig struct {
	Host               string `json:"host"`
	HostKeyAlias       string `json:"host_key_alias"`
	User               string `json:"user"`
	ProxyCommand       string `json:"proxy_command"`
	IdentityFile       string `json:"identity_file"`
	UserKnownHostsFile string `json:"user_known_hosts_file"`
}

// Config writes the VM's key and known host into its directory, each with mode
// 0600, and returns the configuration that names them. A VM without the agent is
// logged in to with the user's own key. The VM need not run.
func (o *SSHOperation) Config(ctx context.Context, in SSHConfigInput) (SSHConfig, error) {
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return SSHConfig{}, err
	}
	vm, err := c.findVM(ctx, st, in.Identifier)
	if err != nil {
		return SSHConfig{}, err
	}
	const what = "make an SSH configuration for"
	id, err := c.loadIdentity(vm.ID)
	if err != nil {
		return SSHConfig{}, mvm.Wrap(err, what, vm.Name)
	}
	dir, alias := c.paths.vm(vm.ID), "mvm-"+vm.ID
	cfg := SSHConfig{
		Host: vm.Name, HostKeyAlias: alias, User: firstOf(deref(vm.SSHUser), "root"),
		ProxyCommand: "env " + guest.QuoteShell("MVM_CACHE_DIR="+c.paths.cache, "MVM_CONFIG_DIR="+c.paths.config, firstOf(in.Program, "mvm"), "connect", vm.ID),
		IdentityFile: filepath.Join(dir, "ssh_key"), UserKnownHostsFile: filepath.Join(dir, "ssh_known_hosts"),
	}
	public := id.AgentPublic
	if !vm.HasAgent {
		public = id.HostPublic
		if cfg.IdentityFile, err = c.privateKey(ctx, st, vm); err != nil {
			return SSHConfig{}, mvm.Wrap(err, what, vm.Name)
		}
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(public))
	if err == nil {
		known := alias + " " + string(ssh.MarshalAuthorizedKey(key))
		err = fsx.WriteFile(cfg.UserKnownHostsFile, []byte(known), 0o600)
	}
	if err == nil && vm.HasAgent {
		err = fsx.WriteFile(cfg.IdentityFile, []byte(id.ClientKey), 0o600)
	}
	return cfg, mvm.Wrap(err, what, vm.Name)
}

// String returns the block for ~/.ssh/config or 'ssh -F'.
func (c SSHConfig) String() string {
	var b strings.Builder
	b.WriteString("Host " + c.Host + "\n")
	percent := strings.NewReplacer("%", "%%") // ssh_config(5), TOKENS
	for _, kv := range [][2]string{
		{"HostName", c.HostKeyAlias}, {"HostKeyAlias", c.HostKeyAlias}, {"User", c.User},
		{"ProxyCommand", percent.Replace(c.ProxyCommand)},
		{"IdentityFile", `"` + percent.Replace(c.IdentityFile) + `"`}, {"IdentitiesOnly", "yes"},
		{"UserKnownHostsFile", `"` + percent.Replace(c.UserKnownHostsFile) + `"`}, {"StrictHostKeyChecking", "yes"},
	} {
		b.WriteString("  " + kv[0] + " " + kv[1] + "\n")
	}
	return b.String()
}

// SSHForwardInput are ports of the host that lead into a guest.
type SSHForwardInput struct {
	Identifier string
	Ports      []PortForward
	Ready      func(PortForward) // told for each, with the port that was chosen
	Refused    func(error)       // told when the guest does not take a connection
}

// PortForward is one port of the host that leads to one of the guest.
type PortForward struct {
	Address   string // of the host; "" is 127.0.0.1
	HostPort  int    // 0 has the kernel choose one
	GuestPort int    // TCP, on the guest's localhost
}

// ParsePortForward reads [ADDRESS:]HOSTPORT:GUESTPORT, or PORT for the same on
// both sides. An IPv6 address stands in brackets.
func ParsePortForward(s string) (PortForward, error) {
	bad := func() (PortForward, error) {
		return PortForward{}, mvm.Errorf(mvm.ErrInvalid, "%s is not [ADDRESS:]HOSTPORT:GUESTPORT", mvm.Quote(s)).WithHint("write for example 8080:80")
	}
	rest, last := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		rest, last = s[:i], s[i+1:]
	}
	guestPort, err := strconv.ParseUint(last, 10, 16)
	if err != nil || guestPort == 0 {
		return bad()
	}
	p := PortForward{Address: "127.0.0.1", HostPort: int(guestPort), GuestPort: int(guestPort)}
	if !strings.Contains(s, ":") {
		return p, nil
	}
	host := rest
	if strings.Contains(rest, ":") {
		if p.Address, host, err = net.SplitHostPort(rest); err != nil || net.ParseIP(p.Address) == nil {
			return bad()
		}
	}
	hostPort, err := strconv.ParseUint(host, 10, 16)
	if err != nil {
		return bad()
	}
	p.HostPort = int(hostPort)
	return p, nil
}

// maxForwarded is how many connections are open at once; more wait.
const maxForwarded = 256

// Forward listens on ports of the host and leads each connection to a port of the
// guest, until ctx or the connection to the guest ends.
func (o *SSHOperation) Forward(ctx context.Context, in SSHForwardInput) error {
	const what = "forward ports to"
	if len(in.Ports) == 0 {
		return mvm.Errorf(mvm.ErrInvalid, "no port was named").WithHint("write for example 8080:80")
	}
	vm, client, err := o.core.openAgent(ctx, in.Identifier, what, agentLoginAs{})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	ctx, end := o.core.whileItAnswers(ctx, vm, client.Client)
	defer end()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var open sync.WaitGroup
	defer open.Wait()
	slots := make(chan struct{}, maxForwarded)
	for _, p := range in.Ports {
		l, err := net.Listen("tcp", net.JoinHostPort(firstOf(p.Address, "127.0.0.1"), strconv.Itoa(p.HostPort)))
		if err != nil {
			err := mvm.Errorf(mvm.ErrBusy, "cannot listen on %s:%d: %w", firstOf(p.Address, "127.0.0.1"), p.HostPort, err).WithHint("choose another port of the host")
			cancel(err)
			return mvm.Wrap(err, what, vm.Name)
		}
		context.AfterFunc(ctx, func() { _ = l.Close() })
		p.HostPort = l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // it listens on tcp
		if in.Ready != nil {
			in.Ready(p)
		}
		open.Go(func() { forward(ctx, &open, l, p.GuestPort, client.Client, slots, in.Refused) })
	}
	select {
	case <-ctx.Done():
		return mvm.Wrap(causeOf(ctx, ctx.Err()), what, vm.Name)
	case <-client.Done():
		err := mvm.Errorf(mvm.ErrUnavailable, "the connection to the guest was lost").WithHint("see 'mvm vm ls' whether it still runs")
		cancel(err)
		return mvm.Wrap(err, what, vm.Name)
	}
}

// forward leads the connections of one listener, until that is closed.
func forward(ctx context.Context, open *sync.WaitGroup, l net.Listener, port int, client *guest.Client, slots chan struct{}, refused func(error)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			_ = conn.Close()
			return
		}
		open.Go(func() {
			defer func() { <-slots }()
			defer func() { _ = conn.Close() }()
			to, err := client.DialPort(ctx, "localhost", port)
			if err != nil {
				if refused != nil && ctx.Err() == nil {
					refused(err)
				}
				return
			}
			stop := context.AfterFunc(ctx, func() { _ = errors.Join(conn.Close(), to.Close()) })
			defer stop()
			var back sync.WaitGroup
			back.Go(func() {
				_, _ = io.Copy(conn, to)
				closeWrite(conn)
			})
			_, _ = io.Copy(to, conn)
			closeWrite(to)
			back.Wait()
			_ = to.Close()
		})
	}
}
