package cloudinit

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"github.com/mvmctl/mvm"
)

var web = Instance{
	ID: "0123456789abcdef", Hostname: "web", User: "root", Keys: []string{"ssh-ed25519 AAAA me@here"},
	Network: &Network{MAC: "02:FC:00:00:00:01", Address: "172.27.0.2/24", Gateway: "172.27.0.1", DNS: []string{"1.1.1.1", "9.9.9.9"}},
}

// golden compares with a file in testdata, which UPDATE_GOLDEN=1 writes.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, got, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s:\n%s", name, diff)
	}
}

func TestDocuments(t *testing.T) {
	alice := web
	alice.User, alice.Network = "alice", nil
	for name, c := range map[string]struct {
		in   Instance
		data string
	}{
		"plain":  {web, ""},
		"alice":  {alice, ""},
		"config": {web, "#cloud-config\n# a comment\nusers:\n- default\n- {name: bob, sudo: no}\n- name: root\n  ssh_authorized_keys: [ssh-rsa BBBB]\npackages: ['jq']\nwrite_files:\n- path: /etc/motd\n  permissions: 0644\n  content: |\n    hi\n      there\nhostname: other\n"},
		"script": {web, "#!/bin/sh\necho hi > /root/hi\n"},
		"message": {alice, "Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\nSubject: all of it\n\n--b\nContent-Type: text/x-shellscript\n\n#!/bin/sh\ntrue\n" +
			"--b\nContent-Type: text/cloud-config\nX-Merge-Type: str(append)\n\n#cloud-config\nusers: [carol]\n--b--\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var u *UserData
			var err error
			if c.data != "" {
				if u, err = ParseUserData(name, []byte(c.data)); err != nil {
					t.Fatal(err)
				}
			}
			docs, err := Render(c.in, u)
			if err != nil {
				t.Fatal(err)
			}
			var all bytes.Buffer
			for _, n := range names {
				if data, ok := docs[n]; ok {
					all.WriteString("=== " + n + "\n" + string(data))
				}
			}
			golden(t, name+".txt", all.Bytes())
			if password := "passwd:"; strings.Contains(strings.ReplaceAll(all.String(), "lock_passwd:", ""), password) {
				t.Error("a password is set")
			}
		})
	}
}

func value(t *testing.T, doc string) any {
	t.Helper()
	var v any
	if err := yaml.Load([]byte(doc), &v); err != nil {
		t.Fatalf("%v in\n%s", err, doc)
	}
	return v
}

func TestMerge(t *testing.T) {
	for _, c := range []struct{ name, ours, theirs, want string }{
		{"disjoint", "a: 1", "b: 2", "{a: 1, b: 2}"},
		{"theirs wins", "a: 1", "a: 2", "a: 2"},
		{"theirs wins as false", "a: true", "a: false", "a: false"},
		{"theirs wins as null", "a: 1", "a:", "a: null"},
		{"their null leaves a list", "a: [1]", "a:", "a: [1]"},
		{"their null leaves a mapping", "a: {b: 1}", "a: ~", "a: {b: 1}"},
		{"lists are appended", "a: [1, 2]", "a: [3]", "a: [1, 2, 3]"},
		{"what both have is there once", "a: [1, {b: 2}]", "a: [{b: 2}, 3]", "a: [1, {b: 2}, 3]"},
		{"their own repetitions stay", "a: [1]", "a: [2, 2]", "a: [1, 2, 2]"},
		{"an empty list adds nothing", "a: [1]", "a: []", "a: [1]"},
		{"mappings are merged", "a: {b: 1, c: [1]}", "a: {c: [2], d: 3}", "a: {b: 1, c: [1, 2], d: 3}"},
		{"users by name", "users: [default, {name: root, k: [1], lock: true}]", "users: [{name: bob}, {name: root, k: [2], lock: false}]",
			"users: [default, {name: root, k: [1, 2], lock: false}, {name: bob}]"},
		{"a user that is a name only", "users: [{name: al, k: [1]}]", "users: [al, bob]", "users: [{name: al, k: [1]}, bob]"},
		{"a user's only key", "users: [{name: al, ssh_authorized_keys: [x]}]", "users: [{name: al, ssh_authorized_keys: y}]", "users: [{name: al, ssh_authorized_keys: [x, y]}]"},
		{"others not by name", "files: [{name: a, x: 1}]", "files: [{name: a, y: 2}]", "files: [{name: a, x: 1}, {name: a, y: 2}]"},
		{"a string is no list", "a: x", "a: [y]", "a: [y]"},
		{"a string that looks like a number", "a: [1]", "a: ['1']", "a: [1, '1']"},
		{"aliases", "x: 1", "{b: &b {c: 1}, d: *b, e: {<<: *b, c: 2, f: 3}}", "{x: 1, b: {c: 1}, d: {c: 1}, e: {c: 2, f: 3}}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ours, err1 := parseConfig([]byte(c.ours))
			theirs, err2 := parseConfig([]byte(c.theirs))
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			merged := merge(ours, theirs)
			out, err := dump(merged)
			if err != nil || !readsBack(out, merged) {
				t.Fatalf("written as %s, %v", out, err)
			}
			if diff := cmp.Diff(value(t, c.want), value(t, string(out))); diff != "" {
				t.Error(diff)
			}
			for what, n := range map[string]*yaml.Node{c.ours: ours, c.theirs: theirs} {
				if again, err := parseConfig([]byte(what)); err != nil || !same(n, again) {
					t.Errorf("merging changed %s", what)
				}
			}
		})
	}
}

