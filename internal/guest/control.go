package guest

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// request sends a global request and reads its JSON answer into out.
func (c *Client) request(ctx context.Context, name string, limit time.Duration, in, out any) error {
	if !c.agent {
		return mvm.Errorf(mvm.ErrUnsupported, "the guest is reached over the network, without the agent").
			WithHint("make the VM without --no-agent")
	}
	var payload []byte
	if in != nil {
		var err error
		if payload, err = json.Marshal(in); err != nil {
			return err
		}
	}
	reply, err := within(ctx, c, limit, func() ([]byte, error) {
		ok, reply, err := c.conn.SendRequest(name, true, payload)
		if err == nil && !ok {
			err = mvm.Errorf(mvm.ErrUnavailable, "the agent says: %s", clean(string(reply))).
				WithHint("an agent older than this mvm is renewed by restarting the VM")
		}
		return reply, err
	})
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(reply, out); err != nil {
		return mvm.Errorf(mvm.ErrBroken, "the agent's answer is no answer: %s", clean(err.Error())).WithHint("restart the VM to renew the agent")
	}
	return nil
}

// Ready asks the agent what runs in the guest. The texts in it are the guest's
// and have been made printable, not true.
func (c *Client) Ready(ctx context.Context) (wire.Ready, error) {
	var r wire.Ready
	err := c.request(ctx, wire.ReqReady, RequestLimit, nil, &r)
	printable(&r)
	return r, err
}

// printable makes the texts of an answer fit for a terminal.
func printable(r *wire.Ready) {
	for _, s := range []*string{&r.Version, &r.Hostname, &r.BootID, &r.Init, &r.State, &r.Kernel} {
		*s = clean(*s)
	}
}

// Sync has the guest write out its file systems, within SyncLimit.
func (c *Client) Sync(ctx context.Context) error {
	if !c.agent {
		limited, cancel := context.WithTimeout(ctx, SyncLimit)
		defer cancel()
		return c.script(limited, "sync", nil, nil)
	}
	return c.request(ctx, wire.ReqSync, SyncLimit, nil, nil)
}

// PowerOff asks the guest's init to end the machine and returns once it was
// asked; that the VM has ended is seen at its VMM.
func (c *Client) PowerOff(ctx context.Context) error {
	return c.request(ctx, wire.ReqPowerOff, RequestLimit, nil, nil)
}

// Reboot asks the guest's init to start over.
func (c *Client) Reboot(ctx context.Context) error {
	return c.request(ctx, wire.ReqReboot, RequestLimit, nil, nil)
}

// SetTime sets the guest's clock, after a pause or a restore.
func (c *Client) SetTime(ctx context.Context, t time.Time) error {
	return c.request(ctx, wire.ReqSetTime, RequestLimit, wire.SetTime{UnixNano: t.UnixNano()}, nil)
}

// SetIdentity makes another machine of a restored guest. The agent's own keys
// change with it, for connections made from then on.
func (c *Client) SetIdentity(ctx context.Context, n NewIdentity) error {
	return c.request(ctx, wire.ReqIdentity, SyncLimit, n, nil)
}

// ResizeConsole tells the guest how large the terminal is at which its serial
// console is shown.
func (c *Client) ResizeConsole(ctx context.Context, size Size) error {
	return c.request(ctx, wire.ReqConsole, RequestLimit, wire.ConsoleSize{Cols: size.Cols, Rows: size.Rows}, nil)
}

// SFTP opens a file transfer session as the connection's user. Closing it leaves
// the client open. Its calls end when the client is closed.
func (c *Client) SFTP(ctx context.Context) (*sftp.Client, error) {
	return within(ctx, c, RequestLimit, func() (*sftp.Client, error) {
		ch, reqs, err := c.conn.OpenChannel("session", nil)
		if err != nil {
			return nil, err
		}
		go ssh.DiscardRequests(reqs)
		ok, err := ch.SendRequest("subsystem", true, ssh.Marshal(struct{ Name string }{"sftp"}))
		if err == nil && !ok {
			err = mvm.Errorf(mvm.ErrUnsupported, "the guest has no file transfer").WithHint("install sftp-server in it, or make the VM with the agent")
		}
		if err == nil {
			var s *sftp.Client
			if s, err = sftp.NewClientPipe(ch, ch, sftp.UseConcurrentWrites(true)); err == nil {
				return s, nil
			}
		}
		return nil, errors.Join(err, ch.Close())
	})
}
