package engine

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"testing"

	"filippo.io/edwards25519"
)

// torsion returns the eight points of small order: multiples of [L]P for the
// first P for which that has order 8.
func torsion(t *testing.T) (points [8]*edwards25519.Point) {
	// L is 2^252 + 27742317777372353535851937790883648493, big-endian here.
	order := unhex(t, "1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed")
	identity := edwards25519.NewIdentityPoint()
	for y := byte(2); ; y++ {
		p, err := new(edwards25519.Point).SetBytes(append([]byte{y}, make([]byte, 31)...))
		if err != nil {
			continue
		}
		q := edwards25519.NewIdentityPoint()
		for i := range 256 {
			q.Double(q)
			if order[i/8]>>(7-i%8)&1 == 1 {
				q.Add(q, p)
			}
		}
		four := new(edwards25519.Point).Double(q)
		if four.Double(four); four.Equal(identity) == 1 {
			continue
		}
		sum := edwards25519.NewIdentityPoint()
		for i := range points {
			points[i] = new(edwards25519.Point).Set(sum)
			sum.Add(sum, q)
		}
		if sum.Equal(identity) != 1 {
			t.Fatal("not of order 8")
		}
		return points
	}
}

func edScalar(t *testing.T) *edwards25519.Scalar {
	var b [64]byte
	Random(b[:])
	s, err := new(edwards25519.Scalar).SetUniformBytes(b[:])
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// edForge signs with a key A = aB + T and a nonce point R = rB + U.
func edForge(t *testing.T, a, r *edwards25519.Scalar, keyT, nonceT *edwards25519.Point, msg []byte) (key, sig []byte) {
	A := new(edwards25519.Point).ScalarBaseMult(a)
	R := new(edwards25519.Point).ScalarBaseMult(r)
	key, sig = A.Add(A, keyT).Bytes(), R.Add(R, nonceT).Bytes()
	h := sha512.Sum512(append(append(bytes.Clone(sig), key...), msg...))
	k, err := new(edwards25519.Scalar).SetUniformBytes(h[:])
	if err != nil {
		t.Fatal(err)
	}
	return key, append(sig, new(edwards25519.Scalar).MultiplyAdd(k, a, r).Bytes()...)
}

// edHandle is a handle that can only verify.
func edHandle(t *testing.T, key []byte) *local {
	spki, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(key))
	if err != nil {
		t.Fatal(err)
	}
	return NewLocalKey(testID, Ed25519, SignVerify, nil, -1, spki, nil).(*local)
}

// TestEd25519MixedOrder: for every combination of small-order components in the
// key and in the nonce points, a signature has the same verdict alone, in a
// batch, and by the rules written out. Scalars of zero make the points of small
// order altogether.
func TestEd25519MixedOrder(t *testing.T) {
	small := torsion(t)
	zero := edwards25519.NewScalar()
	goDiffers := 0
	for i, keyT := range small {
		for _, a := range []*edwards25519.Scalar{edScalar(t), zero} {
			// All the signatures of one key go into one batch, and each into
			// batches with ordinary ones.
			var ops []Op
			key, _ := edForge(t, a, edScalar(t), keyT, small[0], nil)
			pub := edHandle(t, key)
			for j, nonceT := range small {
				for _, r := range []*edwards25519.Scalar{edScalar(t), zero} {
					msg := fmt.Appendf(nil, "%d %d", i, j)
					_, sig := edForge(t, a, r, keyT, nonceT, msg)
					ops = append(ops, Op{Verb: Verify, Alg: AlgEd25519, In: msg, Sig: sig})
					if !ed25519.Verify(key, msg, sig) {
						goDiffers++
					}
				}
			}
			n := len(ops)
			for j := range n {
				bad := ops[j]
				bad.Sig = bytes.Clone(bad.Sig)
				bad.Sig[32] ^= 1
				single, batch := []Op{ops[j]}, []Op{ops[j], ops[(j+1)%n], ops[(j+2)%n]}
				broken := []Op{ops[j], bad, ops[(j+1)%n], ops[(j+2)%n]}
				pub.Do(single)
				pub.Do(batch)
				pub.Do(broken)
				if single[0].Err != nil {
					t.Errorf("key component %d, nonce component %d: %v", i, j/2, single[0].Err)
				}
				for x, op := range batch {
					if op.Err != nil {
						t.Errorf("key %d, nonce %d, in a batch at %d: %v", i, j/2, x, op.Err)
					}
				}
				for x, op := range broken {
					if (op.Err != nil) != (x == 1) {
						t.Errorf("key %d, nonce %d, in a batch with a bad one at %d: %v", i, j/2, x, op.Err)
					}
				}
			}
			pub.Do(ops)
			plain, err := newEd25519Plain(key)
			if err != nil {
				t.Fatal(err)
			}
			for j := range ops {
				if ops[j].Err != nil || plain.public(&ops[j]) != nil {
					t.Errorf("key %d: signature %d of all: %v", i, j, ops[j].Err)
				}
			}
			// The sum itself, and not the way back to single verification,
			// must have said so.
			refs := make([]*Op, n)
			for j := range ops {
				refs[j] = &ops[j]
			}
			if !newEdBatchKey(key).verify(refs) {
				t.Errorf("key component %d: the sum fails where every signature is valid", i)
			}
		}
	}
	if goDiffers == 0 {
		t.Error("the equation without the cofactor agrees on everything: these signatures prove nothing")
	}
}

