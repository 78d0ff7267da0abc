package engine

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"testing"
)

// TestOAEPLength: a ciphertext that begins with a zero byte does not decrypt
// without it, or a ciphertext would have two spellings (RFC 8017, 7.1.2).
func TestOAEPLength(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &rsaPrivate{key: key}
	for range 100_000 {
		c, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &key.PublicKey, []byte("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if c[0] != 0 {
			continue
		}
		whole, short := &Op{Verb: Decrypt, Alg: AlgOAEPSHA256, In: c}, &Op{Verb: Decrypt, Alg: AlgOAEPSHA256, In: c[1:]}
		if err := p.private(whole); err != nil {
			t.Errorf("whole ciphertext: %v", err)
		}
		if err := p.private(short); err != ErrInvalidCiphertext {
			t.Errorf("without its first byte: %v", err)
		}
		return
	}
	t.Fatal("no ciphertext began with a zero byte")
}
