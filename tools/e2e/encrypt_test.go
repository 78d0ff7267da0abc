package e2e

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"hash"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"github.com/google/go-cmp/cmp"
)

const incorrectKey = "The key ID in the request does not identify a CMK that can perform this operation."

// TestSymmetric encrypts and decrypts every length class, with and without
// naming the key.
func TestSymmetric(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := s.newKey("", "")
	other := s.symmetricKey()
	for _, n := range []int{1, 16, 4095, 4096} {
		plaintext := make([]byte, n)
		rand.Read(plaintext)
		enc := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: plaintext}))(t)
		if *enc.KeyId != *key.Arn || enc.EncryptionAlgorithm != types.EncryptionAlgorithmSpecSymmetricDefault || len(enc.CiphertextBlob) > 6144 {
			t.Errorf("%d bytes: Encrypt answered key %s, %s, %d bytes", n, *enc.KeyId, enc.EncryptionAlgorithm, len(enc.CiphertextBlob))
		}
		if bytes.Contains(enc.CiphertextBlob, plaintext) && n > 1 {
			t.Errorf("%d bytes: the ciphertext contains the plaintext", n)
		}
		again := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: plaintext}))(t)
		if bytes.Equal(enc.CiphertextBlob, again.CiphertextBlob) {
			t.Errorf("%d bytes: two encryptions are equal", n)
		}
		for _, id := range []*string{nil, key.KeyId, key.Arn} {
			dec := must(s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: id, CiphertextBlob: enc.CiphertextBlob}))(t)
			if !bytes.Equal(dec.Plaintext, plaintext) || *dec.KeyId != *key.Arn ||
				dec.EncryptionAlgorithm != types.EncryptionAlgorithmSpecSymmetricDefault || *dec.KeyMaterialId != *key.CurrentKeyMaterialId {
				t.Errorf("%d bytes: Decrypt answered %+v", n, dec)
			}
		}
		_, err := s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: &other, CiphertextBlob: enc.CiphertextBlob})
		wantError(t, err, "IncorrectKeyException", incorrectKey)
	}

	_, err := s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: make([]byte, 4097)})
	wantError(t, err, "ValidationException", "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096")
	_, err = s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte{}})
	wantError(t, err, "ValidationException", "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length greater than or equal to 1")
	_, err = s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: make([]byte, 6145)})
	wantError(t, err, "ValidationException", "1 validation error detected: Value at 'ciphertextBlob' failed to satisfy constraint: Member must have length less than or equal to 6144")
	_, err = s.Decrypt(s.ctx(), &kms.DecryptInput{})
	wantError(t, err, "ValidationException", "1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null")
	for _, alg := range []types.EncryptionAlgorithmSpec{types.EncryptionAlgorithmSpecRsaesOaepSha256, types.EncryptionAlgorithmSpecSm2pke} {
		_, err = s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), EncryptionAlgorithm: alg})
		wantError(t, err, "InvalidKeyUsageException", fmt.Sprintf("Algorithm %s is incompatible with key spec SYMMETRIC_DEFAULT.", alg))
		_, err = s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: []byte("x"), EncryptionAlgorithm: alg})
		wantError(t, err, "InvalidKeyUsageException", fmt.Sprintf("Algorithm %s is incompatible with key spec SYMMETRIC_DEFAULT.", alg))
	}
	_, err = s.GetPublicKey(s.ctx(), &kms.GetPublicKeyInput{KeyId: key.KeyId})
	wantError(t, err, "UnsupportedOperationException", "...")
	_, err = s.Sign(s.ctx(), &kms.SignInput{KeyId: key.KeyId, Message: []byte("x"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256})
	wantError(t, err, "InvalidKeyUsageException", *key.Arn+" key usage is ENCRYPT_DECRYPT which is not valid for Sign.")
}

