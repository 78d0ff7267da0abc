package keystore

import (
	"encoding/binary"
	"slices"
	"time"
)

// # Compact keys
//
// A Key is 600 bytes and more, most of them zero. Who keeps very many in memory
// keeps this form: some 100 bytes for most keys, without a pointer in them, and read
// back ten times faster than a record. It never leaves the process that wrote it.
//
// A compact key is a word with a bit for every field that is not zero, and these
// fields in the order of the bits. Numbers are varints, times nanoseconds since 1970
// as varints. A text is its number in words plus one, or 0, its length and itself.
// Region and ID are not in it.

// words are the texts that most keys have, shared by all keys that are read back.
var words = []string{
	"SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "AWS_KMS", "Enabled", "Disabled", "PendingDeletion", "CUSTOMER", "AWS", "EXTERNAL",
	"HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "GENERATE_VERIFY_MAC", "AUTOMATIC", "ON_DEMAND",
}

// compact writes, or reads, the fields of a key one after the other. A key that is
// written is only read: others may be reading it, too.
type compact struct {
	b    []byte
	read bool
	mask uint64
	bit  uint
}

// has tells whether the next field is there, and notes it when it is written.
func (c *compact) has(set bool) bool {
	bit := uint64(1) << c.bit
	c.bit++
	if c.read {
		return c.mask&bit != 0
	}
	if set {
		c.mask |= bit
	}
	return set
}

func (c *compact) flag(v *bool) {
	if c.has(*v) && c.read {
		*v = true
	}
}

func (c *compact) uvarint(v uint64) uint64 {
	if !c.read {
		c.b = binary.AppendUvarint(c.b, v)
		return v
	}
	v, n := binary.Uvarint(c.b)
	c.b = c.b[n:]
	return v
}

func compactInt[T int32 | uint32 | uint64](c *compact, v *T) {
	if !c.has(*v != 0) {
		return
	}
	if n := c.uvarint(uint64(*v)); c.read {
		*v = T(n)
	}
}

func (c *compact) time(t *time.Time) {
	if !c.has(!t.IsZero()) {
		return
	}
	if ns := c.uvarint(uint64(t.UnixNano())); c.read {
		*t = time.Unix(0, int64(ns)).UTC()
	}
}

// compactRun writes the length of v and v, or returns what is read.
func compactRun[T string | []byte](c *compact, v T) (b []byte) {
	n := int(c.uvarint(uint64(len(v))))
	if !c.read {
		c.b = append(c.b, v...)
		return nil
	}
	b, c.b = c.b[:n], c.b[n:]
	return b
}

func (c *compact) bytes(v *[]byte) {
	if !c.has(len(*v) > 0) {
		return
	}
	if b := compactRun(c, *v); c.read {
		*v = slices.Clone(b)
	}
}

func (c *compact) text(v *string) {
	if !c.has(*v != "") {
		return
	}
	w := 0
	if !c.read {
		w = slices.Index(words, *v) + 1
	}
	if w = int(c.uvarint(uint64(w))); w > 0 {
		if c.read {
			*v = words[w-1]
		}
		return
	}
	if b := compactRun(c, *v); c.read {
		*v = string(b)
	}
}

func (c *compact) key(k *Key) {
	c.text(&k.Account)
	c.flag(&k.MultiRegion)
	c.text(&k.Spec)
	c.text(&k.Usage)
	c.text(&k.Origin)
	c.text(&k.State)
	c.text(&k.Manager)
	c.text(&k.Description)
	c.time(&k.Created)
	c.time(&k.DeletionDate)
	compactInt(c, &k.PendingWindowDays)
	c.flag(&k.Destroying)
	compactInt(c, &k.CurrentVersion)
	c.bytes(&k.PublicKey)
	c.text(&k.Service)
	compactInt(c, &k.RotationPeriodDays)
	c.time(&k.NextRotation)
	compactInt(c, &k.OnDemandRotations)
	c.text(&k.PrimaryRegion)
	c.text(&k.CustomKeyStore)
	c.text(&k.ExternalKeyID)
	c.bytes(&k.TokenKeyID)
	compactInt(c, &k.Revision)
	if c.has(len(k.ReplicaRegions) > 0) {
		grow(c, &k.ReplicaRegions)
		for i := range k.ReplicaRegions {
			c.inner(func(c *compact) { c.text(&k.ReplicaRegions[i]) })
		}
	}
	if c.has(len(k.Versions) > 0) {
		grow(c, &k.Versions)
		for i := range k.Versions {
			c.inner(func(c *compact) { c.version(&k.Versions[i]) })
		}
	}
}

func (c *compact) version(v *Version) {
	compactInt(c, &v.Number)
	c.time(&v.Created)
	c.text(&v.Rotation)
	c.time(&v.Rotated)
	c.text(&v.Description)
	c.text(&v.Pending)
	c.flag(&v.Missing)
	c.flag(&v.Expires)
	c.time(&v.ValidTo)
	if !c.read {
		c.b = append(c.b, v.MaterialID[:]...)
		return
	}
	c.b = c.b[copy(v.MaterialID[:], c.b):]
}

// grow writes the length of a list, or makes it of the length that is read.
func grow[T any](c *compact, list *[]T) {
	if n := int(c.uvarint(uint64(len(*list)))); c.read {
		*list = make([]T, n)
	}
}

// inner writes, or reads, something with a word of its own.
func (c *compact) inner(fields func(*compact)) {
	in := compact{read: c.read, b: c.b}
	if c.read {
		in.mask = in.uvarint(0)
		fields(&in)
		c.b = in.b
		return
	}
	in.b = nil
	fields(&in)
	c.b = append(binary.AppendUvarint(c.b, in.mask), in.b...)
}

// AppendCompact appends the compact form of k, which must be as it was read from
// the store.
func (k *Key) AppendCompact(dst []byte) []byte {
	c := compact{b: dst}
	c.inner(func(c *compact) { c.key(k) })
	return c.b
}

// ParseCompact returns the key of a compact form of AppendCompact, and nothing of
// b in it.
func ParseCompact(ref Ref, b []byte) *Key {
	k := &Key{Region: ref.Region, ID: ref.ID}
	c := compact{b: b, read: true}
	c.inner(func(c *compact) { c.key(k) })
	return k
}
