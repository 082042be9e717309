// Package render is everything that the mvm command shows: tables, trees, JSON,
// progress, notices and errors. Results go to stdout; what is said beside them
// goes to stderr. It knows the words of package mvm, but neither commands nor
// the api, and it is the only part of the command line that prints.
package render

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/mvmctl/mvm"
)

// Output is where a command prints to, and how. Its methods may be called from
// several goroutines.
type Output struct {
	Stdout io.Writer
	Stderr io.Writer

	JSON    bool    // results and errors as JSON; no progress
	Format  *Format // results by a template instead; JSON is set then, too
	Verbose bool    // also timings and notices of less weight
	Debug   bool    // also where an error came from

	Width     int  // columns of the terminal on stdout; 0: no terminal, nothing is cut
	ErrWidth  int  // the same for stderr
	OutColour bool // stdout shows colours
	ErrColour bool // stderr shows colours

	Now func() time.Time // the clock; tests set it

	mu       sync.Mutex
	progress *Progress // the one that owns the last line of stderr, if any
}

// New makes an Output and looks whether the writers are terminals. getenv is
// asked for NO_COLOR (https://no-color.org), TERM and COLUMNS.
func New(stdout, stderr io.Writer, getenv func(string) string) *Output {
	o := &Output{Stdout: stdout, Stderr: stderr, Now: time.Now}
	o.Width, o.ErrWidth = widthOf(stdout, getenv), widthOf(stderr, getenv)
	colour := getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
	o.OutColour, o.ErrColour = colour && o.Width > 0, colour && o.ErrWidth > 0
	return o
}

// widthOf returns the width of the terminal that w is, or 0 when w is none.
func widthOf(w io.Writer, getenv func(string) string) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	if n, err := strconv.Atoi(getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
		return n
	}
	return 80
}

// Line prints one line of result.
func (o *Output) Line(s string) error { return o.write(Clean(s) + "\n") }

// Object prints v as indented JSON, or by the template. HTML characters stay as
// they are.
func (o *Output) Object(v any) error {
	if o.Format != nil {
		return o.formatted(v)
	}
	b, err := encode(v)
	if err != nil {
		return err
	}
	return o.write(string(b))
}

// ObjectLine prints v as JSON on one line, for results that come one by one.
func (o *Output) ObjectLine(v any) error {
	if o.Format != nil {
		return o.formatted(v)
	}
	b, err := encodeLine(v)
	if err != nil {
		return err
	}
	return o.write(string(b))
}

func (o *Output) formatted(v any) error {
	text, err := o.Format.print(v)
	if err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "--format does not fit: %w", err).WithHint("the names are those of --json; see https://pkg.go.dev/text/template for the rest")
	}
	return o.write(text)
}

func encode(v any) ([]byte, error) { return encodeIndented(v, "  ") }

// encodeLine is encode on one line.
func encodeLine(v any) ([]byte, error) { return encodeIndented(v, "") }

func encodeIndented(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// List prints items as a JSON array; none gives [].
func List[T any](o *Output, items []T) error {
	if items == nil {
		items = []T{}
	}
	return o.Object(items)
}

// Raw prints text that is already in its final form, such as a completion script.
func (o *Output) Raw(s string) error { return o.write(s) }

func (o *Output) write(s string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clearProgress()
	_, err := io.WriteString(o.Stdout, s)
	o.redrawProgress()
	return err
}

// Notice tells the user something beside the result, once per line of s. Where
// results are JSON it still goes to stderr, so that stdout can be parsed.
func (o *Output) Notice(s string) { o.say("", toneNone, s) }

// Warn is a notice that something is not as it should be.
func (o *Output) Warn(s string) { o.say("warning: ", ToneWarn, s) }

// Detail is a notice for --verbose.
func (o *Output) Detail(s string) {
	if o.Verbose || o.Debug {
		o.say("", toneNone, s)
	}
}

// say writes lines with a prefix to stderr. A failure to write there is
// ignored: nobody is left to be told.
func (o *Output) say(prefix string, tone Tone, s string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clearProgress()
	for line := range strings.SplitSeq(strings.TrimRight(s, "\n"), "\n") {
		_, _ = io.WriteString(o.Stderr, tone.paint(prefix, o.ErrColour)+Clean(line)+"\n")
	}
	o.redrawProgress()
}

// Ask prints a question on stderr and leaves the cursor behind it.
func (o *Output) Ask(question string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clearProgress()
	_, _ = io.WriteString(o.Stderr, Clean(question)+" ")
}
