package e2e

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Every operation that takes grant tokens takes those of grants there are, and
// refuses others; and refuses keys of another usage.
func TestGrantTokensEverywhere(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	ctx := s.ctx()
	symmetric, mac := s.symmetricKey(), *s.newKey(types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac).KeyId
	signing := *s.newKey(types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify).KeyId
	agreement := *s.newKey(types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement).KeyId
	peer := must(s.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &agreement}))(t).PublicKey
	grant := must(s.CreateGrant(ctx, &kms.CreateGrantInput{
		KeyId: &symmetric, GranteePrincipal: ptr("arn:aws:iam::" + Account + ":root"), Operations: []types.GrantOperation{types.GrantOperationDecrypt},
	}))(t)
	blob := must(s.Encrypt(ctx, &kms.EncryptInput{KeyId: &symmetric, Plaintext: []byte("x")}))(t).CiphertextBlob
	sig := must(s.Sign(ctx, &kms.SignInput{KeyId: &signing, Message: []byte("x"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256}))(t).Signature
	tag := must(s.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: &mac, Message: []byte("x"), MacAlgorithm: types.MacAlgorithmSpecHmacSha256}))(t).Mac
	dry := ptr(true)
	calls := map[string]func(tokens []string) error{
		"Encrypt": func(tokens []string) error {
			return errorOf(s.Encrypt(ctx, &kms.EncryptInput{KeyId: &symmetric, Plaintext: []byte("x"), GrantTokens: tokens}))
		},
		"Decrypt": func(tokens []string) error {
			return errorOf(s.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, GrantTokens: tokens}))
		},
		"ReEncrypt": func(tokens []string) error {
			return errorOf(s.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &symmetric, GrantTokens: tokens}))
		},
		"GenerateDataKey": func(tokens []string) error {
			return errorOf(s.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &symmetric, KeySpec: types.DataKeySpecAes128, GrantTokens: tokens}))
		},
		"GenerateDataKeyWithoutPlaintext": func(tokens []string) error {
			return errorOf(s.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &symmetric, KeySpec: types.DataKeySpecAes128, GrantTokens: tokens}))
		},
		"GenerateDataKeyPair": func(tokens []string) error {
			return errorOf(s.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &symmetric, KeyPairSpec: types.DataKeyPairSpecEccNistP256, GrantTokens: tokens}))
		},
		"GenerateDataKeyPairWithoutPlaintext": func(tokens []string) error {
			return errorOf(s.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &symmetric, KeyPairSpec: types.DataKeyPairSpecEccNistP256, GrantTokens: tokens}))
		},
		"DescribeKey": func(tokens []string) error {
			return errorOf(s.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &symmetric, GrantTokens: tokens}))
		},
		"GetPublicKey": func(tokens []string) error {
			return errorOf(s.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &signing, GrantTokens: tokens}))
		},
		"Sign": func(tokens []string) error {
			return errorOf(s.Sign(ctx, &kms.SignInput{KeyId: &signing, Message: []byte("x"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256, GrantTokens: tokens}))
		},
		"Verify": func(tokens []string) error {
			return errorOf(s.Verify(ctx, &kms.VerifyInput{KeyId: &signing, Message: []byte("x"), Signature: sig, SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256, GrantTokens: tokens}))
		},
		"GenerateMac": func(tokens []string) error {
			return errorOf(s.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: &mac, Message: []byte("x"), MacAlgorithm: types.MacAlgorithmSpecHmacSha256, GrantTokens: tokens}))
		},
		"VerifyMac": func(tokens []string) error {
			return errorOf(s.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: &mac, Message: []byte("x"), Mac: tag, MacAlgorithm: types.MacAlgorithmSpecHmacSha256, GrantTokens: tokens}))
		},
		"DeriveSharedSecret": func(tokens []string) error {
			return errorOf(s.DeriveSharedSecret(ctx, &kms.DeriveSharedSecretInput{KeyId: &agreement, PublicKey: peer, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh, GrantTokens: tokens}))
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			if err := call([]string{*grant.GrantToken}); err != nil {
				t.Error(err)
			}
			wantError(t, call([]string{"nonsense"}), "InvalidGrantTokenException", "Invalid grant token...")
		})
	}

	// Keys of another usage.
	for name, err := range map[string]error{
		"GenerateDataKeyWithoutPlaintext": errorOf(s.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &mac, KeySpec: types.DataKeySpecAes128})),
		"GenerateDataKeyPair":             errorOf(s.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &mac, KeyPairSpec: types.DataKeyPairSpecEccNistP256})),
		"GenerateDataKeyPairWithoutPlaintext": errorOf(s.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{
			KeyId: &mac, KeyPairSpec: types.DataKeyPairSpecEccNistP256, DryRun: dry,
		})),
		"VerifyMac": errorOf(s.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: &signing, Message: []byte("x"), Mac: tag, MacAlgorithm: types.MacAlgorithmSpecHmacSha256})),
	} {
		wantError(t, err, "InvalidKeyUsageException", "...")
		_ = name
	}

	wantError(t, errorOf(s.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob: blob, SourceKeyId: &symmetric, DestinationKeyId: &symmetric, DryRun: dry, DryRunModifiers: []types.DryRunModifierType{types.DryRunModifierTypeIgnoreCiphertext},
	})), "DryRunOperationException", "...")
}

