package engine

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"math/big"

	"github.com/cloudflare/circl/ecc/p384"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// p384Public verifies on P-384 with CIRCL's point arithmetic, which takes less
// than half the time of Go's. It is variable-time and must never see a secret.
type p384Public struct {
	x, y *big.Int // a point on the curve
}

func newP384Public(key *ecdsa.PublicKey) (*p384Public, error) {
	point, err := key.Bytes() // checks the point
	if err != nil || len(point) != 97 {
		return nil, ErrInvalidPublicKey
	}
	return &p384Public{new(big.Int).SetBytes(point[1:49]), new(big.Int).SetBytes(point[49:])}, nil
}

func (p *p384Public) public(op *Op) error {
	var sum [sha512.Size]byte
	return verdict(p.verify(hashMessage(op, &sum), op.Sig))
}

// verify is FIPS 186-5, section 6.4.2, for a digest not longer than the order.
func (p *p384Public) verify(digest, sig []byte) bool {
	n := elliptic.P384().Params().N
	var r, s big.Int
	var inner cryptobyte.String
	in := cryptobyte.String(sig)
	if !in.ReadASN1(&inner, casn1.SEQUENCE) || !in.Empty() ||
		!inner.ReadASN1Integer(&r) || !inner.ReadASN1Integer(&s) || !inner.Empty() ||
		r.Sign() <= 0 || s.Sign() <= 0 || r.Cmp(n) >= 0 || s.Cmp(n) >= 0 {
		return false
	}
	var w, u1, u2 big.Int
	w.ModInverse(&s, n)
	u1.SetBytes(digest)
	u1.Mod(u1.Mul(&u1, &w), n)
	u2.Mod(u2.Mul(&r, &w), n)
	curve := p384.P384()
	x, y := curve.CombinedMult(p.x, p.y, u1.Bytes(), u2.Bytes())
	if curve.IsAtInfinity(x, y) {
		return false
	}
	return x.Mod(x, n).Cmp(&r) == 0
}
