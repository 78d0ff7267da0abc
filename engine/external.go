package engine

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"

	"keymill/hsm/arena"
)

// An External is one key of an external key manager, reached through a proxy.
// It is safe for use by many goroutines and bounds its own waiting. Its errors
// become an operation's Err as they are. The context is Warm's, with its values.
type External interface {
	// Encrypt encrypts plaintext, bound to aad. Neither is kept.
	Encrypt(ctx context.Context, plaintext, aad []byte) (Sealed, error)

	// Decrypt undoes Encrypt. The caller wipes what it returns. None of the
	// arguments is kept.
	Decrypt(ctx context.Context, s Sealed, aad []byte) ([]byte, error)
}

// Sealed is what an external key manager makes of a plaintext: AES-GCM, and up to
// MaxExternalMetadata bytes of its own.
type Sealed struct{ Ciphertext, Metadata, IV, Tag []byte }

// valid holds the lengths to the rules of the XKS proxy API, section Encrypt.
func (s *Sealed) valid(plaintext int) bool {
	return len(s.Ciphertext) == plaintext && len(s.Tag) == tagSize && len(s.Metadata) <= MaxExternalMetadata &&
		(len(s.IV) == 12 || len(s.IV) == 16)
}

// Bounds of an external key, from the XKS proxy API: a proxy takes at least
// 4,300 bytes of plaintext, and the metadata it returns has at most 20.
const (
	MaxExternalMetadata  = 20
	maxExternalPlaintext = 4300 - nonceSize - tagSize

	// ExternalOverhead is how much longer a blob of the external scheme is than
	// its plaintext at most.
	ExternalOverhead = Overhead + 2 + 16 + MaxExternalMetadata + tagSize
	externalMinimum  = Overhead + 2 + 12 + tagSize
)

// NewExternalKey returns the handle of a key in an external key store. It is
// symmetric and encrypts twice: first under material of ours, as a local key
// does, then the result at the external key manager. So neither side can read
// a ciphertext without the other, and the other side never sees a plaintext.
//
// versions, current and src are the material of ours, as for NewLocalKey. Class
// is Token; waiting.go says what that means for Do and Warm.
func NewExternalKey(id KeyID, versions []KeyVersion, current int, src Source, remote External) Key {
	inner := NewLocalKey(id, SymmetricDefault, EncryptDecrypt, versions, current, nil, src).(*local)
	for i, v := range versions {
		inner.headers[i] = makeHeader(SchemeExternal, id, v.MaterialID)
	}
	return &external{inner: inner, remote: remote}
}

// external is a key in an external key store.
//
// Its blob is the header of the external scheme and what the manager made of
// the inner body, which is the body of a local blob: nonce, ciphertext, tag. The
// inner layer authenticates header and encryption context; the outer one, a
// hash of the two, so that a wrong context or a blob moved to another key fails at
// the manager, and what the manager gets to see is of one length and says
// nothing of the context.
//
// It has no state of its own: the inner key's rules on Warm and Purge hold.
type external struct {
	inner  *local
	remote External
}

func (k *external) Spec() Spec       { return SymmetricDefault }
func (k *external) Usage() Usage     { return EncryptDecrypt }
func (k *external) Class(Verb) Class { return Token }
func (k *external) Purge()           { k.inner.Purge() }
func (k *external) Do(ops []Op)      { await(ops, k.check) }

// check refuses what needs no call to be refused. What a header says is known
// to whoever made the blob, so it may be compared the quick way.
func (k *external) check(op *Op) error {
	if err := k.inner.check(op); err != nil {
		return err
	}
	switch op.Verb {
	case Encrypt:
		if len(op.In) > maxExternalPlaintext {
			return ErrPlaintextTooLong
		}
		if k.inner.current < 0 {
			return ErrNoMaterial
		}
	case Decrypt:
		if _, ok := splitExternal(op.In); !ok {
			return ErrInvalidCiphertext
		}
		if _, ok := k.inner.versionOf(op.In); !ok {
			return ErrInvalidCiphertext
		}
	}
	return nil
}

