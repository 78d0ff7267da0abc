package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

func TestDataKeys(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := s.newKey("", "")
	context := map[string]string{"purpose": "test"}
	for _, tc := range []struct {
		spec  types.DataKeySpec
		bytes *int32
		want  int
	}{
		{types.DataKeySpecAes128, nil, 16},
		{types.DataKeySpecAes256, nil, 32},
		{"", ptr[int32](1), 1},
		{"", ptr[int32](64), 64},
		{"", ptr[int32](1024), 1024},
	} {
		t.Run(fmt.Sprint(tc.spec, tc.want), func(t *testing.T) {
			s := s.in(t)
			dk := must(s.GenerateDataKey(s.ctx(), &kms.GenerateDataKeyInput{KeyId: key.Arn, KeySpec: tc.spec, NumberOfBytes: tc.bytes, EncryptionContext: context}))(t)
			if len(dk.Plaintext) != tc.want || *dk.KeyId != *key.Arn || *dk.KeyMaterialId != *key.CurrentKeyMaterialId {
				t.Errorf("answered %d bytes, %s, %s", len(dk.Plaintext), *dk.KeyId, *dk.KeyMaterialId)
			}
			dec := must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: dk.CiphertextBlob, EncryptionContext: context}))(t)
			if !bytes.Equal(dec.Plaintext, dk.Plaintext) {
				t.Error("the data key decrypts to something else")
			}
			blind := must(s.GenerateDataKeyWithoutPlaintext(s.ctx(), &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: key.KeyId, KeySpec: tc.spec, NumberOfBytes: tc.bytes, EncryptionContext: context}))(t)
			if *blind.KeyId != *key.Arn || *blind.KeyMaterialId != *key.CurrentKeyMaterialId {
				t.Errorf("without plaintext: answered %s, %s", *blind.KeyId, *blind.KeyMaterialId)
			}
			dec = must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blind.CiphertextBlob, EncryptionContext: context}))(t)
			if len(dec.Plaintext) != tc.want || tc.want >= 16 && bytes.Equal(dec.Plaintext, dk.Plaintext) {
				t.Errorf("without plaintext: %d bytes", len(dec.Plaintext))
			}
		})
	}

	const either = "Please specify either number of bytes or key spec."
	for _, tc := range []struct {
		name, code, text string
		spec             types.DataKeySpec
		bytes            *int32
	}{
		{"neither", "ValidationException", either, "", nil},
		{"both", "ValidationException", either, types.DataKeySpecAes256, ptr[int32](32)},
		{"none", "ValidationException", "1 validation error detected: Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1", "", ptr[int32](0)},
		{"too many", "ValidationException", "1 validation error detected: Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024", "", ptr[int32](1025)},
		{"unknown spec", "ValidationException", "1 validation error detected: Value 'AES_512' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: [...", "AES_512", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.in(t)
			_, err := s.GenerateDataKey(s.ctx(), &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: tc.spec, NumberOfBytes: tc.bytes})
			wantError(t, err, tc.code, tc.text)
			_, err = s.GenerateDataKeyWithoutPlaintext(s.ctx(), &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: key.KeyId, KeySpec: tc.spec, NumberOfBytes: tc.bytes})
			wantError(t, err, tc.code, tc.text)
		})
	}
}

// dataKeyPairSpecs are those of the service model that the daemon follows; the
// SDK may know newer ones.
var dataKeyPairSpecs = []types.DataKeyPairSpec{
	types.DataKeyPairSpecRsa2048, types.DataKeyPairSpecRsa3072, types.DataKeyPairSpecRsa4096,
	types.DataKeyPairSpecEccNistP256, types.DataKeyPairSpecEccNistP384, types.DataKeyPairSpecEccNistP521,
	types.DataKeyPairSpecEccSecgP256k1, types.DataKeyPairSpecSm2, types.DataKeyPairSpecEccNistEdwards25519,
}

// TestDataKeyPairs: the private key that comes back, or out of Decrypt, is the
// other half of the public key.
func TestDataKeyPairs(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := s.newKey("", "")
	context := map[string]string{"purpose": "pairs"}
	for _, spec := range dataKeyPairSpecs {
		t.Run(string(spec), func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			pair := must(s.GenerateDataKeyPair(s.ctx(), &kms.GenerateDataKeyPairInput{KeyId: key.KeyId, KeyPairSpec: spec, EncryptionContext: context}))(t)
			if pair.KeyPairSpec != spec || *pair.KeyId != *key.Arn || *pair.KeyMaterialId != *key.CurrentKeyMaterialId {
				t.Errorf("answered %s, %s, %s", pair.KeyPairSpec, *pair.KeyId, *pair.KeyMaterialId)
			}
			dec := must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: pair.PrivateKeyCiphertextBlob, EncryptionContext: context}))(t)
			if !bytes.Equal(dec.Plaintext, pair.PrivateKeyPlaintext) {
				t.Error("the private key decrypts to something else")
			}
			if err := matching(spec, pair.PrivateKeyPlaintext, pair.PublicKey); err != nil {
				t.Error(err)
			}

			blind := must(s.GenerateDataKeyPairWithoutPlaintext(s.ctx(), &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: key.KeyId, KeyPairSpec: spec, EncryptionContext: context}))(t)
			dec = must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blind.PrivateKeyCiphertextBlob, EncryptionContext: context}))(t)
			if err := matching(spec, dec.Plaintext, blind.PublicKey); err != nil {
				t.Errorf("without plaintext: %v", err)
			}
			_, err := s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blind.PrivateKeyCiphertextBlob})
			wantError(t, err, "InvalidCiphertextException", "")
		})
	}
	_, err := s.GenerateDataKeyPair(s.ctx(), &kms.GenerateDataKeyPairInput{KeyId: key.KeyId, KeyPairSpec: "ML_DSA_44"})
	wantError(t, err, "ValidationException", "1 validation error detected: Value 'ML_DSA_44' at 'keyPairSpec' failed to satisfy constraint: Member must satisfy enum value set: [...")
}