// TestEd25519Verdicts feeds every kind of bad encoding to the three ways of
// verifying.
func TestEd25519Verdicts(t *testing.T) {
	a := edScalar(t)
	small := torsion(t)
	key, good := edForge(t, a, edScalar(t), small[0], small[0], []byte("m"))
	order := edOrder(t)
	high := bytes.Clone(good)
	carry := 0
	for i := range 32 {
		sum := int(high[32+i]) + int(order[i]) + carry
		high[32+i], carry = byte(sum), sum>>8
	}
	withR := func(r []byte) []byte { return append(bytes.Clone(r), good[32:]...) }
	p := append([]byte{0xed}, bytes.Repeat([]byte{0xff}, 31)...) // y = p, that is 0, and a sign bit
	pNoSign := bytes.Clone(p)
	pNoSign[31] = 0x7f
	minusOne := append([]byte{1}, make([]byte, 31)...) // y = 1, x = 0, ...
	minusOne[31] = 0x80                                // ... with the sign of -0
	sigs := map[string][]byte{
		"good": good, "S + L": high, "short": good[:63], "long": append(bytes.Clone(good), 0), "empty": nil,
		"R = p": withR(pNoSign), "R = p, negative": withR(p), "R = -0": withR(minusOne),
		"R not a point": withR(append([]byte{2}, make([]byte, 31)...)), "zero": make([]byte, 64),
	}
	for name, keyBytes := range map[string][]byte{"key": key, "key = 0": pNoSign, "key -0": minusOne, "identity": small[0].Bytes()} {
		handle := edHandle(t, keyBytes)
		plain, err := newEd25519Plain(keyBytes)
		if err != nil {
			t.Fatal(err)
		}
		for sigName, sig := range sigs {
			op := Op{Verb: Verify, Alg: AlgEd25519, In: []byte("m"), Sig: sig}
			ops := []Op{op, op, op, op}
			handle.Do(ops)
			single := do(t, handle, op)
			want := plain.public(&op)
			for _, got := range ops {
				if got.Err != want || single.Err != want {
					t.Errorf("%s, %s: batch %v, single %v, plain %v", name, sigName, got.Err, single.Err, want)
				}
			}
			if (want == nil) != (name == "key" && sigName == "good" || name == "identity" && sigName == "zero" && want == nil) {
				t.Errorf("%s, %s: %v", name, sigName, want)
			}
		}
	}
}

// edOrder is L, little-endian.
func edOrder(t *testing.T) []byte {
	b := unhex(t, "1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed")
	for i := range 16 {
		b[i], b[31-i] = b[31-i], b[i]
	}
	return b
}

// TestBatchInDo mixes all that a call may hold: other verbs, refused
// operations, both algorithms, more than one sum, a bad one in the middle.
func TestBatchInDo(t *testing.T) {
	k := keyOf(t, testID, Ed25519, SignVerify, testMaterial(t, Ed25519))
	var ops []Op
	for i := range 2*edBatchMax + 5 {
		msg := bytes.Repeat([]byte{byte(i)}, 64)
		alg, typ := AlgEd25519, Raw
		if i%3 == 0 {
			alg, typ = AlgEd25519ph, Digest
		}
		sig := must(t, k, Op{Verb: Sign, Alg: alg, Type: typ, In: msg})
		ops = append(ops, Op{Verb: Verify, Alg: alg, Type: typ, In: msg, Sig: sig, Out: make([]byte, 3)})
	}
	bad := map[int]error{}
	set := func(i int, err error, f func(op *Op)) {
		bad[i] = err
		f(&ops[i])
	}
	set(7, ErrInvalidSignature, func(op *Op) { op.Sig = bytes.Clone(op.Sig); op.Sig[3] ^= 4 })
	set(8, ErrMessageType, func(op *Op) { op.Type = ExternalMu })
	set(9, ErrDigestLength, func(op *Op) { op.In = op.In[1:] })
	set(10, ErrUsage, func(op *Op) { op.Verb = Decrypt })
	set(11, ErrIncompatible, func(op *Op) { op.Alg = AlgMLDSA })
	set(13, nil, func(op *Op) { op.Verb = Sign })
	if err := k.Warm(context.Background(), ops); err != nil {
		t.Fatal(err)
	}
	k.Do(ops)
	for i, op := range ops {
		if op.Err != bad[i] {
			t.Errorf("op %d: %v, want %v", i, op.Err, bad[i])
		}
		if (op.Err == nil) != (op.Material == k.versions[0].MaterialID) {
			t.Errorf("op %d: material %v", i, op.Material)
		}
		if (len(op.Out) > 0) != (i == 13) {
			t.Errorf("op %d: %d bytes of result", i, len(op.Out))
		}
	}
}
