package fakevmm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strconv"

	"golang.org/x/crypto/ssh"

	vmguest "github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// agent is what the guest's memory has of its agent: the host name and the keys that
// its initrd or a new identity told it.
type agent struct {
	Name    string `json:"name"`
	HostKey string `json:"host_key"`
	Login   string `json:"login"` // the key that the host logs in with
	Port    string `json:"port"`
}

// readAgent finds the agent's configuration in an initrd, in the last archive as
// everything of ours; nil when there is none.
func readAgent(initrd *string) *agent {
	if initrd == nil {
		return nil
	}
	data, err := os.ReadFile(*initrd)
	if err != nil {
		return nil
	}
	at := bytes.LastIndex(data, []byte(vmguest.ConfigPath[1:]+"\x00"))
	if at < 0 {
		return nil
	}
	data = data[at:]
	var c vmguest.BootConfig
	if begin := bytes.IndexByte(data, '{'); begin < 0 || json.NewDecoder(bytes.NewReader(data[begin:])).Decode(&c) != nil {
		return nil
	}
	return agentOf(c)
}

func agentOf(c vmguest.BootConfig) *agent {
	if c.Agent == nil {
		return nil
	}
	return &agent{c.Hostname, c.Agent.HostKey, c.Agent.AuthorizedKey, strconv.Itoa(int(c.Agent.Port))}
}

// serveAgent answers as the agent does, as far as the life of a VM asks: it runs
// nothing.
func (g *guest) serveAgent(conn net.Conn, a agent) {
	signer, err1 := ssh.ParsePrivateKey([]byte(a.HostKey))
	login, _, _, _, err2 := ssh.ParseAuthorizedKey([]byte(a.Login))
	if errors.Join(err1, err2) != nil {
		return
	}
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(key.Marshal(), login.Marshal()) {
			return nil, errors.New("another key")
		}
		return nil, nil
	}}
	cfg.AddHostKey(signer)
	s, chans, reqs, err := ssh.NewServerConn(conn, cfg)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	go func() {
		for ch := range chans {
			_ = ch.Reject(ssh.UnknownChannelType, "the fake's agent runs nothing")
		}
	}()
	for r := range reqs {
		ok, answer := g.obeyAgent(r)
		_ = r.Reply(ok, answer)
		if r.Type == wire.ReqPowerOff {
			g.run(g.end)
		}
	}
}

func (g *guest) obeyAgent(r *ssh.Request) (ok bool, answer []byte) {
	switch r.Type {
	case wire.ReqReady:
		g.run(func() {
			answer, _ = json.Marshal(wire.Ready{State: "running", Hostname: g.kept.Agent.Name, Kernel: "6.1.0-fakevmm"})
		})
	case wire.ReqIdentity:
		var next vmguest.NewIdentity
		if err := json.Unmarshal(r.Payload, &next); err != nil || next.Config.Agent == nil {
			return false, []byte("this is no identity")
		}
		g.run(func() { g.kept.Agent = agentOf(next.Config) })
	case wire.ReqSync, wire.ReqSetTime, wire.ReqPowerOff:
	default:
		return false, []byte("the fake's agent does not know " + r.Type)
	}
	return true, answer
}

// vsockConn is the guest's end of a connection to its vsock: what passes waits for
// the vCPUs, and it is dead after a reset.
type vsockConn struct {
	net.Conn
	r     *bufio.Reader
	g     *guest
	epoch int
}

func (c *vsockConn) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.g.receive(func() {}) != c.epoch {
		return 0, io.EOF
	}
	return n, err
}

func (c *vsockConn) Write(p []byte) (n int, err error) {
	now := c.g.receive(func() {
		if c.g.epoch == c.epoch {
			n, err = c.Conn.Write(p)
		}
	})
	if now != c.epoch {
		return 0, io.ErrClosedPipe
	}
	return n, err
}
