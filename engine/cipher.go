package engine

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"runtime"
	"slices"
	"sync/atomic"

	"keymill/batch"
	"keymill/hsm/arena"
	"keymill/hsm/xaes"
)

// # Lanes
//
// XAES-256-GCM has a nonce of 24 bytes. The first half chooses a derived key,
// the second is the GCM nonce under it. Deriving a key and expanding it costs
// three times an encryption of 32 bytes, so a lane keeps one derived key for up
// to laneMessages messages and draws only the second half for each:
//
//   - The first half is drawn at random when a lane takes a new derived key,
//     the second for every message in the call that seals it. Nothing random is
//     drawn in advance: a virtual machine that is resumed twice from one
//     snapshot then shares derived keys between its two copies, which is
//     harmless, and never a nonce.
//   - A derived key sees at most 2^20 random GCM nonces (2^21 with one such
//     copy), so the chance that any two of them collide is below 2^-56.
//   - A lane has one owner at a time (batch.Slots), so its counter is plain.
//     When every lane is owned, the message gets a derived key of its own,
//     which is what XAES-256-GCM does for every message.
//
// Decryption needs derived keys of any lane, of earlier runs and of other
// replicas. A direct-mapped cache remembers some; a key enters it only after a
// tag under it has verified, so nobody without a genuine ciphertext can push
// anything out of it.
//
// # Warm and busy
//
// Lanes and cache cost several times the key itself, and pay from the second
// message on. Where many keys are used in turn, most are used once and then
// forgotten. So a key begins warm, with neither, and derives a key for every
// message; the message that brings it to busyAfter makes it busy. A busy key
// stays so until its state goes, which is when others need its place in memory.

// laneMessages is how many messages a lane seals under one derived key.
const laneMessages = 1 << 20

// busyAfter is how many messages a key derives for before it gets lanes.
const busyAfter = 4

// cipherState is the warm state of one version of a symmetric key.
type cipherState struct {
	block    cipher.Block  // AES-256 under the material, only ever used to derive
	messages atomic.Uint32 // counted until the key is busy
	busy     atomic.Pointer[busyState]
}

// busyState is what a key has when it is used much.
type busyState struct {
	lanes   *batch.Slots[lane]
	derived derivedCache
}

// A lane is a derived key and the number of messages it has sealed. It belongs
// to the owner of its slot.
type lane struct {
	aead   cipher.AEAD
	prefix [halfNonce]byte
	sealed int
}

// scratch is working space of one Do call. It never holds a secret: contexts
// go to the log and nonces into the blob.
type scratch struct {
	aad    []byte
	nonces [64 * halfNonce]byte // cleared before the call ends
}

// maxScratch bounds the memory that one context can leave in a scratch.
const maxScratch = 8 << 10

// scratches serve all keys. More of them than processors, for the case that
// owners are descheduled; when all are owned, a call allocates its own.
var scratches = batch.NewSlots[scratch](2 * max(runtime.NumCPU(), runtime.GOMAXPROCS(0)))

func newCipherState(secret []byte) (*cipherState, error) {
	if len(secret) != xaes.KeySize {
		return nil, ErrInvalidMaterial
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	return &cipherState{block: block}, nil
}

// use returns the key's lanes and derived keys, nil while it has none, and counts
// n messages until then.
func (c *cipherState) use(n int) *busyState {
	if b := c.busy.Load(); b != nil {
		return b
	}
	if c.messages.Add(uint32(n)) < busyAfter {
		return nil
	}
	// Of several at once one is kept, and all use that.
	c.busy.CompareAndSwap(nil, &busyState{lanes: batch.NewSlots[lane](0)})
	return c.busy.Load()
}

// derive returns AES-256-GCM under the key that a nonce's first half chooses.
func (c *cipherState) derive(prefix []byte) cipher.AEAD {
	kx := new([xaes.KeySize]byte)
	xaes.Derive(c.block, prefix, kx)
	defer arena.Wipe(kx[:])
	return newGCM(kx[:])
}

// newGCM returns AES-256-GCM under a key of 32 bytes.
func newGCM(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for a wrong key size
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for a wrong block size
	}
	return aead
}

// ready gives the lane a new derived key if it has none or has used it up.
func (l *lane) ready(c *cipherState) {
	if l.aead == nil || l.sealed >= laneMessages {
		_, _ = rand.Read(l.prefix[:])
		l.aead = c.derive(l.prefix[:])
		l.sealed = 0
	}
}

// doCipher is Do of a symmetric key: one random read and one lane for all that
// the call encrypts.
func (k *local) doCipher(ops []Op) {
	var s *scratch
	if slot := scratches.Acquire(); slot != nil {
		defer scratches.Release(slot)
		s = &slot.V
	} else {
		s = new(scratch)
	}
	encrypts := 0
	for i := range ops {
		op := &ops[i]
		op.Out = op.Out[:0]
		if op.Err = k.check(op); op.Err != nil {
			continue
		}
		if op.Verb == Encrypt {
			encrypts++
			continue
		}
		k.open(op, s)
	}
	if encrypts > 0 {
		k.sealAll(ops, encrypts, s)
	}
	if cap(s.aad) > maxScratch {
		s.aad = nil
	}
}

