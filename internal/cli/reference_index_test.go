package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// goAPI is what the source of package api declares: the fields of its structs and
// the parameters of the methods of its operations.
type goAPI struct {
	fields  map[string][]string    // by type, such as "VMCreateInput"
	methods map[string][][2]string // by operation, such as "VM.Create": names and types of parameters
}

func readAPI(t *testing.T) goAPI {
	t.Helper()
	g := goAPI{fields: map[string][]string{}, methods: map[string][][2]string{}}
	for _, file := range parseDir(t, "../../api", func(name string) bool { return !strings.HasSuffix(name, "_test.go") }) {
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if ts, ok := spec.(*ast.TypeSpec); ok {
						if st, ok := ts.Type.(*ast.StructType); ok {
							g.fields[ts.Name.Name] = fieldNames(st)
						}
					}
				}
			case *ast.FuncDecl:
				if room := receiver(d); strings.HasSuffix(room, "Operation") && d.Name.IsExported() {
					g.methods[strings.TrimSuffix(room, "Operation")+"."+d.Name.Name] = parameters(d)
				}
			}
		}
	}
	return g
}

func fieldNames(st *ast.StructType) []string {
	var names []string
	for _, f := range st.Fields.List {
		for _, n := range f.Names {
			names = append(names, n.Name)
		}
	}
	return names
}

func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	return typeName(d.Recv.List[0].Type)
}

func parameters(d *ast.FuncDecl) [][2]string {
	var list [][2]string
	for _, p := range d.Type.Params.List {
		for _, n := range p.Names {
			list = append(list, [2]string{n.Name, typeName(p.Type)})
		}
	}
	return list
}

func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.Ellipsis:
		return typeName(e.Elt)
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.ArrayType:
		return typeName(e.Elt)
	}
	return ""
}

func parseDir(t *testing.T, dir string, want func(name string) bool) map[string]*ast.File {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no source in %s: %v", dir, err)
	}
	files := map[string]*ast.File{}
	for _, path := range paths {
		if !want(filepath.Base(path)) {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files[path] = f
	}
	return files
}

// testIndex says which tests use what: "VM.Create" for an operation,
// "VMCreateInput.Name" for a field in a literal, ".Name" for one that is set or
// read, "--name" for a word of a command line, "mvm vm create" for a command.
type testIndex map[string][]string

func indexTests(t *testing.T) testIndex {
	t.Helper()
	ix := testIndex{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		switch {
		case d.IsDir():
			ix.addPackage(t, path)
		case strings.HasSuffix(path, ".txtar"):
			ix.addScript(t, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ix
}

var mvmLine = regexp.MustCompile(`(?m)\bmvm ([a-z][^\n]*)$`)

// addScript indexes the command lines of a script.
func (ix testIndex) addScript(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ref := "test/script " + strings.TrimSuffix(filepath.Base(path), ".txtar")
	for _, line := range mvmLine.FindAllStringSubmatch(string(data), -1) {
		for _, use := range append(commandWords(strings.Fields(line[1])), flagWord.FindAllString(line[1], -1)...) {
			if !slices.Contains(ix[use], ref) {
				ix[use] = append(ix[use], ref)
			}
		}
	}
}

// commandWords are the names that a command line may begin with.
func commandWords(words []string) []string {
	var uses []string
	for n := 1; n <= 2 && n <= len(words); n++ {
		if strings.HasPrefix(words[n-1], "-") {
			break
		}
		uses = append(uses, "mvm "+strings.Join(words[:n], " "))
	}
	return uses
}

// literalWords are the words of a call's arguments from the first literal on.
func literalWords(call *ast.CallExpr) []string {
	var words []string
	for _, arg := range call.Args {
		lit, ok := arg.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			if len(words) > 0 {
				break
			}
			continue
		}
		words = append(words, strings.Fields(strings.Trim(lit.Value, "`\""))...)
	}
	return words
}

// addPackage indexes the tests of one directory. What a helper uses, the tests that
// call it use, too, but come after those that do so themselves.
func (ix testIndex) addPackage(t *testing.T, dir string) {
	paths, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(paths) == 0 {
		return
	}
	uses := map[string][]string{}
	for _, file := range parseDir(t, dir, func(name string) bool { return strings.HasSuffix(name, "_test.go") }) {
		for _, decl := range file.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && d.Body != nil {
				uses[d.Name.Name] = append(uses[d.Name.Name], usesOf(d.Body)...)
			}
		}
	}
	room := strings.TrimPrefix(filepath.ToSlash(dir), "../../")
	for _, near := range []bool{true, false} {
		for _, name := range slices.Sorted(mapKeys(uses)) {
			if !strings.HasPrefix(name, "Test") || name == "TestMain" {
				continue
			}
			list := uses[name]
			if !near {
				for _, called := range uses[name] {
					list = append(list, uses[strings.TrimPrefix(called, "()")]...)
				}
			}
			for _, use := range list {
				if ref := room + " " + name; !slices.Contains(ix[use], ref) {
					ix[use] = append(ix[use], ref)
				}
			}
		}
	}
}

var flagWord = regexp.MustCompile(`--[a-z][a-z0-9-]+`)

func usesOf(body ast.Node) []string {
	var uses []string
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			uses = append(uses, "."+n.Sel.Name, "()"+n.Sel.Name)
			if x, ok := n.X.(*ast.SelectorExpr); ok {
				uses = append(uses, x.Sel.Name+"."+n.Sel.Name)
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok {
				uses = append(uses, "()"+id.Name)
			}
			uses = append(uses, commandWords(literalWords(n))...)
		case *ast.CompositeLit:
			uses = append(uses, keysOf(n)...)
		case *ast.BasicLit:
			uses = append(uses, flagWord.FindAllString(n.Value, -1)...)
		}
		return true
	})
	return uses
}

func keysOf(lit *ast.CompositeLit) []string {
	var uses []string
	for _, e := range lit.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			if id, ok := kv.Key.(*ast.Ident); ok {
				uses = append(uses, typeName(lit.Type)+"."+id.Name, "."+id.Name)
			}
		}
	}
	return uses
}

// first returns a test that uses one of the keys, those of api before others.
func (ix testIndex) first(keys ...string) string {
	for _, key := range keys {
		list := ix[key]
		for _, room := range []string{"api ", "test/", ""} {
			for _, ref := range list {
				if strings.HasPrefix(ref, room) {
					return ref
				}
			}
		}
	}
	return ""
}
