package sigv4

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
)

// HMAC-SHA-256 over one buffer that is reused: crypto/hmac allocates its state,
// and leaves copies of the key in memory that is not ours to wipe. Both block
// hashes are a single call to crypto/sha256. Keeping the two hash states after
// the key's block instead of the key would save 50 ns of 390 and tie this file
// to the form in which sha256 saves its state; it was measured and left out.

const blockSize = sha256.BlockSize

var innerPad, outerPad = pad(0x36), pad(0x5c)

func pad(c byte) (p [blockSize]byte) {
	for i := range p {
		p[i] = c
	}
	return p
}

// hmacBuffer computes one HMAC after another. Not safe for concurrent use.
type hmacBuffer struct {
	block [blockSize]byte // the key, zero-padded
	inner []byte          // the inner block, then the message
	outer [blockSize + sha256.Size]byte
}

// message returns the buffer to append a message to and hand to sum.
func (h *hmacBuffer) message() []byte {
	if cap(h.inner) < blockSize {
		h.inner = make([]byte, blockSize, 512)
	}
	return h.inner[:blockSize]
}

// sum computes the HMAC of a message that was appended to what message returned,
// under the key in block.
func (h *hmacBuffer) sum(msg []byte, dst *[32]byte) {
	h.inner = msg
	subtle.XORBytes(msg, h.block[:], innerPad[:])
	subtle.XORBytes(h.outer[:], h.block[:], outerPad[:])
	d := sha256.Sum256(msg)
	copy(h.outer[blockSize:], d[:])
	*dst = sha256.Sum256(h.outer[:])
}

// wipe clears everything that depends on a key.
func (h *hmacBuffer) wipe() {
	clear(h.block[:])
	clear(h.outer[:])
	clear(h.inner[:min(blockSize, len(h.inner))])
}

// setKey puts a key of any length into block, as RFC 2104 has it.
func (h *hmacBuffer) setKey(prefix string, key []byte) {
	clear(h.block[:])
	if len(prefix)+len(key) <= blockSize {
		n := copy(h.block[:], prefix)
		copy(h.block[n:], key)
		return
	}
	long := append(append(make([]byte, 0, len(prefix)+len(key)), prefix...), key...)
	d := sha256.Sum256(long)
	copy(h.block[:], d[:])
	wipe(long)
	wipe(d[:])
}

// keyWords is a derived signing key in the form the cache keeps it.
type keyWords [4]uint64

func (h *hmacBuffer) setWords(k *keyWords) {
	for i, w := range k {
		binary.LittleEndian.PutUint64(h.block[8*i:], w)
	}
	clear(h.block[32:])
}

// derive computes the signing key: the chain over date, region, service and the
// terminator that starts from the secret.
func (h *hmacBuffer) derive(dst *keyWords, secret, date []byte, region, service string) {
	var k [32]byte
	h.setKey("AWS4", secret)
	h.sum(append(h.message(), date...), &k)
	h.setKey("", k[:])
	h.sum(append(h.message(), region...), &k)
	h.setKey("", k[:])
	h.sum(append(h.message(), service...), &k)
	h.setKey("", k[:])
	h.sum(append(h.message(), terminator...), &k)
	for i := range dst {
		dst[i] = binary.LittleEndian.Uint64(k[8*i:])
	}
	wipe(k[:])
	h.wipe()
}

// wipe zeroes b. It is not inlined, so that the compiler cannot see that nobody
// reads b again.
//
//go:noinline
func wipe(b []byte) { clear(b) }
