// Package xaes is the extended-nonce AEAD XAES-256-GCM of C2SP, in its plainest
// form.
//
// AES-256-GCM takes a 96-bit nonce. Drawn at random, such nonces are safe for
// about 2^32 messages under one key. XAES-256-GCM takes 192 bits: the first 96
// choose a derived AES-256 key, the rest is the nonce of AES-256-GCM under that
// key. Nonces drawn at random are then safe for 2^80 messages under one key.
//
// # Derivation
//
// The derived key is the SP 800-108r1 key derivation in counter mode with CMAC
// as its function, for the label "X", a context of the first nonce half and an
// output of two blocks. The two CMAC inputs are one complete block each, so
// CMAC shrinks to one subkey and one encryption each:
//
//	L  = AES-256(K, 0^128)
//	K1 = L << 1, xor 0x87 in the last byte when the top bit of L was set
//	Kx = AES-256(K, (00 01 'X' 00 | N[0:12]) xor K1)
//	  || AES-256(K, (00 02 'X' 00 | N[0:12]) xor K1)
//	XAES-256-GCM(K, N, P, A) = AES-256-GCM(Kx, N[12:24], P, A)
//
// The package imports nothing of ours. The key store seals its records with it
// one by one; the engine, which keeps a derived key for many messages, uses
// [Derive] alone.
package xaes

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
)

const (
	KeySize   = 32 // bytes of a key, and of a derived key
	NonceSize = 24 // bytes of a whole nonce
	HalfNonce = 12 // bytes of the half that chooses the derived key
	Overhead  = 16 // bytes that Seal adds: the tag of AES-GCM
)

// ErrOpen is returned by Open for a message that was not sealed under this
// key, nonce and associated data. It says nothing more on purpose.
var ErrOpen = errors.New("xaes: message authentication failed")

// Derive computes the key that the nonce half n1 (12 bytes) chooses under
// block, which must be AES-256. It allocates nothing and keeps neither
// argument; the caller wipes out.
func Derive(block cipher.Block, n1 []byte, out *[KeySize]byte) {
	_ = n1[HalfNonce-1]
	// L and the two inputs pass through out, so that nothing secret is left on
	// the stack and nothing escapes through the interface call.
	first, second := out[:16], out[16:]
	clear(first)
	block.Encrypt(first, first)
	hi, lo := binary.BigEndian.Uint64(first), binary.BigEndian.Uint64(first[8:])
	carry := hi >> 63
	hi = hi<<1 | lo>>63
	lo = lo<<1 ^ carry*0x87

	for i, half := range [2][]byte{first, second} {
		binary.BigEndian.PutUint32(half, uint32(i+1)<<16|'X'<<8)
		copy(half[4:], n1[:HalfNonce])
		binary.BigEndian.PutUint64(half, binary.BigEndian.Uint64(half)^hi)
		binary.BigEndian.PutUint64(half[8:], binary.BigEndian.Uint64(half[8:])^lo)
		block.Encrypt(half, half)
	}
}

// A Key seals and opens messages. It is immutable and may be used by many
// goroutines.
type Key struct{ block cipher.Block }

// New returns a Key over 32 bytes, which it does not keep; the caller wipes
// them. The expanded key schedule stays on the Go heap.
func New(key []byte) (*Key, error) {
	if len(key) != KeySize {
		return nil, errors.New("xaes: a key is 32 bytes")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return &Key{block}, nil
}

// derived returns AES-256-GCM under the key that nonce chooses.
func (k *Key) derived(nonce []byte) cipher.AEAD {
	if len(nonce) != NonceSize {
		panic("xaes: a nonce is 24 bytes")
	}
	var kx [KeySize]byte
	Derive(k.block, nonce, &kx)
	block, err := aes.NewCipher(kx[:])
	clear(kx[:])
	if err != nil {
		panic(err) // only for a wrong key size
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for a wrong block size
	}
	return aead
}

// Seal appends the sealed plaintext to dst. The nonce must be new for every
// message; 24 random bytes are. It panics on a nonce of another size.
func (k *Key) Seal(dst, nonce, plaintext, aad []byte) []byte {
	return k.derived(nonce).Seal(dst, nonce[HalfNonce:], plaintext, aad)
}

// Open appends the opened message to dst, or returns ErrOpen. It panics on a
// nonce of another size.
func (k *Key) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	out, err := k.derived(nonce).Open(dst, nonce[HalfNonce:], sealed, aad)
	if err != nil {
		return nil, ErrOpen
	}
	return out, nil
}
