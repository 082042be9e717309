package cli

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// beyond lists operations that the reference does not have.
var beyond = map[string]bool{
	"Update.Check": true, "Update.Apply": true, "Update.Rollback": true,
	"VM.Update": true, "Snapshot.Create": true, "Snapshot.ListAll": true, "Snapshot.Get": true, "Snapshot.Inspect": true, "Snapshot.Remove": true, "Snapshot.Restore": true,
	"VM.Wait": true, "VM.Autostart": true, "Event.List": true, "Event.Follow": true, "VM.Run": true, "Image.Build": true, "Image.ListRemote": true, "Network.SetDNS": true, "Network.Denials": true, "Kernel.Import": true, "Kernel.ListRemote": true, "Binary.ListRemote": true, "Host.Status": true,
	"Exec.Run": true, "SSH.Proxy": true, "SSH.Config": true, "SSH.Forward": true, "Console.Attach": true,
}

const apiDoc = "../../docs/api.md"

const apiDocHead = `# API map

Which operation of the reference is which Go method, and which command calls it.
Made from the command tree and the API by ` + "`UPDATE_API_DOC=1 go test ./internal/cli -run TestAPIDoc`" + `.

| reference | Go (package api) | command |
| --- | --- | --- |
`

var camel = regexp.MustCompile(`([a-z])([A-Z])`)

// referenceName is what the reference calls an operation: VMOperation.list_all.
func referenceName(op string) string {
	if beyond[op] {
		return "beyond it"
	}
	room, method, _ := strings.Cut(op, ".")
	for _, word := range []string{"KVM", "IP"} { // the rest of the name begins with a capital too
		if before, after, is := strings.Cut(method, word); is && after != "" {
			method = before + word[:1] + strings.ToLower(word[1:]) + after
		}
	}
	method = strings.ToLower(camel.ReplaceAllString(method, "${1}_$2"))
	if method == "import" { // a keyword of the reference's language
		method = "import_"
	}
	return "`" + room + "Operation." + method + "`"
}

func TestAPIDoc(t *testing.T) {
	a, _, _ := testApp()
	commands := map[string][]string{}
	for op := range operations() {
		commands[op] = nil
	}
	walk(newRoot(a), func(c *cobra.Command) {
		for _, op := range strings.Fields(c.Annotations[annotationAPI]) {
			if _, known := commands[op]; known {
				commands[op] = append(commands[op], "`"+c.CommandPath()+"`")
			}
		}
	})
	var b strings.Builder
	b.WriteString(apiDocHead)
	for _, op := range slices.Sorted(maps.Keys(commands)) {
		cmds := strings.Join(commands[op], ", ")
		if cmds == "" {
			cmds = withoutCommand[op]
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s |\n", referenceName(op), op, cmds)
	}
	got, err := os.ReadFile(apiDoc)
	if err != nil {
		t.Fatal(err)
	}
	head, rows, _ := strings.Cut(string(got), refDocMark) // TestReferenceRows has the rest
	if os.Getenv("UPDATE_API_DOC") != "" {
		head = b.String()
		if err := os.WriteFile(filepath.Clean(apiDoc), []byte(head+refDocMark+rows), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if head != b.String() {
		t.Errorf("%s is not up to date; run: UPDATE_API_DOC=1 go test ./internal/cli -run TestAPIDoc", apiDoc)
	}
}

// TestReferenceNamesExist holds the map against the reference, where it is.
func TestReferenceNamesExist(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(referenceDir(), "mvmctl-api-reference.txt"))
	if err != nil {
		t.Skipf("skipped: the reference is not here: %v", err)
	}
	for op := range operations() {
		if name := strings.Trim(referenceName(op), "`"); !beyond[op] && !strings.Contains(string(data), name+"(") {
			t.Errorf("the reference has no %s", name)
		}
	}
}

func referenceDir() string {
	if dir := os.Getenv("MVM_REFERENCE_DIR"); dir != "" {
		return dir
	}
	return "../../../shared/reference"
}
