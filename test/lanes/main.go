// Command lanes reads what `go test -json` prints, shows what a person wants to
// see of it, and ends with how many tests ran and were skipped in each lane. With
// "state" it lists what tests could have left on the host instead.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "lanes:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "state":
		return state(out)
	case len(args) == 2 && args[0] == "report":
		return report(in, out, args[1])
	}
	return fmt.Errorf("usage: lanes state | lanes report FILE")
}

// event is a line of `go test -json` (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

type testID struct{ pkg, test string }

// tally is the outcome of a run.
type tally struct {
	results map[testID]string
	output  map[testID][]string
	failed  []testID
	skips   []string // package, test and reason
	broken  bool     // a package that did not build, or a run that died
}

func report(in io.Reader, out io.Writer, laneFile string) error {
	t := tally{results: map[testID]string{}, output: map[testID][]string{}}
	s := bufio.NewScanner(in)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil {
			fmt.Fprintln(out, s.Text()) // not JSON: a build error
			continue
		}
		t.add(e, out)
	}
	if err := s.Err(); err != nil {
		return err
	}
	lanes, err := readLanes(laneFile)
	if err != nil {
		return err
	}
	return t.summary(out, lanes)
}

func (t *tally) add(e event, out io.Writer) {
	id := testID{e.Package, e.Test}
	switch e.Action {
	case "output":
		if e.Test != "" {
			t.output[id] = append(t.output[id], e.Output)
		} else if !strings.HasPrefix(e.Output, "PASS") && !strings.HasPrefix(e.Output, "coverage:") && !strings.Contains(e.Output, "[no test files]") {
			fmt.Fprint(out, e.Output) // "ok pkg 0.1s", panics, build output
		}
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "build-fail":
		t.broken = true
	case "pass", "skip", "fail":
		if e.Test == "" {
			t.broken = t.broken || e.Action == "fail"
			return
		}
		t.results[id] = e.Action
		if e.Action == "fail" {
			t.failed = append(t.failed, id)
			fmt.Fprint(out, strings.Join(t.output[id], ""))
		}
		if e.Action == "skip" {
			t.skips = append(t.skips, e.Package+" "+e.Test+": "+reason(t.output[id]))
		}
		delete(t.output, id)
	}
}

// reason is what a test said last before it was skipped.
func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "---") || strings.HasPrefix(line, "===") {
			continue
		}
		if _, said, ok := strings.Cut(line, ".go:"); ok { // "file_test.go:12: why"
			if _, why, ok := strings.Cut(said, ": "); ok {
				return why
			}
		}
		return line
	}
	return "no reason given"
}

// lane is a lane's name and what tests said of themselves.
type lane struct {
	ran, skipped int
	reasons      map[string]int
}

// readLanes reads what testenv wrote: LANE run|skip TEST REASON.
func readLanes(path string) (map[string]*lane, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	type entry struct{ lane, how, reason string }
	last := map[string]entry{} // a test counts once, in the last lane it named
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.SplitN(line, " ", 4)
		if len(f) < 3 {
			continue
		}
		e := entry{lane: f[0], how: f[1]}
		if len(f) == 4 {
			e.reason = f[3]
		}
		if last[f[2]].how == "skip" {
			continue
		}
		last[f[2]] = e
	}
	lanes := map[string]*lane{}
	for _, e := range last {
		l := lanes[e.lane]
		if l == nil {
			l = &lane{reasons: map[string]int{}}
			lanes[e.lane] = l
		}
		if e.how == "skip" {
			l.skipped++
			l.reasons[e.reason]++
		} else {
			l.ran++
		}
	}
	return lanes, nil
}

func (t *tally) summary(out io.Writer, lanes map[string]*lane) error {
	count := map[string]int{}
	for id, r := range t.results {
		if !t.hasChildren(id) {
			count[r]++
		}
	}
	unit := &lane{ran: count["pass"] + count["fail"], skipped: count["skip"], reasons: map[string]int{}}
	for _, l := range lanes {
		unit.ran, unit.skipped = unit.ran-l.ran, unit.skipped-l.skipped
	}
	unit.ran, unit.skipped = max(unit.ran, 0), max(unit.skipped, 0)
	lanes["unit"] = unit
	fmt.Fprintln(out, "\nlane     ran  skipped")
	for _, name := range slices.SortedFunc(maps.Keys(lanes), func(a, b string) int { return cmp.Compare(order(a), order(b)) }) {
		l := lanes[name]
		fmt.Fprintf(out, "%-7s %4d  %7d\n", name, l.ran, l.skipped)
		for _, why := range slices.Sorted(maps.Keys(l.reasons)) {
			fmt.Fprintf(out, "         skipped %d: %s\n", l.reasons[why], why)
		}
	}
	for _, s := range t.skips {
		fmt.Fprintf(out, "skipped: %s\n", strings.TrimPrefix(s, "github.com/mvmctl/mvm/"))
	}
	for _, f := range t.failed {
		fmt.Fprintf(out, "failed: %s %s\n", f.pkg, f.test)
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
	if len(t.failed) > 0 || t.broken || count["pass"] == 0 {
		return fmt.Errorf("the run failed")
	}
	return nil
}

// hasChildren reports whether a test only groups subtests, which are counted.
func (t *tally) hasChildren(id testID) bool {
	for other := range t.results {
		if other.pkg == id.pkg && strings.HasPrefix(other.test, id.test+"/") {
			return true
		}
	}
	return false
}

func order(lane string) string {
	if i := slices.Index([]string{"unit", "kernel", "vm", "lab"}, lane); i >= 0 {
		return string(rune('0' + i))
	}
	return lane
}
