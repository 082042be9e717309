package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// refMethod is an operation of the reference.
type refMethod struct {
	name   string // "VMOperation.create"
	params []string
	raises []string
}

// refModel is a data model of the reference with its fields and their types.
type refModel struct {
	name   string
	fields [][2]string
}

// reference is what the reference lists.
type reference struct {
	methods []refMethod
	models  []refModel
}

var (
	methodLine = regexp.MustCompile(`^\)?(\w+Operation\.\w+)\((.*)\) -> `)
	modelLine  = regexp.MustCompile(`(?:^| )([A-Z]\w+) ([A-Z]\w+)$`)
	tableLine  = regexp.MustCompile(`^([\w.]+) \| (.+?) \|`)
	raisesLine = regexp.MustCompile(`^Raises: (.*)$`)
	paramName  = regexp.MustCompile(`^\w+`)
)

func readReference(t *testing.T) reference {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(referenceDir(), "mvmctl-api-reference.txt"))
	if err != nil {
		t.Skipf("skipped: the reference is not here: %v", err)
	}
	var r reference
	inMethods := false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		if m := methodLine.FindStringSubmatch(line); m != nil {
			inMethods = true
			r.methods = append(r.methods, refMethod{name: m[1], params: signature(m[2])})
			continue
		}
		if m := modelLine.FindStringSubmatch(line); !inMethods && m != nil && m[1] == m[2] {
			r.models = append(r.models, refModel{name: m[1]})
			continue
		}
		row := tableLine.FindStringSubmatch(line)
		if !inMethods && row != nil && len(r.models) > 0 {
			last := &r.models[len(r.models)-1]
			last.fields = append(last.fields, [2]string{row[1], strings.Join(strings.Split(line, " | ")[1:len(strings.Split(line, " | "))-1], " | ")})
		}
		if !inMethods {
			continue
		}
		last := &r.methods[len(r.methods)-1]
		if row != nil && strings.HasPrefix(row[1], "inputs.") {
			last.params = append(last.params, row[1])
		}
		if m := raisesLine.FindStringSubmatch(line); m != nil {
			for name := range strings.SplitSeq(m[1], ",") {
				last.raises = append(last.raises, paramName.FindString(strings.TrimSpace(name)))
			}
		}
	}
	if len(r.methods) < 80 || len(r.models) < 15 {
		t.Fatalf("the reference has %d methods and %d models: it was read wrongly", len(r.methods), len(r.models))
	}
	return r
}

// signature takes the names out of a parameter list; inputs is a struct, whose
// fields follow as a table.
func signature(list string) []string {
	var names []string
	depth, word := 0, ""
	flush := func() {
		if name := paramName.FindString(strings.TrimSpace(word)); name != "" && name != "inputs" && name != "vm_inputs" {
			names = append(names, name)
		}
		word = ""
	}
	for _, c := range list {
		switch {
		case c == '[':
			depth++
		case c == ']':
			depth--
		case c == ',' && depth == 0:
			flush()
			continue
		}
		word += string(c)
	}
	flush()
	return names
}
