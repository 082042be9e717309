package mvm_test

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mvmctl/mvm"

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 20 {
		t.Fatalf("go list found %d packages only", len(pkgs))
	}
	return pkgs
}

// floor says on which floor of the house a room is; imports lead to lower floors
// only, or stay within the room.
var floors = []struct {
	floor int
	rooms []string
}{
	{6, []string{"cmd/mvm", "packaging"}},
	{5, []string{"internal/cli"}},
	{4, []string{"api"}},
	{3, []string{"internal/op"}}, // above the store, whose transactions it hands out
	{2, []string{"internal/store", "internal/vmm/qemu", "internal/vmm/firecracker", "internal/network/linux", "internal/image", "internal/kernel", "internal/initramfs", "internal/binary", "internal/supervisor", "internal/testenv", "cmd/mvm-agent"}},
	{1, []string{"internal/apt", "internal/disk", "internal/guest", "internal/vmm", "internal/network", "internal/key", "internal/host", "internal/asset", "internal/cloudinit", "internal/update", "internal/dns", "internal/rootfs", "internal/partition"}},
	{0, []string{"internal/run", "internal/proc", "internal/fsx"}},
	{-1, []string{""}},

	{6, []string{"cmd/mvm-helper"}},
	{2, []string{"internal/helper"}},
}

// allowed are the exceptions, each with its reason.
var allowed = map[[2]string]string{
	{"internal/supervisor", "internal/guest"}:           "the mux protocol is spoken by both",
	{"internal/vmm/qemu", "internal/supervisor"}:        "drivers start their VMM under it",
	{"internal/vmm/firecracker", "internal/supervisor"}: "drivers start their VMM under it",
	{"internal/rootfs", "internal/disk"}:                "it writes file systems",
	{"internal/guest", "internal/disk"}:                 "it tells file systems apart",
	{"internal/image", "internal/apt"}:                  "both kinds of asset come as packages",
	{"internal/kernel", "internal/apt"}:                 "both kinds of asset come as packages",
}

func roomOf(path string) (room string, floor int, ok bool) {
	best := -1
	for _, f := range floors {
		for _, r := range f.rooms {
			if (path == r || r != "" && strings.HasPrefix(path, r+"/")) && len(r) > best {
				best, room, floor, ok = len(r), r, f.floor, true
			}
		}
	}
	return room, floor, ok
}

func TestImportsPointDownward(t *testing.T) {
	for _, p := range packages(t) {
		if strings.HasPrefix(p.ImportPath, "test/") || strings.HasPrefix(p.ImportPath, "examples/") || strings.HasSuffix(p.ImportPath, "test") || strings.HasSuffix(p.ImportPath, "fakevmm") {
			continue
		}
		room, floor, ok := roomOf(p.ImportPath)
		if !ok {
			t.Errorf("package %s has no floor; add it to the table", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			rel, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			rel = strings.TrimPrefix(rel, "/")
			to, toFloor, ok := roomOf(rel)
			if !ok {
				t.Errorf("%s imports %s, which has no floor", p.ImportPath, rel)
				continue
			}
			if _, fine := allowed[[2]string{room, to}]; to == room || toFloor < floor || fine {
				continue
			}
			t.Errorf("%s (floor %d) imports %s (floor %d)", p.ImportPath, floor, rel, toFloor)
		}
	}
}

func TestCommandLineKnowsTheAPIOnly(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != "internal/cli" && !strings.HasPrefix(p.ImportPath, "internal/cli/") {
			continue
		}
		for _, imp := range p.Imports {
			rel, ours := strings.CutPrefix(imp, module)
			if ours && rel != "" && rel != "/api" && !strings.HasPrefix(rel, "/internal/cli") {
				t.Errorf("%s imports %s", p.ImportPath, imp)
			}
		}
	}
}

// keepers says which rooms may use what.
var keepers = map[string][]string{
	"os/exec":                        {"internal/run", "internal/proc", "internal/guest"}, // the agent starts what it is asked to
	"github.com/vishvananda/netlink": {"internal/network/linux", "internal/network/nettest"},
	"github.com/google/nftables":     {"internal/network/linux", "internal/network/nettest"},
	"database/sql":                   {"internal/store", "internal/op"},
}

func TestKeepersOfTheOutsideWorld(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			rooms, kept := keepers[imp]
			if !kept || strings.HasPrefix(p.ImportPath, "test/") || strings.HasSuffix(p.ImportPath, "test") {
				continue
			}
			if !slices.ContainsFunc(rooms, func(r string) bool { return p.ImportPath == r || strings.HasPrefix(p.ImportPath, r+"/") }) {
				t.Errorf("%s imports %s; only %s may", p.ImportPath, imp, strings.Join(rooms, ", "))
			}
		}
	}
}

func TestTheRootImportsTheStandardLibraryOnly(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != "" {
			continue
		}
		for _, imp := range p.Imports {
			if strings.Contains(imp, ".") || imp == "os" || imp == "os/exec" {
				t.Errorf("package mvm imports %s", imp)
			}
		}
	}
}

func TestEveryPackageHasAComment(t *testing.T) {
	documented := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		documented[dir] = documented[dir] || f.Doc != nil
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}