// TestEncryptionContext: an exact match decides, whatever the order of the pairs.
func TestEncryptionContext(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	id := s.symmetricKey()
	// Many pairs: Go's maps and the SDK send them in another order each time.
	full := map[string]string{"": "empty key", "empty value": "", "Ümläut": "Straße", "a": "b", "ab": "", "line\nbreak": "\"quoted\"", "emoji 🔑": "\u0000"}
	for i := range 20 {
		full[fmt.Sprint("pair ", i)] = strings.Repeat("v", i)
	}
	changed := func(change func(map[string]string)) map[string]string {
		m := make(map[string]string)
		for k, v := range full {
			m[k] = v
		}
		change(m)
		return m
	}
	for _, tc := range []struct {
		name         string
		sealed, open map[string]string
		ok           bool
	}{
		{"equal", full, full, true},
		{"absent and absent", nil, nil, true},
		{"empty and absent", map[string]string{}, nil, true},
		{"absent and empty", nil, map[string]string{}, true},
		{"sealed with, opened without", full, nil, false},
		{"sealed without, opened with", nil, map[string]string{"a": "b"}, false},
		{"one pair missing", full, changed(func(m map[string]string) { delete(m, "a") }), false},
		{"one pair more", full, changed(func(m map[string]string) { m["z"] = "z" }), false},
		{"another value", full, changed(func(m map[string]string) { m["a"] = "c" }), false},
		{"value in another case", full, changed(func(m map[string]string) { m["a"] = "B" }), false},
		{"key in another case", full, changed(func(m map[string]string) { delete(m, "a"); m["A"] = "b" }), false},
		{"border between key and value moved", map[string]string{"ab": "c"}, map[string]string{"a": "bc"}, false},
		{"border between pairs moved", map[string]string{"a": "b", "c": "d"}, map[string]string{"a": "bcd"}, false},
		{"key and value exchanged", map[string]string{"a": "b"}, map[string]string{"b": "a"}, false},
		{"white space", map[string]string{"a": "b"}, map[string]string{"a": "b "}, false},
		{"unicode normal forms", map[string]string{"a": "\u00e9"}, map[string]string{"a": "e\u0301"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.in(t)
			enc := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte("secret"), EncryptionContext: tc.sealed}))(t)
			dk := must(s.GenerateDataKey(s.ctx(), &kms.GenerateDataKeyInput{KeyId: &id, KeySpec: types.DataKeySpecAes128, EncryptionContext: tc.sealed}))(t)
			for _, blob := range [][]byte{enc.CiphertextBlob, dk.CiphertextBlob} {
				_, err := s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: tc.open})
				if tc.ok {
					if err != nil {
						t.Error(err)
					}
				} else {
					wantError(t, err, "InvalidCiphertextException", "")
				}
				_, err = s.ReEncrypt(s.ctx(), &kms.ReEncryptInput{DestinationKeyId: &id, CiphertextBlob: blob, SourceEncryptionContext: tc.open})
				if tc.ok {
					if err != nil {
						t.Error(err)
					}
				} else {
					wantError(t, err, "InvalidCiphertextException", "")
				}
			}
		})
	}
}

