package asset

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperr "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

const armored = "-----BEGIN PGP "

// dearmor returns the packets in data, which may be armored, also in several blocks.
func dearmor(data []byte) ([]byte, error) {
	if !bytes.Contains(data, []byte(armored)) {
		return data, nil
	}
	var out []byte
	blocks := bytes.Split(data, []byte(armored))
	for _, b := range blocks[1:] {
		block, err := armor.Decode(io.MultiReader(strings.NewReader(armored), bytes.NewReader(b)))
		if err != nil {
			return nil, err
		}
		packets, err := io.ReadAll(block.Body)
		if err != nil {
			return nil, err
		}
		out = append(out, packets...)
	}
	return out, nil
}

// readKeys reads public keys with their user ids, and those that are nothing but
// the key, which the library takes for incomplete.
func readKeys(packets []byte) (full openpgp.EntityList, bare []*packet.PublicKey, err error) {
	full, err = openpgp.ReadKeyRing(bytes.NewReader(packets))
	if err == nil && len(full) > 0 {
		return full, nil, nil
	}
	r := packet.NewReader(bytes.NewReader(packets))
	for {
		p, next := r.Next()
		if errors.Is(next, io.EOF) && len(bare) > 0 {
			return nil, bare, nil
		}
		pub, ok := p.(*packet.PublicKey)
		if next != nil || !ok {
			return nil, nil, errors.Join(err, next, errors.New("it is no public key"))
		}
		bare = append(bare, pub)
	}
}

// weak are the hashes that can be made to collide, or soon may be.
var weak = map[crypto.Hash]bool{crypto.MD5: true, crypto.SHA1: true, crypto.RIPEMD160: true}

// checkSignature returns the fingerprint of the key among the keyring's that made
// the signature over data. Of several signatures, one by any of the keys will do.
func (k *Keyring) checkSignature(data io.Reader, sig []byte, now time.Time) (string, error) {
	if len(k.bare) > 0 {
		return checkBare(k.bare, data, sig, now)
	}
	made, signer, err := openpgp.VerifyDetachedSignature(k.keys, data, bytes.NewReader(sig), &packet.Config{Time: func() time.Time { return now }})
	if err != nil {
		return "", err
	}
	if weak[made.Hash] {
		return "", pgperr.SignatureError("it was made with " + made.Hash.String())
	}
	return fmt.Sprintf("%X", signer.PrimaryKey.Fingerprint), nil
}

func checkBare(keys []*packet.PublicKey, data io.Reader, sig []byte, now time.Time) (string, error) {
	made, key, err := findBare(keys, sig)
	if err != nil {
		return "", err
	}
	switch {
	case weak[made.Hash]:
		return "", pgperr.SignatureError("it was made with " + made.Hash.String())
	case made.SigType != packet.SigTypeBinary && made.SigType != packet.SigTypeText:
		return "", pgperr.SignatureError("it is no signature of a file")
	case made.SigExpired(now):
		return "", pgperr.ErrSignatureExpired
	}
	h, err := made.PrepareVerify()
	if err != nil {
		return "", err
	}
	var to io.Writer = h
	if made.SigType == packet.SigTypeText {
		to = openpgp.NewCanonicalTextHash(h)
	}
	if _, err := io.Copy(to, data); err != nil {
		return "", err
	}
	if err := key.VerifySignature(h, made); err != nil {
		return "", err
	}
	return fmt.Sprintf("%X", key.Fingerprint), nil
}

// findBare returns the first signature by one of the keys.
func findBare(keys []*packet.PublicKey, sig []byte) (*packet.Signature, *packet.PublicKey, error) {
	r := packet.NewReader(bytes.NewReader(sig))
	for {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil, pgperr.ErrUnknownIssuer
		}
		if err != nil {
			return nil, nil, err
		}
		s, ok := p.(*packet.Signature)
		if !ok {
			return nil, nil, pgperr.StructuralError("it has other things than signatures")
		}
		for _, key := range keys {
			if s.IssuerKeyId != nil && *s.IssuerKeyId == key.KeyId {
				return s, key, nil
			}
		}
	}
}
