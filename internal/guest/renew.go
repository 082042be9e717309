package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// renewLimit is how long sending a program into a guest may take.
const renewLimit = 2 * time.Minute

// CanRenew says whether the agent would let itself be replaced now.
func (c *Client) CanRenew(ctx context.Context) error {
	return c.request(ctx, wire.ReqRenew, RequestLimit, wire.Renew{Check: true}, nil)
}

// Renew replaces the agent by another program, which is of an mvm of that version.
// The connection is lost with it.
func (c *Client) Renew(ctx context.Context, program []byte, version string) error {
	ctx, cancel := context.WithTimeout(ctx, renewLimit)
	defer cancel()
	sum := sha256.Sum256(program)
	report := &bounded{most: maxReport}
	st, err := c.Exec(ctx, Cmd{Argv: []string{"/proc/self/exe", wire.ReceiveCommand, hex.EncodeToString(sum[:])}, User: "root", Stdin: bytes.NewReader(program), Stderr: report})
	if err == nil && st.Code != 0 {
		err = mvm.Errorf(mvm.ErrUnavailable, "the guest does not take it: %s", clean(report.String())).WithHint("restart the VM to renew its agent")
	}
	if err != nil {
		return err
	}
	return c.request(ctx, wire.ReqRenew, RequestLimit, wire.Renew{Version: version}, nil)
}
