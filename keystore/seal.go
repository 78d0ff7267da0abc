package keystore

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"keymill/hsm"
	"keymill/hsm/xaes"
)

// # Sealed record
//
// Every record but the header is stored as
//
//	offset  size
//	     0     1  record format, 1
//	     1     8  revision of the commit that wrote it, big-endian
//	     9    24  nonce, random
//	    33     n  XAES-256-GCM of the plaintext under the store key
//	  33+n    16  tag
//
// The associated data is the 9 bytes in front of the nonce followed by the
// record's own storage key. So a record whose value, revision or name was
// changed, that was swapped with another or cut short, or that comes from
// another store, does not open. The revision stays in clear because it is read
// before the record is opened: it decides whether the reader must wait.
//
// What this cannot see is a record replaced by an older version of itself, or
// one removed together with everything that points to it: an observer who can
// write the disk can put back an older whole store, too. Both are stated
// non-goals; Verify finds what disagrees.

const (
	recordFormat = 1
	sealHead     = 1 + 8
	sealOverhead = sealHead + xaes.NonceSize + xaes.Overhead
)

// sealRecord appends the sealed record to dst, which holds the associated data
// for a moment and must not overlap plaintext.
func sealRecord(dst []byte, k *xaes.Key, storageKey, plaintext []byte, revision uint64) []byte {
	dst = append(dst, recordFormat)
	dst = binary.BigEndian.AppendUint64(dst, revision)
	head := dst[len(dst)-sealHead:]
	var nonce [xaes.NonceSize]byte
	rand.Read(nonce[:])
	var scratch [128]byte
	aad := append(append(scratch[:0], head...), storageKey...)
	dst = append(dst, nonce[:]...)
	return k.Seal(dst, nonce[:], plaintext, aad)
}

// sealedRevision reads the revision of a sealed record without opening it.
func sealedRevision(storageKey, sealed []byte) (uint64, error) {
	if len(sealed) < sealOverhead {
		return 0, tampered(storageKey, "cut short")
	}
	if sealed[0] != recordFormat {
		return 0, tampered(storageKey, fmt.Sprintf("record format %d is not known to this program", sealed[0]))
	}
	return binary.BigEndian.Uint64(sealed[1:]), nil
}

// openRecord returns a fresh plaintext, owned by the caller.
func openRecord(k *xaes.Key, storageKey, sealed []byte) (plaintext []byte, revision uint64, err error) {
	revision, err = sealedRevision(storageKey, sealed)
	if err != nil {
		return nil, 0, err
	}
	var scratch [128]byte
	aad := append(append(scratch[:0], sealed[:sealHead]...), storageKey...)
	body := sealed[sealHead+xaes.NonceSize:]
	plaintext, err = k.Open(make([]byte, 0, len(body)), sealed[sealHead:sealHead+xaes.NonceSize], body, aad)
	if err != nil {
		return nil, 0, tampered(storageKey, "does not authenticate: it was changed, moved, or belongs to another store")
	}
	return plaintext, revision, nil
}

// # Header record
//
// One record is not sealed, because it says how to get the key to all others.
//
//	offset  size
//	     0    16  "keymill store\r\n\x1a"; a transfer that mangles line ends shows
//	    16     4  store format, big-endian
//	    20    16  store id, random
//	    36    16  domain key id: the root's key that wraps the store key
//	    52     8  time of creation, nanoseconds since 1970, big-endian
//	    60     2  length n of the wrapped store key, big-endian, 1 to 4096
//	    62     n  store key, encrypted by the root
//	  62+n    32  HMAC-SHA-256 over all before it
//
// The HMAC key is HMAC-SHA-256(store key, "keymill store header"). The format
// is looked at first: a newer program may lay out the rest differently.

const (
	headerMagic  = "keymill store\r\n\x1a"
	storeFormat  = 1
	headerFixed  = 16 + 4 + 16 + 16 + 8 + 2
	maxWrapped   = 4096
	headerLabel  = "keymill store header"
	storeKeySize = xaes.KeySize
)

// A Header says which store this is and what opens it. Nothing in it is
// secret.
type Header struct {
	Format     uint32
	StoreID    [16]byte
	DomainKey  hsm.DomainKeyID
	Created    time.Time
	WrappedKey []byte
	mac        []byte
}

// ParseHeader takes a header record apart. Its authenticity is not checked
// here: that takes the root.
func ParseHeader(b []byte) (*Header, error) {
	bad := func(reason string) error {
		return &TamperedError{Record: kindNames[KindHeader], Reason: reason}
	}
	if len(b) < 20 || string(b[:16]) != headerMagic {
		return nil, bad("not a header")
	}
	h := &Header{Format: binary.BigEndian.Uint32(b[16:])}
	if h.Format != storeFormat {
		return nil, fmt.Errorf("%w: the store has format %d, this program reads format %d", ErrUnknownFormat, h.Format, storeFormat)
	}
	if len(b) < headerFixed {
		return nil, bad("cut short")
	}
	copy(h.StoreID[:], b[20:])
	copy(h.DomainKey[:], b[36:])
	h.Created = getTime(int64(binary.BigEndian.Uint64(b[52:])))
	n := int(binary.BigEndian.Uint16(b[60:]))
	if n == 0 || n > maxWrapped || len(b) != headerFixed+n+sha256.Size {
		return nil, bad("of the wrong length")
	}
	h.WrappedKey = bytes.Clone(b[headerFixed : headerFixed+n])
	h.mac = bytes.Clone(b[headerFixed+n:])
	return h, nil
}

// append writes the header without its MAC.
func (h *Header) append(dst []byte) []byte {
	dst = append(dst, headerMagic...)
	dst = binary.BigEndian.AppendUint32(dst, h.Format)
	dst = append(dst, h.StoreID[:]...)
	dst = append(dst, h.DomainKey[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Created.UnixNano()))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(h.WrappedKey)))
	return append(dst, h.WrappedKey...)
}

// computeMAC authenticates the header under the store key.
func (h *Header) computeMAC(storeKey []byte) []byte {
	derive := hmac.New(sha256.New, storeKey)
	derive.Write([]byte(headerLabel))
	mac := hmac.New(sha256.New, derive.Sum(nil))
	mac.Write(h.append(nil))
	return mac.Sum(nil)
}

// marshal writes the whole header.
func (h *Header) marshal(storeKey []byte) []byte {
	h.mac = h.computeMAC(storeKey)
	return append(h.append(nil), h.mac...)
}

// authentic reports whether the header was written under the store key.
func (h *Header) authentic(storeKey []byte) bool {
	return hmac.Equal(h.mac, h.computeMAC(storeKey))
}

var errNoItem = errors.New("the root returned neither a result nor an error")
