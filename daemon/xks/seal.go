package xks

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"time"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/hsm/arena"
)

// # What the proxy side makes of a plaintext
//
// The KMS key's own scheme: XAES-256-GCM, whose nonce of 24 bytes is safe to
// draw at random for any number of messages, under a header that names key and
// material (engine/blob.go). A blob of the engine is taken apart for the wire, and
// put together again:
//
//	ciphertextMetadata    byte 0       1: this scheme
//	                      bytes 1-11   beginning of the KeyMaterialId
//	                      bytes 12-19  bytes 0-7 of the nonce
//	initializationVector  16 bytes: bytes 8-23 of the nonce
//	ciphertext, authenticationTag
//
// The associated data is the protocol's,
//
//	len16be(AAD) | AAD | len8(M) | M
//
// where M is the metadata without its last eight bytes. Those belong to the nonce
// and are authenticated as such: XAES derives the message's key from them. So no
// byte of the metadata can change unnoticed. The engine puts its header in
// front, in which the whole KeyMaterialId stands.
//
// A ciphertext of the proxy never decrypts through the KMS API, whatever
// encryption context is given: a canonical context that is not empty begins with
// the length of its first key in four bytes, and the bytes that stand here in its
// place are a length that is larger than all that follows.

const (
	sealVersion  = 1
	materialPart = 11
	noncePart    = MaxMetadata - 1 - materialPart
	nonceSize    = 24
)

// A ServedKey is a KMS key as the proxy side sees it.
type ServedKey struct {
	Handle    engine.Key
	ID        engine.KeyID
	State     string              // AWS's name: "Enabled"
	Materials []engine.MaterialID // of all versions
	Served    bool                // a symmetric key whose material is this appliance's
	Admit     func() bool         // takes one request from the key's quota; nil: it has none
	Used      func(Action)        // counts an Encrypt or Decrypt that succeeded; nil: nobody does
}

// waitForMaterial bounds how long a cold key may take. KMS has given up long
// before, but what was fetched stays for its next try.
const waitForMaterial = 5 * time.Second

// Errors of run that are the caller's.
var errInvalidCiphertext = engine.ErrInvalidCiphertext

// run carries out one operation.
func (k *ServedKey) run(op engine.Op) (engine.Op, error) {
	ops := []engine.Op{op}
	k.Handle.Do(ops)
	if ops[0].Err == engine.ErrPending {
		ctx, cancel := context.WithTimeout(context.Background(), waitForMaterial)
		defer cancel()
		for range 4 { // a handle may be purged in between
			if err := k.Handle.Warm(ctx, ops); err != nil && err != engine.ErrPurged {
				return ops[0], err
			}
			if ops[0].Err == engine.ErrPending {
				k.Handle.Do(ops)
			}
			if ops[0].Err != engine.ErrPending {
				break
			}
		}
	}
	return ops[0], ops[0].Err
}

func associated(aad, authenticated []byte) []byte {
	b := make([]byte, 0, 2+len(aad)+1+len(authenticated))
	b = binary.BigEndian.AppendUint16(b, uint16(len(aad)))
	b = append(b, aad...)
	b = append(b, byte(len(authenticated)))
	return append(b, authenticated...)
}

// seal encrypts: the engine's blob in the parts of the wire.
func (k *ServedKey) seal(plaintext, aad []byte) (*Response, error) {
	r := &Response{Metadata: make([]byte, MaxMetadata)}
	r.Metadata[0] = sealVersion
	// The material is part of what is authenticated, so it is named before the key
	// says which it used. Should the key have rotated in between, once more.
	for i := len(k.Materials) - 1; i >= 0; i-- {
		copy(r.Metadata[1:1+materialPart], k.Materials[i][:])
		m := r.Metadata[:1+materialPart]
		op, err := k.run(engine.Op{
			Verb: engine.Encrypt, Alg: engine.AlgSymmetric, In: plaintext, AAD: associated(aad, m),
			Out: make([]byte, 0, engine.Overhead+len(plaintext)),
		})
		if err != nil {
			return nil, err
		}
		if op.Material != k.Materials[i] {
			continue
		}
		body := op.Out[engine.HeaderSize:]
		copy(r.Metadata[1+materialPart:], body[:noncePart])
		r.IV = body[noncePart:nonceSize]
		r.Ciphertext = body[nonceSize : len(body)-tagSize]
		r.Tag = body[len(body)-tagSize:]
		return r, nil
	}
	return nil, errors.New("the key uses material that is not among its versions")
}

