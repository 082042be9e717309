package fakevmm

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// logger writes lines in Firecracker's format; to stdout, into the guest's
// console, as long as no log file is set up.
type logger struct {
	mu sync.Mutex
	w  io.Writer
	id string
	on map[string]bool
}

func openLog(opts map[string]string, stdout io.Writer) (*logger, error) {
	l := &logger{w: stdout, id: opts["id"], on: map[string]bool{"error": true, "info": true}}
	switch strings.ToLower(opts["level"]) {
	case "off":
		l.on = nil
	case "error", "warn", "warning":
		l.on["info"] = false
	case "info", "debug", "trace":
	default:
		return nil, fmt.Errorf("Failed to parse string to level filter: %s", opts["level"]) //nolint:staticcheck // Firecracker's words
	}
	if path := opts["log-path"]; path != "" {
		// Neither truncated nor appended to, as the real one opens it.
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o644)
		if err != nil {
			return nil, err
		}
		l.w = f
	}
	return l, nil
}

func (l *logger) line(level, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.on[level] {
		_, _ = fmt.Fprintf(l.w, "%s [%s:main] %s\n", time.Now().Format("2006-01-02T15:04:05.000000000"), l.id, text)
	}
}

func (l *logger) info(text string)  { l.line("info", text) }
func (l *logger) error(text string) { l.line("error", text) }
