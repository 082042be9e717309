package image

import (
	"bytes"
	"strings"

	"github.com/mvmctl/mvm"
)

// phases reads what mmdebstrap says: "I: " lines go on as progress, "E: " and
// "W: " lines are kept for the error.
type phases struct {
	send mvm.ProgressFunc
	rest []byte
	errs []string
}

const maxSaid = 64 << 10 // a line longer than this is dropped

// Write implements io.Writer; it never fails.
func (p *phases) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		i := bytes.IndexAny(p.rest, "\n\r")
		if i < 0 {
			break
		}
		p.line(strings.TrimSpace(string(p.rest[:i])))
		p.rest = p.rest[i+1:]
	}
	if len(p.rest) > maxSaid {
		p.rest = nil
	}
	return len(b), nil
}

func (p *phases) line(s string) {
	if rest, ok := strings.CutPrefix(s, "I: "); ok {
		p.send.Send("build", printable(strings.TrimSuffix(rest, "...")))
	}
	if rest, ok := strings.CutPrefix(s, "E: "); ok && len(p.errs) < 100 {
		p.errs = append(p.errs, printable(rest))
	}
}

// cause returns the first complaint: those behind it follow from it.
func (p *phases) cause() string {
	if len(p.errs) == 0 {
		return ""
	}
	return p.errs[0]
}

// printable keeps a package's output from writing to the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}
