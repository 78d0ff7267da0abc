package engine

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"math/big"
	"testing"
)

// TestP384AgainstGo compares our verification on P-384 with Go's, on signatures
// made to drive the point arithmetic into its special cases: with d the private
// key, k the nonce and e the digest, the verifier adds e/s times G to r/s times
// dG, and small or opposite values of these make the summands equal, opposite
// or zero.
func TestP384AgainstGo(t *testing.T) {
	curve := elliptic.P384()
	n := curve.Params().N
	random := func() *big.Int {
		v, err := rand.Int(rand.Reader, new(big.Int).Sub(n, big.NewInt(2)))
		if err != nil {
			t.Fatal(err)
		}
		return v.Add(v, big.NewInt(1))
	}
	minus := func(v int64) *big.Int { return new(big.Int).Sub(n, big.NewInt(v)) }
	public := func(d *big.Int) []byte {
		k, err := ecdh.P384().NewPrivateKey(d.FillBytes(make([]byte, 48)))
		if err != nil {
			t.Fatal(err)
		}
		return k.PublicKey().Bytes()
	}
	valid, compared := 0, 0
	for _, d := range []*big.Int{big.NewInt(1), big.NewInt(2), minus(1), minus(2), random()} {
		std, err := ecdsa.ParseUncompressedPublicKey(curve, public(d))
		if err != nil {
			t.Fatal(err)
		}
		own, err := newP384Public(std)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range []*big.Int{big.NewInt(1), big.NewInt(2), big.NewInt(3), minus(1), random()} {
			r := new(big.Int).SetBytes(public(k)[1:49])
			r.Mod(r, n)
			rd := new(big.Int).Mul(r, d)
			for _, e := range []*big.Int{
				big.NewInt(0), big.NewInt(1), r, new(big.Int).Sub(n, r), new(big.Int).Mod(rd, n),
				new(big.Int).Sub(n, new(big.Int).Mod(rd, n)), minus(1), n, random(),
			} {
				digest := e.FillBytes(make([]byte, 48))
				s := new(big.Int).Add(e, rd)
				s.Mul(s, new(big.Int).ModInverse(k, n)).Mod(s, n)
				for _, sr := range [][2]*big.Int{{r, s}, {r, new(big.Int).Sub(n, s)}, {s, r}, {r, big.NewInt(1)}, {r, n}, {r, big.NewInt(0)}, {new(big.Int).Add(r, n), s}} {
					sig := derPair(sr[0].Bytes(), sr[1].Bytes())
					want := ecdsa.VerifyASN1(std, digest, sig)
					if got := own.verify(digest, sig); got != want {
						t.Errorf("d=%v k=%v e=%v r=%v s=%v: %v, Go says %v", d, k, e, sr[0], sr[1], got, want)
					}
					compared++
					if want {
						valid++
					}
				}
			}
		}
	}
	if valid < compared/5 {
		t.Errorf("only %d of %d signatures were valid", valid, compared)
	}
}
