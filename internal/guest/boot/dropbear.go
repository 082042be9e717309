package boot

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// parseHostKey reads an ed25519 private key in OpenSSH's PEM form.
func parseHostKey(pem string) (ed25519.PrivateKey, error) {
	raw, err := ssh.ParseRawPrivateKey([]byte(pem))
	if err != nil {
		return nil, err
	}
	switch k := raw.(type) {
	case *ed25519.PrivateKey:
		return *k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, fmt.Errorf("the host key is %T, not ed25519", raw)
}

// dropbearKey is the key in dropbear's own format (dropbear, src/ed25519.c,
// buf_put_ed25519_priv_key): the type's name, then 64 bytes of which the first
// half is the seed and the second the public key, both as SSH strings.
func dropbearKey(k ed25519.PrivateKey) []byte {
	var out []byte
	str := func(b []byte) {
		out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
		out = append(out, b...)
	}
	str([]byte(ssh.KeyAlgoED25519))
	str(k) // Go's private key is seed || public key too
	return out
}

// publicLine is the .pub line of the key.
func publicLine(k ed25519.PrivateKey, comment string) ([]byte, error) {
	pub, err := ssh.NewPublicKey(k.Public())
	if err != nil {
		return nil, err
	}
	line := ssh.MarshalAuthorizedKey(pub)
	return append(line[:len(line)-1], " "+comment+"\n"...), nil
}
