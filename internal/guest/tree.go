package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/tree"
)

// maxReport bounds what is kept of a guest's report on a copy.
const maxReport = 64 << 10

// Tree has the agent pack or unpack files as the connection's user, with the
// arguments that tree.Args made. A failure there is a *tree.Error; its texts, and
// the statistics, are the guest's and have been made printable, not true.
func (c *Client) Tree(ctx context.Context, args []string, in io.Reader, out io.Writer) (tree.Stats, error) {
	var s tree.Stats
	if !c.agent {
		return s, mvm.Errorf(mvm.ErrUnsupported, "the guest is reached over the network, without the agent").WithHint("use scp, or make the VM with the agent")
	}
	report := &bounded{most: maxReport}
	st, err := c.move(ctx, Cmd{Argv: append([]string{"/proc/self/exe"}, args...), Stdin: in, Stdout: out, Stderr: report})
	if err != nil {
		return s, err
	}
	return readReport(report.String(), st.Code)
}

// readReport reads what an agent says of a copy that ended with a status.
func readReport(report string, code int) (tree.Stats, error) {
	var s tree.Stats
	if code == 0 {
		if err := json.Unmarshal([]byte(report), &s); err != nil {
			return s, mvm.Errorf(mvm.ErrBroken, "the agent's report is no report: %s", clean(err.Error())).WithHint("restart the VM to renew the agent")
		}
		for i := range s.Skipped {
			s.Skipped[i] = clean(s.Skipped[i])
		}
		return s, nil
	}
	var e tree.Error
	if json.Unmarshal([]byte(report), &e) != nil || e.Reason == "" {
		return s, mvm.Errorf(mvm.ErrUnavailable, "the agent does not copy: %s", clean(report)).
			WithHint("an agent older than this mvm is renewed by restarting the VM")
	}
	e.Reason = clean(e.Reason)
	return s, &e
}

// bounded keeps the first bytes of what is written to it.
type bounded struct {
	bytes.Buffer
	most int
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := b.most - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
