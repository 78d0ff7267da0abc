package engine

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"hash"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sm2ecdh "github.com/emmansun/gmsm/ecdh"

	"keymill/batch"
)

// hexBytes is a byte string in hexadecimal.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) error {
	if len(text)%2 == 1 { // a positive integer without its leading zero
		text = append([]byte{'0'}, text...)
	}
	*h = make([]byte, len(text)/2)
	_, err := hex.Decode(*h, text)
	return err
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vector has the fields of all the kinds of vectors here.
type vector struct {
	ID                              int
	Comment, Result                 string
	Flags                           []string
	Key, IV, AAD, Msg, CT, Tag, Sig hexBytes
	Label, Public, Private, Shared  hexBytes
}

func (v *vector) flag(name string) bool {
	for _, f := range v.Flags {
		if f == name {
			return true
		}
	}
	return false
}

// wycheproof calls check for every vector of a selection in testdata. check
// reports whether the implementation accepted the vector; "acceptable" vectors
// may go either way.
func wycheproof(t *testing.T, file string, check func(t *testing.T, key []byte, v *vector) bool) {
	t.Helper()
	t.Run(file, func(t *testing.T) {
		data, err := os.ReadFile(filepath.Join("testdata", "wycheproof", file+"_test.json"))
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Groups []struct {
				Key   hexBytes
				Tests []vector
			}
		}
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, g := range doc.Groups {
			for _, v := range g.Tests {
				n++
				ok := check(t, g.Key, &v)
				if ok && v.Result == "invalid" || !ok && v.Result == "valid" {
					t.Errorf("test %d (%s, %v): accepted %v, want %s", v.ID, v.Comment, v.Flags, ok, v.Result)
				}
			}
		}
		if n < 30 {
			t.Errorf("only %d vectors", n)
		}
	})
}

func TestWycheproofAESGCM(t *testing.T) {
	wycheproof(t, "aes_gcm", func(t *testing.T, _ []byte, v *vector) bool {
		aead, sealed := newGCM(v.Key), slices.Concat(v.CT, v.Tag)
		if v.Result == "valid" {
			if got := aead.Seal(nil, v.IV, v.Msg, v.AAD); !bytes.Equal(got, sealed) {
				t.Errorf("test %d: sealed %x", v.ID, got)
			}
		}
		got, err := aead.Open(nil, v.IV, sealed, v.AAD)
		return err == nil && bytes.Equal(got, v.Msg)
	})
}

// TestXAESVectors opens the two worked examples of the XAES-256-GCM
// specification through the engine's own path, twice: with the derived key
// computed, and with it found in the cache.
func TestXAESVectors(t *testing.T) {
	for _, v := range []struct {
		key         byte
		aad, sealed string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		c, err := newCipherState(bytes.Repeat([]byte{v.key}, 32))
		if err != nil {
			t.Fatal(err)
		}
		body := append([]byte("ABCDEFGHIJKLMNOPQRSTUVWX"), unhex(t, v.sealed)...)
		for range 2 {
			if got, ok := c.open(nil, body, []byte(v.aad)); !ok || string(got) != "XAES-256-GCM" {
				t.Errorf("key %d: %q, %v", v.key, got, ok)
			}
		}
	}
}

func TestWycheproofHMAC(t *testing.T) {
	for file, c := range map[string]struct {
		alg  Algorithm
		hash func() hash.Hash
	}{
		"hmac_sha224": {AlgHMACSHA224, sha256.New224}, "hmac_sha256": {AlgHMACSHA256, sha256.New},
		"hmac_sha384": {AlgHMACSHA384, sha512.New384}, "hmac_sha512": {AlgHMACSHA512, sha512.New},
	} {
		wycheproof(t, file, func(t *testing.T, _ []byte, v *vector) bool {
			// Not newMACState: some of these keys are shorter than any we take.
			m := &macState{v.Key, c.hash, batch.NewSlots[macLane](1)}
			op := Op{Verb: GenerateMAC, Alg: c.alg, In: v.Msg}
			if err := m.do(&op); err != nil || v.Result == "valid" && !bytes.Equal(op.Out, v.Tag) {
				t.Errorf("test %d: %x, %v", v.ID, op.Out, err)
			}
			return m.do(&Op{Verb: VerifyMAC, Alg: c.alg, In: v.Msg, Sig: v.Tag}) == nil
		})
	}
}

