package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// How long a guest may take to answer. A guest that is slow (software emulation,
// a host under load, a hundred commands at once) takes seconds; one that never
// answers must not hang a command.
const (
	DialLimit    = time.Minute     // without a byte while connecting and logging in
	LoginLimit   = 2 * time.Minute // for all of that, when the caller's context has no deadline
	RequestLimit = time.Minute     // for one request, unless its comment says otherwise
	SyncLimit    = 2 * time.Minute // for Sync: a slow disk may have much to write
)

// DialFunc opens a stream to the guest's SSH server or agent.
type DialFunc func(ctx context.Context) (net.Conn, error)

// Login says who logs in where. The guest's host key was made by us, so nothing
// is ever trusted on first use.
type Login struct {
	HostKey ssh.PublicKey // the only key that the guest may show
	Signers []ssh.Signer
	User    string // "" is root
}

// Client is a connection to one guest, to its agent or to its SSH server over
// the network. Its methods may be called at once from several goroutines; each
// command is a channel of its own.
type Client struct {
	conn  *ssh.Client
	agent bool // speaks package wire's requests
	user  string

	dataMu sync.Mutex
	data   DialFunc // to the agent's data port; nil where copies go over SSH
}

// Dial logs in to the agent over a stream that dial opens. A guest that does not
// answer gives mvm.ErrUnavailable, one with another host key mvm.ErrBroken.
func Dial(ctx context.Context, dial DialFunc, l Login) (*Client, error) {
	return login(ctx, dial, l, true)
}

// DialNet logs in to the guest's own SSH server at addr ("172.27.0.2:22"), for
// images without the agent.
func DialNet(ctx context.Context, addr string, l Login) (*Client, error) {
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
	return login(ctx, dial, l, false)
}

var errHostKey = errors.New("the guest shows another host key than the one made for it")

func login(ctx context.Context, dial DialFunc, l Login, agent bool) (*Client, error) {
	if l.HostKey == nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "no host key is known for the guest").WithHint("make the VM anew, or log in with ssh -o HostKeyAlias=… by hand")
	}
	if l.User == "" {
		l.User = "root"
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, LoginLimit)
		defer cancel()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(DialLimit, func() { cancel(errSilent) })
	defer silence.Stop()
	began := time.Now()
	c, err := dial(ctx)
	if err != nil {
		return nil, unanswered(ctx, err, began)
	}
	listening := &listener{Conn: c, silence: silence}
	defer listening.loggedIn.Store(true)
	c = listening
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	sc, chans, reqs, err := ssh.NewClientConn(c, "guest", clientConfig(l))
	if !stop() && err == nil { // the context ended in the last moment: c is closed
		err = ctx.Err()
	}
	if err != nil {
		_ = c.Close()
		return nil, loginError(ctx, err, l, began)
	}
	return &Client{conn: ssh.NewClient(sc, chans, reqs), agent: agent, user: l.User}, nil
}

// errSilent ends a login to a guest that says nothing.
var errSilent = errors.New("the guest says nothing")

// listener puts the end of patience off with each byte that comes until somebody is
// logged in.
type listener struct {
	net.Conn
	silence  *time.Timer
	loggedIn atomic.Bool
}

func (l *listener) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if n > 0 && !l.loggedIn.Load() {
		l.silence.Reset(DialLimit)
	}
	return n, err
}

func clientConfig(l Login) *ssh.ClientConfig {
	cfg := &ssh.ClientConfig{
		User: l.User,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(l.Signers...)},
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if !bytes.Equal(key.Marshal(), l.HostKey.Marshal()) {
				return errHostKey
			}
			return nil
		},
		HostKeyAlgorithms: hostKeyAlgorithms(l.HostKey),
	}
	// The cheapest of the safe ones: an emulated CPU takes a noticeable part of a
	// second for a post-quantum exchange, on a stream that does not leave the host.
	cfg.KeyExchanges = []string{ssh.KeyExchangeCurve25519, ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeECDHP256}
	return cfg
}

func hostKeyAlgorithms(k ssh.PublicKey) []string {
	if k.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{k.Type()}
}