// sealAll carries out the n encryptions among ops that have no error yet.
func (k *local) sealAll(ops []Op, n int, s *scratch) {
	var st *state
	err := ErrNoMaterial
	if k.current >= 0 {
		st, err = k.states[k.current].Load(), ErrPending
	}
	var l *lane
	if st != nil {
		if busy := st.cipher.use(n); busy != nil {
			if slot := busy.lanes.Acquire(); slot != nil {
				defer busy.lanes.Release(slot)
				l = &slot.V
			}
		}
		if l == nil {
			l = new(lane)
		}
	}
	var nonces []byte
	drawn := 0
	for i := range ops {
		op := &ops[i]
		if op.Verb != Encrypt || op.Err != nil {
			continue
		}
		if st == nil {
			op.Err = err
			continue
		}
		if len(nonces) == 0 {
			nonces = s.nonces[:min(n*halfNonce, len(s.nonces))]
			drawn = max(drawn, len(nonces))
			_, _ = rand.Read(nonces)
		}
		l.ready(st.cipher)
		l.sealed++
		k.seal(op, l, nonces[:halfNonce], s)
		nonces = nonces[halfNonce:]
		n--
	}
	clear(s.nonces[:drawn])
}

// seal appends the blob of one plaintext to op.Out.
func (k *local) seal(op *Op, l *lane, half []byte, s *scratch) {
	out := slices.Grow(op.Out, Overhead+len(op.In))
	out = append(out, k.headers[k.current][:]...)
	out = append(out, l.prefix[:]...)
	out = append(out, half...)
	aad := s.associated(out[:headerSize], op.AAD)
	op.Out = l.aead.Seal(out, out[headerSize+halfNonce:], op.In, aad)
	op.Material = k.versions[k.current].MaterialID
}

// associated returns header and context in one piece: the header itself when
// there is no context.
func (s *scratch) associated(header, context []byte) []byte {
	if len(context) == 0 {
		return header
	}
	s.aad = append(append(s.aad[:0], header...), context...)
	return s.aad
}

// versionOf returns the index of the version whose header the blob has. When
// there is none, it returns the current version and false: open then does the
// same work for it as for any other blob, and fails.
func (k *local) versionOf(blob []byte) (v int, ok bool) {
	if len(blob) >= Overhead {
		// The current version is last and the most likely.
		for i := len(k.headers) - 1; i >= 0; i-- {
			if [headerSize]byte(blob[:headerSize]) == k.headers[i] {
				return i, true
			}
		}
	}
	return k.current, false
}

// open decrypts one blob. There is one error for all that is wrong with it; a
// blob long enough to be one costs an attempt at decryption whatever its header
// says.
func (k *local) open(op *Op, s *scratch) {
	v, known := k.versionOf(op.In)
	switch {
	case len(op.In) < Overhead:
		op.Err = ErrInvalidCiphertext
		return
	case v < 0:
		op.Err = ErrNoMaterial
		return
	}
	st := k.states[v].Load()
	if st == nil {
		op.Err = ErrPending
		return
	}
	aad := s.associated(op.In[:headerSize], op.AAD)
	out, ok := st.cipher.open(op.Out, op.In[headerSize:], aad)
	if !ok || !known {
		arena.Wipe(out)
		op.Err = ErrInvalidCiphertext
		return
	}
	op.Out = out
	op.Material = k.versions[v].MaterialID
}

// open opens the body of a blob: nonce, ciphertext, tag.
func (c *cipherState) open(dst, body, aad []byte) ([]byte, bool) {
	prefix := [halfNonce]byte(body)
	busy := c.busy.Load()
	var aead cipher.AEAD
	var cached bool
	if busy != nil {
		aead, cached = busy.derived.get(&prefix)
	}
	if !cached {
		aead = c.derive(body[:halfNonce])
	}
	out, err := aead.Open(dst, body[halfNonce:nonceSize], body[nonceSize:], aad)
	if err != nil {
		return dst, false
	}
	if busy == nil { // what does not open does not count: it is anybody's
		busy = c.use(1)
	}
	if !cached && busy != nil {
		busy.derived.put(&prefix, aead)
	}
	return out, true
}

// derivedCache remembers derived keys by the nonce half that chose them. It is
// two-way associative; each way is an atomic pointer to an immutable entry, so
// readers and writers need nothing else. Two writers of one way leave one of
// the two entries, either of which is right.
//
// Sixty-four entries of 1.3 kB are enough for every lane of a large machine
// and its last few restarts. The prefix is random, so its first byte is a hash.
type derivedCache struct {
	ways [derivedSets][2]atomic.Pointer[derivedKey]
}

const derivedSets = 32

type derivedKey struct {
	prefix [halfNonce]byte
	aead   cipher.AEAD
}

func (d *derivedCache) get(prefix *[halfNonce]byte) (cipher.AEAD, bool) {
	set := &d.ways[prefix[0]%derivedSets]
	for i := range set {
		if e := set[i].Load(); e != nil && e.prefix == *prefix {
			return e.aead, true
		}
	}
	return nil, false
}

func (d *derivedCache) put(prefix *[halfNonce]byte, aead cipher.AEAD) {
	set := &d.ways[prefix[0]%derivedSets]
	way := int(prefix[1] & 1)
	if set[way].Load() != nil && set[1-way].Load() == nil {
		way = 1 - way
	}
	set[way].Store(&derivedKey{*prefix, aead})
}
