package asset

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/mvmctl/mvm"
)

// signer makes a key that is valid for a year from made on.
func signer(t *testing.T, name string, made time.Time) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity(name, "", name+"@example.invalid", &packet.Config{
		Algorithm: packet.PubKeyAlgoRSA, RSABits: 2048, KeyLifetimeSecs: 365 * 86400, Time: func() time.Time { return made },
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func public(t *testing.T, e *openpgp.Entity) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err == nil {
		err = errors.Join(e.Serialize(w), w.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func clearSigned(t *testing.T, e *openpgp.Entity, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, e.PrivateKey, nil)
	if err == nil {
		_, err = w.Write([]byte(text))
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func detached(t *testing.T, e *openpgp.Entity, data []byte, c *packet.Config, armored bool) []byte {
	t.Helper()
	var b bytes.Buffer
	sign := openpgp.DetachSign
	if armored {
		sign = openpgp.ArmoredDetachSign
	}
	if err := sign(&b, e, bytes.NewReader(data), c); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// withSHA1 signs as old tools do, which the library refuses to (RFC 4880, 5.2.3:
// version 4, a binary document, RSA, SHA-1).
func withSHA1(t *testing.T, e *openpgp.Entity, data []byte) []byte {
	t.Helper()
	issuer := binary.BigEndian.AppendUint64([]byte{9, 16}, e.PrimaryKey.KeyId)
	created := binary.BigEndian.AppendUint32([]byte{5, 2}, uint32(time.Now().Unix()))
	hashed := slices.Concat([]byte{4, 0, 1, 2, 0, byte(len(created) + len(issuer))}, created, issuer)
	h := sha1.New()
	h.Write(data)
	h.Write(hashed)
	h.Write(binary.BigEndian.AppendUint32([]byte{4, 0xff}, uint32(len(hashed))))
	digest := h.Sum(nil)
	number, err := rsa.SignPKCS1v15(nil, e.PrivateKey.PrivateKey.(*rsa.PrivateKey), crypto.SHA1, digest)
	if err != nil {
		t.Fatal(err)
	}
	bits := new(big.Int).SetBytes(number)
	body := slices.Concat(hashed, []byte{0, 0}, digest[:2], binary.BigEndian.AppendUint16(nil, uint16(bits.BitLen())), bits.Bytes())
	return append(binary.BigEndian.AppendUint16([]byte{0x89}, uint16(len(body))), body...)
}

// site serves files by path and counts the requests for each.
type site struct {
	mu    sync.Mutex
	files map[string][]byte
	count map[string]int
	url   string
}

func newSite(t *testing.T, files map[string][]byte) *site {
	t.Helper()
	s := &site{files: files, count: map[string]int{}}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	data, ok := s.files[r.URL.RequestURI()]
	s.count[r.URL.RequestURI()]++
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (s *site) requests(path string) int { s.mu.Lock(); defer s.mu.Unlock(); return s.count[path] }

func fetcher(t *testing.T, keys map[string][]byte) *Fetcher {
	t.Helper()
	f := &Fetcher{Dir: t.TempDir(), Keys: t.TempDir(), Backoff: time.Microsecond}
	for name, data := range keys {
		write(t, filepath.Join(f.Keys, name+".asc"), data)
	}
	return f
}

// left are the files in a cache, without the empty directories.
func left(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestFetcher(t *testing.T) {
	now := time.Now()
	good, other, old := signer(t, "good", now.Add(-time.Hour)), signer(t, "other", now.Add(-time.Hour)), signer(t, "old", now.AddDate(-2, 0, 0))
	list := sumOf(content) + "  file\n"
	wide := sha512.Sum512(content)
	wrong := strings.Repeat("0", 64) + "  file\n"
	then := &packet.Config{Time: func() time.Time { return now.AddDate(-2, 0, 1) }}
	broken := bytes.Replace(clearSigned(t, good, list), []byte("  file"), []byte("  fild"), 1)
	s := newSite(t, map[string][]byte{
		"/file": content, "/sums": []byte(list), "/sums512": []byte(hex.EncodeToString(wide[:]) + "  file\n"), "/sums.wrong": []byte(wrong),
		"/sums.asc": clearSigned(t, good, list), "/sums.other.asc": clearSigned(t, other, list), "/sums.broken.asc": broken,
		// What stands around the signed part is not signed.
		"/sums.around.asc": append([]byte(list+"\n"), clearSigned(t, good, "nothing\n")...),
		"/sums.sig":        detached(t, good, []byte(list), nil, false), "/sums.sig.asc": detached(t, good, []byte(list), nil, true),
		"/sums.other.sig": detached(t, other, []byte(list), nil, false), "/sums.old.sig": detached(t, old, []byte(list), then, false),
		"/sums.sha1.sig": withSHA1(t, good, []byte(list)),
		"/file.sig":      detached(t, good, content, nil, false), "/file.other.sig": detached(t, other, content, nil, false), "/junk": []byte("junk"),
	})
	keys := map[string][]byte{"good": public(t, good), "old": public(t, old), "both": append(public(t, other), public(t, good)...), "no key": []byte("junk")}
	at := func(p string) string { return s.url + p }
	sums := func(p string, sig *Signature) *Sums { return &Sums{URL: at(p), Signature: sig} }
	sig := func(upstream, p string) *Signature {
		if p != "" {
			p = at(p)
		}
		return &Signature{Upstream: upstream, URL: p}
	}
	fingerprint := fmt.Sprintf("%X", good.PrimaryKey.Fingerprint)
	tests := []struct {
		name   string
		file   File
		how    string   // the verification; "" is refused
		kind   mvm.Kind // then
		say    string   // part of the error
		noFile string   // what is asked for instead of /file
	}{
		{name: "a digest", file: File{Digest: Digest(sumOf(content))}, how: mvm.VerifiedChecksum},
		{name: "another digest", file: File{Digest: Digest(sumOf(nil))}, kind: mvm.ErrBroken, say: "SHA-256"},
		{name: "a list", file: File{Sums: sums("/sums", nil)}, how: mvm.VerifiedChecksum},
		{name: "a list of SHA-512", file: File{Sums: sums("/sums512", nil)}, how: mvm.VerifiedChecksum},
		{name: "a list with another digest", file: File{Sums: sums("/sums.wrong", nil)}, kind: mvm.ErrBroken, say: "SHA-256"},
		{name: "a list that is not there", file: File{Sums: sums("/none", nil)}, kind: mvm.ErrBroken, say: "no checksum"},
		{name: "neither list nor file", file: File{Sums: sums("/none", nil)}, kind: mvm.ErrNotFound, noFile: "/no-file"},
		{name: "a list that does not name it", file: File{Sums: &Sums{URL: at("/sums"), Name: "x"}}, kind: mvm.ErrBroken, say: "does not name"},
		{name: "nothing to check it with", file: File{}, kind: mvm.ErrBroken, say: "no checksum"},
		{name: "nothing, and not checked", file: File{Unchecked: true}, how: mvm.VerifiedNot},
		{name: "not checked, though it would be wrong", file: File{Unchecked: true, Sums: sums("/sums.wrong", nil)}, how: mvm.VerifiedNot},
		{name: "clear-signed", file: File{Sums: sums("/sums.asc", sig("good", ""))}, how: mvm.VerifiedSignature},
		{name: "clear-signed by one of two keys", file: File{Sums: sums("/sums.asc", sig("both", ""))}, how: mvm.VerifiedSignature},
		{name: "clear-signed by another key", file: File{Sums: sums("/sums.other.asc", sig("good", ""))}, kind: mvm.ErrBroken, say: "not signed by a key of good"},
		{name: "clear-signed and changed", file: File{Sums: sums("/sums.broken.asc", sig("good", ""))}, kind: mvm.ErrBroken, say: "does not match"},
		{name: "the list stands outside of what is signed", file: File{Sums: sums("/sums.around.asc", sig("good", ""))}, kind: mvm.ErrBroken, say: "does not name"},
		{name: "not signed at all", file: File{Sums: sums("/sums", sig("good", ""))}, kind: mvm.ErrBroken, say: "not signed"},
		{name: "detached", file: File{Sums: sums("/sums", sig("good", "/sums.sig"))}, how: mvm.VerifiedSignature},
		{name: "detached, armored", file: File{Sums: sums("/sums", sig("good", "/sums.sig.asc"))}, how: mvm.VerifiedSignature},
		{name: "detached, of another text", file: File{Sums: sums("/sums512", sig("good", "/sums.sig"))}, kind: mvm.ErrBroken, say: "does not match"},
		{name: "detached, by another key", file: File{Sums: sums("/sums", sig("good", "/sums.other.sig"))}, kind: mvm.ErrBroken, say: "not signed by a key of good"},
		{name: "detached, by an expired key", file: File{Sums: sums("/sums", sig("old", "/sums.old.sig"))}, kind: mvm.ErrBroken, say: "expired"},
		{name: "detached, with SHA-1", file: File{Sums: sums("/sums", sig("good", "/sums.sha1.sig"))}, kind: mvm.ErrBroken, say: "SHA-1"},
		{name: "detached, junk", file: File{Sums: sums("/sums", sig("good", "/junk"))}, kind: mvm.ErrBroken, say: "signature"},
		{name: "detached, not there", file: File{Sums: sums("/sums", sig("good", "/none"))}, kind: mvm.ErrNotFound},
		{name: "no key of that name", file: File{Sums: sums("/sums", sig("nobody", "/sums.sig"))}, kind: mvm.ErrNotFound, say: "no key"},
		{name: "a key that is none", file: File{Sums: sums("/sums", sig("no key", "/sums.sig"))}, kind: mvm.ErrInvalid, say: "cannot be read"},
		{name: "a key elsewhere", file: File{Sums: sums("/sums", sig("../good", "/sums.sig"))}, kind: mvm.ErrInvalid},
		{name: "the file is signed", file: File{Signature: sig("good", "/file.sig")}, how: mvm.VerifiedSignature},
		{name: "the file is signed by another key", file: File{Signature: sig("good", "/file.other.sig")}, kind: mvm.ErrBroken, say: "not signed by"},
		{name: "the file's signature is not there", file: File{Signature: sig("good", "/none")}, kind: mvm.ErrBroken, say: "no checksum"},
		{name: "too large", file: File{Sums: sums("/sums", nil), MaxBytes: 1000}, kind: mvm.ErrInvalid, say: "larger"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := fetcher(t, keys)
			tt.file.URL = at("/file")
			if tt.noFile != "" {
				tt.file.URL = at(tt.noFile)
			}
			got, err := f.Fetch(t.Context(), tt.file)
			if tt.how == "" {
				if !errors.Is(err, tt.kind) || mvm.HintOf(err) == "" || !strings.Contains(err.Error(), tt.say) || got != (Got{}) {
					t.Errorf("got %+v, %v (hint %q); want kind %q, saying %q", got, err, mvm.HintOf(err), tt.kind, tt.say)
				}
				for _, name := range left(t, f.Dir) {
					t.Errorf("%s is left", name)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if data, err := os.ReadFile(got.Path); err != nil || !bytes.Equal(data, content) {
				t.Errorf("%d bytes, error %v", len(data), err)
			}
			if got.Verification != tt.how || got.Source != tt.file.URL || !strings.HasSuffix(got.Path, Digest(got.Digest).Hex()) {
				t.Errorf("provenance %+v at %s, want %s", got.Provenance, got.Path, tt.how)
			}
			if (got.SignedBy == fingerprint) != (tt.how == mvm.VerifiedSignature) {
				t.Errorf("signed by %q", got.SignedBy)
			}
			if all := left(t, f.Dir); len(all) != 1 {
				t.Errorf("left are %q", all)
			}
		})
	}
}

// TestFetcherLoadsOnce has many fetch one file, some under another name.
func TestFetcherLoadsOnce(t *testing.T) {
	s := newSite(t, map[string][]byte{"/file": content, "/copy": content, "/sums": []byte(sumOf(content) + "  file\n")})
	f := fetcher(t, nil)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			file := File{URL: s.url + "/file", Sums: &Sums{URL: s.url + "/sums"}}
			if i%2 == 1 {
				file.URL, file.Sums.Name = s.url+"/copy", "file"
			}
			if _, err := f.Fetch(t.Context(), file); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.requests("/file") + s.requests("/copy"); n != 1 {
		t.Errorf("%d downloads", n)
	}
	for _, damage := range [][]byte{[]byte("damaged"), nil} { // in the cache; then it is got again
		blob := filepath.Join(f.Dir, "sha256", sumOf(content))
		write(t, blob, damage)
		got, err := f.Fetch(t.Context(), File{URL: s.url + "/file", Digest: Digest(sumOf(content))})
		if data, _ := os.ReadFile(got.Path); err != nil || !bytes.Equal(data, content) {
			t.Errorf("after damage: %d bytes, error %v", len(data), err)
		}
	}
}

func TestShippedKeys(t *testing.T) {
	pinned := map[string]string{"kernel.org": "B8868C80BA62A1FFFAF5FDA9632D3A06589DA6B1"}
	files, err := shipped.ReadDir("keys")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name, ok := strings.CutSuffix(file.Name(), ".asc")
		if !ok {
			continue
		}
		k, err := LoadKeyring(name, "")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		readme, _ := shipped.ReadFile("keys/README.md")
		for _, fp := range k.fingerprints() {
			if want, known := pinned[name]; known && fp != want {
				t.Errorf("%s is %s, not %s", name, fp, want)
			}
			if !bytes.Contains(readme, []byte(fp)) {
				t.Errorf("%s (%s) is not in the README", name, fp)
			}
		}
	}
}

// TestBareKey checks a signature with nothing but the key, as gpg --export-filter
// or a stripped export leaves it.
func TestBareKey(t *testing.T) {
	e, other := signer(t, "good", time.Now().Add(-time.Hour)), signer(t, "other", time.Now().Add(-time.Hour))
	var b bytes.Buffer
	if err := e.PrimaryKey.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	k, err := ParseKeyring("bare", b.Bytes())
	if err != nil || len(k.bare) != 1 {
		t.Fatalf("got %+v, %v", k, err)
	}
	short := &packet.Config{SigLifetimeSecs: 60, Time: func() time.Time { return time.Now().Add(-time.Hour / 2) }}
	for name, tt := range map[string]struct {
		sig  []byte
		fine bool
	}{
		"good":    {detached(t, e, content, nil, false), true},
		"other":   {detached(t, other, content, nil, false), false},
		"changed": {detached(t, e, content[1:], nil, false), false},
		"SHA-1":   {withSHA1(t, e, content), false},
		"expired": {detached(t, e, content, short, false), false},
		"junk":    {[]byte("junk"), false},
		"empty":   {nil, false},
	} {
		by, err := k.verifyDetached(bytes.NewReader(content), tt.sig)
		if (err == nil) != tt.fine || (by != "") != tt.fine || err != nil && !errors.Is(err, mvm.ErrBroken) {
			t.Errorf("%s: by %q, %v", name, by, err)
		}
	}
	text := clearSigned(t, e, "one\n- two\ntrailing  \n")
	if got, _, err := k.verifyClear(text); err != nil || !strings.HasPrefix(string(got), "one\n- two\n") {
		t.Errorf("clear-signed: %q, %v", got, err)
	}
}

func FuzzSignatures(f *testing.F) {
	e, err := openpgp.NewEntity("x", "", "x@example.invalid", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		f.Fatal(err)
	}
	k := &Keyring{Name: "x", keys: openpgp.EntityList{e}}
	bare := &Keyring{Name: "x", bare: []*packet.PublicKey{e.PrimaryKey}}
	var sig bytes.Buffer
	if err := openpgp.ArmoredDetachSign(&sig, e, strings.NewReader("text"), nil); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("text"), sig.Bytes())
	f.Add([]byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\ntext\n"+sig.String()), []byte("junk"))
	f.Add([]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n-----END PGP PUBLIC KEY BLOCK-----"), []byte{0x99, 0xff})
	f.Fuzz(func(t *testing.T, text, sig []byte) {
		for _, k := range []*Keyring{k, bare} {
			if by, err := k.verifyDetached(bytes.NewReader(text), sig); err == nil && (by == "" || string(text) != "text") {
				t.Fatalf("accepted by %q", by)
			}
			_, _, _ = k.verifyClear(text)
		}
		_, _ = ParseKeyring("x", text) // must not panic
	})
}
