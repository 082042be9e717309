package render

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var sample = Table{
	Columns: []Column{{Head: "NAME", Keep: true}, {Head: "STATUS"}, {Head: "IMAGE"}, {Head: "MEM", Right: true, Keep: true}, {Head: "NOTE"}},
	Rows: [][]Cell{
		{{Text: "web"}, {Text: "running", Tone: ToneGood}, {Text: "debian:12"}, {Text: "512 MiB"}, {Text: "a rather long note that a narrow terminal has no room for"}},
		{{Text: "a-longer-name"}, {Text: "crashed", Tone: ToneBad}, {Text: "tiny:1"}, {Text: "2.0 GiB"}, {Text: "Grüße\x1b[2J\u202e"}},
	},
}

func clone(t Table) Table {
	rows := make([][]Cell, len(t.Rows))
	for i := range rows {
		rows[i] = append([]Cell(nil), t.Rows[i]...)
	}
	return Table{t.Columns, rows}
}

func TestTable(t *testing.T) {
	for name, width := range map[string]int{"table_wide.txt": 0, "table_60.txt": 60, "table_20.txt": 20} {
		o, stdout, _, _ := testOutput(width)
		if err := o.Table(clone(sample)); err != nil {
			t.Fatal(err)
		}
		golden(t, name, stdout.String())
		for line := range strings.Lines(stdout.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); width >= 60 && n > width {
				t.Errorf("width %d: a line has %d characters: %q", width, n, line)
			}
			if strings.HasSuffix(line, " \n") {
				t.Errorf("blanks at the end of %q", line)
			}
		}
	}
}