func (k *external) Warm(ctx context.Context, ops []Op) error {
	if err := k.inner.Warm(ctx, ops); err != nil {
		return err
	}
	var wg sync.WaitGroup
	last := -1
	for i := range ops {
		if ops[i].Err != ErrPending {
			continue
		}
		if last >= 0 {
			op := &ops[last]
			wg.Go(func() { k.run(ctx, op) })
		}
		last = i
	}
	if last >= 0 { // one needs no goroutine
		k.run(ctx, &ops[last])
	}
	wg.Wait()
	return nil
}

// run carries out one operation. A panic, which only a defect can cause, fails
// this operation and not the process.
func (k *external) run(ctx context.Context, op *Op) {
	defer func() {
		if r := recover(); r != nil {
			op.Err = fmt.Errorf("engine: an external key panicked: %v", r)
		}
		if op.Err != nil {
			op.Out = op.Out[:0]
		}
	}()
	if op.Verb == Encrypt {
		op.Err = k.seal(ctx, op)
	} else {
		op.Err = k.open(ctx, op)
	}
}

func (k *external) seal(ctx context.Context, op *Op) error {
	in := []Op{{Verb: Encrypt, Alg: AlgSymmetric, In: op.In, AAD: op.AAD, Out: make([]byte, 0, Overhead+len(op.In))}}
	k.inner.Do(in)
	if in[0].Err != nil {
		return in[0].Err // ErrPending: purged since it was warm
	}
	header, body := in[0].Out[:headerSize], in[0].Out[headerSize:]
	aad := externalAAD(header, op.AAD)
	s, err := k.remote.Encrypt(ctx, body, aad[:])
	if err != nil {
		return err
	}
	if !s.valid(len(body)) {
		return fmt.Errorf("engine: an external key made %d bytes of %d, with %d bytes of IV, %d of tag and %d of metadata",
			len(s.Ciphertext), len(body), len(s.IV), len(s.Tag), len(s.Metadata))
	}
	out := slices.Grow(op.Out[:0], ExternalOverhead+len(op.In))
	out = append(out, header...)
	out = append(out, byte(len(s.IV)), byte(len(s.Metadata)))
	out = append(append(append(out, s.IV...), s.Metadata...), s.Tag...)
	op.Out = append(out, s.Ciphertext...)
	op.Material = in[0].Material
	return nil
}

func (k *external) open(ctx context.Context, op *Op) error {
	s, ok := splitExternal(op.In)
	if !ok {
		return ErrInvalidCiphertext
	}
	header := op.In[:headerSize]
	aad := externalAAD(header, op.AAD)
	body, err := k.remote.Decrypt(ctx, s, aad[:])
	defer arena.Wipe(body)
	if err != nil {
		return err
	}
	if len(body) != len(s.Ciphertext) {
		return fmt.Errorf("engine: an external key made %d bytes of %d", len(body), len(s.Ciphertext))
	}
	blob := slices.Concat(header, body)
	in := []Op{{Verb: Decrypt, Alg: AlgSymmetric, In: blob, AAD: op.AAD, Out: op.Out[:0]}}
	k.inner.Do(in)
	op.Out, op.Material = in[0].Out, in[0].Material
	return in[0].Err
}

// splitExternal returns views on the parts of a blob of the external scheme.
func splitExternal(blob []byte) (s Sealed, ok bool) {
	if len(blob) < externalMinimum {
		return s, false
	}
	iv, meta, rest := int(blob[headerSize]), int(blob[headerSize+1]), blob[headerSize+2:]
	if iv != 12 && iv != 16 || meta > MaxExternalMetadata || len(rest) < iv+meta+tagSize+nonceSize+tagSize {
		return s, false
	}
	s.IV, rest = rest[:iv:iv], rest[iv:]
	s.Metadata, rest = rest[:meta:meta], rest[meta:]
	s.Tag, s.Ciphertext = rest[:tagSize:tagSize], rest[tagSize:]
	return s, true
}

// externalLabel separates this hash from all others. Changing it would orphan
// every ciphertext.
const externalLabel = "keymill/external-aad/v1\x00"

// externalAAD is the associated data for the external key manager.
func externalAAD(header, context []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(externalLabel))
	h.Write(header) // of one length
	h.Write(context)
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum
}