func TestWycheproofSignatures(t *testing.T) {
	for file, c := range map[string]struct {
		spec Spec
		alg  Algorithm
	}{
		"rsa_pss_2048_sha256_mgf1_32": {RSA2048, AlgPSSSHA256},
		"rsa_pss_3072_sha256_mgf1_32": {RSA3072, AlgPSSSHA256},
		"rsa_signature_2048_sha256":   {RSA2048, AlgPKCS1SHA256},
		"rsa_signature_3072_sha384":   {RSA3072, AlgPKCS1SHA384},
		"rsa_signature_4096_sha512":   {RSA4096, AlgPKCS1SHA512},
		"ecdsa_secp256r1_sha256":      {P256, AlgECDSASHA256},
		"ecdsa_secp384r1_sha384":      {P384, AlgECDSASHA384},
		"ecdsa_secp521r1_sha512":      {P521, AlgECDSASHA512},
		"eddsa":                       {Ed25519, AlgEd25519},
	} {
		wycheproof(t, file, func(t *testing.T, key []byte, v *vector) bool {
			if c.spec == Ed25519 && len(key) == ed25519.PublicKeySize {
				key, _ = x509.MarshalPKIXPublicKey(ed25519.PublicKey(key))
			}
			ok, n := true, 0
			for p, pub := range publics(t, c.spec, SignVerify, key) {
				got := pub.public(&Op{Verb: Verify, Alg: c.alg, In: v.Msg, Sig: v.Sig}) == nil
				if n++; n > 1 && got != ok {
					t.Errorf("test %d: %v says %v, another provider the opposite", v.ID, p, got)
				}
				ok = got
			}
			return ok
		})
	}
}

// TestWycheproofPSSSaltLength: signatures that are right but for a salt that
// is not as long as the hash are wrong for KMS.
func TestWycheproofPSSSaltLength(t *testing.T) {
	for file, c := range map[string]struct {
		spec Spec
		alg  Algorithm
	}{
		"rsa_pss_2048_sha256_mgf1_0":  {RSA2048, AlgPSSSHA256},
		"rsa_pss_4096_sha512_mgf1_32": {RSA4096, AlgPSSSHA512},
	} {
		wycheproof(t, file, func(t *testing.T, key []byte, v *vector) bool {
			for p, pub := range publics(t, c.spec, SignVerify, key) {
				if pub.public(&Op{Verb: Verify, Alg: c.alg, In: v.Msg, Sig: v.Sig}) == nil && v.Result == "valid" {
					t.Errorf("test %d: a salt of another length passed with %v", v.ID, p)
				}
			}
			return v.Result == "valid"
		})
	}
}

func TestWycheproofOAEP(t *testing.T) {
	for file, c := range map[string]struct {
		spec Spec
		alg  Algorithm
	}{
		"rsa_oaep_2048_sha1_mgf1sha1":     {RSA2048, AlgOAEPSHA1},
		"rsa_oaep_2048_sha256_mgf1sha256": {RSA2048, AlgOAEPSHA256},
		"rsa_oaep_3072_sha256_mgf1sha256": {RSA3072, AlgOAEPSHA256},
		"rsa_oaep_4096_sha256_mgf1sha256": {RSA4096, AlgOAEPSHA256},
	} {
		wycheproof(t, file, func(t *testing.T, key []byte, v *vector) bool {
			ok, n := true, 0
			for p, priv := range privates(t, c.spec, EncryptDecrypt, key) {
				op := Op{Verb: Decrypt, Alg: c.alg, In: v.CT}
				err := priv.private(&op)
				if err != nil && err != ErrInvalidCiphertext {
					t.Errorf("test %d: %v: %v", v.ID, p, err)
				}
				got := err == nil && bytes.Equal(op.Out, v.Msg)
				if len(v.Label) > 0 { // KMS has no labels: these must fail
					if err == nil {
						t.Errorf("test %d: %v decrypted although it has a label", v.ID, p)
					}
					got = v.Result == "valid"
				}
				if n++; n > 1 && got != ok {
					t.Errorf("test %d: %v says %v, another provider the opposite", v.ID, p, got)
				}
				ok = got
			}
			return ok
		})
	}
}

