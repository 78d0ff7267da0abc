package fuzz

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha3"
	"encoding/binary"
	"slices"
	"testing"

	"keymill/engine"
	"keymill/hsm"
)

// engineKey returns a warm handle on a key of the given material.
func engineKey(f *testing.F, spec engine.Spec, usage engine.Usage, material []byte) engine.Key {
	f.Helper()
	id := engine.KeyID{ID: [16]byte{1, 2, 3}}
	var spki []byte
	if spec.Asymmetric() {
		var err error
		if spki, err = engine.PublicKey(spec, material); err != nil {
			f.Fatal(err)
		}
	}
	versions := []engine.KeyVersion{{Number: 1, MaterialID: engine.ComputeMaterialID(id, material)}}
	src := func(context.Context, uint32) ([]byte, error) { return bytes.Clone(material), nil }
	return engine.NewLocalKey(id, spec, usage, versions, 0, spki, src)
}

// engineDo carries out one operation, warming the key if need be.
func engineDo(tb testing.TB, k engine.Key, op engine.Op) engine.Op {
	tb.Helper()
	ops := []engine.Op{op}
	k.Do(ops)
	if ops[0].Err == engine.ErrPending {
		if err := k.Warm(context.Background(), ops); err != nil {
			tb.Fatal(err)
		}
		if ops[0].Err == engine.ErrPending { // not of a key that waits
			k.Do(ops)
		}
	}
	return ops[0]
}

func engineMaterial(f *testing.F, spec engine.Spec) []byte {
	f.Helper()
	m, err := engine.GenerateMaterial(spec)
	if err != nil {
		f.Fatal(err)
	}
	return m
}

// FuzzParseBlob: what ParseBlob accepts has a header that says the same when
// it is written again.
func FuzzParseBlob(f *testing.F) {
	k := engineKey(f, engine.SymmetricDefault, engine.EncryptDecrypt, make([]byte, 32))
	blob := engineDo(f, k, engine.Op{Verb: engine.Encrypt, Alg: engine.AlgSymmetric, In: []byte("seed")}).Out
	f.Add(blob)
	f.Add(blob[:50])
	f.Add([]byte{1, 1, 2})
	f.Add(append([]byte{1, 2, 1}, make([]byte, engine.TokenMinimum-3)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := engine.ParseBlob(in)
		if err != nil {
			if err != engine.ErrInvalidCiphertext || h != (engine.BlobHeader{}) {
				t.Fatalf("%+v, %v", h, err)
			}
			return
		}
		kind := byte(1)
		if h.KeyID.MultiRegion {
			kind = 2
		}
		again := slices.Concat([]byte{1, byte(h.Scheme), kind}, h.KeyID.ID[:], h.MaterialID[:])
		if !bytes.Equal(again, in[:len(again)]) || len(in) < engine.TokenMinimum || len(in) < engine.Overhead && h.Scheme != engine.SchemeToken {
			t.Fatalf("%x parses as %x", in, again)
		}
	})
}

// FuzzOpen: a blob or a context that is not the genuine one never decrypts, and
// always with the same error.
func FuzzOpen(f *testing.F) {
	fuzzOpen(f, engineKey(f, engine.SymmetricDefault, engine.EncryptDecrypt, engineMaterial(f, engine.SymmetricDefault)), 60, 70)
}

// fuzzOpen changes a genuine blob of k; one seed changes the byte at, another cuts
// the blob to keep bytes and lengthens it again.
func fuzzOpen(f *testing.F, k engine.Key, at, keep uint16) {
	aad := engine.AppendContext(nil, []engine.ContextPair{{Key: "a", Value: "1"}})
	genuine := engineDo(f, k, engine.Op{Verb: engine.Encrypt, Alg: engine.AlgSymmetric, In: []byte("secret"), AAD: aad}).Out
	f.Add(uint16(0), byte(0), uint16(len(genuine)), []byte{}, aad)
	f.Add(at, byte(1), uint16(len(genuine)), []byte{}, aad)
	f.Add(uint16(0), byte(0), keep, []byte("tail"), aad)
	f.Add(uint16(0), byte(0), uint16(len(genuine)), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, at uint16, xor byte, keep uint16, tail, context []byte) {
		blob := bytes.Clone(genuine[:min(int(keep), len(genuine))])
		if int(at) < len(blob) {
			blob[at] ^= xor
		}
		blob = append(blob, tail...)
		op := engineDo(t, k, engine.Op{Verb: engine.Decrypt, Alg: engine.AlgSymmetric, In: blob, AAD: context})
		if bytes.Equal(blob, genuine) && bytes.Equal(context, aad) {
			if op.Err != nil || string(op.Out) != "secret" {
				t.Fatalf("the genuine blob: %q, %v", op.Out, op.Err)
			}
		} else if op.Err != engine.ErrInvalidCiphertext || len(op.Out) != 0 {
			t.Fatalf("blob %x, context %x: %q, %v", blob, context, op.Out, op.Err)
		}
	})
}