// open decrypts. The caller wipes what it returns.
func (k *ServedKey) open(ciphertext, metadata, iv, tag, aad []byte) ([]byte, error) {
	if len(metadata) != MaxMetadata || metadata[0] != sealVersion || len(iv) != nonceSize-noncePart || len(tag) != tagSize {
		return nil, errInvalidCiphertext
	}
	m, nonce := metadata[:1+materialPart], metadata[1+materialPart:]
	err := errInvalidCiphertext
	for i := len(k.Materials) - 1; i >= 0; i-- {
		if [materialPart]byte(m[1:]) != [materialPart]byte(k.Materials[i][:materialPart]) {
			continue
		}
		blob := make([]byte, 0, engine.Overhead+len(ciphertext))
		blob = engine.AppendHeader(blob, engine.SchemeLocal, k.ID, k.Materials[i])
		blob = append(append(append(append(blob, nonce...), iv...), ciphertext...), tag...)
		var op engine.Op
		op, err = k.run(engine.Op{
			Verb: engine.Decrypt, Alg: engine.AlgSymmetric, In: blob, AAD: associated(aad, m),
			Out: make([]byte, 0, len(ciphertext)),
		})
		if err == nil {
			return op.Out, nil
		}
	}
	return nil, err
}

// encrypt is the call: encryption, the integrity value if asked for, and then
// the check that all of it decrypts. In this order: what is corrupted between
// the encryption and the hash fails the check, what is corrupted after it the
// caller's comparison.
func (k *ServedKey) encrypt(q *Request) (*Response, error) {
	r, err := k.seal(q.Plaintext, q.AAD)
	if err != nil {
		return nil, err
	}
	if q.Integrity == SHA256 {
		sum := Integrity(q.AAD, r.Metadata, r.IV, r.Ciphertext, r.Tag)
		r.Integrity = sum[:]
	}
	again, err := k.open(r.Ciphertext, r.Metadata, r.IV, r.Tag, q.AAD)
	defer arena.Wipe(again)
	if err != nil || subtle.ConstantTimeCompare(again, q.Plaintext) != 1 {
		return nil, errors.New("what was encrypted does not decrypt")
	}
	return r, nil
}

// decrypt is the call.
func (k *ServedKey) decrypt(q *Request) (*Response, error) {
	out, err := k.open(q.Ciphertext, q.Metadata, q.IV, q.Tag, q.AAD)
	if err != nil {
		return nil, err
	}
	return &Response{Plaintext: out}, nil
}

// reasonFor says what a failed operation is on the wire.
func reasonFor(err error) Reason {
	var e *wire.Error
	switch {
	case errors.Is(err, engine.ErrInvalidCiphertext):
		return InvalidCiphertextException
	case errors.Is(err, engine.ErrNoMaterial), errors.Is(err, engine.ErrPurged), errors.Is(err, engine.ErrPending):
		return InvalidStateException
	case errors.Is(err, engine.ErrUsage), errors.Is(err, engine.ErrIncompatible):
		return InvalidKeyUsageException
	case errors.Is(err, context.DeadlineExceeded):
		return DependencyTimeoutException
	case errors.As(err, &e) && e.Has(wire.NotFoundException):
		return KeyNotFoundException
	case errors.As(err, &e) && (e.Has(wire.DisabledException) || e.Has(wire.KMSInvalidStateException)):
		return InvalidStateException
	}
	return InternalException
}