// Members that other tests leave out, and refusals that others do not meet.
func TestRareMembers(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	ctx := s.ctx()
	policy := must(s.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: ptr(s.symmetricKey())}))(t).Policy
	id := must(s.CreateKey(ctx, &kms.CreateKeyInput{Policy: policy, BypassPolicyLockoutSafetyCheck: true}))(t).KeyMetadata.KeyId
	must(s.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: id, Policy: policy, PolicyName: ptr("default")}))(t)
	must(s.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: id, Limit: ptr(int32(1))}))(t)
	wantError(t, errorOf(s.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: id, Marker: ptr("x")})), "InvalidMarkerException", "...")

	bad := ptr("arn:aws:sqs:" + s.region + ":" + Account + ":key/x")
	for name, err := range map[string]error{
		"DescribeKey":         errorOf(s.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: bad})),
		"GetPublicKey":        errorOf(s.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: bad})),
		"ReplicateKey":        errorOf(s.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: bad, ReplicaRegion: ptr("eu-west-3")})),
		"UpdatePrimaryRegion": errorOf(s.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: bad, PrimaryRegion: ptr("eu-west-3")})),
	} {
		t.Run(name, func(t *testing.T) { wantError(t, err, "InvalidArnException", "Invalid arn "+*bad) })
	}

	// Replication of every kind of key, and what it refuses.
	to := func(id, region string, more func(*kms.ReplicateKeyInput)) (*kms.ReplicateKeyOutput, error) {
		in := &kms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: &region}
		if more != nil {
			more(in)
		}
		return s.ReplicateKey(ctx, in)
	}
	for _, k := range []struct {
		spec  types.KeySpec
		usage types.KeyUsageType
	}{{types.KeySpecHmac384, types.KeyUsageTypeGenerateVerifyMac}, {types.KeySpecEccNistP384, types.KeyUsageTypeSignVerify}, {types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement}} {
		key := must(s.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: k.spec, KeyUsage: k.usage, MultiRegion: ptr(true)}))(t).KeyMetadata
		m := must(to(*key.KeyId, "x-rare-1", nil))(t).ReplicaKeyMetadata
		if len(m.MacAlgorithms)+len(m.SigningAlgorithms)+len(m.KeyAgreementAlgorithms) == 0 {
			t.Errorf("%s: no algorithms", k.spec)
		}
	}
	key := *must(s.CreateKey(ctx, &kms.CreateKeyInput{MultiRegion: ptr(true)}))(t).KeyMetadata.KeyId
	wantError(t, errorOf(to("mrk-00000000000000000000000000000000", "x-rare-1", nil)), "NotFoundException", "...")
	wantError(t, errorOf(to(key, "x-rare-1", func(in *kms.ReplicateKeyInput) { in.Policy = ptr("{") })), "MalformedPolicyDocumentException", "...")
	wantError(t, errorOf(to(key, "x-rare-1", func(in *kms.ReplicateKeyInput) {
		in.Tags = []types.Tag{{TagKey: ptr("aws:x"), TagValue: ptr("")}}
	})), "TagException", "...")
	must(s.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}))(t)
	wantError(t, errorOf(to(key, "x-rare-1", nil)), "DisabledException", "...")
	wantError(t, errorOf(s.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: ptr("mrk-00000000000000000000000000000000"), PrimaryRegion: ptr("eu-west-3")})), "NotFoundException", "...")
	must(s.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &key}))(t)
	wantError(t, errorOf(to(key, "x-rare-1", nil)), "KMSInvalidStateException", "...")
	wantError(t, errorOf(s.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: &key, PrimaryRegion: ptr("eu-west-3")})), "KMSInvalidStateException", "...")
}