// TestRSAEncryption: what the public key encrypts outside is decrypted inside,
// up to the last byte that fits.
func TestRSAEncryption(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	for _, tc := range []struct {
		spec types.KeySpec
		max  map[types.EncryptionAlgorithmSpec]int
	}{
		{types.KeySpecRsa2048, map[types.EncryptionAlgorithmSpec]int{"RSAES_OAEP_SHA_1": 214, "RSAES_OAEP_SHA_256": 190}},
		{types.KeySpecRsa3072, map[types.EncryptionAlgorithmSpec]int{"RSAES_OAEP_SHA_1": 342, "RSAES_OAEP_SHA_256": 318}},
		{types.KeySpecRsa4096, map[types.EncryptionAlgorithmSpec]int{"RSAES_OAEP_SHA_1": 470, "RSAES_OAEP_SHA_256": 446}},
	} {
		t.Run(string(tc.spec), func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			key := s.newKey(tc.spec, types.KeyUsageTypeEncryptDecrypt)
			pub := must(s.GetPublicKey(s.ctx(), &kms.GetPublicKeyInput{KeyId: key.KeyId}))(t)
			if len(pub.EncryptionAlgorithms) != 2 || pub.SigningAlgorithms != nil || pub.KeyUsage != types.KeyUsageTypeEncryptDecrypt {
				t.Errorf("GetPublicKey answered %+v", pub)
			}
			rsaKey := must(x509.ParsePKIXPublicKey(pub.PublicKey))(t).(*rsa.PublicKey)
			if rsaKey.E != 65537 || fmt.Sprintf("RSA_%d", rsaKey.N.BitLen()) != string(tc.spec) {
				t.Errorf("exponent %d, %d bits", rsaKey.E, rsaKey.N.BitLen())
			}
			for alg, limit := range tc.max {
				var h hash.Hash = sha256.New()
				if alg == types.EncryptionAlgorithmSpecRsaesOaepSha1 {
					h = sha1.New()
				}
				for _, n := range []int{1, limit} {
					plaintext := make([]byte, n)
					rand.Read(plaintext)
					outside := must(rsa.EncryptOAEP(h, rand.Reader, rsaKey, plaintext, nil))(t)
					inside := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: plaintext, EncryptionAlgorithm: alg}))(t)
					if *inside.KeyId != *key.Arn || inside.EncryptionAlgorithm != alg {
						t.Errorf("Encrypt answered %s, %s", *inside.KeyId, inside.EncryptionAlgorithm)
					}
					for _, ciphertext := range [][]byte{outside, inside.CiphertextBlob} {
						dec := must(s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: ciphertext, EncryptionAlgorithm: alg}))(t)
						if !bytes.Equal(dec.Plaintext, plaintext) || *dec.KeyId != *key.Arn || dec.EncryptionAlgorithm != alg || dec.KeyMaterialId != nil {
							t.Errorf("%s, %d bytes: Decrypt answered %+v", alg, n, dec)
						}
						bad := bytes.Clone(ciphertext)
						bad[len(bad)/2] ^= 1
						for _, c := range [][]byte{bad, ciphertext[1:], append([]byte{1}, ciphertext...), {1}} {
							_, err := s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: c, EncryptionAlgorithm: alg})
							wantError(t, err, "InvalidCiphertextException", "")
						}
					}
				}
				// A ciphertext is as long as the modulus, also when it begins with a zero.
				zero := must(rsa.EncryptOAEP(h, rand.Reader, rsaKey, []byte("x"), nil))(t)
				for zero[0] != 0 {
					zero = must(rsa.EncryptOAEP(h, rand.Reader, rsaKey, []byte("x"), nil))(t)
				}
				must(s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: zero, EncryptionAlgorithm: alg}))(t)
				_, err := s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: zero[1:], EncryptionAlgorithm: alg})
				wantError(t, err, "InvalidCiphertextException", "")

				_, err = s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: make([]byte, limit+1), EncryptionAlgorithm: alg})
				wantError(t, err, "ValidationException", fmt.Sprintf("Algorithm %s and key spec %s cannot encrypt data larger than %d bytes.", alg, tc.spec, limit))
				_, err = s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), EncryptionAlgorithm: alg, EncryptionContext: map[string]string{"a": "b"}})
				wantError(t, err, "ValidationException", "...")
				_, err = s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: []byte("x"), EncryptionAlgorithm: alg})
				wantError(t, err, "ValidationException", "...")
			}
			_, err := s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")})
			wantError(t, err, "InvalidKeyUsageException", fmt.Sprintf("Algorithm SYMMETRIC_DEFAULT is incompatible with key spec %s.", tc.spec))
			_, err = s.Sign(s.ctx(), &kms.SignInput{KeyId: key.KeyId, Message: []byte("x"), SigningAlgorithm: types.SigningAlgorithmSpecRsassaPssSha256})
			wantError(t, err, "InvalidKeyUsageException", *key.Arn+" key usage is ENCRYPT_DECRYPT which is not valid for Sign.")
			_, err = s.GenerateDataKey(s.ctx(), &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256})
			wantError(t, err, "InvalidKeyUsageException", "...")
		})
	}
}