func loginError(ctx context.Context, err error, l Login, began time.Time) error {
	switch {
	case errors.Is(err, errHostKey), strings.Contains(err.Error(), "no common algorithm for host key"):
		return mvm.Errorf(mvm.ErrBroken, "%w", errHostKey).
			WithHint("something else answers at its address, or its keys were replaced inside; 'mvm console VM' shows the guest itself")
	case strings.Contains(err.Error(), "unable to authenticate"):
		return mvm.Errorf(mvm.ErrPrivilege, "the guest does not accept the key for user %s", mvm.Quote(l.User)).
			WithHint("name another user or key with --user and --key")
	}
	return unanswered(ctx, err, began)
}

// unanswered is the error for a guest that does not talk to us.
func unanswered(ctx context.Context, err error, began time.Time) error {
	if errors.Is(ctx.Err(), context.Canceled) && !errors.Is(context.Cause(ctx), errSilent) {
		return context.Canceled
	}
	if ctx.Err() != nil {
		return mvm.Errorf(mvm.ErrUnavailable, "the guest did not answer within %s", time.Since(began).Round(100*time.Millisecond)).
			WithHint("see 'mvm logs VM' for its boot messages; a paused VM answers after 'mvm vm resume VM'")
	}
	var e *mvm.Error
	if errors.As(err, &e) {
		return err
	}
	return mvm.Errorf(mvm.ErrUnavailable, "the guest does not answer: %s", clean(err.Error())).
		WithHint("wait for it with 'mvm vm wait VM --for ready', or see 'mvm logs VM'")
}

// clean makes text from a guest fit for a terminal and for one line.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) { // nor is what turns the direction of writing
			return ' '
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	const most = 300
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Close ends the connection and what runs over it.
func (c *Client) Close() error { return c.conn.Close() }

// Agent says whether the other side is the agent, not a plain SSH server.
func (c *Client) Agent() bool { return c.agent }

// AgentVersion returns the version of the mvm whose agent this is, as the agent
// says; "" when it does not.
func (c *Client) AgentVersion() string {
	if !c.agent {
		return ""
	}
	return clean(wire.AgentVersion(string(c.conn.ServerVersion())))
}

// Done is closed when the connection is lost.
func (c *Client) Done() <-chan struct{} {
	done := make(chan struct{})
	go func() { _ = c.conn.Wait(); close(done) }()
	return done
}

// keepAlive is a request that nobody knows. OpenSSH's client asks by the same name
// (ssh_config(5), ServerAliveInterval).
const keepAlive = "keepalive@openssh.com"

// Answers returns when the other side has answered a request, be it by refusing it
// (RFC 4254, section 4). It has no limit; its error says that the connection is lost.
func (c *Client) Answers() error {
	_, _, err := c.conn.SendRequest(keepAlive, true, nil)
	return err
}

// within runs fn, which blocks on the connection without a context. When limit
// or ctx ends first the connection is of no use any more and is closed, which
// also ends fn.
func within[T any](ctx context.Context, c *Client, limit time.Duration, fn func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := fn()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			var e *mvm.Error
			if errors.As(r.err, &e) {
				return r.v, r.err
			}
			return r.v, unanswered(ctx, r.err, began)
		}
		return r.v, nil
	case <-ctx.Done():
		_ = c.conn.Close()
		var zero T
		return zero, unanswered(ctx, ctx.Err(), began)
	}
}

// portError is what a guest says of a port that it could not connect to.
type portError string

func (e portError) Error() string { return string(e) }

// DialPort connects to a TCP port of the guest itself through the channel; host
// is "localhost" or one of the guest's own addresses.
func (c *Client) DialPort(ctx context.Context, host string, port int) (net.Conn, error) {
	conn, err := within(ctx, c, RequestLimit, func() (net.Conn, error) {
		conn, err := c.conn.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
		var refused *ssh.OpenChannelError
		if errors.As(err, &refused) {
			return nil, mvm.Errorf(mvm.ErrUnavailable, "port %d in the guest: %w", port, portError(clean(refused.Message))).
				WithHint("is the service running? 'mvm exec VM -- ss -ltn' lists what listens")
		}
		return conn, err
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}