func TestWycheproofECDH(t *testing.T) {
	for file, c := range map[string]struct {
		spec  Spec
		curve ecdh.Curve
		size  int
	}{
		"ecdh_secp256r1": {P256, ecdh.P256(), 32},
		"ecdh_secp384r1": {P384, ecdh.P384(), 48},
		"ecdh_secp521r1": {P521, ecdh.P521(), 66},
	} {
		wycheproof(t, file, func(t *testing.T, _ []byte, v *vector) bool {
			scalar := new(big.Int).SetBytes(v.Private).FillBytes(make([]byte, c.size))
			priv, err := c.curve.NewPrivateKey(scalar)
			if err != nil {
				t.Fatalf("test %d: private key: %v", v.ID, err)
			}
			material, err := x509.MarshalPKCS8PrivateKey(priv)
			if err != nil {
				t.Fatal(err)
			}
			ok, n := true, 0
			for p, priv := range privates(t, c.spec, KeyAgreement, material) {
				op := Op{Verb: DeriveSecret, Alg: AlgECDH, In: v.Public}
				err := priv.private(&op)
				if err != nil && err != ErrInvalidPublicKey {
					t.Errorf("test %d: %v: %v", v.ID, p, err)
				}
				got := err == nil && bytes.Equal(op.Out, v.Shared)
				if n++; n > 1 && got != ok {
					t.Errorf("test %d: %v says %v, another provider the opposite", v.ID, p, got)
				}
				ok = got
			}
			if v.flag("CompressedPoint") { // valid, but not a form that we take
				return v.Result == "valid"
			}
			return ok
		})
	}
}