// A gcmToken is a token with one AES key.
type gcmToken struct{ aead cipher.AEAD }

func (g gcmToken) Do(_ context.Context, ops []hsm.TokenOp) {
	for i := range ops {
		op := &ops[i]
		iv := make([]byte, 12)
		if op.Mech == hsm.TokenSeal {
			op.Out = g.aead.Seal(append([]byte{1, 12}, iv...), iv, op.In, op.AAD)
		} else if op.In[0] != 1 || op.In[1] != 12 {
			op.Err = hsm.ErrBadCiphertext
		} else if op.Out, op.Err = g.aead.Open(nil, op.In[2:14], op.In[14:], op.AAD); op.Err != nil {
			op.Out, op.Err = nil, hsm.ErrBadCiphertext
		}
	}
}

// FuzzOpenToken is FuzzOpen for a key that lives in a token.
func FuzzOpenToken(f *testing.F) {
	block, err := aes.NewCipher(engineMaterial(f, engine.SymmetricDefault))
	if err != nil {
		f.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		f.Fatal(err)
	}
	fuzzOpen(f, engine.NewTokenKey(engine.KeyID{}, engine.SymmetricDefault, engine.EncryptDecrypt,
		engine.TokenKey{Token: gcmToken{aead}, Lease: func(context.Context, uint64) error { return nil }}), 52, 82)
}

// FuzzPublicKey: whatever a peer sends as its public key, the answer is a
// secret of the right length or ErrInvalidPublicKey.
func FuzzPublicKey(f *testing.F) {
	sizes := map[engine.Spec]int{engine.P256: 32, engine.P384: 48, engine.P521: 66, engine.SM2: 32}
	keys := map[engine.Spec]engine.Key{}
	for spec := range sizes {
		material := engineMaterial(f, spec)
		keys[spec] = engineKey(f, spec, engine.KeyAgreement, material)
		spki, err := engine.PublicKey(spec, material)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(spki)
	}
	for _, spec := range []engine.Spec{engine.Ed25519, engine.Secp256k1, engine.RSA2048} {
		spki, err := engine.PublicKey(spec, engineMaterial(f, spec))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(spki)
	}
	f.Fuzz(func(t *testing.T, peer []byte) {
		taken := 0
		for spec, k := range keys {
			op := engineDo(t, k, engine.Op{Verb: engine.DeriveSecret, Alg: engine.AlgECDH, In: peer})
			switch {
			case op.Err == nil && len(op.Out) == sizes[spec]:
				taken++
			case op.Err != engine.ErrInvalidPublicKey || len(op.Out) != 0:
				t.Fatalf("%v: %d bytes, %v", spec, len(op.Out), op.Err)
			}
		}
		if taken > 1 {
			t.Fatalf("one public key is of %d curves", taken)
		}
	})
}

// FuzzPrivateKey: material of any form is refused or has one public key, which
// signs and verifies as such.
func FuzzPrivateKey(f *testing.F) {
	specs := []engine.Spec{engine.P256, engine.Secp256k1, engine.Ed25519, engine.SM2, engine.MLDSA44}
	for i, spec := range specs {
		f.Add(byte(i), engineMaterial(f, spec))
	}
	f.Fuzz(func(t *testing.T, which byte, material []byte) {
		spec := specs[int(which)%len(specs)]
		first, err := engine.PublicKey(spec, material)
		if err != nil {
			return
		}
		if again, err := engine.PublicKey(spec, material); err != nil || !bytes.Equal(first, again) {
			t.Fatalf("%v: the public key changed: %v", spec, err)
		}
		id := engine.KeyID{}
		k := engine.NewLocalKey(id, spec, engine.SignVerify,
			[]engine.KeyVersion{{Number: 1, MaterialID: engine.ComputeMaterialID(id, material)}}, 0, first,
			func(context.Context, uint32) ([]byte, error) { return bytes.Clone(material), nil })
		alg := spec.Algorithms(engine.SignVerify)[0]
		sig := engineDo(t, k, engine.Op{Verb: engine.Sign, Alg: alg, In: []byte("m")})
		if sig.Err != nil {
			t.Fatalf("%v: sign: %v", spec, sig.Err)
		}
		if op := engineDo(t, k, engine.Op{Verb: engine.Verify, Alg: alg, In: []byte("m"), Sig: sig.Out}); op.Err != nil {
			t.Fatalf("%v: verify: %v", spec, op.Err)
		}
	})
}