// matching reports whether a PKCS #8 private key is of the spec and belongs to a
// public key.
func matching(spec types.DataKeyPairSpec, private, public []byte) error {
	var key any
	var err error
	switch spec {
	case types.DataKeyPairSpecEccSecgP256k1:
		return matchingSecp256k1(private, public)
	case types.DataKeyPairSpecSm2:
		key, err = smx509.ParsePKCS8PrivateKey(private)
	default:
		key, err = x509.ParsePKCS8PrivateKey(private)
	}
	if err != nil {
		return err
	}
	var got string
	var spki []byte
	switch key := key.(type) {
	case *rsa.PrivateKey:
		got = fmt.Sprintf("RSA_%d", key.N.BitLen())
		spki, err = x509.MarshalPKIXPublicKey(key.Public())
	case *sm2.PrivateKey:
		got = "SM2"
		spki, err = smx509.MarshalPKIXPublicKey(key.Public())
	case *ecdsa.PrivateKey:
		got = "ECC_NIST_" + strings.ReplaceAll(key.Params().Name, "-", "")
		spki, err = x509.MarshalPKIXPublicKey(key.Public())
	case ed25519.PrivateKey:
		got = "ECC_NIST_EDWARDS25519"
		spki, err = x509.MarshalPKIXPublicKey(key.Public())
	}
	if err != nil {
		return err
	}
	if got != string(spec) || !bytes.Equal(spki, public) {
		return fmt.Errorf("the private key is %s (%T), its public key matches: %t", got, key, bytes.Equal(spki, public))
	}
	return nil
}

func TestRandom(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	for _, n := range []int32{1, 32, 1024} {
		a := must(s.GenerateRandom(s.ctx(), &kms.GenerateRandomInput{NumberOfBytes: &n}))(t)
		b := must(s.GenerateRandom(s.ctx(), &kms.GenerateRandomInput{NumberOfBytes: &n}))(t)
		if len(a.Plaintext) != int(n) || len(b.Plaintext) != int(n) || n > 1 && bytes.Equal(a.Plaintext, b.Plaintext) {
			t.Errorf("%d: %d and %d bytes", n, len(a.Plaintext), len(b.Plaintext))
		}
	}
	for _, tc := range []struct {
		n    *int32
		text string
	}{
		{nil, "NumberOfBytes is required."},
		{ptr[int32](0), "1 validation error detected: Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{ptr[int32](1025), "1 validation error detected: Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024"},
		{ptr[int32](-1), "1 validation error detected: Value '-1' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1"},
	} {
		_, err := s.GenerateRandom(s.ctx(), &kms.GenerateRandomInput{NumberOfBytes: tc.n})
		wantError(t, err, "ValidationException", tc.text)
	}
}

// TestRecipient: who sends an attestation document must never get plaintext.
func TestRecipient(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	id := s.symmetricKey()
	recipient := &types.RecipientInfo{AttestationDocument: []byte("document"), KeyEncryptionAlgorithm: types.KeyEncryptionMechanismRsaesOaepSha256}
	blob := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x")}))(t).CiphertextBlob
	calls := map[string]func() error{
		"Decrypt": func() error {
			_, err := s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob, Recipient: recipient})
			return err
		},
		"GenerateDataKey": func() error {
			_, err := s.GenerateDataKey(s.ctx(), &kms.GenerateDataKeyInput{KeyId: &id, KeySpec: types.DataKeySpecAes256, Recipient: recipient})
			return err
		},
		"GenerateDataKeyPair": func() error {
			_, err := s.GenerateDataKeyPair(s.ctx(), &kms.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: types.DataKeyPairSpecEccNistP256, Recipient: recipient})
			return err
		},
		"GenerateRandom": func() error {
			_, err := s.GenerateRandom(s.ctx(), &kms.GenerateRandomInput{NumberOfBytes: ptr[int32](8), Recipient: recipient})
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { wantError(t, call(), "UnsupportedOperationException", "Recipient...") })
	}
}
