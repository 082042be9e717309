package cli

import (
	"iter"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/mvmctl/mvm"
)

func mapKeys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// refRow is a row of the reference and what it is here.
type refRow struct{ ref, goName, command, test string }

// plain makes names of both sides comparable: vcpu_count and VCPUCount.
func plain(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "")) }

// operationOf finds the Go method of an operation of the reference.
func operationOf(ref string) string {
	room, method, _ := strings.Cut(ref, "Operation.")
	for op := range operations() {
		r, m, _ := strings.Cut(op, ".")
		if r == room && plain(m) == plain(strings.TrimSuffix(method, "_")) {
			return op
		}
	}
	if op := elsewhere[ref]; operations()[op] {
		return op
	}
	return ""
}

// commandsOf returns the commands of each operation.
func commandsOf() map[string][]*cobra.Command {
	all := map[string][]*cobra.Command{}
	walk(Root(), func(c *cobra.Command) {
		for _, op := range strings.Fields(c.Annotations[annotationAPI]) {
			all[op] = append(all[op], c)
		}
	})
	return all
}

// referenceRows makes a row of everything that the reference lists, and complains
// about what is not here or has no test.
func referenceRows(t *testing.T) []refRow {
	t.Helper()
	ref, src, tests, commands := readReference(t), readAPI(t), indexTests(t), commandsOf()
	var rows []refRow
	add := func(r refRow) {
		if r.goName == "" {
			t.Errorf("%s is not here", r.ref)
		}
		if r.test == "" {
			t.Errorf("%s (%s) has no test", r.ref, r.goName)
		}
		rows = append(rows, r)
	}
	for _, m := range ref.methods {
		op := operationOf(m.name)
		cmd := withoutCommand[op]
		if list := commands[op]; len(list) > 0 {
			cmd = list[0].CommandPath()
		}
		byCommand := "mvm " + strings.TrimPrefix(cmd, "mvm ")
		add(refRow{m.name, op, cmd, tests.first(op, byCommand)})
		for _, p := range m.params {
			goName, flag := parameterOf(src, m.name, op, p), flagOf(commands[op], m.name, p)
			typ, field, _ := strings.Cut(goName, ".")
			keys := []string{typ + "." + field, strings.TrimSuffix(flag, " …")}
			switch {
			case p == "on_progress":
				keys = []string{"()OnProgress"}
			case field == "" || strings.Contains(goName, "("):
				keys = []string{flag, op, byCommand}
			}
			if excused := shapedOtherwise[m.name+" "+p]; excused != "" {
				goName, flag, keys = excused, "", []string{op, "." + p}
			}
			add(refRow{m.name + "(" + p + ")", goName, flag, tests.first(append(keys, "."+field)...)})
		}
		for _, e := range m.raises {
			rows = append(rows, refRow{m.name + " raises " + e, raised[e].goName, "", raised[e].test})
			if !slices.Contains(tests.all(), raised[e].test) {
				t.Errorf("%s: the test %q of error %s is not there", m.name, raised[e].test, e)
			}
		}
	}
	for _, m := range ref.models {
		for _, f := range m.fields {
			goName := ""
			if field, ok := modelField(m.name, f[0]); ok {
				goName = "mvm." + m.name + "." + field.Name
			}
			add(refRow{m.name + "." + f[0], goName, "", ". TestReferenceModels"})
		}
	}
	return rows
}

func (ix testIndex) all() []string {
	var all []string
	for _, list := range ix {
		all = append(all, list...)
	}
	return all
}

// parameterOf finds what a parameter of the reference is in Go: a field of an
// input or a parameter of the method.
func parameterOf(src goAPI, ref, op, param string) string {
	if param == "on_progress" {
		return "api.OnProgress"
	}
	name := strings.TrimPrefix(param, "inputs.")
	for _, want := range []string{name, renamed[name], renamed[ref+" "+name]} {
		if found := src.find(op, plain(want)); want != "" && found != "" {
			return found
		}
	}
	return ""
}

// find looks for a field of what a method takes, or for a parameter of its own.
func (g goAPI) find(op, want string) string {
	for _, p := range g.methods[op] {
		for _, f := range g.fields[p[1]] {
			if plain(f) == want {
				return p[1] + "." + f
			}
		}
	}
	for _, p := range g.methods[op] {
		if plain(p[0]) == want {
			return op + "(" + p[0] + ")"
		}
	}
	return ""
}

// flagOf finds the flag or the argument by which a command takes a parameter.
func flagOf(commands []*cobra.Command, ref, param string) string {
	name := strings.TrimPrefix(param, "inputs.")
	for _, want := range []string{flagNamed[ref+" "+name], flagNamed[name], strings.ReplaceAll(name, "_", "-")} {
		for _, c := range commands {
			if want != "" && !strings.HasPrefix(want, "-") && c.Flags().Lookup(want) != nil {
				return "--" + want
			}
		}
	}
	return ""
}

