package xaes

import (
	"bytes"
	"crypto/aes"
	"crypto/sha3"
	"encoding/hex"
	"testing"
)

// The two worked examples of the specification,
// https://c2sp.org/XAES-256-GCM.
var vectors = []struct {
	name             string
	keyByte          byte
	aad, sealed, kx  string
	nonce, plaintext string
}{
	{"msb of L clear", 1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271", "c8612c9ed53fe43e8e005b828a1631a0bbcb6ab2f46514ec4f439fcfd0fa969b", "ABCDEFGHIJKLMNOPQRSTUVWX", "XAES-256-GCM"},
	{"msb of L set", 3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d", "e9c621d4cdd9b11b00a6427ad7e559aeedd66b3857646677748f8ca796cb3fd8", "ABCDEFGHIJKLMNOPQRSTUVWX", "XAES-256-GCM"},
}

func TestPublishedVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			raw := bytes.Repeat([]byte{v.keyByte}, KeySize)
			block, err := aes.NewCipher(raw)
			if err != nil {
				t.Fatal(err)
			}
			var kx [KeySize]byte
			Derive(block, []byte(v.nonce)[:HalfNonce], &kx)
			if got := hex.EncodeToString(kx[:]); got != v.kx {
				t.Errorf("derived key %s, want %s", got, v.kx)
			}
			k, err := New(raw)
			if err != nil {
				t.Fatal(err)
			}
			sealed := k.Seal(nil, []byte(v.nonce), []byte(v.plaintext), []byte(v.aad))
			if got := hex.EncodeToString(sealed); got != v.sealed {
				t.Errorf("sealed %s, want %s", got, v.sealed)
			}
			opened, err := k.Open(nil, []byte(v.nonce), sealed, []byte(v.aad))
			if err != nil || string(opened) != v.plaintext {
				t.Errorf("opened %q, %v", opened, err)
			}
		})
	}
}

// TestAccumulated is the specification's accumulated test: messages of many
// sizes drawn from SHAKE-128, all results absorbed by another SHAKE-128.
func TestAccumulated(t *testing.T) {
	s, d := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	read := func(n int) []byte {
		b := make([]byte, n)
		s.Read(b)
		return b
	}
	for range 10_000 {
		k, err := New(read(KeySize))
		if err != nil {
			t.Fatal(err)
		}
		nonce := read(NonceSize)
		plaintext := read(int(read(1)[0]))
		aad := read(int(read(1)[0]))
		sealed := k.Seal(nil, nonce, plaintext, aad)
		if opened, err := k.Open(nil, nonce, sealed, aad); err != nil || !bytes.Equal(opened, plaintext) {
			t.Fatalf("round trip: %v", err)
		}
		d.Write(sealed)
	}
	sum := make([]byte, 32)
	d.Read(sum)
	const want = "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
	if got := hex.EncodeToString(sum); got != want {
		t.Errorf("accumulated %s, want %s", got, want)
	}
}

func TestOpenRefusesEveryFlippedBit(t *testing.T) {
	k, _ := New(bytes.Repeat([]byte{7}, KeySize))
	nonce, aad := bytes.Repeat([]byte{9}, NonceSize), []byte("identity")
	sealed := k.Seal(nil, nonce, []byte("a secret"), aad)
	refused := func(what string, i int, nonce, sealed, aad []byte) {
		if out, err := k.Open(nil, nonce, sealed, aad); err != ErrOpen || out != nil {
			t.Errorf("%s bit %d: %q, %v", what, i, out, err)
		}
	}
	flip := func(b []byte, i int) []byte {
		b = bytes.Clone(b)
		b[i/8] ^= 1 << (i % 8)
		return b
	}
	for i := range len(sealed) * 8 {
		refused("message", i, nonce, flip(sealed, i), aad)
	}
	for i := range NonceSize * 8 {
		refused("nonce", i, flip(nonce, i), sealed, aad)
	}
	for i := range len(aad) * 8 {
		refused("associated data", i, nonce, sealed, flip(aad, i))
	}
	for n := range len(sealed) {
		refused("truncated", n, nonce, sealed[:n], aad)
	}
}

func TestDeriveAllocatesNothing(t *testing.T) {
	block, _ := aes.NewCipher(make([]byte, KeySize))
	n1, out := make([]byte, HalfNonce), new([KeySize]byte)
	if n := testing.AllocsPerRun(100, func() { Derive(block, n1, out) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNewRefusesOtherSizes(t *testing.T) {
	for _, n := range []int{0, 16, 24, 31, 33} {
		if _, err := New(make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes was taken", n)
		}
	}
}
