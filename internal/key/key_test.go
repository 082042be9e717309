package key

import (
	"context"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// weak is an RSA key of 1024 bits, made by ssh-keygen -b 1024.
const weak = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDZg13Z6NdOfhR9QVgswpPv9j2b27phhyYwJuJf+Hf3wp0lR3ZXh/jGP2TfrcYovaC3m7K8xzi+R5tdGIU5sg98B+ssXncIXFqPdBmj7Izjbm5iX5Os9evCDB7dR4/imvSxu53w+cEiaXzbHGjENtkcumjNATpaxuV94bF3PPucIQ== old"

func TestGenerateAgreesWithSSHKeygen(t *testing.T) {
	ctx, host := context.Background(), &run.Host{}
	for _, tc := range []struct {
		kind Kind
		bits int
		name string
	}{{ED25519, 0, "ED25519"}, {RSA, 2048, "RSA"}, {ECDSA, 0, "ECDSA"}, {ECDSA, 384, "ECDSA"}, {ECDSA, 521, "ECDSA"}} {
		t.Run(fmt.Sprint(tc.kind, tc.bits), func(t *testing.T) {
			p, err := Generate(tc.kind, tc.bits, "me@here now")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "key")
			if err := p.Save(path); err != nil {
				t.Fatal(err)
			}
			if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
				t.Errorf("the private key has mode %v", st.Mode())
			}
			if p.Public.Kind() != tc.kind {
				t.Errorf("kind %q, want %q", p.Public.Kind(), tc.kind)
			}
			signs(t, path, p.Public)
			out, err := host.Run(ctx, run.Cmd{Name: "ssh-keygen", Args: []string{"-l", "-f", path}})
			if errors.Is(err, mvm.ErrUnavailable) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("%d %s me@here now (%s)\n", p.Public.Bits(), p.Public.Fingerprint(), tc.name)
			if string(out.Stdout) != want {
				t.Errorf("ssh-keygen -l says %q, we %q", out.Stdout, want)
			}
			out, err = host.Run(ctx, run.Cmd{Name: "ssh-keygen", Args: []string{"-y", "-f", path}})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(string(out.Stdout)); got != p.Public.Line() {
				t.Errorf("ssh-keygen -y says %q, our .pub %q", got, p.Public.Line())
			}
		})
	}
}

// signs loads both halves again and checks that they belong together.
func signs(t *testing.T, path string, pub Public) {
	t.Helper()
	s, err := LoadSigner(path)
	if err != nil {
		t.Fatal(err)
	}
	back, err := LoadPublic(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if back.Line() != pub.Line() {
		t.Errorf("the .pub file has %q, want %q", back.Line(), pub.Line())
	}
	sig, err := s.Sign(rand.Reader, []byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	if err := back.Key.Verify([]byte("text"), sig); err != nil {
		t.Error(err)
	}
}

func TestGenerateRefuses(t *testing.T) {
	for _, tc := range []struct {
		kind    Kind
		bits    int
		comment string
	}{
		{RSA, 1024, ""}, {RSA, 1 << 20, ""}, {ECDSA, 255, ""}, {ED25519, 512, ""}, {"dsa", 0, ""}, {ED25519, 0, "a\nssh-rsa x"},
	} {
		_, err := Generate(tc.kind, tc.bits, tc.comment)
		if !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
			t.Errorf("Generate(%v): %v, want mvm.ErrInvalid with a hint", tc, err)
		}
	}
}

func TestSaveNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	p, err := Generate(ED25519, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, there := range []string{"a", "b.pub"} {
		if err := os.WriteFile(filepath.Join(dir, there), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, strings.TrimSuffix(there, ".pub"))
		if err := p.Save(path); !errors.Is(err, mvm.ErrExists) {
			t.Errorf("Save over %s: %v, want mvm.ErrExists", there, err)
		}
		if got, _ := os.ReadFile(filepath.Join(dir, there)); string(got) != "mine" {
			t.Errorf("%s was changed", there)
		}
	}
}

func TestParsePublicRefuses(t *testing.T) {
	p, err := Generate(ED25519, 0, "c")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"private key": string(p.Private),
		"two lines":   p.Public.Line() + "\n" + p.Public.Line(),
		"options":     `command="x" ` + p.Public.Line(),
		"empty":       "",
		"noise":       "ssh-ed25519 AAAA nothing",
		"weak RSA":    weak,
	} {
		if _, err := ParsePublic(text); !errors.Is(err, mvm.ErrInvalid) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v, want mvm.ErrInvalid with a hint", name, err)
		}
	}
	if _, err := ParsePublic(weak); err == nil || !strings.Contains(err.Error(), "1024 bits") {
		t.Errorf("weak key: %v, want its size named", err)
	}
}

func TestLoadSignerRefuses(t *testing.T) {
	dir := t.TempDir()
	p, err := Generate(ED25519, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		data []byte
		mode os.FileMode
		kind mvm.Kind
	}{
		"open":   {p.Private, 0o644, mvm.ErrInvalid},
		"public": {[]byte(p.Public.Line()), 0o600, mvm.ErrInvalid},
		"noise":  {[]byte("noise"), 0o600, mvm.ErrInvalid},
		"huge":   {make([]byte, maxFile+1), 0o600, mvm.ErrInvalid},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, tc.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tc.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadSigner(path); !errors.Is(err, tc.kind) || mvm.HintOf(err) == "" {
			t.Errorf("%s: %v, want %v with a hint", name, err, tc.kind)
		}
	}
	if _, err := LoadSigner(filepath.Join(dir, "missing")); !errors.Is(err, mvm.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}

func TestPassphraseIsSaid(t *testing.T) {
	priv, err := generate(ED25519, 0)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(priv, "", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseSigner(pem.EncodeToMemory(block)); !errors.Is(err, mvm.ErrUnsupported) {
		t.Errorf("%v, want mvm.ErrUnsupported", err)
	}
}
