package guest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/guest/tree"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// wantPrintable fails where a text of a guest could do something to a terminal, or
// fill it.
func wantPrintable(t *testing.T, what, s string) {
	t.Helper()
	if len(s) > 1000 || !utf8.ValidString(s) || strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) && r != ' ' }) >= 0 {
		t.Errorf("%s: %.200q", what, s)
	}
}

// wantError fails where an error lacks a kind or a hint, or says too much.
func wantError(t *testing.T, err error) {
	t.Helper()
	var copied *tree.Error
	if !errors.As(err, &copied) && (mvm.KindOf(err) == "" || mvm.HintOf(err) == "") {
		t.Errorf("%v has no kind or no hint", err)
	}
	if copied == nil {
		wantPrintable(t, "error", err.Error())
		return
	}
	wantPrintable(t, "reason", copied.Reason)
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"plain", "\x1b]0;x\a", "a\xe2\x80\xaetxt.exe", strings.Repeat("ü", 200), "\u2028\u200b\xff", "  \n "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { wantPrintable(t, "clean", clean(s)) })
}

func FuzzReady(f *testing.F) {
	for _, s := range []string{`{"version":"v1","hostname":"web","uptime":1.5,"boot_id":"x","init":"systemd","init_state":"running","kernel":"6.1"}`, `{"uptime":1e999}`, `[]`, `{"hostname":"\u001b[2J\u202e"}`, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r wire.Ready
		if json.Unmarshal(data, &r) != nil {
			return
		}
		printable(&r)
		for _, s := range []string{r.Version, r.Hostname, r.BootID, r.Init, r.State, r.Kernel} {
			wantPrintable(t, "ready", s)
		}
	})
}

func FuzzServerVersion(f *testing.F) {
	f.Add("SSH-2.0-mvm_agent_v1.2.3~4~gabc")
	f.Add("SSH-2.0-OpenSSH_9.2")
	f.Add("SSH-2.0-mvm_agent_\x1b[31m")
	f.Fuzz(func(t *testing.T, s string) { wantPrintable(t, "version", clean(wire.AgentVersion(s))) })
}

