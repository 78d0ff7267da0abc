package e2e

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
)

var rsaSigning = []types.SigningAlgorithmSpec{
	types.SigningAlgorithmSpecRsassaPssSha256, types.SigningAlgorithmSpecRsassaPssSha384, types.SigningAlgorithmSpecRsassaPssSha512,
	types.SigningAlgorithmSpecRsassaPkcs1V15Sha256, types.SigningAlgorithmSpecRsassaPkcs1V15Sha384, types.SigningAlgorithmSpecRsassaPkcs1V15Sha512,
}

var signingSpecs = []struct {
	spec types.KeySpec
	algs []types.SigningAlgorithmSpec
}{
	{types.KeySpecRsa2048, rsaSigning},
	{types.KeySpecRsa3072, rsaSigning},
	{types.KeySpecRsa4096, rsaSigning},
	{types.KeySpecEccNistP256, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecEcdsaSha256}},
	{types.KeySpecEccNistP384, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecEcdsaSha384}},
	{types.KeySpecEccNistP521, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecEcdsaSha512}},
	{types.KeySpecEccSecgP256k1, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecEcdsaSha256}},
	{types.KeySpecEccNistEdwards25519, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecEd25519Sha512, types.SigningAlgorithmSpecEd25519PhSha512}},
	{types.KeySpecMlDsa44, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecMlDsaShake256}},
	{types.KeySpecMlDsa65, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecMlDsaShake256}},
	{types.KeySpecMlDsa87, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecMlDsaShake256}},
	{types.KeySpecSm2, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecSm2dsa}},
}

// TestSign signs with every algorithm of every spec, verifies inside and, from
// GetPublicKey alone, outside.
func TestSign(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	for _, tc := range signingSpecs {
		t.Run(string(tc.spec), func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			key := s.newKey(tc.spec, types.KeyUsageTypeSignVerify)
			pub := must(s.GetPublicKey(s.ctx(), &kms.GetPublicKeyInput{KeyId: key.Arn}))(t)
			if got := slices.Sorted(slices.Values(pub.SigningAlgorithms)); !cmp.Equal(got, slices.Sorted(slices.Values(tc.algs))) {
				t.Errorf("SigningAlgorithms of the public key: %v, want %v", got, tc.algs)
			}
			if *pub.KeyId != *key.Arn || pub.KeySpec != tc.spec || pub.KeyUsage != types.KeyUsageTypeSignVerify || pub.EncryptionAlgorithms != nil || pub.KeyAgreementAlgorithms != nil {
				t.Errorf("GetPublicKey answered %+v", pub)
			}
			for _, alg := range tc.algs {
				t.Run(string(alg), func(t *testing.T) { s.in(t).signAndVerify(*key.KeyId, pub.PublicKey, tc.spec, alg) })
			}
			s.signRefusals(*key.KeyId, *key.Arn, tc.spec, tc.algs)
		})
	}
}

func (s *story) signAndVerify(id string, spki []byte, spec types.KeySpec, alg types.SigningAlgorithmSpec) {
	message := bytes.Repeat([]byte("sign me "), 100)
	ph := alg == types.SigningAlgorithmSpecEd25519PhSha512

	// How the message may be handed over, and what is then sent for it.
	forms := map[types.MessageType][]byte{types.MessageTypeRaw: message, "": message}
	switch {
	case ph:
		digest := sha512.Sum512(message)
		forms = map[types.MessageType][]byte{types.MessageTypeDigest: digest[:]}
	case alg == types.SigningAlgorithmSpecEd25519Sha512, alg == types.SigningAlgorithmSpecSm2dsa:
	case alg == types.SigningAlgorithmSpecMlDsaShake256:
		forms[types.MessageTypeExternalMu] = externalMu(spki, message)
	default:
		forms[types.MessageTypeDigest] = digestFor(alg, message)
	}
	for signedAs, sent := range forms {
		name := fmt.Sprintf("signed as %q", signedAs)
		out, err := s.Sign(s.ctx(), &kms.SignInput{KeyId: &id, Message: sent, MessageType: signedAs, SigningAlgorithm: alg})
		if err != nil {
			s.Errorf("%s: %v", name, err)
			continue
		}
		if *out.KeyId != s.keyARN(id) || out.SigningAlgorithm != alg {
			s.Errorf("%s: answered key %s, algorithm %s", name, *out.KeyId, out.SigningAlgorithm)
		}
		// The daemon hashes what it is given once more for Ed25519ph.
		outside := message
		if ph {
			outside = sent
		}
		if err := verifyOutside(spki, spec, alg, outside, out.Signature); err != nil {
			s.Errorf("%s: verified outside: %v", name, err)
		}
		for verifiedAs, sent := range forms {
			ok, err := s.Verify(s.ctx(), &kms.VerifyInput{KeyId: &id, Message: sent, MessageType: verifiedAs, SigningAlgorithm: alg, Signature: out.Signature})
			if err != nil || !ok.SignatureValid || *ok.KeyId != s.keyARN(id) || ok.SigningAlgorithm != alg {
				s.Errorf("%s, verified as %q: %+v, %v", name, verifiedAs, ok, err)
			}
			other := bytes.Clone(sent)
			other[0] ^= 1
			_, err = s.Verify(s.ctx(), &kms.VerifyInput{KeyId: &id, Message: other, MessageType: verifiedAs, SigningAlgorithm: alg, Signature: out.Signature})
			wantError(s, err, "KMSInvalidSignatureException", "")
		}
		bad := bytes.Clone(out.Signature)
		bad[len(bad)-1] ^= 1
		for _, sig := range [][]byte{bad, out.Signature[:len(out.Signature)-1], append(bytes.Clone(out.Signature), 0), {0}} {
			_, err = s.Verify(s.ctx(), &kms.VerifyInput{KeyId: &id, Message: sent, MessageType: signedAs, SigningAlgorithm: alg, Signature: sig})
			wantError(s, err, "KMSInvalidSignatureException", "")
		}
	}
}

