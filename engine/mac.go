package engine

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"hash"

	"keymill/batch"
)

// macState is the warm state of an HMAC key. A keyed hash that is reset costs a
// third of a new one, so each slot keeps one; it is made when its slot is first
// owned. When all slots are owned, a call makes its own.
type macState struct {
	key     []byte // our copy; read by every owner of a new slot
	newHash func() hash.Hash
	slots   *batch.Slots[macLane]
}

type macLane struct {
	mac hash.Hash
	sum [sha512.Size]byte // VerifyMAC's expectation, cleared after the comparison
}

// hmacHash returns the hash of an HMAC spec, whose size is also the length of
// the keys we generate for it.
func hmacHash(s Spec) func() hash.Hash {
	switch s {
	case HMAC224:
		return sha256.New224
	case HMAC256:
		return sha256.New
	case HMAC384:
		return sha512.New384
	case HMAC512:
		return sha512.New
	}
	return nil
}

// maxHMACKey is the longest key that may be imported, 1024 bits.
const maxHMACKey = 128

func newMACState(spec Spec, secret []byte) (*macState, error) {
	newHash := hmacHash(spec)
	if len(secret) < newHash().Size() || len(secret) > maxHMACKey {
		return nil, ErrInvalidMaterial
	}
	return &macState{append([]byte(nil), secret...), newHash, batch.NewSlots[macLane](0)}, nil
}

func (m *macState) do(op *Op) error {
	var l *macLane
	if slot := m.slots.Acquire(); slot != nil {
		defer m.slots.Release(slot)
		l = &slot.V
	} else {
		l = new(macLane)
	}
	if l.mac == nil {
		l.mac = hmac.New(m.newHash, m.key)
	}
	l.mac.Reset()
	l.mac.Write(op.In)
	if op.Verb == GenerateMAC {
		op.Out = l.mac.Sum(op.Out)
		return nil
	}
	want := l.mac.Sum(l.sum[:0])
	ok := subtle.ConstantTimeCompare(want, op.Sig) == 1
	clear(l.sum[:])
	if !ok {
		return ErrInvalidMAC
	}
	return nil
}
