package cloudinit

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/proc"
)

// TestMain lets the test binary be the server's process, as mvm is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		os.Exit(Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

const patience = 2 * time.Minute

var (
	guestAddr = netip.MustParseAddr("127.0.0.2") // all of 127/8 is ours
	otherAddr = netip.MustParseAddr("127.0.0.3")
)

// clientFrom is a client with an address of its own, which keeps no connection.
func clientFrom(addr netip.Addr) *http.Client {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))}
	return &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}
}

func fetch(c *http.Client, method, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, url, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

var documents = Documents{MetaData: []byte("instance-id: a\n"), UserDataName: []byte("#cloud-config\n{}\n"), VendorData: {}, NetworkConfig: []byte("version: 2\n")}

// begin serves documents to guestAddr and returns the URL, and what tells of the end.
func begin(t *testing.T, limit limits) (string, <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- serve(t.Context(), l, documents, guestAddr, limit) }()
	return "http://" + l.Addr().String() + "/", ended
}

func wantEnd(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the server is still there")
	}
}

func TestServerGivesDocumentsToItsGuestOnly(t *testing.T) {
	url, ended := begin(t, limits{time.Hour, time.Hour})
	guest := clientFrom(guestAddr)
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "", 404}, {"GET", "meta-data/", 404}, {"GET", "../meta-data", 404}, {"GET", "etc/passwd", 404}, {"GET", "meta-data%00", 404},
		{"POST", "meta-data", 405}, {"PUT", "user-data", 405}, {"HEAD", "user-data", 200},
	} {
		if status, _, err := fetch(guest, c.method, url+c.path); status != c.status {
			t.Errorf("%s %q: %d, %v", c.method, c.path, status, err)
		}
	}
	if status, _, err := fetch(clientFrom(otherAddr), "GET", url+MetaData); err == nil {
		t.Errorf("another guest is answered with %d", status)
	}
	got := Documents{}
	for _, name := range names {
		status, body, err := fetch(guest, "GET", url+name)
		if err != nil || status != 200 {
			t.Fatalf("%s: %d, %v", name, status, err)
		}
		got[name] = []byte(body)
	}
	if diff := cmp.Diff(documents, got); diff != "" {
		t.Error(diff)
	}
	wantEnd(t, ended)
	if _, _, err := fetch(guest, "GET", url+MetaData); err == nil {
		t.Error("it still answers after all was fetched")
	}
}

func TestServerGoesAway(t *testing.T) {
	t.Run("when nothing is asked for any more", func(t *testing.T) {
		url, ended := begin(t, limits{time.Hour, time.Millisecond})
		for _, name := range []string{MetaData, UserDataName} {
			if status, _, err := fetch(clientFrom(guestAddr), "GET", url+name); status != 200 {
				t.Fatal(status, err)
			}
		}
		wantEnd(t, ended)
	})
	t.Run("when its time is over", func(t *testing.T) {
		_, ended := begin(t, limits{time.Millisecond, time.Hour})
		wantEnd(t, ended)
	})
	t.Run("not before", func(t *testing.T) {
		url, ended := begin(t, limits{time.Hour, time.Millisecond})
		for range 3 { // user data was not fetched yet
			if status, _, err := fetch(clientFrom(guestAddr), "GET", url+MetaData); status != 200 {
				t.Fatal(status, err)
			}
		}
		select {
		case err := <-ended:
			t.Errorf("it ended with %v", err)
		default:
		}
	})
}

// A guest that opens connections and says nothing does not get more of them, and
// does not keep the server.
func TestServerWithManyConnections(t *testing.T) {
	url, ended := begin(t, limits{time.Hour, time.Hour})
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(guestAddr, 0))}
	addr := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")
	var held []net.Conn
	for range maxConns {
		c, err := d.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		held = append(held, c)
	}
	extra, err := d.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = extra.SetDeadline(time.Now().Add(patience))
	if _, err := extra.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one connection more is not closed: %v", err)
	}
	for _, c := range held {
		_ = c.Close()
	}
	for _, name := range names {
		for end := time.Now().Add(patience); ; {
			if status, _, err := fetch(clientFrom(guestAddr), "GET", url+name); status == 200 {
				break
			} else if time.Now().After(end) {
				t.Fatal(status, err)
			}
		}
	}
	wantEnd(t, ended)
}

