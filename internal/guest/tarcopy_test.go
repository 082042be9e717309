package guest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm/internal/guest"
	"github.com/mvmctl/mvm/internal/guest/tree"
	"github.com/mvmctl/mvm/internal/guest/tree/treetest"
	"github.com/mvmctl/mvm/internal/run"
)

// shells are the programs that guests have: GNU's or Debian's, and busybox's.
func shells(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{"host": os.Getenv("PATH")}
	dir := t.TempDir()
	busybox, err := (&run.Host{}).Run(t.Context(), run.Cmd{Name: "sh", Args: []string{"-c", "command -v busybox && busybox --install -s " + dir}})
	if err != nil || len(busybox.Stdout) == 0 {
		t.Log("skipped: what busybox does, which is not installed")
		return all
	}
	all["busybox"] = dir
	return all
}

// plainSSH logs in to an SSH server that runs commands here, with programs from path.
func plainSSH(t *testing.T, path string) *guest.Client {
	t.Helper()
	host := pair(t)
	cfg := &ssh.ServerConfig{NoClientAuth: true}
	cfg.AddHostKey(host.Signer)
	addr := serve(t, func(c net.Conn) {
		_, chans, reqs, err := ssh.NewServerConn(c, cfg)
		if err != nil {
			return
		}
		go ssh.DiscardRequests(reqs)
		for nc := range chans {
			if ch, reqs, err := nc.Accept(); err == nil {
				go shellWith(t.Context(), path, ch, reqs)
			}
		}
	})
	c, err := guest.DialNet(short(t, time.Minute), addr, guest.Login{HostKey: host.Public.Key, Signers: []ssh.Signer{pair(t).Signer}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func shellWith(ctx context.Context, path string, ch ssh.Channel, reqs <-chan *ssh.Request) {
	for r := range reqs {
		var m struct{ Line string }
		ok := r.Type == "exec" && ssh.Unmarshal(r.Payload, &m) == nil
		_ = r.Reply(ok, nil)
		if !ok {
			continue
		}
		stdin, feed, err := os.Pipe() // a command that ends early does not wait for it
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(feed, ch)
			_ = feed.Close()
		}()
		code := 0
		_, err = (&run.Host{}).Run(ctx, run.Cmd{Name: firstSh(path), Args: []string{"-c", m.Line}, Env: []string{"PATH=" + path}, Stdin: stdin, Stdout: ch, Stderr: ch.Stderr()})
		_ = stdin.Close()
		var exit *run.ExitError
		if errors.As(err, &exit) {
			code = exit.Code
		}
		_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(code)})) //nolint:gosec // small
		_ = ch.Close()
	}
}

func firstSh(path string) string {
	for _, dir := range filepath.SplitList(path) {
		if _, err := os.Stat(dir + "/sh"); err == nil {
			return dir + "/sh"
		}
	}
	return "sh"
}

// relay copies through the guest: from it, to it, or both.
func relay(ctx context.Context, pack func(context.Context, []string, io.Writer) (tree.Stats, error), unpack func(context.Context, tree.Target, io.Reader) (tree.Stats, error)) treetest.Transfer {
	return func(sources []string, target tree.Target) (tree.Stats, error) {
		r, w := io.Pipe()
		sent := make(chan error, 1)
		go func() {
			_, err := pack(ctx, sources, w)
			_ = w.CloseWithError(err)
			sent <- err
		}()
		s, err := unpack(ctx, target, r)
		_ = r.CloseWithError(io.ErrClosedPipe)
		if sendErr := <-sent; sendErr != nil && !errors.Is(sendErr, io.ErrClosedPipe) {
			return s, sendErr
		}
		return s, err
	}
}

func hostPack(_ context.Context, sources []string, w io.Writer) (tree.Stats, error) {
	return tree.Pack(w, sources)
}

func hostUnpack(_ context.Context, t tree.Target, r io.Reader) (tree.Stats, error) {
	return tree.Unpack(r, t)
}

func TestTarOverSSH(t *testing.T) {
	for name, path := range shells(t) {
		t.Run(name, func(t *testing.T) {
			c := plainSSH(t, path)
			t.Run("to", func(t *testing.T) { treetest.Suite(t, relay(t.Context(), hostPack, c.Unpack), time.Second) })
			t.Run("from", func(t *testing.T) { treetest.Suite(t, relay(t.Context(), c.Pack, hostUnpack), time.Second) })
			t.Run("between", func(t *testing.T) { treetest.Suite(t, relay(t.Context(), c.Pack, c.Unpack), time.Second) })
			t.Run("names", func(t *testing.T) { tarNames(t, c) })
			t.Run("broken off", func(t *testing.T) { tarBreaksOff(t, c) })
		})
	}
}

// tarNames has names that shells and archives treat specially.
func tarNames(t *testing.T, c *guest.Client) {
	from, to := t.TempDir(), t.TempDir()
	long := strings.Repeat("long/", 60) + strings.Repeat("n", 200)
	files := map[string]string{
		"d/-rf": "1", "d/.hidden": "2", "d/..two": "3", "d/a b'\"$(c)": "4", "d/new\nline": "5", "d/*": "6", "d/" + long: "7", "d/.d/.e": "8", "-x": "9", "d/ü": "10",
	}
	treetest.Plant(t, from, files, 0o600)
	if err := os.Link(from+"/d/-rf", from+"/d/twin"); err != nil {
		t.Fatal(err)
	}
	files["d/twin"] = "1"
	treetest.Plant(t, to, map[string]string{"d/.d/.f": "old", "d/..two": "old"}, 0o600)
	copied := relay(t.Context(), c.Pack, c.Unpack)
	if _, err := copied([]string{from + "/d/.", from + "/-x"}, tree.Target{Path: to, Dir: true, Force: true}); err != nil {
		t.Fatal(err)
	}
	files["d/.d/.f"] = "old"
	if d := cmp.Diff(files, treetest.Look(t, to)); d != "" {
		t.Error(d)
	}
}

// An archive that breaks off, or that the guest cannot take, leaves nothing.
func tarBreaksOff(t *testing.T, c *guest.Client) {
	from, to := t.TempDir(), t.TempDir()
	treetest.Plant(t, from, map[string]string{"d/one": "1", "d/two": strings.Repeat("2", 100<<10)}, 0o600)
	before := map[string]string{"d/one": "old"}
	treetest.Plant(t, to, before, 0o600)
	var whole bytes.Buffer
	if _, err := tree.Pack(&whole, []string{from + "/d"}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 700, 3000, 60 << 10, whole.Len() - 2048} {
		_, err := c.Unpack(t.Context(), tree.Target{Path: to, Force: true}, bytes.NewReader(whole.Bytes()[:n]))
		var e *tree.Error
		if !errors.As(err, &e) || e.Reason != "the transfer broke off" {
			t.Errorf("%d of %d bytes: %v", n, whole.Len(), err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Unpack(ctx, tree.Target{Path: to, Force: true}, &whole); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if d := cmp.Diff(before, treetest.Look(t, to)); d != "" {
		t.Error(d)
	}
}
