package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestReport(t *testing.T) {
	noImage := mvm.Errorf(mvm.ErrNotFound, "no image is called %q", "debain").WithHint("did you mean debian:12?")
	hostile := mvm.Errorf(mvm.ErrInvalid, "bad\x1b[31m\nname")
	for _, c := range []struct {
		name string
		err  error
		code int
		text string
		json string
	}{
		{"nothing", nil, 0, "", ""},
		{"guest", guestExit(42), 42, "", ""},
		{"wrapped guest", fmt.Errorf("x: %w", guestExit(3)), 3, "", ""},
		{"usage", usagef("no").withHint("yes"), 2, "error: no\nhint: yes\n", `{"error":{"kind":"usage","message":"no","hint":"yes"}}` + "\n"},
		{
			"with a hint", noImage, 1, "error: no image is called \"debain\"\nhint: did you mean debian:12?\n",
			`{"error":{"kind":"not found","message":"no image is called \"debain\"","hint":"did you mean debian:12?"}}` + "\n",
		},
		{
			"wrapped", mvm.Wrap(noImage, "create VM", "web"), 1, "error: cannot create VM \"web\": no image is called \"debain\"\nhint: did you mean debian:12?\n",
			`{"error":{"kind":"not found","message":"cannot create VM \"web\": no image is called \"debain\"","hint":"did you mean debian:12?"}}` + "\n",
		},
		{"control characters", hostile, 1, "error: bad\\x1b[31m; name\n", `{"error":{"kind":"invalid","message":"bad\u001b[31m; name","hint":""}}` + "\n"},
		{
			"joined", errors.Join(noImage, errors.Join(hostile, errors.New("plain"))), 1,
			"error: no image is called \"debain\"\nhint: did you mean debian:12?\nerror: bad\\x1b[31m; name\nerror: plain\n",
			`{"error":{"kind":"not found","message":"no image is called \"debain\"","hint":"did you mean debian:12?"}}` + "\n" +
				`{"error":{"kind":"invalid","message":"bad\u001b[31m; name","hint":""}}` + "\n" +
				`{"error":{"kind":"unavailable","message":"plain","hint":""}}` + "\n",
		},
		{
			"interaction", &mvm.NeedsInteraction{What: "making a bridge needs root", Command: []string{"sudo", "mvm", "init"}}, 1,
			"error: making a bridge needs root\nhint: run: sudo mvm init\n",
			`{"error":{"kind":"permission denied","message":"making a bridge needs root","hint":"run: sudo mvm init"}}` + "\n",
		},
		{"two causes in one sentence", fmt.Errorf("%w and %w", errors.New("a"), errors.New("b")), 1, "error: a and b\n", `{"error":{"kind":"unavailable","message":"a and b","hint":""}}` + "\n"},
		{"one joined", errors.Join(errors.New("a")), 1, "error: a\n", `{"error":{"kind":"unavailable","message":"a","hint":""}}` + "\n"},
	} {
		for _, asJSON := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/json=%v", c.name, asJSON), func(t *testing.T) {
				a, stdout, stderr := testApp()
				a.out.JSON = asJSON
				want := c.text
				if asJSON {
					want = c.json
				}
				if code := a.report(t.Context(), &cobra.Command{}, c.err); code != c.code {
					t.Errorf("exit code %d, want %d", code, c.code)
				}
				if d := cmp.Diff(want, stderr.String()); d != "" {
					t.Error(d)
				}
				if stdout.Len() > 0 {
					t.Errorf("stdout has %q", stdout)
				}
			})
		}
	}
}

func TestReportInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errInterrupted)
	changes := &cobra.Command{Annotations: map[string]string{annotationUndo: "yes"}}
	cancelled := mvm.Wrap(ctx.Err(), "create VM", "web")
	broken := mvm.Errorf(mvm.ErrBroken, "the tap is still there")
	for _, c := range []struct {
		name string
		cmd  *cobra.Command
		err  error
		code int
		want string
	}{
		{"a change", changes, cancelled, 130, "interrupted: what was begun has been undone\n"},
		{"a look", &cobra.Command{}, cancelled, 130, "interrupted\n"},
		{"undoing failed", changes, errors.Join(cancelled, broken), 130, "error: the tap is still there\ninterrupted\n"},
		{"too late", changes, nil, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, _, stderr := testApp()
			if code := a.report(ctx, c.cmd, c.err); code != c.code {
				t.Errorf("exit code %d", code)
			}
			if d := cmp.Diff(c.want, stderr.String()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestReportRestoresTheTerminal(t *testing.T) {
	a, _, _ := testApp()
	n := 0
	a.onRestore(func() { n++ })
	a.report(t.Context(), &cobra.Command{}, errors.New("x"))
	a.restoreTerminal()
	if n != 1 {
		t.Errorf("restored %d times", n)
	}
}

func TestTypeVersion(t *testing.T) {
	for _, c := range []struct {
		args         []string
		typ, version string
		wantT, wantV string
		bad          bool
	}{
		{nil, "debian", "12", "debian", "12", false},
		{[]string{"debian:12"}, "", "", "debian", "12", false},
		{[]string{"debian"}, "", "12", "debian", "12", false},
		{[]string{"debian:12"}, "debian", "12", "debian", "12", false},
		{nil, "", "", "", "", true},
		{[]string{":12"}, "", "", "", "", true},
		{[]string{"debian:"}, "", "", "", "", true},
		{[]string{"debian:12"}, "", "13", "", "", true},
		{[]string{"debian:12"}, "ubuntu", "", "", "", true},
	} {
		typ, version, err := typeVersion(c.args, c.typ, c.version)
		var usage *usageError
		if errors.As(err, &usage) != c.bad || typ != c.wantT || version != c.wantV {
			t.Errorf("typeVersion(%q, %q, %q) = %q, %q, %v", c.args, c.typ, c.version, typ, version, err)
		}
	}
}

func TestJoinWait(t *testing.T) {
	for in, want := range map[string]string{
		"vm create a --wait":            "vm create a --wait",
		"vm create a --wait ssh":        "vm create a --wait=ssh",
		"vm create --wait ready a":      "vm create --wait=ready a",
		"vm create --wait a":            "vm create --wait a",
		"vm start a --wait=ssh b":       "vm start a --wait=ssh b",
		"ssh a -- --wait ssh":           "ssh a -- --wait ssh",
		"vm start --wait ssh ssh ready": "vm start --wait=ssh ssh ready",
		"vm create a --wait port:80":    "vm create a --wait=port:80",
		"vm create a --wait port:x":     "vm create a --wait port:x",
		"vm start --wait stopped a":     "vm start --wait=stopped a",
	} {
		if got := strings.Join(joinWait(strings.Fields(in)), " "); got != want {
			t.Errorf("joinWait(%s) = %s", in, got)
		}
	}
}

func TestVMCreateFlags(t *testing.T) {
	ptr := func(n int) *int { return &n }
	yes, no := true, false
	for args, want := range map[string]api.VMCreateInput{
		"a":                         {},
		"a --vcpu 2 --mem 2G":       {VCPUCount: ptr(2), MemSizeMiB: ptr(2048)},
		"a --memory 300 --no-pci":   {MemSizeMiB: ptr(300), PCIEnabled: &no},
		"a --vcpu 0 --count 0":      {VCPUCount: ptr(0), Count: ptr(0)},
		"a --nested-virt --console": {NestedVirt: &yes, EnableConsole: &yes},
		"a --disable-nested-virt --disable-logging --enable-metrics": {NestedVirt: &no, EnableLogging: &no, EnableMetrics: &yes},
		"a --wait":                          {Wait: api.WaitReady},
		"a --wait=ssh --wait-timeout 90s":   {Wait: api.WaitSSH, WaitLimit: 90e9},
		"a --wait-timeout 1m":               {Wait: api.WaitReady, WaitLimit: 60e9},
		"a --net lan --ssh-key k1,k2 -s 9G": {NetworkName: "lan", SSHKeys: []string{"k1", "k2"}, DiskSize: "9G"},
		"a --count 3 --atomic":              {Count: ptr(3), Atomic: true},
	} {
		got, err := parseCreate(t, strings.Fields(args))
		if err != nil {
			t.Errorf("%s: %v", args, err)
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(api.VMCreateInput{})); d != "" {
			t.Errorf("%s: %s", args, d)
		}
	}
	for _, args := range []string{
		"a --mem x", "a --mem 1K", "a --mem -1", "a --mem 1G --memory 1G", "a --wait=nothing", "a --atomic", "a --wait-timeout -1s",
		"a --nested-virt --disable-nested-virt", "a --network x --net x", "a --enable-metrics --disable-metrics",
	} {
		_, err := parseCreate(t, strings.Fields(args))
		var usage *usageError
		if !errors.As(err, &usage) || usage.hint == "" {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func parseCreate(t *testing.T, args []string) (api.VMCreateInput, error) {
	t.Helper()
	a, _, _ := testApp()
	var o vmCreateOptions
	cmd := &cobra.Command{Use: "create"}
	o.flags(a, cmd)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	err := o.resolve(cmd)
	return o.input, err
}

func TestConfirm(t *testing.T) {
	for _, c := range []struct {
		typed  string
		preset bool
		yes    bool
	}{
		{"y\n", false, true},
		{"YES\n", false, true},
		{"\n", false, false},
		{"\n", true, true},
		{"n\n", true, false},
		{"", true, false},
		{"perhaps\n", true, false},
	} {
		a, _, _ := testApp()
		a.stdin = strings.NewReader(c.typed)
		if err := a.confirm(t.Context(), "Sure?", c.preset); (err == nil) != c.yes {
			t.Errorf("%q, preset %v: %v", c.typed, c.preset, err)
		}
	}
	a, _, _ := testApp()
	if a.canAsk() {
		t.Error("asks without a terminal")
	}
}

func TestBatch(t *testing.T) {
	b := vmBatch{Entries: []vmEntry{
		{Identifier: "a", Item: &mvm.VMInstanceItem{Name: "a"}},
		{Identifier: "b", Err: errors.New("no b")},
	}}
	a, stdout, _ := testApp()
	if err := printBatch(a.out, b, vmName, b.Err()); err == nil || stdout.String() != "a\n" {
		t.Errorf("%v, %q", err, stdout)
	}
	a, stdout, _ = testApp()
	a.out.JSON = true
	if err := printBatch(a.out, vmBatch{}, vmName, nil); err != nil || stdout.String() != "[]\n" {
		t.Errorf("%v, %q", err, stdout)
	}
}

func TestInspectSeveral(t *testing.T) {
	get := func(id string) (string, map[string]string, error) {
		if id == "none" {
			return "", nil, errors.New("no such thing")
		}
		return "Thing: " + id, map[string]string{"name": id}, nil
	}
	for _, c := range []struct {
		ids  string
		json bool
		want string
		bad  bool
	}{
		{"a", true, "{\n  \"name\": \"a\"\n}\n", false},
		{"a b", true, "[\n  {\n    \"name\": \"a\"\n  },\n  {\n    \"name\": \"b\"\n  }\n]\n", false},
		{"none", true, "", true},
		{"none a", false, "Thing: a\n└─ name: a\n", true},
	} {
		a, stdout, _ := testApp()
		a.out.JSON = c.json
		err := inspect(a.out, strings.Fields(c.ids), get)
		if (err != nil) != c.bad || stdout.String() != c.want {
			t.Errorf("%s: %v, %q", c.ids, err, stdout)
		}
	}
}

func TestWantsJSON(t *testing.T) {
	for args, want := range map[string]bool{"vm ls --json": true, "vm ls": false, "ssh a -- --json": false, "vm ls --json=false": false} {
		if got := wantsJSON(strings.Fields(args)); got != want {
			t.Errorf("%s: %v", args, got)
		}
	}
}

func TestLatest(t *testing.T) {
	ch := make(chan int, 1)
	latest(ch, 1)
	latest(ch, 2)
	if got := <-ch; got != 2 {
		t.Errorf("got %d", got)
	}
}