func TestSM2Encryption(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := s.newKey(types.KeySpecSm2, types.KeyUsageTypeEncryptDecrypt)
	pub := must(s.GetPublicKey(s.ctx(), &kms.GetPublicKeyInput{KeyId: key.KeyId}))(t)
	sm2Key := must(smx509.ParsePKIXPublicKey(pub.PublicKey))(t).(*ecdsa.PublicKey)
	plaintext := bytes.Repeat([]byte{1}, 1024)
	const alg = types.EncryptionAlgorithmSpecSm2pke
	outside := must(sm2.EncryptASN1(rand.Reader, sm2Key, plaintext))(t)
	inside := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: plaintext, EncryptionAlgorithm: alg}))(t)
	for _, ciphertext := range [][]byte{outside, inside.CiphertextBlob} {
		dec := must(s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: ciphertext, EncryptionAlgorithm: alg}))(t)
		if !bytes.Equal(dec.Plaintext, plaintext) {
			t.Error("the plaintext differs")
		}
		bad := bytes.Clone(ciphertext)
		bad[len(bad)-1] ^= 1
		_, err := s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: bad, EncryptionAlgorithm: alg})
		wantError(t, err, "InvalidCiphertextException", "")
	}
	_, err := s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: make([]byte, 1025), EncryptionAlgorithm: alg})
	wantError(t, err, "ValidationException", "Algorithm SM2PKE and key spec SM2 cannot encrypt data larger than 1024 bytes.")
}