// What cloud-init, which reads YAML 1.1, takes for something else than YAML 1.2
// does is passed on as it was written.
func TestValuesStayAsWritten(t *testing.T) {
	for _, v := range []string{"yes", "off", "0644", "0o644", "12:30:45", "1_000", "~", "2001-01-01", "'yes'", `"0644"`, ".inf", "1e3"} {
		u, err := ParseUserData(v, []byte("#cloud-config\nx: "+v+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		docs, err := Render(web, u)
		if err != nil || !strings.HasSuffix(string(docs[UserDataName]), "\nx: "+v+"\n") {
			t.Errorf("%s became %s, %v", v, docs[UserDataName], err)
		}
	}
}

func zip(t testing.TB, data string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(data)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestRefusedUserData(t *testing.T) {
	bomb := "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
	for i := range 9 {
		n := string(rune('0' + i))
		m := string(rune('1' + i))
		bomb += "a" + m + ": &a" + m + " [" + strings.Repeat("*a"+n+", ", 8) + "*a" + n + "]\n"
	}
	for name, c := range map[string]struct{ data, says string }{
		"empty":             {" \n\n", "it is empty"},
		"no header":         {"packages: [jq]\n", "its first line is none that cloud-init knows"},
		"binary":            {"\x7fELF\x02", "its first line is none that cloud-init knows"},
		"bad indent":        {"#cloud-config\na: 1\n  b: 2\n", "line 3: "},
		"open list":         {"#cloud-config\na: 1\nb: [1\nc: 2\n", "line 4: "},
		"tab":               {"#cloud-config\na:\n\tb: 1\n", "line 3: "},
		"list":              {"#cloud-config\n- a\n", "line 2: a cloud-config is a list of keys and values"},
		"text":              {"#cloud-config\nhello\n", "line 2: a cloud-config is a list of keys and values"},
		"nothing":           {"#cloud-config\n# later\n", "no documents"},
		"two documents":     {"#cloud-config\na: 1\n---\nb: 2\n", "single document"},
		"key twice":         {"#cloud-config\nruncmd: [a]\nusers: []\nruncmd: [b]\n", `line 4: the key "runcmd" is there twice`},
		"key twice, deep":   {"#cloud-config\na:\n  b:\n  - c: 1\n    c: 2\n", `line 5: the key "c" is there twice`},
		"unknown alias":     {"#cloud-config\na: *b\n", "line 2: "},
		"cyclic alias":      {"#cloud-config\na: &a [*a]\n", "there is too much below this"},
		"too many aliases":  {"#cloud-config\n" + bomb, "there is too much below this"},
		"tag":               {"#cloud-config\na: !!python/object:os.system x\n", "line 2: cloud-init does not know the tag"},
		"own tag":           {"#cloud-config\nb: 1\na: !ref x\n", "line 3: cloud-init does not know the tag !ref"},
		"users as text":     {"#cloud-config\nusers: bob\n", "line 2: users has to be a list, and this is a single value"},
		"runcmd as text":    {"#cloud-config\n\nruncmd: |\n  ls\n", "line 3: runcmd has to be a list"},
		"hostname as list":  {"#cloud-config\nhostname: [a]\n", "line 2: hostname has to be a single value"},
		"user without name": {"#cloud-config\nusers:\n- default\n- sudo: x\n", "line 4: an entry of users has no name"},
		"file without path": {"#cloud-config\nwrite_files:\n- content: x\n", "line 3: an entry of write_files has no path"},
		"large":             {"#!/bin/sh\n" + strings.Repeat("#", MaxUserData), "larger than 1024 KiB"},
		"large unpacked":    {zip(t, "#!/bin/sh\n"+strings.Repeat("#", MaxUserData)), "larger than 1024 KiB"},
		"packed, bad":       {zip(t, "#cloud-config\na: [\n"), "line 3: "},
		"cut off":           {zip(t, "#cloud-config\na: 1\n")[:20], "EOF"},
		"message, no parts": {"Content-Type: multipart/mixed; boundary=b\n\n--b--\n", "no parts"},
		"message, cut off":  {"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n", "cut off or damaged"},
		"no boundary":       {"Content-Type: multipart/mixed\n\nx", "how its parts are divided"},
		"part, bad":         {"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/cloud-config\n\n#cloud-config\na: [\n--b--\n", "part 1 of the MIME message, line 3: "},
		"part, unknown":     {"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Transfer-Encoding: uuencode\n\nx\n--b--\n", "uuencode"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseUserData("user data \"f\"", []byte(c.data))
			if !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), `user data "f"`) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, hint %q; want %q on one line", err, mvm.HintOf(err), c.says)
			}
		})
	}
}

