package sigv4

import (
	"bytes"
)

// CanonicalRequest gives the tests the canonical request alone, with none of
// Verify's rules about which headers there must be.
func CanonicalRequest(r *Request, signedHeaders []byte, bodyHash *[32]byte) ([]byte, bool) {
	var s scratch
	s.auth.signedHeaders = signedHeaders
	if err := s.resolveSigned(r.Headers); err != nil {
		return nil, false
	}
	return s.appendCanonicalRequest(nil, r, signedHeaders, bodyHash), true
}

// Derive gives the tests the signing key.
func Derive(secret, date []byte, region, service string) []byte {
	var h hmacBuffer
	var k keyWords
	h.derive(&k, secret, date, region, service)
	h.setWords(&k)
	return bytes.Clone(h.block[:32])
}

// Leftovers reports whether a scratch in the pool still holds key material.
func (v *Verifier) Leftovers() bool {
	s := v.scratches.Get().(*scratch)
	defer v.scratches.Put(s)
	return s.key != keyWords{} || s.mac.block != [blockSize]byte{} || s.mac.outer != [96]byte{} ||
		len(s.mac.inner) >= blockSize && !bytes.Equal(s.mac.inner[:blockSize], make([]byte, blockSize))
}

// Cache exposes the cache of signing keys by itself.
type Cache struct{ *keyCache }

func NewCache(size int) Cache { return Cache{newKeyCache(size)} }

func (c Cache) Fill(w uint64, cred *Credential, region string, date uint64, signed int64, epoch uint64) {
	c.insert(&keyWords{w, w, w, w}, cred, region, date, signed, epoch)
}

// Find returns the word a key was filled with; torn reports a key whose words
// differ.
func (c Cache) Find(cred *Credential, region string, date uint64) (w uint64, ok, torn bool) {
	var k keyWords
	if !c.get(&k, cred, region, date) {
		return 0, false, false
	}
	return k[0], true, k[1] != k[0] || k[2] != k[0] || k[3] != k[0]
}

func (c Cache) Epoch() uint64   { return c.epoch.Load() }
func (c Cache) Purge(id string) { c.purge(id) }
func (c Cache) Len() int        { return c.len() }
func (c Cache) Slots() int      { return len(c.sets) * ways }

// Words returns the words of every key in the table, and a function that reads
// them again, whether or not they are still in it.
func (c Cache) Words() func() []uint64 {
	var keys []*signingKey
	for s := range c.sets {
		for i := range c.sets[s] {
			if k := c.sets[s][i].Load(); k != nil {
				keys = append(keys, k)
			}
		}
	}
	return func() (w []uint64) {
		for _, k := range keys {
			for i := range k.words {
				w = append(w, k.words[i].Load())
			}
		}
		return w
	}
}

func SameName(name, lower []byte) (fast, plain bool) {
	return sameName(name, lower), sameNamePlain(name, lower)
}

func HasBlank(v []byte) (fast, plain bool) { return hasBlank(v), hasBlankPlain(v) }

func AppendHex(h *[32]byte) []byte { return appendHex(nil, h) }

func ParseTime(s string) (int64, bool) { return parseTime([]byte(s)) }
