package engine

import (
	"bytes"
	"context"
	"crypto/sha3"
	"crypto/x509"
	"testing"
)

// testID is the id of every key in these tests.
var testID = KeyID{ID: [16]byte{0x12, 0x34, 0xab, 0xcd, 15: 0xff}}

// allSpecs lists every spec, RSA_4096 last because its keys take long to make.
var allSpecs = []Spec{
	SymmetricDefault, HMAC224, HMAC256, HMAC384, HMAC512, RSA2048, RSA3072, P256, P384, P521,
	Secp256k1, Ed25519, MLDSA44, MLDSA65, MLDSA87, SM2, RSA4096,
}

// testMaterial makes material once for each spec and lends copies.
var testMaterial = func() func(t testing.TB, spec Spec) []byte {
	made := map[Spec][]byte{}
	return func(t testing.TB, spec Spec) []byte {
		t.Helper()
		if made[spec] == nil {
			m, err := GenerateMaterial(spec)
			if err != nil {
				t.Fatalf("GenerateMaterial(%v): %v", spec, err)
			}
			made[spec] = m
		}
		return bytes.Clone(made[spec])
	}
}()

// keyOf returns a handle on the given versions of material, the last current.
func keyOf(t testing.TB, id KeyID, spec Spec, usage Usage, materials ...[]byte) *local {
	t.Helper()
	var versions []KeyVersion
	for i, m := range materials {
		versions = append(versions, KeyVersion{uint32(i + 1), ComputeMaterialID(id, m)})
	}
	var spki []byte
	if spec.Asymmetric() {
		var err error
		if spki, err = PublicKey(spec, materials[0]); err != nil {
			t.Fatal(err)
		}
	}
	src := func(_ context.Context, v uint32) ([]byte, error) { return bytes.Clone(materials[v-1]), nil }
	return NewLocalKey(id, spec, usage, versions, len(versions)-1, spki, src).(*local)
}

// do carries out one operation, warming the key when it is cold.
func do(t testing.TB, k Key, op Op) Op {
	t.Helper()
	ops := []Op{op}
	k.Do(ops)
	if ops[0].Err == ErrPending {
		if err := k.Warm(context.Background(), ops); err != nil {
			t.Fatalf("Warm: %v", err)
		}
		if ops[0].Err == ErrPending {
			k.Do(ops)
		}
	}
	return ops[0]
}

// must is do for an operation that has to succeed.
func must(t testing.TB, k Key, op Op) []byte {
	t.Helper()
	op = do(t, k, op)
	if op.Err != nil {
		t.Fatalf("%v %v: %v", k.Spec(), op.Alg, op.Err)
	}
	return op.Out
}

// externalMu computes the mu of a message: SHAKE256(SHAKE256(pk, 64) || 0 || 0
// || M, 64), the zeros being "pure" and the length of the empty context.
func externalMu(public, message []byte) []byte {
	tr := sha3.SumSHAKE256(public, 64)
	return sha3.SumSHAKE256(append(append(tr, 0, 0), message...), 64)
}

// messages returns an input of every message type the algorithm takes, all for
// one message if they can be.
func messages(t *testing.T, spec Spec, alg Algorithm, material []byte) map[MessageType][]byte {
	t.Helper()
	msg := []byte("the message")
	switch alg {
	case AlgEd25519:
		return map[MessageType][]byte{Raw: msg}
	case AlgEd25519ph:
		return map[MessageType][]byte{Digest: make([]byte, 64)}
	case AlgMLDSA:
		p, err := parsePrivateKey(spec, material)
		if err != nil {
			t.Fatal(err)
		}
		return map[MessageType][]byte{Raw: msg, ExternalMu: externalMu(p.(*mldsaPrivate).public, msg)}
	case AlgSM2DSA:
		return map[MessageType][]byte{Raw: msg, Digest: make([]byte, 32)}
	}
	h := alg.hash().New()
	h.Write(msg)
	return map[MessageType][]byte{Raw: msg, Digest: h.Sum(nil)}
}

