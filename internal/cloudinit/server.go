package cloudinit

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// limits bound how long a server is there.
type limits struct {
	total time.Duration // however little was fetched
	quiet time.Duration // after the last request, once what every version fetches was fetched
}

// serverLimits: a guest may boot slowly, and versions before 24 do not ask for the
// network configuration.
var serverLimits = limits{total: 10 * time.Minute, quiet: 20 * time.Second}

// Bounds for one client, which is a guest that nobody trusts.
const (
	maxConns  = 8
	maxHeader = 8 << 10
	slowest   = 30 * time.Second // for one request or one answer
	farewell  = 5 * time.Second  // for the answers that are under way at the end
)

// server hands documents to one guest.
type server struct {
	docs Documents

	mu    sync.Mutex
	got   map[string]bool
	quiet *time.Timer
	limit limits
	done  chan struct{} // closed when all was fetched
}

// serve answers requests that come from peer, and nobody else, until the documents
// were fetched, a limit is over or ctx ends. It closes l.
func serve(ctx context.Context, l net.Listener, docs Documents, peer netip.Addr, limit limits) error {
	s := &server{docs: docs, got: map[string]bool{}, limit: limit, done: make(chan struct{}), quiet: time.NewTimer(limit.total)}
	h := &http.Server{
		Handler: s, ReadHeaderTimeout: slowest, ReadTimeout: slowest, WriteTimeout: slowest, IdleTimeout: slowest, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(io.Discard, "", 0),
	}
	ctx, cancel := context.WithTimeout(ctx, limit.total)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(&guarded{Listener: l, peer: peer, free: make(chan struct{}, maxConns)}) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	case <-s.done:
	case <-s.quiet.C:
	}
	last, stop := context.WithTimeout(context.Background(), farewell)
	defer stop()
	if err := h.Shutdown(last); err != nil {
		_ = h.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ServeHTTP implements http.Handler. There is nothing but the documents.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	data, ok := s.docs[name]
	switch {
	case !ok:
		http.Error(w, "no such document", http.StatusNotFound)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "documents are for reading", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(data)))
	if r.Method == http.MethodGet && r.Context().Err() == nil {
		s.fetched(name)
	}
}

// fetched notes that a document went out.
func (s *server) fetched(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.got[name]
	s.got[name] = true
	if s.got[MetaData] && s.got[UserDataName] {
		s.quiet.Reset(s.limit.quiet)
	}
	if first && len(s.got) == len(s.docs) {
		close(s.done)
	}
}

// guarded is a listener that takes connections of one peer only, and not too many
// at once. Others are closed before anything is read from them.
type guarded struct {
	net.Listener
	peer netip.Addr
	free chan struct{} // holds a token for each connection
}

func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if from, ok := c.RemoteAddr().(*net.TCPAddr); ok && from.AddrPort().Addr().Unmap() == g.peer {
			select {
			case g.free <- struct{}{}:
				return &counted{Conn: c, free: g.free}, nil
			default:
			}
		}
		_ = c.Close()
	}
}

// counted gives its token back when it is closed.
type counted struct {
	net.Conn
	free chan struct{}
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { <-c.free })
	return c.Conn.Close()
}