// signRefusals asks for what the spec does not offer.
func (s *story) signRefusals(id, arn string, spec types.KeySpec, algs []types.SigningAlgorithmSpec) {
	s.Helper()
	other := types.SigningAlgorithmSpecEcdsaSha384
	if algs[0] == other {
		other = types.SigningAlgorithmSpecEcdsaSha256
	}
	message := []byte("message")
	_, err := s.Sign(s.ctx(), &kms.SignInput{KeyId: &id, Message: message, SigningAlgorithm: other})
	wantError(s, err, "InvalidKeyUsageException", fmt.Sprintf("Algorithm %s is incompatible with key spec %s.", other, spec))
	_, err = s.Verify(s.ctx(), &kms.VerifyInput{KeyId: &id, Message: message, SigningAlgorithm: other, Signature: message})
	wantError(s, err, "InvalidKeyUsageException", fmt.Sprintf("Algorithm %s is incompatible with key spec %s.", other, spec))

	for _, alg := range algs {
		switch alg {
		case types.SigningAlgorithmSpecMlDsaShake256:
			_, err = s.Sign(s.ctx(), &kms.SignInput{KeyId: &id, Message: make([]byte, 63), MessageType: types.MessageTypeExternalMu, SigningAlgorithm: alg})
			wantError(s, err, "ValidationException", "...")
			_, err = s.Sign(s.ctx(), &kms.SignInput{KeyId: &id, Message: make([]byte, 64), MessageType: types.MessageTypeDigest, SigningAlgorithm: alg})
			wantError(s, err, "ValidationException", "...")
		case types.SigningAlgorithmSpecEd25519Sha512:
			_, err = s.Sign(s.ctx(), &kms.SignInput{KeyId: &id, Message: make([]byte, 64), MessageType: types.MessageTypeDigest, SigningAlgorithm: alg})
			wantError(s, err, "ValidationException", "...")
		case types.SigningAlgorithmSpecEd25519PhSha512:
			_, err = s.Sign(s.ctx(), &kms.SignInput{KeyId: &id, Message: message, SigningAlgorithm: alg})
			wantError(s, err, "ValidationException", "...")
		default:
			_, err = s.Sign(s.ctx(), &kms.SignInput{KeyId: &id, Message: make([]byte, 31), MessageType: types.MessageTypeDigest, SigningAlgorithm: alg})
			wantError(s, err, "ValidationException", fmt.Sprintf("Digest is invalid length for algorithm %s.", alg))
			_, err = s.Sign(s.ctx(), &kms.SignInput{KeyId: &id, Message: make([]byte, 64), MessageType: types.MessageTypeExternalMu, SigningAlgorithm: alg})
			wantError(s, err, "ValidationException", "...")
		}
	}

	// A signing key does nothing else.
	usage := arn + " key usage is SIGN_VERIFY which is not valid for "
	_, err = s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &id, Plaintext: message})
	wantError(s, err, "InvalidKeyUsageException", usage+"Encrypt.")
	_, err = s.GenerateMac(s.ctx(), &kms.GenerateMacInput{KeyId: &id, Message: message, MacAlgorithm: types.MacAlgorithmSpecHmacSha256})
	wantError(s, err, "InvalidKeyUsageException", usage+"GenerateMac.")
	_, err = s.GenerateDataKey(s.ctx(), &kms.GenerateDataKeyInput{KeyId: &id, KeySpec: types.DataKeySpecAes256})
	wantError(s, err, "InvalidKeyUsageException", usage+"GenerateDataKey.")
	_, err = s.DeriveSharedSecret(s.ctx(), &kms.DeriveSharedSecretInput{KeyId: &id, PublicKey: message, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh})
	wantError(s, err, "InvalidKeyUsageException", usage+"DeriveSharedSecret.")
}