// TestEveryAlgorithm walks the whole table: each usage and algorithm of each
// spec does its work, and its inverse rejects a changed result.
func TestEveryAlgorithm(t *testing.T) {
	for _, spec := range allSpecs {
		material := testMaterial(t, spec)
		for _, usage := range spec.Usages() {
			k := keyOf(t, testID, spec, usage, material)
			for _, alg := range spec.Algorithms(usage) {
				t.Run(spec.String()+"/"+alg.String(), func(t *testing.T) {
					switch usage {
					case EncryptDecrypt:
						in := bytes.Repeat([]byte{7}, min(100, MaxPlaintext(spec, alg)))
						blob := must(t, k, Op{Verb: Encrypt, Alg: alg, In: in})
						if got := must(t, k, Op{Verb: Decrypt, Alg: alg, In: blob}); !bytes.Equal(got, in) {
							t.Fatal("decrypted something else")
						}
						blob[len(blob)-1] ^= 1
						if op := do(t, k, Op{Verb: Decrypt, Alg: alg, In: blob}); op.Err != ErrInvalidCiphertext || len(op.Out) != 0 {
							t.Fatalf("changed ciphertext: %v", op.Err)
						}
						full := make([]byte, MaxPlaintext(spec, alg))
						must(t, k, Op{Verb: Encrypt, Alg: alg, In: full})
						if op := do(t, k, Op{Verb: Encrypt, Alg: alg, In: append(full, 0)}); op.Err != ErrPlaintextTooLong {
							t.Fatalf("one byte too many: %v", op.Err)
						}
					case SignVerify:
						testSignVerify(t, k, alg, messages(t, spec, alg, material))
					case GenerateVerifyMAC:
						mac := must(t, k, Op{Verb: GenerateMAC, Alg: alg, In: []byte("m")})
						if len(mac) != alg.hash().Size() {
							t.Fatalf("MAC of %d bytes", len(mac))
						}
						must(t, k, Op{Verb: VerifyMAC, Alg: alg, In: []byte("m"), Sig: mac})
						mac[0] ^= 1
						for _, bad := range [][]byte{mac, mac[1:], nil} {
							if op := do(t, k, Op{Verb: VerifyMAC, Alg: alg, In: []byte("m"), Sig: bad}); op.Err != ErrInvalidMAC {
								t.Fatalf("changed MAC: %v", op.Err)
							}
						}
					case KeyAgreement:
						other, spki, err := GenerateKeyPair(spec)
						if err != nil {
							t.Fatal(err)
						}
						k2 := keyOf(t, testID, spec, usage, other)
						a := must(t, k, Op{Verb: DeriveSecret, Alg: alg, In: spki})
						b := must(t, k2, Op{Verb: DeriveSecret, Alg: alg, In: k.spki})
						want := map[Spec]int{P256: 32, P384: 48, P521: 66, SM2: 32}[spec]
						if !bytes.Equal(a, b) || len(a) != want {
							t.Fatalf("the two sides disagree: %x %x", a, b)
						}
					}
				})
			}
		}
	}
}

func testSignVerify(t *testing.T, k Key, alg Algorithm, ins map[MessageType][]byte) {
	same := alg != AlgSM2DSA // SM2's digest here is not that of the message
	for typ, in := range ins {
		sig := must(t, k, Op{Verb: Sign, Alg: alg, Type: typ, In: in})
		for vtyp, vin := range ins {
			if vtyp == typ || same {
				must(t, k, Op{Verb: Verify, Alg: alg, Type: vtyp, In: vin, Sig: sig})
			}
		}
		changed := bytes.Clone(in)
		changed[0] ^= 1
		if op := do(t, k, Op{Verb: Verify, Alg: alg, Type: typ, In: changed, Sig: sig}); op.Err != ErrInvalidSignature {
			t.Errorf("%v of another message: %v", typ, op.Err)
		}
		for _, bad := range [][]byte{nil, sig[1:], append(bytes.Clone(sig), 0)} {
			if op := do(t, k, Op{Verb: Verify, Alg: alg, Type: typ, In: in, Sig: bad}); op.Err != ErrInvalidSignature {
				t.Errorf("%v, signature of %d bytes: %v", typ, len(bad), op.Err)
			}
		}
		again := must(t, k, Op{Verb: Sign, Alg: alg, Type: typ, In: in})
		deterministic := alg == AlgEd25519 || alg == AlgEd25519ph || alg >= AlgPKCS1SHA256 && alg <= AlgPKCS1SHA512
		if bytes.Equal(sig, again) != deterministic {
			t.Errorf("%v: two signatures are equal: %v", typ, !deterministic)
		}
	}
	for _, typ := range []MessageType{Raw, Digest, ExternalMu} {
		in, ok := ins[typ]
		if !ok {
			if op := do(t, k, Op{Verb: Sign, Alg: alg, Type: typ, In: make([]byte, 64)}); op.Err != ErrMessageType {
				t.Errorf("signing a %v message: %v", typ, op.Err)
			}
		} else if typ != Raw {
			for _, bad := range [][]byte{in[1:], append(bytes.Clone(in), 0), nil} {
				if op := do(t, k, Op{Verb: Sign, Alg: alg, Type: typ, In: bad}); op.Err != ErrDigestLength {
					t.Errorf("%v of %d bytes: %v", typ, len(bad), op.Err)
				}
			}
		}
	}
}

// TestEncodings reads every key pair back: x509 has to agree where it knows the
// spec, and the public key must be the same from both ends.
func TestEncodings(t *testing.T) {
	for _, spec := range allSpecs {
		if !spec.Asymmetric() {
			continue
		}
		material := testMaterial(t, spec)
		spki, err := PublicKey(spec, material)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parsePublicKey(spec, spki); err != nil {
			t.Errorf("%v: own public key: %v", spec, err)
		}
		if _, err := parsePublicKey(spec, append(spki, 0)); err != ErrInvalidPublicKey {
			t.Errorf("%v: trailing byte: %v", spec, err)
		}
		std := spec.RSA() || nistCurve(spec) != nil || spec == Ed25519
		if std {
			if _, err := x509.ParsePKIXPublicKey(spki); err != nil {
				t.Errorf("%v: x509: %v", spec, err)
			}
		}
		for _, other := range allSpecs {
			if other == spec || !other.Asymmetric() {
				continue
			}
			if _, err := parsePrivateKey(other, material); err == nil {
				t.Errorf("a private key of %v passed for %v", spec, other)
			}
			if _, err := parsePublicKey(other, spki); err == nil {
				t.Errorf("a public key of %v passed for %v", spec, other)
			}
		}
	}
}