func TestReadUserData(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if err := os.WriteFile(good, []byte(zip(t, "#cloud-config\na: 1\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := ReadUserData(good); err != nil || u.config == nil {
		t.Errorf("%+v, %v", u, err)
	}
	for path, kind := range map[string]mvm.Kind{dir: mvm.ErrInvalid, filepath.Join(dir, "none"): mvm.ErrNotFound} {
		if _, err := ReadUserData(path); !errors.Is(err, kind) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Whatever is accepted can be merged, says what it said, and has our key in it.
func FuzzUserData(f *testing.F) {
	for _, s := range []string{
		"#cloud-config\nusers: [default, {name: root, ssh_authorized_keys: [x]}]\n", "#!/bin/sh\n", zip(f, "#cloud-config\n{}\n"), "#include\nhttp://x\n",
		"#cloud-config\na: &a {b: |2\n   x\n, c: >\n  y\n}\nd: {<<: *a}\n", "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/cloud-config\n\n{a: 1}\n--b--\n",
		"#cloud-config\n\"\\u0085\": \"\\0\\e\"\n? x\n: y\n", "#cloud-config\nhostname: !!binary aGk=\nusers:\nssh_genkeytypes: []\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := ParseUserData("f", data)
		if err != nil {
			if mvm.HintOf(err) == "" {
				t.Errorf("no hint: %v", err)
			}
			return
		}
		docs, err := Render(web, u)
		if err != nil {
			t.Fatalf("accepted, and then %v", err)
		}
		out := docs[UserDataName]
		if !bytes.Contains(out, []byte(web.Keys[0])) {
			t.Errorf("our key is lost:\n%s", out)
		}
		again, err := ParseUserData("again", out)
		if err != nil {
			t.Fatalf("what was made is refused: %v\n%s", err, out)
		}
		if u.config == nil || again.config == nil {
			return
		}
		for i := 0; i+1 < len(u.config.Content); i += 2 {
			key, want := u.config.Content[i], u.config.Content[i+1]
			got := get(again.config, key.Value)
			if got == nil || want.Kind == yaml.ScalarNode && !same(want, got) && !isNull(want) {
				t.Errorf("%s was %+v and is %+v", key.Value, want, got)
			}
		}
	})
}