// moduleFile opens a test vector file that ships with a module we depend on,
// unpacked if its name ends in .gz.
func moduleFile(t *testing.T, module, file string) []byte {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil || len(bytes.TrimSpace(out)) == 0 {
		t.Skipf("SKIP: the source of module %s is not here, so its vectors are not checked", module)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(out)), filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestWycheproofSecp256k1 uses the vectors in the curve library's module.
func TestWycheproofSecp256k1(t *testing.T) {
	data := moduleFile(t, "gitlab.com/yawning/secp256k1-voi", "secec/testdata/wycheproof/ecdsa_secp256k1_sha256_test.json")
	var doc struct {
		TestGroups []struct {
			KeyDer, PublicKeyDer hexBytes
			Tests                []struct {
				TcID             int
				Comment, Result  string
				Flags            []string
				Msg, Sig         hexBytes
				KeyDer, ParamDer hexBytes
			}
		}
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range doc.TestGroups {
		pub, err := parsePublicKey(Secp256k1, append(g.KeyDer, g.PublicKeyDer...))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range g.Tests {
			n++
			ok := pub.public(&Op{Verb: Verify, Alg: AlgECDSASHA256, In: v.Msg, Sig: v.Sig}) == nil
			if ok && v.Result == "invalid" || !ok && v.Result == "valid" {
				t.Errorf("test %d (%s): accepted %v, want %s", v.TcID, v.Comment, ok, v.Result)
			}
		}
	}
	if n < 100 {
		t.Errorf("only %d vectors", n)
	}
}

var mldsaFiles = map[Spec]string{MLDSA44: "mldsa_44", MLDSA65: "mldsa_65", MLDSA87: "mldsa_87"}

// TestWycheproofMLDSA verifies the signatures of CIRCL's copy of the vectors
// twice: from the message, by CIRCL, and from mu, by our own code. The two
// verdicts must also agree with each other.
func TestWycheproofMLDSA(t *testing.T) {
	for spec, name := range mldsaFiles {
		data := moduleFile(t, "github.com/cloudflare/circl", "sign/schemes/testdata/wycheproof/"+name+"_verify_test.json.gz")
		var doc struct {
			TestGroups []struct {
				PublicKey hexBytes
				Tests     []struct {
					TcID            int
					Comment, Result string
					Msg, Ctx, Sig   hexBytes
				}
			}
		}
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, g := range doc.TestGroups {
			pub, err := parsePublicKey(spec, marshalSPKI(mldsaOID(spec), nil, g.PublicKey))
			for _, v := range g.Tests {
				if err != nil {
					if v.Result == "valid" {
						t.Errorf("%v test %d: public key: %v", spec, v.TcID, err)
					}
					continue
				}
				if len(v.Ctx) > 0 {
					continue // KMS signs with the empty context only
				}
				n++
				raw := pub.public(&Op{Verb: Verify, Alg: AlgMLDSA, In: v.Msg, Sig: v.Sig})
				mu := pub.public(&Op{Verb: Verify, Alg: AlgMLDSA, Type: ExternalMu, In: externalMu(g.PublicKey, v.Msg), Sig: v.Sig})
				if raw != mu || (raw == nil) != (v.Result == "valid") {
					t.Errorf("%v test %d (%s): raw %v, mu %v, want %s", spec, v.TcID, v.Comment, raw, mu, v.Result)
				}
			}
		}
		if n < 40 {
			t.Errorf("%v: only %d vectors", spec, n)
		}
	}
}

// TestACVPMLDSAKeys checks that a seed expands to the public key that NIST's
// ACVP server computed, through our PKCS#8, and that both signers agree on it.
func TestACVPMLDSAKeys(t *testing.T) {
	const dir = "sign/mldsa/testdata/ML-DSA-keyGen-FIPS204/"
	var prompt, want struct {
		TestGroups []struct {
			TgID         int
			ParameterSet string
			Tests        []struct {
				TcID     int
				Seed, PK hexBytes
			}
		}
	}
	if err := json.Unmarshal(moduleFile(t, "github.com/cloudflare/circl", dir+"prompt.json.gz"), &prompt); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(moduleFile(t, "github.com/cloudflare/circl", dir+"expectedResults.json.gz"), &want); err != nil {
		t.Fatal(err)
	}
	publics := map[int][]byte{}
	for _, g := range want.TestGroups {
		for _, v := range g.Tests {
			publics[v.TcID] = v.PK
		}
	}
	n := 0
	for _, g := range prompt.TestGroups {
		spec, ok := ParseSpec(strings.ReplaceAll(g.ParameterSet, "-", "_"))
		if !ok {
			t.Fatalf("parameter set %q", g.ParameterSet)
		}
		for _, v := range g.Tests {
			n++
			p, err := parseMLDSA(spec, marshalMLDSAPrivate(spec, v.Seed))
			if err != nil {
				t.Fatal(err)
			}
			key, err := p.(*mldsaPrivate).muKey()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p.(*mldsaPrivate).public, publics[v.TcID]) || !bytes.Equal(key.PublicKey().Bytes(), publics[v.TcID]) {
				t.Errorf("%v test %d: wrong public key", spec, v.TcID)
			}
		}
	}
	if n < 30 {
		t.Errorf("only %d vectors", n)
	}
}

// TestEd25519phVector is the example of RFC 8032, section 7.3.
func TestEd25519phVector(t *testing.T) {
	seed := unhex(t, "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42")
	sig := unhex(t, "98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae41"+
		"31f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406")
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}
	priv, err := parsePrivateKey(Ed25519, der)
	if err != nil {
		t.Fatal(err)
	}
	// Through private and public, below the rule that a digest has 64 bytes.
	op := Op{Verb: Sign, Alg: AlgEd25519ph, Type: Digest, In: []byte("abc")}
	if err := priv.private(&op); err != nil || !bytes.Equal(op.Out, sig) {
		t.Fatalf("signature %x, %v", op.Out, err)
	}
	spki, _ := PublicKey(Ed25519, der)
	pub, err := parsePublicKey(Ed25519, spki)
	if err != nil {
		t.Fatal(err)
	}
	if err := pub.public(&Op{Verb: Verify, Alg: AlgEd25519ph, Type: Digest, In: []byte("abc"), Sig: sig}); err != nil {
		t.Fatal(err)
	}
}