// FuzzParseKeyID: an accepted key id is spelled exactly as it prints.
func FuzzParseKeyID(f *testing.F) {
	f.Add("1234abcd-12ab-34cd-56ef-1234567890ab")
	f.Add("mrk-1234abcd12ab34cd56ef1234567890ab")
	f.Add("1234ABCD-12ab-34cd-56ef-1234567890ab")
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := engine.ParseKeyID(s); ok && id.String() != s {
			t.Fatalf("%q is %v", s, id)
		} else if !ok && id != (engine.KeyID{}) {
			t.Fatalf("%q: refused, but %v", s, id)
		}
	})
}

// contextOf cuts data into pairs with distinct keys, which it also returns as a
// map: one byte of length before each string.
func contextOf(data []byte) ([]engine.ContextPair, map[string]string) {
	var pairs []engine.ContextPair
	set := map[string]string{}
	next := func() string {
		n := int(data[0]) % 8
		n = min(n, len(data)-1)
		s := string(data[1 : 1+n])
		data = data[1+n:]
		return s
	}
	for len(data) > 0 {
		key, value := next(), ""
		if len(data) > 0 {
			value = next()
		}
		if _, dup := set[key]; !dup {
			set[key] = value
			pairs = append(pairs, engine.ContextPair{Key: key, Value: value})
		}
	}
	return pairs, set
}

// FuzzAppendContext: two contexts have one canonical form only if they are one
// set of pairs, whatever their order; and the form can be read back.
func FuzzAppendContext(f *testing.F) {
	f.Add([]byte("\x01a\x011\x01b\x012"), []byte("\x01b\x012\x01a\x011"))
	f.Add([]byte("\x01a\x021b"), []byte("\x02a1\x01b"))
	f.Add([]byte{}, []byte{0, 0})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		pairsA, setA := contextOf(a)
		pairsB, setB := contextOf(b)
		formA, formB := engine.AppendContext(nil, pairsA), engine.AppendContext([]byte("x"), pairsB)[1:]
		same := len(setA) == len(setB)
		for k, v := range setA {
			w, ok := setB[k]
			same = same && ok && v == w
		}
		if same != bytes.Equal(formA, formB) {
			t.Fatalf("%q and %q: same %v, forms %x and %x", setA, setB, same, formA, formB)
		}
		last, read := "", 0
		for form := formA; len(form) > 0; read++ {
			var s [2]string
			for i := range s {
				n := binary.BigEndian.Uint32(form)
				s[i], form = string(form[4:4+n]), form[4+n:]
			}
			if v, ok := setA[s[0]]; !ok || v != s[1] || read > 0 && s[0] <= last {
				t.Fatalf("pair %q of %q, after %q", s, setA, last)
			}
			last = s[0]
		}
		if read != len(setA) {
			t.Fatalf("%d pairs of %d", read, len(setA))
		}
	})
}

// FuzzMLDSA: verification from mu agrees with another implementation's
// verification from the message, for signatures changed in any way.
func FuzzMLDSA(f *testing.F) {
	type signed struct {
		k           engine.Key
		public, sig []byte
	}
	var keys []signed
	for i, spec := range []engine.Spec{engine.MLDSA44, engine.MLDSA65, engine.MLDSA87} {
		material := engineMaterial(f, spec)
		k := engineKey(f, spec, engine.SignVerify, material)
		spki, _ := engine.PublicKey(spec, material)
		sig := engineDo(f, k, engine.Op{Verb: engine.Sign, Alg: engine.AlgMLDSA, In: []byte("m")}).Out
		keys = append(keys, signed{k, spki[len(spki)-[]int{1312, 1952, 2592}[i]:], sig})
		f.Add(byte(i), []byte("m"), uint16(0), byte(0), uint16(0), byte(0))
		f.Add(byte(i), []byte("m"), uint16(len(sig)-1), byte(1), uint16(40), byte(2))
	}
	f.Fuzz(func(t *testing.T, which byte, msg []byte, at1 uint16, xor1 byte, at2 uint16, xor2 byte) {
		s := keys[int(which)%len(keys)]
		sig := bytes.Clone(s.sig)
		sig[int(at1)%len(sig)] ^= xor1
		sig[int(at2)%len(sig)] ^= xor2
		tr := sha3.SumSHAKE256(s.public, 64)
		mu := sha3.SumSHAKE256(slices.Concat(tr, []byte{0, 0}, msg), 64)
		raw := engineDo(t, s.k, engine.Op{Verb: engine.Verify, Alg: engine.AlgMLDSA, In: msg, Sig: sig}).Err
		ext := engineDo(t, s.k, engine.Op{Verb: engine.Verify, Alg: engine.AlgMLDSA, Type: engine.ExternalMu, In: mu, Sig: sig}).Err
		genuine := bytes.Equal(sig, s.sig) && string(msg) == "m"
		if raw != ext || genuine != (raw == nil) {
			t.Fatalf("raw %v, mu %v, genuine %v", raw, ext, genuine)
		}
	})
}
