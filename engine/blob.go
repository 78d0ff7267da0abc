package engine

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// The ciphertext blob of symmetric keys:
//
//	byte  0       format version, 1
//	byte  1       scheme: 1 local, 2 token, 3 external store
//	byte  2       id kind: 1 UUID, 2 mrk-
//	bytes 3-18    key id
//	bytes 19-50   KeyMaterialId
//	then, for the local scheme,
//	bytes 51-74   nonce: 12 bytes choose the derived key, 12 are its GCM nonce
//	...           AES-256-GCM ciphertext
//	last 16       tag
//
// for the token scheme the sealed form of package hsm (format, IV, ciphertext and
// tag), and for that of an external store, where the inner ciphertext is all that
// follows the header in the local scheme,
//
//	byte  51      length of the IV, 12 or 16
//	byte  52      length of the metadata, 0 to 20
//	...           IV and metadata, the external key manager's
//	16 bytes      its tag
//	...           its AES-GCM ciphertext of the inner ciphertext
//
// The first 51 bytes, the header, followed by the canonical encryption context
// are the associated data. The header has one length, so the seam between the
// two needs no mark.
const (
	blobVersion   = 1
	idUUID        = 1
	idMultiRegion = 2

	headerSize = 1 + 1 + 1 + 16 + 32
	halfNonce  = 12
	nonceSize  = 2 * halfNonce
	tagSize    = 16

	// Overhead is how much longer a blob of the local scheme is than its
	// plaintext.
	Overhead = headerSize + nonceSize + tagSize

	// HeaderSize is how many first bytes all blobs of one key version share.
	HeaderSize = headerSize
)

// A Scheme says how the body of a blob was made.
type Scheme uint8

// The schemes.
const (
	SchemeLocal    Scheme = 1
	SchemeToken    Scheme = 2 // material that stays in an HSM: tokenkey.go
	SchemeExternal Scheme = 3 // an external key store: external.go
)

// A BlobHeader is what a blob says in clear.
type BlobHeader struct {
	Scheme     Scheme
	KeyID      KeyID
	MaterialID MaterialID
}

// ParseBlob reads the header of a blob, to find the key it names; the key then
// tells whether it is genuine. It fails with ErrInvalidCiphertext.
func ParseBlob(blob []byte) (BlobHeader, error) {
	var h BlobHeader
	if len(blob) < headerSize || blob[0] != blobVersion {
		return h, ErrInvalidCiphertext
	}
	least := Overhead
	switch h.Scheme = Scheme(blob[1]); h.Scheme {
	case SchemeLocal, SchemeExternal:
	case SchemeToken:
		least = TokenMinimum
	default:
		return BlobHeader{}, ErrInvalidCiphertext
	}
	if len(blob) < least {
		return BlobHeader{}, ErrInvalidCiphertext
	}
	switch blob[2] {
	case idUUID:
	case idMultiRegion:
		h.KeyID.MultiRegion = true
	default:
		return BlobHeader{}, ErrInvalidCiphertext
	}
	copy(h.KeyID.ID[:], blob[3:19])
	copy(h.MaterialID[:], blob[19:headerSize])
	return h, nil
}

// makeHeader returns the first bytes of every blob of one key version.
func makeHeader(s Scheme, id KeyID, m MaterialID) (h [headerSize]byte) {
	h[0], h[1], h[2] = blobVersion, byte(s), id.kind()
	copy(h[3:19], id.ID[:])
	copy(h[19:], m[:])
	return h
}

// AppendHeader appends the first HeaderSize bytes of every blob of one key
// version.
func AppendHeader(dst []byte, s Scheme, id KeyID, m MaterialID) []byte {
	h := makeHeader(s, id, m)
	return append(dst, h[:]...)
}

// A ContextPair is one pair of an encryption context.
type ContextPair struct{ Key, Value string }

// AppendContext appends the canonical form of an encryption context to dst. It
// may sort pairs in place, and keeps nothing.
//
// The form is the pairs in ascending order of their keys' bytes, each as the
// key's length, the key, the value's length, the value; lengths are 32-bit,
// big-endian. It is injective: two contexts have the same form only if they are
// the same set of pairs. An empty context is the empty string, as is an absent
// one. Keys must be distinct, which the wire codec has seen to; if they are
// not, the order of the values decides, so the form still depends on nothing
// but the pairs.
func AppendContext(dst []byte, pairs []ContextPair) []byte {
	if !slices.IsSortedFunc(pairs, comparePairs) {
		slices.SortFunc(pairs, comparePairs)
	}
	for _, p := range pairs {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(p.Key)))
		dst = append(dst, p.Key...)
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(p.Value)))
		dst = append(dst, p.Value...)
	}
	return dst
}

func comparePairs(a, b ContextPair) int {
	if c := cmp.Compare(a.Key, b.Key); c != 0 {
		return c
	}
	return cmp.Compare(a.Value, b.Value)
}