// start starts a server's process for a guest and returns it with its URL.
func start(t *testing.T, dir string) (proc.Identity, string) {
	t.Helper()
	id := "test" + strconv.Itoa(os.Getpid()) + strings.ReplaceAll(filepath.Base(filepath.Dir(dir)), "/", "")
	docs := filepath.Join(dir, "cloud-init")
	if err := documents.Write(docs); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0") // a free port
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	s := Server{VMID: id, Exe: os.Args[0], Documents: docs, Listen: at, Peer: guestAddr, Ended: filepath.Join(dir, "exit.json")}
	if _, err := s.Start(t.Context()); !errors.Is(err, mvm.ErrExists) || !strings.Contains(err.Error(), strconv.Itoa(int(at.Port()))) || mvm.HintOf(err) == "" {
		t.Errorf("started on a port in use: %v", err)
	}
	if err := PortFree(t.Context(), at); !errors.Is(err, mvm.ErrExists) {
		t.Errorf("a port in use is free: %v", err)
	}
	_ = l.Close()
	if err := PortFree(t.Context(), at); err != nil {
		t.Error(err)
	}
	p, err := s.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := StopServer(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	return p, "http://" + at.String() + "/"
}

func wantGone(t *testing.T, id proc.Identity) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := proc.WaitExit(ctx, id); err != nil {
		t.Errorf("the process is still there: %v", err)
	}
}

func TestServerProcess(t *testing.T) {
	t.Run("serves and ends", func(t *testing.T) {
		p, url := start(t, t.TempDir())
		status, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/status")
		if err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 && !strings.Contains(string(status), "\nUid:\t65534\t65534\t65534\t65534\n") {
			t.Errorf("it runs with rights:\n%s", status)
		}
		for _, name := range names {
			if status, body, err := fetch(clientFrom(guestAddr), "GET", url+name); status != 200 || body != string(documents[name]) {
				t.Errorf("%s: %d %q, %v", name, status, body, err)
			}
		}
		wantGone(t, p)
	})
	t.Run("ends with its VM", func(t *testing.T) {
		dir := t.TempDir()
		old := filepath.Join(dir, "exit.json") // of the run before
		if err := os.WriteFile(old, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		p, url := start(t, dir)
		if err := os.Remove(old); err != nil {
			t.Fatal(err)
		}
		if status, _, err := fetch(clientFrom(guestAddr), "GET", url+MetaData); status != 200 {
			t.Fatalf("%d, %v", status, err)
		}
		if err := os.WriteFile(old, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		wantGone(t, p)
	})
	t.Run("ends with its VM's directory", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "vm")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		p, _ := start(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		wantGone(t, p)
	})
	t.Run("says why it does not start", func(t *testing.T) {
		s := Server{VMID: "none", Exe: os.Args[0], Documents: t.TempDir(), Listen: netip.MustParseAddrPort("127.0.0.1:0"), Peer: guestAddr, Ended: "/nowhere/exit.json"}
		_, err := s.Start(t.Context())
		if !errors.Is(err, mvm.ErrUnavailable) || !strings.Contains(err.Error(), "meta-data is missing") || mvm.HintOf(err) == "" {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Start(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if ids, err := proc.FindByArg(Token("none")); err != nil || len(ids) > 0 {
			t.Errorf("processes are left: %v, %v", ids, err)
		}
	})
}

func TestDocumentsAreKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cloud-init")
	less := Documents{MetaData: documents[MetaData], UserDataName: documents[UserDataName]}
	for _, want := range []Documents{documents, less} {
		if err := want.Write(dir); err != nil {
			t.Fatal(err)
		}
		got, err := ReadDocuments(dir)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	for _, path := range []string{dir, filepath.Join(dir, UserDataName)} {
		if st, err := os.Stat(path); err != nil || st.Mode()&0o077 != 0 {
			t.Errorf("%s has mode %v, %v", path, st.Mode(), err)
		}
	}
}