func FuzzStatus(f *testing.F) {
	f.Add("exit-status", []byte{0, 0, 0, 7})
	f.Add("exit-status", []byte{0xff, 0xff, 0xff, 0xff})
	f.Add("exit-status", []byte{0})
	f.Add("exit-signal", []byte("\x00\x00\x00\x04TERM\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add("exit-signal", []byte("\xff\xff\xff\xff"))
	f.Add("eof@openssh.com", []byte{})
	f.Fuzz(func(t *testing.T, request string, payload []byte) {
		st, ok := readStatus(request, payload)
		if st.Code < 0 || st.Code > 255 || st.Signal != "" && st.Code == 0 || !ok && st != (Status{}) {
			t.Errorf("%+v, %v", st, ok)
		}
		wantPrintable(t, "signal", st.Signal)
	})
}

func FuzzReport(f *testing.F) {
	f.Add(`{"files":1,"bytes":2,"skipped":["/dev/null"]}`, 0)
	f.Add(`{"code":"source-not-found","path":"/x","reason":"gone"}`, 1)
	f.Add(`mvm-agent: unknown command "pack"`, 1)
	f.Add(`{"files":-1,"bytes":-9223372036854775808,"skipped":["\u001b[31m"]}`, 0)
	f.Add(`{"reason":""}`, 2)
	f.Fuzz(func(t *testing.T, report string, code int) {
		s, err := readReport(report, code)
		if (err == nil) != (code == 0) && !errors.Is(err, mvm.ErrBroken) {
			t.Errorf("status %d: %v", code, err)
		}
		for _, name := range s.Skipped {
			wantPrintable(t, "skipped", name)
		}
		if err != nil {
			wantError(t, err)
		}
	})
}

func FuzzFailure(f *testing.F) {
	f.Add("mvm-cp:source-not-found:there is no such file:/x", copyFailed)
	f.Add("banner\nmvm-cp:other:no:a\nb", copyFailed)
	f.Add("sh: tar: not found", 127)
	f.Add("mvm-cp::", copyFailed)
	f.Add("", 1)
	f.Fuzz(func(t *testing.T, report string, code int) {
		if code == 0 {
			return
		}
		err := readFailure(report, code)
		if err == nil {
			t.Fatal("a failure was taken for none")
		}
		wantError(t, err)
	})
}

// archive makes a tar file of headers with a little content.
func archive(f *testing.F, hs ...*tar.Header) []byte {
	f.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range hs {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeReg {
			h.Size = 3
		}
		if err := tw.WriteHeader(h); err != nil {
			f.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := tw.Write([]byte("abc")); err != nil {
				f.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		f.Fatal(err)
	}
	return b.Bytes()
}

// Whatever a guest's tar says, nothing is made beside the destination, and what is
// refused leaves nothing.
func FuzzGatherer(f *testing.F) {
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeReg} }
	dir := func(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeDir} }
	link := func(name, to string) *tar.Header {
		return &tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	f.Add(archive(f, dir("./"), file("./a"), link("./l", "../..")), false)
	f.Add(archive(f, dir("./"), file("../evil")), false)
	f.Add(archive(f, dir("./"), link("./d", "/"), file("./d/evil")), false)
	f.Add(archive(f, dir("./"), &tar.Header{Name: "./twin", Linkname: "a", Typeflag: tar.TypeLink}, &tar.Header{Name: "./dev", Typeflag: tar.TypeBlock}), false)
	f.Add(archive(f, file("other"), file("more")), true)
	f.Add([]byte("tar: no such file"), true)
	f.Fuzz(func(t *testing.T, data []byte, one bool) {
		out := t.TempDir()
		if err := errors.Join(os.Mkdir(out+"/to", 0o700), os.WriteFile(out+"/victim", []byte("v"), 0o600)); err != nil {
			t.Fatal(err)
		}
		var stream bytes.Buffer
		g := tree.NewGatherer(&stream)
		_, err := g.Add(bytes.NewReader(data), "name", one)
		if err == nil {
			_, err = g.Close()
		}
		if err == nil {
			_, err = tree.Unpack(&stream, tree.Target{Path: out + "/to"})
		}
		entries, readErr := os.ReadDir(out)
		victim, victimErr := os.ReadFile(out + "/victim")
		if readErr != nil || victimErr != nil || len(entries) != 2 || string(victim) != "v" {
			t.Errorf("beside the destination: %v, %q, %v, %v", entries, victim, readErr, victimErr)
		}
		inside, _ := filepath.Glob(out + "/to/*")
		hidden, _ := filepath.Glob(out + "/to/.*")
		switch inside = append(inside, hidden...); {
		case err != nil && len(inside) > 0:
			t.Errorf("what was refused (%v) left %v", err, inside)
		case len(inside) > 1 || len(inside) == 1 && filepath.Base(inside[0]) != "name":
			t.Errorf("it was to make one thing of that name, and made %v", inside)
		}
	})
}

// What one guest sends for another is an archive or an error.
func FuzzPlain(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(dir+"/f", []byte("x"), 0o600); err != nil {
		f.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := tree.Pack(&stream, []string{dir}); err != nil {
		f.Fatal(err)
	}
	f.Add(stream.Bytes(), true)
	f.Add(stream.Bytes()[:1000], false)
	f.Fuzz(func(t *testing.T, data []byte, owners bool) {
		var out bytes.Buffer
		s, err := tree.Plain(&out, bytes.NewReader(data), "end", tree.Target{Owners: owners})
		if err != nil {
			return
		}
		tr := tar.NewReader(&out)
		last, n := "", 0
		for {
			h, err := tr.Next()
			if err != nil {
				break
			}
			last, n = h.Name, n+1
		}
		if last != "end" || n <= s.Files {
			t.Errorf("%d entries and %q for %d files", n, last, s.Files)
		}
	})
}
