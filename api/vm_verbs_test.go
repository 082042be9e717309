package api

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/wire"
	"github.com/mvmctl/mvm/internal/vmm"
)

// servePowerOff answers as the agent with that host key does, and calls off when
// it is asked to power off. Anybody may log in.
func servePowerOff(conn net.Conn, hostKey string, off func()) {
	signer, err := ssh.ParsePrivateKey([]byte(hostKey))
	if err != nil {
		return
	}
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	cfg.AddHostKey(signer)
	s, chans, reqs, err := ssh.NewServerConn(conn, cfg)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	go func() {
		for ch := range chans {
			_ = ch.Reject(ssh.UnknownChannelType, "not here")
		}
	}()
	for r := range reqs {
		ok := r.Type == wire.ReqPowerOff
		_ = r.Reply(ok, nil)
		if ok {
			off()
		}
	}
}

// dialPowerOff connects to a new such agent.
func dialPowerOff(hostKey string, off func()) (net.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // net.Pipe has no buffer: both sides begin by writing
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	theirs, err := l.Accept()
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	go servePowerOff(theirs, hostKey, off)
	return ours, nil
}

// A guest that has just been started hears no power button, and its agent comes
// up later: it is shut down all the same, not cut off at the limit.
func TestStopWhileBooting(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	w.driver.Ignore = true
	var asked atomic.Int32
	w.driver.Guest = func(_ context.Context, h vmm.Handle, _ uint32) (net.Conn, error) {
		if asked.Add(1) < 3 {
			return nil, mvm.Errorf(mvm.ErrUnavailable, "it boots").WithHint("wait")
		}
		id, err := m.core.loadIdentity(h.ID)
		if err != nil {
			return nil, err
		}
		return dialPowerOff(id.AgentKey, func() { w.driver.End(h.ID, vmm.Exit{Reason: "guest powered off"}) })
	}
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	_, err1 := m.VM.Stop(t.Context(), VMInput{Identifiers: []string{"web"}, Timeout: time.Minute})
	v, err2 := m.VM.Get(t.Context(), sel("web"))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if v.Status != mvm.StatusStopped || v.ExitCode == nil || *v.ExitCode != 0 {
		t.Errorf("it is %s, exit code %v: its guest did not power off", v.Status, v.ExitCode)
	}
}

// Guests are waited for all at once: here none ends before all were asked.
func TestStopSeveral(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	n := 5
	res, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", Count: &n})
	if err != nil {
		t.Fatal(err)
	}
	w.driver.Ignore = true
	var asked atomic.Int32
	all := make(chan struct{})
	w.driver.Guest = func(ctx context.Context, h vmm.Handle, _ uint32) (net.Conn, error) {
		if asked.Add(1) == int32(n) { //nolint:gosec // a handful
			close(all)
		}
		select {
		case <-all:
			w.driver.End(h.ID, vmm.Exit{Reason: "guest powered off"})
			return nil, vmm.ErrGone
		case <-ctx.Done():
			asked.Add(-1)
			return nil, ctx.Err()
		}
	}
	names := []string{}
	for _, v := range res.VMs {
		names = append(names, v.Name)
	}
	batch, err := m.VM.Stop(t.Context(), VMInput{Identifiers: names, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, e := range batch.Entries {
		got = append(got, e.Identifier)
		if e.Item.Status != mvm.StatusStopped || e.Item.ExitCode == nil || *e.Item.ExitCode != 0 {
			t.Errorf("%s is %s, exit code %v", e.Identifier, e.Item.Status, e.Item.ExitCode)
		}
	}
	if !slices.Equal(got, names) {
		t.Errorf("reported on %v, asked for %v", got, names)
	}
	batch, err = m.VM.Remove(t.Context(), sel("web-1", res.VMs[0].IPv4, "web-2"))
	refused(t, err, mvm.ErrNotFound, res.VMs[0].IPv4) // it is gone when it is its turn again
	if len(batch.Items()) != 2 {
		t.Errorf("removed %d, want two", len(batch.Items()))
	}
}

// The default key of another cache, or of a database that was lost, is taken
// over: the guests that know it go on accepting it.
func TestDefaultKeyIsNotReplaced(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	st, err := m.core.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, made, err := m.core.defaultKey(t.Context(), st)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	for _, lost := range []string{"", ".pub"} {
		if lost != "" {
			if err := removeFile(*first.PrivateKeyPath + lost); err != nil {
				t.Fatal(err)
			}
		}
		if err := st.DeleteKey(t.Context(), first.ID); err != nil {
			t.Fatal(err)
		}
		again, _, err := m.core.defaultKey(t.Context(), st)
		if err != nil || again.Fingerprint != first.Fingerprint || again.Comment != first.Comment || !again.IsDefault {
			t.Fatalf("%+v, %v; want the key %s", again, err, first.Fingerprint)
		}
		if !exists(again.PublicKeyPath) {
			t.Errorf("its public half is missing")
		}
		first = again
	}
	if err := st.DeleteKey(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	w.file(*first.PrivateKeyPath, 3)
	_, _, err = m.core.defaultKey(t.Context(), st)
	refused(t, err, mvm.ErrInvalid, "is there, but")
}