// TestSharedSecret agrees on a secret with crypto/ecdh.
func TestSharedSecret(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	curves := map[types.KeySpec]ecdh.Curve{types.KeySpecEccNistP256: ecdh.P256(), types.KeySpecEccNistP384: ecdh.P384(), types.KeySpecEccNistP521: ecdh.P521()}
	for spec, curve := range curves {
		t.Run(string(spec), func(t *testing.T) {
			s := s.in(t)
			key := s.newKey(spec, types.KeyUsageTypeKeyAgreement)
			pub := must(s.GetPublicKey(s.ctx(), &kms.GetPublicKeyInput{KeyId: key.KeyId}))(t)
			if diff := cmp.Diff([]types.KeyAgreementAlgorithmSpec{types.KeyAgreementAlgorithmSpecEcdh}, pub.KeyAgreementAlgorithms); diff != "" {
				t.Error(diff)
			}
			theirs := must(must(x509.ParsePKIXPublicKey(pub.PublicKey))(t).(*ecdsa.PublicKey).ECDH())(t)
			ours := must(curve.GenerateKey(rand.Reader))(t)
			want := must(ours.ECDH(theirs))(t)
			spki := must(x509.MarshalPKIXPublicKey(ours.PublicKey()))(t)
			in := &kms.DeriveSharedSecretInput{KeyId: key.KeyId, PublicKey: spki, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh}
			out := must(s.DeriveSharedSecret(s.ctx(), in))(t)
			if !bytes.Equal(out.SharedSecret, want) || *out.KeyId != *key.Arn || out.KeyOrigin != types.OriginTypeAwsKms || out.KeyAgreementAlgorithm != types.KeyAgreementAlgorithmSpecEcdh {
				t.Errorf("answered %+v", out)
			}
			for other, c := range curves {
				if other != spec {
					k := must(c.GenerateKey(rand.Reader))(t)
					in.PublicKey = must(x509.MarshalPKIXPublicKey(k.PublicKey()))(t)
					_, err := s.DeriveSharedSecret(s.ctx(), in)
					wantError(t, err, "ValidationException", "")
				}
			}
			offCurve := bytes.Clone(spki)
			offCurve[len(offCurve)-1] ^= 1
			for _, bad := range [][]byte{offCurve, spki[:len(spki)-1], append(bytes.Clone(spki), 0), []byte("not a key")} {
				in.PublicKey = bad
				_, err := s.DeriveSharedSecret(s.ctx(), in)
				wantError(t, err, "ValidationException", "")
			}
			_, err := s.Sign(s.ctx(), &kms.SignInput{KeyId: key.KeyId, Message: []byte("x"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256})
			wantError(t, err, "InvalidKeyUsageException", *key.Arn+" key usage is KEY_AGREEMENT which is not valid for Sign.")
		})
	}
	t.Run("SM2", func(t *testing.T) {
		s := s.in(t)
		// Two keys of ours agree with each other: no other implementation here has
		// SM2 with the plain Diffie-Hellman of AWS KMS.
		a, b := s.newKey(types.KeySpecSm2, types.KeyUsageTypeKeyAgreement), s.newKey(types.KeySpecSm2, types.KeyUsageTypeKeyAgreement)
		derive := func(mine, theirs *types.KeyMetadata) []byte {
			pub := must(s.GetPublicKey(s.ctx(), &kms.GetPublicKeyInput{KeyId: theirs.KeyId}))(t)
			return must(s.DeriveSharedSecret(s.ctx(), &kms.DeriveSharedSecretInput{KeyId: mine.KeyId, PublicKey: pub.PublicKey, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh}))(t).SharedSecret
		}
		if ab, ba := derive(a, b), derive(b, a); len(ab) != 32 || !bytes.Equal(ab, ba) {
			t.Errorf("%d and %d bytes, equal: %t", len(ab), len(ba), bytes.Equal(ab, ba))
		}
	})
}

// TestReEncrypt moves ciphertext between keys, contexts and kinds of key.
func TestReEncrypt(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	a, b := s.newKey("", ""), s.newKey("", "")
	rsaKey := s.newKey(types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt)
	signer := s.newKey(types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
	plaintext := []byte("moving")
	ctxA, ctxB := map[string]string{"who": "a"}, map[string]string{"who": "b"}
	const oaep = types.EncryptionAlgorithmSpecRsaesOaepSha256
	blob := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: a.KeyId, Plaintext: plaintext, EncryptionContext: ctxA}))(t).CiphertextBlob

	moved := must(s.ReEncrypt(s.ctx(), &kms.ReEncryptInput{CiphertextBlob: blob, SourceEncryptionContext: ctxA, DestinationKeyId: b.Arn, DestinationEncryptionContext: ctxB}))(t)
	type answer struct{ source, dest, sourceMaterial, destMaterial, sourceAlg, destAlg string }
	show := func(o *kms.ReEncryptOutput) answer {
		str := func(p *string) string {
			if p == nil {
				return ""
			}
			return *p
		}
		return answer{str(o.SourceKeyId), str(o.KeyId), str(o.SourceKeyMaterialId), str(o.DestinationKeyMaterialId), string(o.SourceEncryptionAlgorithm), string(o.DestinationEncryptionAlgorithm)}
	}
	opts := cmp.AllowUnexported(answer{})
	if diff := cmp.Diff(answer{*a.Arn, *b.Arn, *a.CurrentKeyMaterialId, *b.CurrentKeyMaterialId, "SYMMETRIC_DEFAULT", "SYMMETRIC_DEFAULT"}, show(moved), opts); diff != "" {
		t.Error(diff)
	}
	dec := must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: moved.CiphertextBlob, EncryptionContext: ctxB}))(t)
	if !bytes.Equal(dec.Plaintext, plaintext) || *dec.KeyId != *b.Arn {
		t.Errorf("after moving: %+v", dec)
	}

	toRSA := must(s.ReEncrypt(s.ctx(), &kms.ReEncryptInput{CiphertextBlob: blob, SourceKeyId: a.KeyId, SourceEncryptionContext: ctxA, DestinationKeyId: rsaKey.KeyId, DestinationEncryptionAlgorithm: oaep}))(t)
	if diff := cmp.Diff(answer{*a.Arn, *rsaKey.Arn, *a.CurrentKeyMaterialId, "", "SYMMETRIC_DEFAULT", string(oaep)}, show(toRSA), opts); diff != "" {
		t.Error(diff)
	}
	back := must(s.ReEncrypt(s.ctx(), &kms.ReEncryptInput{CiphertextBlob: toRSA.CiphertextBlob, SourceKeyId: rsaKey.KeyId, SourceEncryptionAlgorithm: oaep, DestinationKeyId: b.KeyId}))(t)
	dec = must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: back.CiphertextBlob}))(t)
	if !bytes.Equal(dec.Plaintext, plaintext) {
		t.Errorf("by way of RSA: %+v", dec)
	}

	for _, tc := range []struct {
		name, code, text string
		in               kms.ReEncryptInput
	}{
		{"wrong source context", "InvalidCiphertextException", "", kms.ReEncryptInput{CiphertextBlob: blob, SourceEncryptionContext: ctxB, DestinationKeyId: b.KeyId}},
		{"source key of another blob", "IncorrectKeyException", incorrectKey, kms.ReEncryptInput{CiphertextBlob: blob, SourceKeyId: b.KeyId, SourceEncryptionContext: ctxA, DestinationKeyId: b.KeyId}},
		{"destination signs", "InvalidKeyUsageException", *signer.Arn + " key usage is SIGN_VERIFY which is not valid for ReEncrypt...", kms.ReEncryptInput{CiphertextBlob: blob, SourceEncryptionContext: ctxA, DestinationKeyId: signer.KeyId}},
		{"source signs", "IncorrectKeyException", incorrectKey, kms.ReEncryptInput{CiphertextBlob: blob, SourceKeyId: signer.KeyId, SourceEncryptionContext: ctxA, DestinationKeyId: b.KeyId}},
		{"destination unknown", "NotFoundException", "Key '" + s.keyARN(unknownID) + "' does not exist", kms.ReEncryptInput{CiphertextBlob: blob, SourceEncryptionContext: ctxA, DestinationKeyId: ptr(unknownID)}},
		{"destination algorithm of another spec", "InvalidKeyUsageException", "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.", kms.ReEncryptInput{CiphertextBlob: blob, SourceEncryptionContext: ctxA, DestinationKeyId: rsaKey.KeyId}},
		{"no ciphertext", "ValidationException", "1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null", kms.ReEncryptInput{DestinationKeyId: b.KeyId}},
		{"garbage", "InvalidCiphertextException", "", kms.ReEncryptInput{CiphertextBlob: []byte("garbage"), DestinationKeyId: b.KeyId}},
	} {
		_, err := s.ReEncrypt(s.ctx(), &tc.in)
		t.Run(tc.name, func(t *testing.T) { wantError(t, err, tc.code, tc.text) })
	}
}

// TestForeignCiphertext: a blob whose key is not to be found here is refused as
// one that the caller may not use, without saying more.
func TestForeignCiphertext(t *testing.T) {
	t.Parallel()
	here, there := newStory(t), newStory(t)
	id := there.symmetricKey()
	blob := must(there.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x")}))(t).CiphertextBlob
	mine := here.symmetricKey()

	_, err := here.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, "AccessDeniedException", "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.")
	_, err = here.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob, KeyId: &mine})
	wantError(t, err, "IncorrectKeyException", incorrectKey)
	_, err = here.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob, KeyId: ptr(there.keyARN(id))})
	wantError(t, err, "NotFoundException", "Invalid arn "+there.region)
}
