package api

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/key"
)

// weakRSA is a public RSA key of 1024 bits.
const weakRSA = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDi57cx1lHEXYad6KV8wHemnfHKNK7CHortzlu75bIP9XHZZmt6jfuSz+d+tpVISLJH2vXt59NMciANBKvhNiniPPLYXR/1aHk7bTCAN2rB2Qu3Kjkv+kY96JRa4P7EM+RPLq6QX+ltH7bHb1xzP/pkFPL3h8hQLt0tFLjFxwmG/w== weak\n"

// pair writes a key pair that mvm does not know, and returns the path of its
// private half.
func pair(t *testing.T, kind key.Kind) string {
	t.Helper()
	p, err := key.Generate(kind, 0, "made elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "id")
	if err := p.Save(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func keyNames(keys []*mvm.SSHKeyItem) []string {
	names := []string{}
	for _, k := range keys {
		names = append(names, k.Name)
	}
	return names
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func TestKeyAdd(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	path := pair(t, key.ED25519)
	k, err := m.Key.Add(t.Context(), KeyAddInput{Name: "mine", PublicKeyPath: path + ".pub"})
	if err != nil {
		t.Fatal(err)
	}
	if k.Algorithm != "ed25519" || k.Comment != "made elsewhere" || k.IsDefault || !strings.HasPrefix(k.Fingerprint, "SHA256:") || deref(k.PrivateKeyPath) != path {
		t.Errorf("registered %+v", k)
	}
	original, err1 := os.ReadFile(path + ".pub")
	copied, err2 := os.ReadFile(filepath.Join(w.dir, "config", "keys", "mine.pub"))
	if err := errors.Join(err1, err2); err != nil || string(copied) != string(original) {
		t.Errorf("copied %q of %q, %v", copied, original, err)
	}

	// Without its private half it is registered too.
	alone := filepath.Join(t.TempDir(), "key.txt")
	if err := os.WriteFile(alone, mustRead(t, pair(t, key.ECDSA)+".pub"), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err = m.Key.Add(t.Context(), KeyAddInput{Name: "alone", PublicKeyPath: alone, SetDefault: true})
	if err != nil || k.PrivateKeyPath != nil || k.Algorithm != "ecdsa" || !k.IsDefault {
		t.Errorf("registered %+v, %v", k, err)
	}

	// A private key that does not belong to the public one is not taken for its other half.
	mixed := filepath.Join(t.TempDir(), "id")
	if err := errors.Join(os.WriteFile(mixed, mustRead(t, pair(t, key.ED25519)), 0o600), os.WriteFile(mixed+".pub", mustRead(t, pair(t, key.ED25519)+".pub"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if k, err := m.Key.Add(t.Context(), KeyAddInput{Name: "mixed", PublicKeyPath: mixed + ".pub"}); err != nil || k.PrivateKeyPath != nil {
		t.Errorf("registered %+v, %v", k, err)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestKeyAddRefuses(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	path, other := pair(t, key.ED25519), pair(t, key.ED25519)
	if _, err := m.Key.Add(t.Context(), KeyAddInput{Name: "mine", PublicKeyPath: path + ".pub"}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	stray := filepath.Join(w.dir, "config", "keys", "stray.pub")
	if err := os.WriteFile(stray, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(mustRead(t, other+".pub")))
	for _, tc := range []struct {
		name string
		in   KeyAddInput
		kind mvm.Kind
		says string
	}{
		{"a bad name", KeyAddInput{Name: "a/b", PublicKeyPath: other + ".pub"}, mvm.ErrInvalid, "a/b"},
		{"no file", KeyAddInput{Name: "new", PublicKeyPath: dir + "/none.pub"}, mvm.ErrNotFound, "none.pub"},
		{"a directory", KeyAddInput{Name: "new", PublicKeyPath: dir}, mvm.ErrInvalid, dir},
		{"a private key", KeyAddInput{Name: "new", PublicKeyPath: other}, mvm.ErrInvalid, "private key, not a public one"},
		{"weak RSA", KeyAddInput{Name: "new", PublicKeyPath: file("weak.pub", weakRSA)}, mvm.ErrInvalid, "only 1024 bits"},
		{"rubbish", KeyAddInput{Name: "new", PublicKeyPath: file("rubbish.pub", "hello\n")}, mvm.ErrInvalid, "no OpenSSH public key"},
		{"two keys", KeyAddInput{Name: "new", PublicKeyPath: file("two.pub", line+"\n"+line+"\n")}, mvm.ErrInvalid, "more than one line"},
		{"options", KeyAddInput{Name: "new", PublicKeyPath: file("opt.pub", `command="x" `+line)}, mvm.ErrInvalid, "options"},
		{"a huge file", KeyAddInput{Name: "new", PublicKeyPath: file("huge.pub", strings.Repeat("a", 1<<20))}, mvm.ErrInvalid, "too long"},
		{"a name that is taken", KeyAddInput{Name: "mine", PublicKeyPath: other + ".pub"}, mvm.ErrExists, "a key of that name"},
		{"a file that is there", KeyAddInput{Name: "stray", PublicKeyPath: other + ".pub"}, mvm.ErrExists, "stray.pub"},
		{"a key known by another name", KeyAddInput{Name: "new", PublicKeyPath: path + ".pub"}, mvm.ErrExists, `"mine"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := m.Key.Add(t.Context(), tc.in)
			refused(t, err, tc.kind, tc.says)
		})
	}
	keys, err := m.Key.ListAll(t.Context())
	if diff := cmp.Diff([]string{"mine"}, keyNames(keys)); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if exists(filepath.Join(w.dir, "config", "keys", "new.pub")) || string(mustRead(t, stray)) != "somebody's" {
		t.Error("a refused key has left or changed a file")
	}
}

func TestKeyReplaced(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	old, err := m.Key.Create(t.Context(), KeyCreateInput{Name: "mine", SetDefault: true})
	if err != nil {
		t.Fatal(err)
	}
	k, err := m.Key.Add(t.Context(), KeyAddInput{Name: "mine", PublicKeyPath: pair(t, key.ED25519) + ".pub", Overwrite: true})
	if err != nil {
		t.Fatal(err)
	}
	if k.ID != old.ID || !k.IsDefault || k.Fingerprint == old.Fingerprint {
		t.Errorf("became %+v", k)
	}
	if exists(*old.PrivateKeyPath) {
		t.Error("the old private half is still there")
	}
	if !exists(k.PublicKeyPath) || !exists(*k.PrivateKeyPath) {
		t.Error("a half of the new key is missing")
	}
}

func TestKeySelectors(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	path := pair(t, key.ED25519)
	k, err := m.Key.Add(t.Context(), KeyAddInput{Name: "mine", PublicKeyPath: path + ".pub"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Key.Create(t.Context(), KeyCreateInput{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	print := strings.TrimPrefix(k.Fingerprint, "SHA256:")
	for _, selector := range []string{"mine", k.Fingerprint, print, "SHA256:" + print[:8], print[:8], k.PublicKeyPath, path + ".pub", k.ID, k.ID[:6]} {
		if got, err := m.Key.Get(t.Context(), KeyInput{[]string{selector}}); err != nil || got.ID != k.ID {
			t.Errorf("%s: %v, %v", selector, got, err)
		}
	}
	for _, selector := range []string{"mien", print[:3], "SHA256:", "/nowhere.pub", "SHA256:AAAAAAAA"} {
		_, err := m.Key.Get(t.Context(), KeyInput{[]string{selector}})
		refused(t, err, mvm.ErrNotFound, "there is no key")
	}
	_, err = m.Key.Get(t.Context(), KeyInput{})
	refused(t, err, mvm.ErrInvalid, "exactly one key")
	// Two keys whose fingerprints begin alike cannot be told apart by that.
	alike := []*mvm.SSHKeyItem{{ID: "1111", Name: "a", Fingerprint: "SHA256:abcdef"}, {ID: "2222", Name: "b", Fingerprint: "SHA256:abcxyz"}}
	_, err = pickKey("SHA256:abc", "x", alike)
	refused(t, err, mvm.ErrNotFound, "there is no key") // too short to mean anything
	alike[1].Fingerprint = "SHA256:abcdxyz"
	_, err = pickKey("abcd", "x", alike)
	refused(t, err, mvm.ErrAmbiguous, "a (1111), b (2222)")
}

func TestKeyDefaults(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	ctx := t.Context()
	for _, name := range []string{"a", "b", "c"} {
		if _, err := m.Key.Create(ctx, KeyCreateInput{Name: name, SetDefault: name == "a"}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(names ...string) {
		t.Helper()
		keys, err := m.Key.GetDefaults(ctx)
		if diff := cmp.Diff(append([]string{}, names...), keyNames(keys)); err != nil || diff != "" {
			t.Errorf("defaults: %v\n%s", err, diff)
		}
	}
	want("a")
	keys, err := m.Key.SetDefault(ctx, KeyInput{[]string{"c", "b", "c"}})
	if err != nil || len(keys) != 2 {
		t.Errorf("%v, %v", keyNames(keys), err)
	}
	want("b", "c")
	_, err = m.Key.SetDefault(ctx, KeyInput{[]string{"a", "none"}})
	refused(t, err, mvm.ErrNotFound, "none")
	want("b", "c")
	_, err = m.Key.SetDefault(ctx, KeyInput{})
	refused(t, err, mvm.ErrInvalid, "no key")
	w.stock(m)
	p, err := w.plan(m, VMCreateInput{})
	if err != nil || len(p.keyLines) != 2 {
		t.Errorf("a new VM gets %d keys, %v", len(p.keyLines), err)
	}
	for range 2 {
		if err := m.Key.ClearDefaults(ctx); err != nil {
			t.Fatal(err)
		}
		want()
	}
}

func TestKeyRemove(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	ctx := t.Context()
	elsewhere := pair(t, key.ED25519)
	made, err1 := m.Key.Create(ctx, KeyCreateInput{Name: "made"})
	mine, err2 := m.Key.Add(ctx, KeyAddInput{Name: "mine", PublicKeyPath: elsewhere + ".pub"})
	out, err3 := m.Key.Create(ctx, KeyCreateInput{Name: "out", OutputDir: filepath.Join(w.dir, "out")})
	_, err4 := m.VM.Create(ctx, VMCreateInput{Name: "web", SSHKeys: []string{"made"}})
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	batch, err := m.Key.Remove(ctx, KeyInput{[]string{"made", "none", "mine"}}, false)
	if len(batch.Items()) != 1 || !errors.Is(err, mvm.ErrConflict) || !errors.Is(err, mvm.ErrNotFound) || !strings.Contains(err.Error(), "web was created with it") {
		t.Errorf("removed %v, %v", keyNames(batch.Items()), err)
	}
	if !exists(*made.PrivateKeyPath) || exists(mine.PublicKeyPath) || !exists(elsewhere) || !exists(elsewhere+".pub") {
		t.Error("too much or too little was removed")
	}
	if _, err := m.Key.Remove(ctx, KeyInput{[]string{"made", "out"}}, true); err != nil {
		t.Fatal(err)
	}
	if exists(*made.PrivateKeyPath) || exists(made.PublicKeyPath) {
		t.Error("the files of a key of ours are left")
	}
	if !exists(*out.PrivateKeyPath) || !exists(out.PublicKeyPath) {
		t.Error("files that were made elsewhere on request are gone")
	}
	if keys, err := m.Key.ListAll(ctx); err != nil || len(keys) != 0 {
		t.Errorf("left: %v, %v", keyNames(keys), err)
	}
	_, err = m.Key.Remove(ctx, KeyInput{}, false)
	refused(t, err, mvm.ErrInvalid, "no key")
	if _, err := m.VM.Stop(ctx, VMInput{Identifiers: []string{"web"}, Force: true}); err != nil {
		t.Error(err)
	}
	if _, err := m.VM.Start(ctx, sel("web")); err != nil {
		t.Errorf("a VM whose key is gone does not start: %v", err)
	}
}

func TestKeyInspect(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	k, err := m.Key.Create(t.Context(), KeyCreateInput{Name: "mine", Algorithm: "ecdsa", SetDefault: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	got, err := m.Key.Inspect(t.Context(), KeyInput{[]string{"mine"}})
	if err != nil {
		t.Fatal(err)
	}
	want := &KeyInspect{
		Key: k, VMs: []string{"web"}, Timestamps: KeyTimestamps{k.CreatedAt, k.UpdatedAt},
		Files: KeyFiles{PublicKeyPath: k.PublicKeyPath, PublicKeyExists: true, PrivateKeyPath: k.PrivateKeyPath, PrivateKeyExists: true,
			PublicKey: strings.TrimSpace(string(mustRead(t, k.PublicKeyPath))), Bits: 256},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := errors.Join(os.Remove(k.PublicKeyPath), os.Remove(*k.PrivateKeyPath)); err != nil {
		t.Fatal(err)
	}
	got, err = m.Key.Inspect(t.Context(), KeyInput{[]string{"mine"}})
	if err != nil || got.Files.PublicKeyExists || got.Files.PrivateKeyExists || got.Key.IsPresent || got.Files.PublicKey != "" {
		t.Errorf("without its files: %+v, %v", got, err)
	}
}

func TestKeyExport(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	ctx := t.Context()
	k, err := m.Key.Create(ctx, KeyCreateInput{Name: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	in, dir := KeyInput{[]string{"mine"}}, filepath.Join(t.TempDir(), "new", "dir")
	got, err := m.Key.Export(ctx, in, dir, false)
	if err != nil {
		t.Fatal(err)
	}
	if got.PublicKeyPath != filepath.Join(dir, "mine.pub") || deref(got.PrivateKeyPath) != filepath.Join(dir, "mine") {
		t.Errorf("exported %+v", got)
	}
	if _, err := key.LoadSigner(*got.PrivateKeyPath); err != nil { // refuses what others can read
		t.Error(err)
	}
	if string(mustRead(t, got.PublicKeyPath)) != string(mustRead(t, k.PublicKeyPath)) {
		t.Error("the public half differs")
	}
	if err := errors.Join(os.Remove(got.PublicKeyPath), os.WriteFile(*got.PrivateKeyPath, []byte("precious"), 0o600)); err != nil {
		t.Fatal(err)
	}
	_, err = m.Key.Export(ctx, in, dir, false)
	refused(t, err, mvm.ErrExists, "mine exists")
	if exists(got.PublicKeyPath) || string(mustRead(t, *got.PrivateKeyPath)) != "precious" {
		t.Error("a refused export wrote something")
	}
	if _, err := m.Key.Export(ctx, in, dir, true); err != nil || string(mustRead(t, *got.PrivateKeyPath)) == "precious" {
		t.Errorf("not replaced: %v", err)
	}
	_, err = m.Key.Export(ctx, in, filepath.Dir(k.PublicKeyPath), true)
	refused(t, err, mvm.ErrInvalid, "own file")

	path := pair(t, key.ED25519)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Key.Add(ctx, KeyAddInput{Name: "half", PublicKeyPath: path + ".pub"}); err != nil {
		t.Fatal(err)
	}
	half, err := m.Key.Export(ctx, KeyInput{[]string{"half"}}, dir, false)
	if err != nil || half.PrivateKeyPath != nil || exists(filepath.Join(dir, "half")) || !exists(half.PublicKeyPath) {
		t.Errorf("a key without its private half: %+v, %v", half, err)
	}
	if err := os.Remove(k.PublicKeyPath); err != nil {
		t.Fatal(err)
	}
	_, err = m.Key.Export(ctx, in, t.TempDir(), false)
	refused(t, err, mvm.ErrBroken, "cannot be read")
}
