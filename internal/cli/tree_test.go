package cli

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"github.com/spf13/cobra"
)

// withoutCommand lists operations that no command is for, and why.
var withoutCommand = map[string]string{
	"VM.Prune":            "cache prune vm does it, by Cache.PruneAll",
	"Network.Prune":       "cache prune network does it, by Cache.PruneAll",
	"Cache.PruneVMs":      "cache prune vm does it, by Cache.PruneAll",
	"Cache.PruneNetworks": "cache prune network does it, by Cache.PruneAll",
	"Cache.PruneImages":   "cache prune image does it, by Cache.PruneAll",
	"Cache.PruneKernels":  "cache prune kernel does it, by Cache.PruneAll",
	"Cache.PruneBinaries": "cache prune binary does it, by Cache.PruneAll",
	"Cache.PruneMisc":     "cache prune misc does it, by Cache.PruneAll",

	"Host.CheckKVMAccess":        "host status shows it, by Host.Status",
	"Host.CheckRequiredBinaries": "host status shows it, by Host.Status",
	"Host.GetIPForwardStatus":    "host status shows it, by Host.Status",
	"Host.GetState":              "host status shows it, by Host.Status",
	"Host.GetRunningVMs":         "vm ls shows more, by VM.ListAll",

	"Network.CreateDefaultNetwork": "init and the first VM make it",
	"Binary.EnsureDefault":         "init does it where KVM works",
	"Kernel.Get":                   "kernel inspect shows more, by Kernel.Inspect",
	"Init.InitDatabase":            "every command makes the database when it needs it",
	"Init.SetupHost":               "it is Host.Init",
	"Network.Get":                  "network inspect shows more, by Network.Inspect",
}

func testApp() (a *app, stdout, stderr *bytes.Buffer) {
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	none := func(string) string { return "" }
	return &app{stdin: strings.NewReader(""), getenv: none, out: render.New(stdout, stderr, none)}, stdout, stderr
}

func walk(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		walk(c, f)
	}
}

// operations returns every exported method of the api's operation types, as "VM.Create".
func operations() map[string]bool {
	all := map[string]bool{}
	client := reflect.TypeFor[api.Client]()
	for i := range client.NumField() {
		f := client.Field(i)
		if !f.IsExported() || f.Type.Kind() != reflect.Pointer {
			continue
		}
		for m := range f.Type.NumMethod() {
			all[f.Name+"."+f.Type.Method(m).Name] = true
		}
	}
	return all
}

func TestCommandsAndAPIAgree(t *testing.T) {
	a, _, _ := testApp()
	ops := operations()
	if !ops["VM.Create"] {
		t.Fatal("the api was not found by reflection")
	}
	used := map[string]bool{}
	walk(newRoot(a), func(c *cobra.Command) {
		uses, ok := c.Annotations[annotationAPI]
		if !ok {
			t.Errorf("%q does not say which operation it calls", c.CommandPath())
		}
		for _, op := range strings.Fields(uses) {
			used[op] = true
			if op != noAPI && !ops[op] {
				t.Errorf("%q calls %s, which the api does not have", c.CommandPath(), op)
			}
		}
	})
	for op := range ops {
		if used[op] == (withoutCommand[op] != "") {
			t.Errorf("%s: has a command: %v; excused: %q", op, used[op], withoutCommand[op])
		}
	}
	for op := range withoutCommand {
		if !ops[op] {
			t.Errorf("%s is excused but does not exist", op)
		}
	}
}

func TestEveryCommandIsExplained(t *testing.T) {
	a, _, _ := testApp()
	walk(newRoot(a), func(c *cobra.Command) {
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%q lacks Short, Long or Example", c.CommandPath())
		}
		if strings.HasSuffix(c.Short, ".") || len(c.Short) > 60 {
			t.Errorf("%q: Short is a sentence or too long: %q", c.CommandPath(), c.Short)
		}
		for line := range strings.Lines(c.Long + "\n" + c.Example) {
			if len(line) > 101 {
				t.Errorf("%q: a line is too long: %q", c.CommandPath(), line)
			}
		}
		if c.Args == nil && c.Name() != "help" {
			t.Errorf("%q does not check its arguments", c.CommandPath())
		}
		if !strings.Contains(c.Example, "mvm ") {
			t.Errorf("%q: the example does not call mvm", c.CommandPath())
		}
	})
}

