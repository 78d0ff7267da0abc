package engine

import (
	"bytes"
	"crypto/sha512"
	"slices"

	"filippo.io/edwards25519"
)

// ed25519Plain verifies Ed25519 with filippo.io/edwards25519, by the rules of
// curves.go written out. It serves when curve25519-voi must not, and tests hold
// the faster ways against it.
type ed25519Plain struct {
	bytes []byte
	minus *edwards25519.Point // -A, nil when the encoding is not canonical
}

func newEd25519Plain(key []byte) (publicKey, error) {
	point, err := new(edwards25519.Point).SetBytes(key)
	if err != nil {
		return nil, ErrInvalidPublicKey
	}
	p := &ed25519Plain{bytes: slices.Clone(key)}
	if bytes.Equal(point.Bytes(), key) {
		p.minus = point.Negate(point)
	}
	return p, nil
}

func (p *ed25519Plain) public(op *Op) error {
	if len(op.Sig) != 64 || p.minus == nil {
		return ErrInvalidSignature
	}
	r, err := new(edwards25519.Point).SetBytes(op.Sig[:32])
	if err != nil || !bytes.Equal(r.Bytes(), op.Sig[:32]) {
		return ErrInvalidSignature
	}
	s, err := new(edwards25519.Scalar).SetCanonicalBytes(op.Sig[32:])
	if err != nil {
		return ErrInvalidSignature
	}
	hash := sha512.New()
	msg := op.In
	if op.Alg == AlgEd25519ph {
		pre := sha512.Sum512(op.In)
		hash.Write(dom2ph)
		msg = pre[:]
	}
	hash.Write(op.Sig[:32])
	hash.Write(p.bytes)
	hash.Write(msg)
	k, err := new(edwards25519.Scalar).SetUniformBytes(hash.Sum(nil))
	if err != nil {
		return err
	}
	left := new(edwards25519.Point).VarTimeDoubleScalarBaseMult(k, p.minus, s)
	left.Subtract(left, r)
	left.MultByCofactor(left)
	return verdict(left.Equal(edwards25519.NewIdentityPoint()) == 1)
}