// modelField finds a field of a model by its name in JSON.
func modelField(model, name string) (reflect.StructField, bool) {
	typ, ok := models[model]
	if !ok {
		return reflect.StructField{}, false
	}
	for i := range typ.NumField() {
		if tag, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ","); tag == name {
			return typ.Field(i), true
		}
	}
	return reflect.StructField{}, false
}

// models are the data models of the reference.
var models = map[string]reflect.Type{}

func init() {
	for _, v := range []any{
		mvm.VMInstanceItem{}, mvm.NetworkItem{}, mvm.ImageItem{}, mvm.KernelItem{}, mvm.KernelPullResult{}, mvm.BinaryItem{},
		mvm.VolumeItem{}, mvm.SSHKeyItem{}, mvm.NetworkLeaseItem{}, mvm.FirewallRule{}, mvm.VMExportConfig{}, mvm.VMExportComputeConfig{},
		mvm.VMExportImageConfig{}, mvm.VMExportKernelConfig{}, mvm.VMExportBinaryConfig{}, mvm.VMExportNetworkConfig{},
		mvm.VMExportBootConfig{}, mvm.VMExportFirecrackerConfig{}, mvm.VMExportCloudInitConfig{},
	} {
		typ := reflect.TypeOf(v)
		models[typ.Name()] = typ
	}
}

// TestReferenceModels holds the JSON of the items against the types of the
// reference, which scripts rely on.
func TestReferenceModels(t *testing.T) {
	for _, m := range readReference(t).models {
		for _, f := range m.fields {
			field, ok := modelField(m.name, f[0])
			if !ok {
				t.Errorf("%s has no %s", m.name, f[0])
				continue
			}
			typ := field.Type
			nullable := typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || strings.Contains(field.Tag.Get("json"), "omitempty")
			for typ.Kind() == reflect.Pointer {
				typ = typ.Elem()
			}
			want := strings.TrimSuffix(f[1], " | None")
			if got := pythonType(typ, want); got != want {
				t.Errorf("%s.%s is a %s, and in the reference a %s", m.name, f[0], got, want)
			}
			if none := strings.HasSuffix(f[1], " | None"); none && !nullable {
				t.Errorf("%s.%s can never be null", m.name, f[0])
			}
		}
	}
}

// pythonType names a Go type as the reference does. What that calls by a name of
// its own is a word or an object in JSON.
func pythonType(typ reflect.Type, want string) string {
	switch typ.Kind() {
	case reflect.String:
		if strings.HasPrefix(want, "Firewall") || want == "VolumeStatus" || want == "Path" {
			return want // enumerations and paths are strings in JSON
		}
		return "str"
	case reflect.Int, reflect.Int64:
		return "int"
	case reflect.Float64:
		return "float"
	case reflect.Bool:
		return "bool"
	case reflect.Slice:
		if typ.Name() == "RawMessage" {
			return "CpuConfig"
		}
		elem := typ.Elem()
		for elem.Kind() == reflect.Pointer {
			elem = elem.Elem()
		}
		return "list[" + pythonType(elem, "") + "]"
	case reflect.Struct:
		return typ.Name()
	}
	return typ.String()
}

const refDocMark = "\n## Row by row\n"

// TestReferenceRows holds docs/api.md against the reference: every row of that is
// there, with what it is in Go, the command and a test.
func TestReferenceRows(t *testing.T) {
	var b strings.Builder
	b.WriteString(refDocMark + "\nEvery method, parameter, error and field of the reference, and a test that uses it\n" +
		"(the package and the function). A test fails when a row is missing here or unknown there.\n\n" +
		"| reference | Go | command or flag | test |\n| --- | --- | --- | --- |\n")
	for _, r := range referenceRows(t) {
		b.WriteString("| `" + r.ref + "` | " + code(r.goName) + " | " + code(r.command) + " | " + r.test + " |\n")
	}
	got, err := os.ReadFile(apiDoc)
	if err != nil {
		t.Fatal(err)
	}
	head, rows, _ := strings.Cut(string(got), refDocMark)
	if os.Getenv("UPDATE_API_DOC") != "" {
		if err := os.WriteFile(apiDoc, []byte(head+b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if refDocMark+rows != b.String() {
		t.Errorf("%s is not up to date; run: make docs", apiDoc)
	}
}

// code sets words that are code apart from sentences.
func code(s string) string {
	if s == "" || strings.Contains(s, ": ") || strings.Contains(s, "; ") {
		return s
	}
	return "`" + s + "`"
}