// Scripts of the existing tool use these words (reference: the command line).
func TestReferenceWords(t *testing.T) {
	a, _, _ := testApp()
	root := newRoot(a)
	for _, words := range []string{
		"config get", "config set", "config ls", "config list", "config reset", "cache prune", "cache init", "cache clean",
		"key import", "key rm", "key remove", "key delete", "key del", "key inspect", "key default", "key export",
		"vm list", "vm ls", "vm ps", "vm remove", "vm rm", "vm delete", "vm del", "net ls", "network list", "img ls", "image del", "kernel rm",
		"kernel remove", "key list", "image default", "image import", "image warm", "kernel default", "kernel import", "host status", "init", "ssh", "completion", "version",
		"exec", "logs", "console", "cp",
		"net create", "network rm", "network del", "network default", "network sync",
		"volume create", "vol create", "volume rm", "volume remove", "volume delete", "volume del", "volume ls", "volume list", "volume inspect", "volume resize", "volume attach", "volume detach",
	} {
		cmd, rest, err := root.Find(strings.Fields(words))
		if err != nil || len(rest) > 0 || cmd.HasSubCommands() {
			t.Errorf("mvm %s is not a command (%v, %q)", words, err, rest)
		}
	}
	for words, flags := range map[string]string{
		"cache prune":     "all dry-run force json",
		"network create":  "subnet ipv4-gateway no-nat nat-gateways non-interactive default json",
		"network ls":      "json long",
		"network rm":      "force json",
		"network inspect": "json",
		"network sync":    "json",
		"config ls":       "json",
		"config reset":    "all force json",

		"volume create":  "format read-only ro shareable writeback sparse mkfs json",
		"volume rm":      "force json",
		"volume ls":      "json long",
		"volume inspect": "json",
		"volume resize":  "force json",
		"volume attach":  "read-only ro mount json",
		"volume detach":  "force json",

		"key import":   "default force json",
		"key default":  "clear json",
		"key export":   "force json",
		"key inspect":  "json",
		"key rm":       "force json",
		"vm create":    "image kernel vcpu mem memory disk-size ip mac network net ssh-key user volume no-pci nested-virt disable-nested-virt cpu-template enable-logging disable-logging enable-metrics disable-metrics lsm-flags boot-args console skip-cleanup count atomic hypervisor wait wait-timeout no-agent no-jailer json",
		"vm ls":        "json long",
		"vm ps":        "json",
		"vm inspect":   "json",
		"vm stop":      "force json",
		"vm reboot":    "force json",
		"vm rm":        "force json",
		"ssh":          "user key cmd timeout",
		"exec":         "user timeout no-sync port",
		"cp":           "force no-sync",
		"logs":         "os lines follow",
		"console":      "state kill",
		"init":         "non-interactive skip-host skip-network",
		"kernel pull":  "type version default",
		"image pull":   "type version force default no-cache skip-optimization disable-detector skip-checksum",
		"image ls":     "json remote no-cache type long",
		"image import": "format root-partition version default force skip-optimization disable-detector json",
		"image warm":   "all json",
		"key create":   "algorithm bits comment out default force",
	} {
		cmd, _, err := root.Find(strings.Fields(words))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range strings.Fields(flags) {
			if cmd.Flags().Lookup(name) == nil {
				t.Errorf("mvm %s has no flag --%s", words, name)
			}
		}
	}
}

func TestRootHelp(t *testing.T) {
	a, stdout, _ := testApp()
	root := newRoot(a)
	root.SetArgs([]string{"--help"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	golden(t, "root_help.txt", stdout.String())
}

// Only render prints, and only cmd ends the process.
func TestNothingElsePrints(t *testing.T) {
	forbidden := []string{"Print", "Printf", "Println", "Fprint", "Fprintf", "Fprintln"}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() == "render" {
			if err == nil {
				err = filepath.SkipDir
			}
			return err
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if ok && (pkg.Name == "fmt" && slices.Contains(forbidden, sel.Sel.Name) || pkg.Name == "os" && sel.Sel.Name == "Exit") {
				t.Errorf("%s calls %s.%s", path, pkg.Name, sel.Sel.Name)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test -update makes it)", err)
	}
	if string(want) != got {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}