// TestSignDigestSM2 hands over SM2's digest with the default identity: it must
// verify like the message.
func TestSignDigestSM2(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := s.newKey(types.KeySpecSm2, types.KeyUsageTypeSignVerify)
	pub := must(s.GetPublicKey(s.ctx(), &kms.GetPublicKeyInput{KeyId: key.KeyId}))(t)
	message := []byte("sm2 message")
	digest := sm2Digest(t, pub.PublicKey, message)
	out := must(s.Sign(s.ctx(), &kms.SignInput{KeyId: key.KeyId, Message: digest, MessageType: types.MessageTypeDigest, SigningAlgorithm: types.SigningAlgorithmSpecSm2dsa}))(t)
	if err := verifyOutside(pub.PublicKey, types.KeySpecSm2, types.SigningAlgorithmSpecSm2dsa, message, out.Signature); err != nil {
		t.Error(err)
	}
}

// TestMAC makes and checks codes with every HMAC spec. The key never leaves, so
// what can be seen from outside is length, determinism and refusal.
func TestMAC(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	for _, tc := range []struct {
		spec types.KeySpec
		alg  types.MacAlgorithmSpec
		size int
	}{
		{types.KeySpecHmac224, types.MacAlgorithmSpecHmacSha224, sha256.Size224},
		{types.KeySpecHmac256, types.MacAlgorithmSpecHmacSha256, sha256.Size},
		{types.KeySpecHmac384, types.MacAlgorithmSpecHmacSha384, sha512.Size384},
		{types.KeySpecHmac512, types.MacAlgorithmSpecHmacSha512, sha512.Size},
	} {
		t.Run(string(tc.spec), func(t *testing.T) {
			s := s.in(t)
			key := s.newKey(tc.spec, types.KeyUsageTypeGenerateVerifyMac)
			message := bytes.Repeat([]byte{7}, 4096)
			mac := must(s.GenerateMac(s.ctx(), &kms.GenerateMacInput{KeyId: key.Arn, Message: message, MacAlgorithm: tc.alg}))(t)
			again := must(s.GenerateMac(s.ctx(), &kms.GenerateMacInput{KeyId: key.KeyId, Message: message, MacAlgorithm: tc.alg}))(t)
			if len(mac.Mac) != tc.size || !bytes.Equal(mac.Mac, again.Mac) || *mac.KeyId != *key.Arn || mac.MacAlgorithm != tc.alg {
				t.Errorf("GenerateMac answered %+v, then %+v", mac, again)
			}
			ok := must(s.VerifyMac(s.ctx(), &kms.VerifyMacInput{KeyId: key.KeyId, Message: message, Mac: mac.Mac, MacAlgorithm: tc.alg}))(t)
			if !ok.MacValid || *ok.KeyId != *key.Arn || ok.MacAlgorithm != tc.alg {
				t.Errorf("VerifyMac answered %+v", ok)
			}
			bad := bytes.Clone(mac.Mac)
			bad[0] ^= 0x80
			for _, m := range [][]byte{bad, mac.Mac[:tc.size-1], append(bytes.Clone(mac.Mac), 0), {1}} {
				_, err := s.VerifyMac(s.ctx(), &kms.VerifyMacInput{KeyId: key.KeyId, Message: message, Mac: m, MacAlgorithm: tc.alg})
				wantError(t, err, "KMSInvalidMacException", "")
			}
			_, err := s.VerifyMac(s.ctx(), &kms.VerifyMacInput{KeyId: key.KeyId, Message: message[1:], Mac: mac.Mac, MacAlgorithm: tc.alg})
			wantError(t, err, "KMSInvalidMacException", "")

			other := types.MacAlgorithmSpecHmacSha256
			if tc.alg == other {
				other = types.MacAlgorithmSpecHmacSha512
			}
			_, err = s.GenerateMac(s.ctx(), &kms.GenerateMacInput{KeyId: key.KeyId, Message: message, MacAlgorithm: other})
			wantError(t, err, "InvalidKeyUsageException", fmt.Sprintf("Algorithm %s is incompatible with key spec %s.", other, tc.spec))
			_, err = s.Sign(s.ctx(), &kms.SignInput{KeyId: key.KeyId, Message: message, SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256})
			wantError(t, err, "InvalidKeyUsageException", *key.Arn+" key usage is GENERATE_VERIFY_MAC which is not valid for Sign.")
			_, err = s.GetPublicKey(s.ctx(), &kms.GetPublicKeyInput{KeyId: key.KeyId})
			wantError(t, err, "UnsupportedOperationException", "...")
			_, err = s.GenerateMac(s.ctx(), &kms.GenerateMacInput{KeyId: key.KeyId, Message: make([]byte, 4097), MacAlgorithm: tc.alg})
			wantError(t, err, "ValidationException", "1 validation error detected: Value at 'message' failed to satisfy constraint: Member must have length less than or equal to 4096")
		})
	}
}