func TestTableColour(t *testing.T) {
	o, stdout, _, _ := testOutput(100)
	o.OutColour = true
	if err := o.Table(clone(sample)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(stdout.String(), "\x1b[32mrunning\x1b[0m") {
		t.Errorf("no colour: %q", stdout)
	}
	o, stdout, _, _ = testOutput(0)
	if err := o.Table(clone(sample)); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(stdout.String(), "\x1b") {
		t.Errorf("colour without a terminal, or an escape from a cell: %q", stdout)
	}
}

func TestNewIsPlainOffTerminal(t *testing.T) {
	env := map[string]string{"COLUMNS": "40", "TERM": "xterm"}
	o := New(&strings.Builder{}, &strings.Builder{}, func(k string) string { return env[k] })
	if o.Width != 0 || o.ErrWidth != 0 || o.OutColour || o.ErrColour {
		t.Errorf("a buffer was taken for a terminal: %+v", o)
	}
}

func TestTree(t *testing.T) {
	v := struct {
		VM struct {
			ID        string   `json:"id"`
			Name      string   `json:"name"`
			Mem       int      `json:"mem_size_mib"`
			PCI       bool     `json:"pci_enabled"`
			Nested    bool     `json:"nested_virt"`
			CreatedAt string   `json:"created_at"`
			Keys      []string `json:"ssh_keys"`
			Exit      *int     `json:"exit_code"`
			PID       int      `json:"pid"`
		} `json:"vm"`
		Disk struct {
			Size int64 `json:"size_bytes"`
		} `json:"filesystem"`
		Empty  map[string]string `json:"empty"`
		Leases []map[string]any  `json:"leases"`
	}{}
	v.VM.ID, v.VM.Name, v.VM.Mem, v.VM.PCI = "0123456789abcdef", "we\x1bb", 512, true
	v.VM.CreatedAt, v.VM.Keys = noon.Add(-5*time.Minute).Format(time.RFC3339), []string{"default", "work"}
	v.Disk.Size = 3 << 30
	v.Leases = []map[string]any{{"ipv4": "172.27.0.2", "vm_id": "ab"}, {"ipv4": "172.27.0.3", "vm_id": nil}}
	o, stdout, _, _ := testOutput(0)
	nodes, err := o.Nodes(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Tree("VM: web", nodes); err != nil {
		t.Fatal(err)
	}
	golden(t, "tree.txt", stdout.String())
}

func TestJSON(t *testing.T) {
	o, stdout, _, _ := testOutput(0)
	if err := List[string](o, nil); err != nil {
		t.Fatal(err)
	}
	if err := o.Object(map[string]any{"b": "<&>", "a": []int{1}}); err != nil {
		t.Fatal(err)
	}
	want := "[]\n{\n  \"a\": [\n    1\n  ],\n  \"b\": \"<&>\"\n}\n"
	if d := cmp.Diff(want, stdout.String()); d != "" {
		t.Error(d)
	}
}

func TestFailure(t *testing.T) {
	o, stdout, stderr, _ := testOutput(0)
	o.Failure(Failure{Kind: "invalid", Message: "a\x1b[31m\nb", Hint: "do\tthis"})
	o.JSON = true
	o.Failure(Failure{Kind: "invalid", Message: "a\x1bb", Hint: ""})
	want := "error: a\\x1b[31m b\nhint: do this\n" + `{"error":{"kind":"invalid","message":"a\u001bb","hint":""}}` + "\n"
	if d := cmp.Diff(want, stderr.String()); d != "" {
		t.Error(d)
	}
	if stdout.Len() > 0 {
		t.Errorf("stdout has %q", stdout)
	}
}

type brokenWriter struct{}

var errWriter = errors.New("no space left")

func (brokenWriter) Write([]byte) (int, error) { return 0, errWriter }

func TestResultsReportWriteErrors(t *testing.T) {
	o, _, _, _ := testOutput(0)
	o.Stdout = brokenWriter{}
	for name, err := range map[string]error{
		"line": o.Line("x"), "object": o.Object(1), "table": o.Table(clone(sample)), "tree": o.Tree("x", nil), "list": List(o, []int{1}),
	} {
		if !errors.Is(err, errWriter) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain":          "plain",
		"Grüße 日本":       "Grüße 日本",
		"a\x1b]0;evil\a": `a\x1b]0;evil\a`,
		"two\nlines":     "two lines",
		"bad\xffbyte":    `bad\xffbyte`,
		"rtl\u202e":      `rtl\u202e`,
		"\u2028":         `\u2028`,
		"quote'\"":       `quote'"`,
		"del\x7f":        `del\x7f`,
		"c1\u009b":       `c1\u009b`,
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b\xff\u202e\n")
	f.Fuzz(func(t *testing.T, s string) {
		got := Clean(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, unsafeRune) {
			t.Errorf("Clean(%q) = %q", s, got)
		}
		if again := Clean(got); again != got {
			t.Errorf("Clean is not stable: %q, %q", got, again)
		}
	})
}

func TestHuman(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 10 << 20: "10 MiB", 1 << 30: "1.0 GiB",
		1048575: "1.0 MiB", 1 << 62: "4.0 EiB", -1024: "-1.0 KiB",
	} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0 ms", 42 * time.Millisecond: "42 ms", 2345 * time.Millisecond: "2.3 s", 65 * time.Second: "1 min 05 s", 125 * time.Minute: "2 h 05 min",
	} {
		if got := Took(d); got != want {
			t.Errorf("Took(%s) = %q, want %q", d, got, want)
		}
	}
	o, _, _, _ := testOutput(0)
	for ago, want := range map[time.Duration]string{
		-time.Hour: "0s", 5 * time.Second: "5s", 3 * time.Minute: "3m", 5 * time.Hour: "5h", 72 * time.Hour: "3d", 3 * 365 * 24 * time.Hour: "3y",
	} {
		if got := o.Age(noon.Add(-ago).Format(time.RFC3339)); got != want {
			t.Errorf("Age of %s = %q, want %q", ago, got, want)
		}
	}
	if got := o.Age("yesterday"); got != "-" {
		t.Errorf("Age of nonsense = %q", got)
	}
}
