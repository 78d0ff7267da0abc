// Package wraptest is the sender's side of importing key material, for tests: it
// wraps material under a public key as its owner would, by the standards and not
// by the code under test.
package wraptest

import (
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

// Wrap wraps material under the wrapping key with that SubjectPublicKeyInfo. The
// algorithm is one of AWS's WrappingAlgorithms.
func Wrap(algorithm string, spki, material []byte) ([]byte, error) {
	if algorithm == "SM2PKE" {
		key, err := smx509.ParsePKIXPublicKey(spki)
		if err != nil {
			return nil, err
		}
		ec, ok := key.(*ecdsa.PublicKey)
		if !ok {
			return nil, errors.New("not an SM2 key")
		}
		return sm2.EncryptASN1(rand.Reader, ec, material)
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("not an RSA key")
	}
	switch algorithm {
	case "RSAES_OAEP_SHA_1":
		return oaep(sha1.New(), key, material)
	case "RSAES_OAEP_SHA_256":
		return oaep(sha256.New(), key, material)
	case "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256":
		kek := make([]byte, 32)
		rand.Read(kek)
		h := sha256.New()
		if algorithm == "RSA_AES_KEY_WRAP_SHA_1" {
			h = sha1.New()
		}
		first, err := oaep(h, key, kek)
		if err != nil {
			return nil, err
		}
		return append(first, KWP(kek, material)...), nil
	}
	return nil, fmt.Errorf("no such algorithm: %s", algorithm)
}

func oaep(h hash.Hash, key *rsa.PublicKey, in []byte) ([]byte, error) {
	return rsa.EncryptOAEP(h, rand.Reader, key, in, nil)
}

// KWP wraps a key by RFC 5649.
func KWP(kek, key []byte) []byte {
	check := binary.BigEndian.AppendUint32([]byte{0xa6, 0x59, 0x59, 0xa6}, uint32(len(key)))
	return Blocks(kek, check, append(slices.Clone(key), make([]byte, (8-len(key)%8)%8)...))
}

// Blocks is the wrapping of both RFC 3394 and RFC 5649: 8 bytes of check and whole
// blocks of 8 bytes. It panics on a kek that is not an AES key.
func Blocks(kek, check, padded []byte) []byte {
	block, err := aes.NewCipher(kek)
	if err != nil {
		panic(err)
	}
	out := slices.Concat(check, padded)
	if len(out) == aes.BlockSize {
		block.Encrypt(out, out)
		return out
	}
	n := len(padded) / 8
	var b [aes.BlockSize]byte
	for j := range 6 {
		for i := 1; i <= n; i++ {
			copy(b[:], out[:8])
			copy(b[8:], out[8*i:])
			block.Encrypt(b[:], b[:])
			binary.BigEndian.PutUint64(out, binary.BigEndian.Uint64(b[:])^uint64(n*j+i))
			copy(out[8*i:8*i+8], b[8:])
		}
	}
	return out
}