// TestEd25519phHashesAgain shows what KMS documents: a caller who hashes the
// message and sends the digest gets Ed25519ph of the digest.
func TestEd25519phHashesAgain(t *testing.T) {
	material := testMaterial(t, Ed25519)
	k := keyOf(t, testID, Ed25519, SignVerify, material)
	d := sha512.Sum512([]byte("message"))
	sig := must(t, k, Op{Verb: Sign, Alg: AlgEd25519ph, Type: Digest, In: d[:]})
	key, err := x509.ParsePKIXPublicKey(k.spki)
	if err != nil {
		t.Fatal(err)
	}
	dd := sha512.Sum512(d[:])
	if err := ed25519.VerifyWithOptions(key.(ed25519.PublicKey), dd[:], sig, &ed25519.Options{Hash: crypto.SHA512}); err != nil {
		t.Fatal(err)
	}
}

// TestSM2Vectors are the examples of GM/T 0003.5 (the recommended curve of
// GB/T 32918.5), annexes A and C: one signature and one ciphertext.
func TestSM2Vectors(t *testing.T) {
	scalar := unhex(t, "3945208F 7B2144B1 3F36E38A C6D39F95 88939369 2860B51A 42FB81EF 4DF7C5B8")
	point := unhex(t, "04 09F9DF31 1E5421A1 50DD7D16 1E4BC5C6 72179FAD 1833FC07 6BB08FF3 56F35020"+
		"CCEA490C E26775A5 2DC6EA71 8CC1AA60 0AED05FB F35E084A 6632F607 2DA9AD13")
	der := marshalECPrivate(oidSM2, bytes.Clone(scalar), point)
	spki, err := PublicKey(SM2, der)
	if err != nil || !bytes.Equal(spki, marshalSPKI(oidECPublicKey, oidSM2, point)) {
		t.Fatalf("public key %x, %v", spki, err)
	}
	pub, err := parsePublicKey(SM2, spki)
	if err != nil {
		t.Fatal(err)
	}
	sig := derPair(unhex(t, "F5A03B06 48D2C463 0EEAC513 E1BB81A1 5944DA38 27D5B741 43AC7EAC EEE720B3"),
		unhex(t, "B1B6AA29 DF212FD8 763182BC 0D421CA1 BB9038FD 1F7F42D4 840B69C4 85BBC1AA"))
	e := unhex(t, "F0B43E94 BA45ACCA ACE692ED 534382EB 17E6AB5A 19CE7B31 F4486FDF C0D28640")
	if err := pub.public(&Op{Verb: Verify, Alg: AlgSM2DSA, In: []byte("message digest"), Sig: sig}); err != nil {
		t.Errorf("signature of the message: %v", err)
	}
	if err := pub.public(&Op{Verb: Verify, Alg: AlgSM2DSA, Type: Digest, In: e, Sig: sig}); err != nil {
		t.Errorf("signature of the digest: %v", err)
	}

	var b derBuilder
	b.integer(unhex(t, "04EBFC71 8E8D1798 62043226 8E77FEB6 415E2EDE 0E073C0F 4F640ECD 2E149A73"))
	b.integer(unhex(t, "E858F9D8 1E5430A5 7B36DAAB 8F950A3C 64E6EE6A 63094D99 283AFF76 7E124DF0"))
	b.octets(unhex(t, "59983C18 F809E262 923C53AE C295D303 83B54E39 D609D160 AFCB1908 D0BD8766"))
	b.octets(unhex(t, "21886CA9 89CA9C7D 58087307 CA93092D 651EFA"))
	priv, err := parsePrivateKey(SM2, der)
	if err != nil {
		t.Fatal(err)
	}
	op := Op{Verb: Decrypt, Alg: AlgSM2PKE, In: b.sequence()}
	if err := priv.private(&op); err != nil || string(op.Out) != "encryption standard" {
		t.Errorf("decrypted %q, %v", op.Out, err)
	}
	// The shared secret with oneself is d times the public point.
	op = Op{Verb: DeriveSecret, Alg: AlgECDH, In: spki}
	if err := priv.private(&op); err != nil {
		t.Fatal(err)
	}
	k, _ := sm2ecdh.P256().NewPrivateKey(scalar)
	if want, _ := k.ECDH(k.PublicKey()); !bytes.Equal(op.Out, want) {
		t.Errorf("shared secret %x", op.Out)
	}
}
