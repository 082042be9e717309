package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/mvmctl/mvm/internal/guest/wire"
)

// poll is how often a device that is not there yet, or that nobody on the host
// has open, is looked at.
const (
	pollSoon  = 10 * time.Millisecond
	pollLater = 100 * time.Millisecond
	soon      = 10 * time.Second
)

// listenVsock listens on the guest's vsock, whatever its CID is. Only the host
// can reach it: vhost and Firecracker do not route between guests.
func (s *Server) listenVsock(ctx context.Context) error {
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, s.params.Port, nil)
	if err != nil {
		return err
	}
	if data, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, wire.DataPort(s.params.Port), nil); err == nil {
		ended, stop := context.WithCancel(ctx)
		defer stop()
		go s.ServeDataListener(ended, &hostOnly{data})
	} else {
		s.logf("copies go over SSH: %v", err)
	}
	return s.ServeListener(ctx, &hostOnly{l})
}

// hostOnly drops connections that do not come from the host: a nested hypervisor
// or a loopback transport in the guest may offer others.
type hostOnly struct{ net.Listener }

func (h *hostOnly) Accept() (net.Conn, error) {
	for {
		c, err := h.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*vsock.Addr); ok && a.ContextID == vsock.Host {
			return c, nil
		}
		_ = c.Close()
	}
}

// listenSerial serves the virtio-serial port until the device fails. The host
// side may come and go: each time the mux starts over.
func (s *Server) listenSerial(ctx context.Context) error {
	dev, err := waitPort(ctx, s.params.SerialName)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	return s.serveMux(ctx, &port{f: f, ctx: ctx, opened: time.Now()})
}

// waitPort waits for the port with this name and returns its device.
func waitPort(ctx context.Context, name string) (string, error) {
	started := time.Now()
	for ctx.Err() == nil {
		files, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, f := range files {
			have, err := os.ReadFile(f)
			if err == nil && strings.TrimSpace(string(have)) == name {
				return "/dev/" + filepath.Base(filepath.Dir(f)), nil
			}
		}
		pause(ctx, interval(started))
	}
	return "", fmt.Errorf("no virtio-serial port is named %q: %w", name, ctx.Err())
}

func interval(since time.Time) time.Duration {
	if time.Since(since) < soon {
		return pollSoon
	}
	return pollLater
}

// port is a virtio-serial port. Linux reads it as at its end while nobody on the
// host has it open (drivers/char/virtio_console.c, port_fops_read): before the
// first byte of a host that is waited out, after it the mux has to start over.
type port struct {
	f      *os.File
	ctx    context.Context
	opened time.Time
	got    bool
	buf    [4096]byte // handshakes are read byte by byte
	ahead  []byte     // of buf, read and not asked for
}

func (p *port) Read(b []byte) (int, error) {
	for {
		if len(p.ahead) > 0 {
			n := copy(b, p.ahead)
			p.ahead = p.ahead[n:]
			return n, nil
		}
		n, err := p.f.Read(p.buf[:])
		if n > 0 {
			p.got, p.ahead = true, p.buf[:n]
			continue
		}
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		if p.got {
			p.got, p.opened = false, time.Now()
			return 0, io.EOF
		}
		if err := p.ctx.Err(); err != nil {
			return 0, err
		}
		pause(p.ctx, interval(p.opened))
	}
}

func (p *port) Write(b []byte) (int, error) { return p.f.Write(b) }
