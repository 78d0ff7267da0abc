package engine

import (
	"crypto/sha512"

	"github.com/oasisprotocol/curve25519-voi/curve"
	"github.com/oasisprotocol/curve25519-voi/curve/scalar"
)

// # Many Ed25519 signatures of one key
//
// A signature (R, S) of a message under the key A is valid, FIPS 186-5 section
// 7.7.2 as curves.go applies it, when R and A are canonical encodings of
// points, S is below the order L of the base point B, and with k = SHA-512 of
// dom2, R, A and the message
//
//	[8]([S]B - [k]A - R) = 0
//
// For several under one A, draw a random z of 128 bits for each and check
//
//	[8]( [sum zS]B - [sum zk]A - sum [z]R ) = 0
//
// If every equation above holds, so does this one. If one does not, [8] of its
// left side is a point of order L other than zero, and the sum is zero for at
// most one value of its z: the chance is 2^-128. Multiplying by 8 removes what
// the points have of small order, also where scalars are reduced modulo L on
// the way, which is why this holds for mixed-order A and R as well, and would
// not without the cofactor. So the verdict is the same as for each alone.
//
// When the sum is not zero, each signature is verified on its own. That makes
// a batch with a bad signature about a third dearer than single verification.
//
// One key for all makes the sum cheaper than a general batch verifier's: A and
// B count once. Everything here is public and takes variable time.

const (
	// edBatchMin is the smallest batch that is faster than single
	// verifications, measured: see the package documentation.
	edBatchMin = 3
	// edBatchMax bounds a sum, and with it the price of a bad signature.
	edBatchMax = 128
)

// edBatchKey is a public key with what batches need of it.
type edBatchKey struct {
	bytes []byte
	point *curve.ExpandedEdwardsPoint
}

// newEdBatchKey returns nil for a key that no signature verifies under.
func newEdBatchKey(key []byte) *edBatchKey {
	var point curve.EdwardsPoint
	if !edPoint(&point, key) {
		return nil
	}
	return &edBatchKey{key, curve.NewExpandedEdwardsPoint(&point)}
}

// edPoint reads the canonical encoding of a point.
func edPoint(p *curve.EdwardsPoint, b []byte) bool {
	var c curve.CompressedEdwardsY
	if _, err := c.SetBytes(b); err != nil || !c.IsCanonicalVartime() {
		return false
	}
	_, err := p.SetCompressedY(&c)
	return err == nil
}

// verify reports whether all the signatures are valid; false says nothing about
// which. There are at most edBatchMax.
func (k *edBatchKey) verify(ops []*Op) bool {
	n := len(ops)
	zs := make([]byte, 16*n) // one draw for all
	Random(zs)
	scalars, points := make([]scalar.Scalar, n+1), make([]curve.EdwardsPoint, n)
	sp, pp := make([]*scalar.Scalar, n+1), make([]*curve.EdwardsPoint, n+1) // of B, then of the Rs
	var sumS, sumK, s, h, t scalar.Scalar
	hash := sha512.New()
	var sum [sha512.Size]byte
	var wide [32]byte
	sp[0], pp[0] = &scalars[0], curve.ED25519_BASEPOINT_POINT
	for i, op := range ops {
		if len(op.Sig) != 64 || !scalar.ScMinimalVartime(op.Sig[32:]) || !edPoint(&points[i], op.Sig[:32]) {
			return false
		}
		hash.Reset()
		msg := op.In
		if op.Alg == AlgEd25519ph {
			pre := sha512.Sum512(op.In) // as ed25519Public does
			hash.Write(dom2ph)
			msg = pre[:]
		}
		hash.Write(op.Sig[:32])
		hash.Write(k.bytes)
		hash.Write(msg)
		if _, err := h.SetBytesModOrderWide(hash.Sum(sum[:0])); err != nil {
			return false
		}
		if _, err := s.SetCanonicalBytes(op.Sig[32:]); err != nil {
			return false
		}
		copy(wide[:], zs[16*i:16*i+16])
		z := &scalars[i+1]
		if _, err := z.SetBytesModOrder(wide[:]); err != nil {
			return false
		}
		sumS.Add(&sumS, t.Mul(z, &s))
		sumK.Add(&sumK, t.Mul(z, &h))
		sp[i+1], pp[i+1] = z, &points[i]
	}
	sp[0].Neg(&sumS)
	var left curve.EdwardsPoint
	left.ExpandedMultiscalarMulVartime(
		[]*scalar.Scalar{&sumK}, []*curve.ExpandedEdwardsPoint{k.point}, sp, pp)
	return left.IsSmallOrder()
}

// dom2ph is dom2(1, "") of RFC 8032, section 2.
var dom2ph = []byte("SigEd25519 no Ed25519 collisions\x01\x00")

// publicBatch is public for several verifications, with the same verdicts.
func (p *ed25519Public) publicBatch(ops []*Op) {
	for len(ops) > 0 {
		part := ops[:min(len(ops), edBatchMax)]
		ops = ops[len(part):]
		if len(part) >= edBatchMin && p.batch != nil && p.batch.verify(part) {
			continue
		}
		for _, op := range part {
			op.Err = p.public(op)
		}
	}
}

// A batchVerifier verifies several signatures in less time than one by one. The
// operations have passed check and have no Err; it sets Err.
type batchVerifier interface{ publicBatch(ops []*Op) }

// verifyBatch carries out the verifications among ops together, if the key's
// provider can, and returns false if it did nothing.
func (k *local) verifyBatch(ops []Op) bool {
	if len(ops) < edBatchMin || k.spec != Ed25519 {
		return false
	}
	pub, err := k.publicKey()
	verifier, ok := pub.(batchVerifier)
	if err != nil || !ok {
		return false
	}
	var room [edBatchMax]*Op
	batch := room[:0]
	for i := range ops {
		op := &ops[i]
		op.Out = op.Out[:0]
		switch {
		case op.Verb != Verify:
			k.single(op)
			continue
		default:
			op.Err = k.check(op)
		}
		if op.Err == nil {
			batch = append(batch, op)
		}
	}
	verifier.publicBatch(batch)
	for _, op := range batch {
		k.finish(op)
	}
	return true
}
