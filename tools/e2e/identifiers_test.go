package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// unknownID is well-formed and nobody's.
const unknownID = "1234abcd-12ab-34cd-56ef-1234567890ab"

// A call is one operation on one key, with everything else as it should be.
type call struct {
	op      string
	aliases bool // takes alias names and alias ARNs
	dryRun  bool // has DryRun
	state   stateClass
	do      func(ctx context.Context, k *keyring, id string, dry *bool) error
}

// A keyring has a key for each kind of operation, and what is needed to use it.
type keyring struct {
	*story
	symmetric, signer, mac, agree *types.KeyMetadata
	blob, signature, macTag       []byte
	peer                          []byte // public key to agree with
}

func newKeyring(s *story) *keyring {
	s.Helper()
	k := &keyring{
		story:     s,
		symmetric: s.newKey("", ""),
		signer:    s.newKey(types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify),
		mac:       s.newKey(types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac),
		agree:     s.newKey(types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement),
	}
	k.blob = must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: k.symmetric.KeyId, Plaintext: []byte("ring")}))(s).CiphertextBlob
	k.signature = must(s.Sign(s.ctx(), &kms.SignInput{KeyId: k.signer.KeyId, Message: []byte("ring"), SigningAlgorithm: "ECDSA_SHA_256"}))(s).Signature
	k.macTag = must(s.GenerateMac(s.ctx(), &kms.GenerateMacInput{KeyId: k.mac.KeyId, Message: []byte("ring"), MacAlgorithm: "HMAC_SHA_256"}))(s).Mac
	k.peer = must(s.GetPublicKey(s.ctx(), &kms.GetPublicKeyInput{KeyId: k.agree.KeyId}))(s).PublicKey
	return k
}

// keyFor is the key that an operation is tried on.
func (k *keyring) keyFor(op string) *types.KeyMetadata {
	switch op {
	case "Sign", "Verify", "GetPublicKey":
		return k.signer
	case "GenerateMac", "VerifyMac":
		return k.mac
	case "DeriveSharedSecret":
		return k.agree
	}
	return k.symmetric
}

// calls lists every operation that names a key.
var calls = []call{
	{"CreateGrant", false, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: &id, GranteePrincipal: ptr(grantee), Operations: decryption, DryRun: dry})
		return err
	}},
	{"ListGrants", false, false, stateAny, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.ListGrants(ctx, &kms.ListGrantsInput{KeyId: &id})
		return err
	}},
	{"Decrypt", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.Decrypt(ctx, &kms.DecryptInput{KeyId: &id, CiphertextBlob: k.blob, DryRun: dry})
		return err
	}},
	{"DeriveSharedSecret", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.DeriveSharedSecret(ctx, &kms.DeriveSharedSecretInput{KeyId: &id, PublicKey: k.peer, KeyAgreementAlgorithm: "ECDH", DryRun: dry})
		return err
	}},
	{"DescribeKey", true, false, stateAny, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &id})
		return err
	}},
	{"Encrypt", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x"), DryRun: dry})
		return err
	}},
	{"GenerateDataKey", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &id, KeySpec: "AES_256", DryRun: dry})
		return err
	}},
	{"GenerateDataKeyPair", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: "ECC_NIST_P256", DryRun: dry})
		return err
	}},
	{"GenerateDataKeyPairWithoutPlaintext", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: "ECC_NIST_P256", DryRun: dry})
		return err
	}},
	{"GenerateDataKeyWithoutPlaintext", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: "AES_256", DryRun: dry})
		return err
	}},
	{"GenerateMac", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: &id, Message: []byte("x"), MacAlgorithm: "HMAC_SHA_256", DryRun: dry})
		return err
	}},
	{"GetPublicKey", true, false, statePublic, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &id})
		return err
	}},
	{"ReEncrypt", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: k.blob, SourceKeyId: &id, DestinationKeyId: &id, DryRun: dry})
		return err
	}},
	{"Sign", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.Sign(ctx, &kms.SignInput{KeyId: &id, Message: []byte("x"), SigningAlgorithm: "ECDSA_SHA_256", DryRun: dry})
		return err
	}},
	{"Verify", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.Verify(ctx, &kms.VerifyInput{KeyId: &id, Message: []byte("ring"), Signature: k.signature, SigningAlgorithm: "ECDSA_SHA_256", DryRun: dry})
		return err
	}},
	{"VerifyMac", true, true, stateCrypto, func(ctx context.Context, k *keyring, id string, dry *bool) error {
		_, err := k.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: &id, Message: []byte("ring"), Mac: k.macTag, MacAlgorithm: "HMAC_SHA_256", DryRun: dry})
		return err
	}},
	{"EnableKey", false, false, stateChange, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &id})
		return err
	}},
	{"GetKeyPolicy", false, false, stateAny, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &id})
		return err
	}},
	{"PutKeyPolicy", false, false, stateAny, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &id, Policy: ptr(ownerPolicy)})
		return err
	}},
	{"ListKeyPolicies", false, false, stateAny, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: &id})
		return err
	}},
	{"ListResourceTags", false, false, stateAny, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: &id})
		return err
	}},
	{"GetKeyLastUsage", false, false, stateAny, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: &id})
		return err
	}},
	{"GetKeyRotationStatus", false, false, stateAny, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &id})
		return err
	}},
	{"ListKeyRotations", false, false, stateAny, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &id})
		return err
	}},
	{"EnableKeyRotation", false, false, stateCrypto, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: &id})
		return err
	}},
	{"DisableKeyRotation", false, false, stateCrypto, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: &id})
		return err
	}},
	{"RotateKeyOnDemand", false, false, stateCrypto, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &id})
		return err
	}},
	{"ListAliases", false, false, stateAny, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.ListAliases(ctx, &kms.ListAliasesInput{KeyId: &id})
		return err
	}},
	{"TagResource", false, false, stateChange, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.TagResource(ctx, &kms.TagResourceInput{KeyId: &id, Tags: []types.Tag{{TagKey: ptr("a"), TagValue: ptr("b")}}})
		return err
	}},
	{"UntagResource", false, false, stateChange, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.UntagResource(ctx, &kms.UntagResourceInput{KeyId: &id, TagKeys: []string{"a"}})
		return err
	}},
	{"UpdateKeyDescription", false, false, stateChange, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: &id, Description: ptr("d")})
		return err
	}},
	{"DisableKey", false, false, stateChange, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &id})
		return err
	}},
	{"ScheduleKeyDeletion", false, false, stateChange, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &id})
		return err
	}},
	{"CancelKeyDeletion", false, false, stateCancel, func(ctx context.Context, k *keyring, id string, _ *bool) error {
		_, err := k.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: &id})
		return err
	}},
}

// TestIdentifiers gives every operation all four forms, and what looks like one.
func TestIdentifiers(t *testing.T) {
	t.Parallel()
	k := newKeyring(newStory(t))
	for _, c := range calls {
		t.Run(c.op, func(t *testing.T) {
			key := k.keyFor(c.op)
			alias := "alias/" + c.op + "/a_b-c"
			must(k.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: key.KeyId}))(t)
			if c.op != "CancelKeyDeletion" { // needs a key that is going
				for _, id := range []string{*key.KeyId, *key.Arn} {
					if c.op == "ScheduleKeyDeletion" {
						id = strings.ReplaceAll(id, *key.KeyId, k.in(t).symmetricKey())
					}
					if err := c.do(t.Context(), k, id, nil); err != nil {
						t.Errorf("%s: %v", id, err)
					}
				}
				must(k.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: key.KeyId}))(t)
			}
			for _, id := range []string{alias, k.aliasARN(alias)} {
				err := c.do(t.Context(), k, id, nil)
				if !c.aliases {
					wantError(t, err, "InvalidArnException", "Key Aliases are not supported for this operation.")
				} else if err != nil {
					t.Errorf("%s: %v", id, err)
				}
			}
			for _, tc := range []struct{ id, code, text string }{
				{unknownID, "NotFoundException", "Key '" + k.keyARN(unknownID) + "' does not exist"},
				{k.keyARN(unknownID), "NotFoundException", "Key '" + k.keyARN(unknownID) + "' does not exist"},
				{"mrk-1234abcd12ab34cd56ef1234567890ab", "NotFoundException", "Key '" + k.keyARN("mrk-1234abcd12ab34cd56ef1234567890ab") + "' does not exist"},
				// The same 16 bytes under the other form of an id are another key.
				{"mrk-" + strings.ReplaceAll(*key.KeyId, "-", ""), "NotFoundException", "Key '" + k.keyARN("mrk-"+strings.ReplaceAll(*key.KeyId, "-", "")) + "' does not exist"},
				{"not-a-key", "NotFoundException", "Invalid keyId 'not-a-key'"},
				{strings.ReplaceAll(*key.KeyId, "-", ""), "NotFoundException", "Invalid keyId '" + strings.ReplaceAll(*key.KeyId, "-", "") + "'"},
				{"mrk-1234", "NotFoundException", "Invalid keyId 'mrk-1234'"},
				{*key.KeyId + "0", "NotFoundException", "Invalid keyId '" + *key.KeyId + "0'"},
				{strings.Replace(*key.Arn, k.region, "eu-west-1", 1), "NotFoundException", "Invalid arn eu-west-1"},
				{strings.Replace(*key.Arn, Account, "111122223333", 1), "NotFoundException", "..."},
				{"", "ValidationException", "2 validation errors detected: Value '' at '..."},
				{strings.Repeat("a", 2049), "ValidationException", "1 validation error detected: Value '..."},
			} {
				if tc.id == "" && c.op == "ListAliases" {
					continue // an optional member
				}
				err := c.do(t.Context(), k, tc.id, nil)
				t.Run("refuses "+tc.id[:min(len(tc.id), 60)], func(t *testing.T) {
					if c.op == "ReEncrypt" && len(tc.text) > 0 && tc.code == "ValidationException" {
						tc.text = "2 validation errors detected: Value '..." // both keys
						if tc.id == "" {
							tc.text = "4 validation errors detected: Value ''..."
						}
					}
					wantError(t, err, tc.code, tc.text)
				})
			}
			if c.aliases {
				missing := "alias/missing"
				for _, id := range []string{missing, k.aliasARN(missing)} {
					wantError(t, c.do(t.Context(), k, id, nil), "NotFoundException", "Alias "+k.aliasARN(missing)+" is not found.")
				}
			}
		})
	}
}

// TestDryRun: an ordinary error comes first, success never.
func TestDryRun(t *testing.T) {
	t.Parallel()
	k := newKeyring(newStory(t))
	yes, no := ptr(true), ptr(false)
	for _, c := range calls {
		if !c.dryRun {
			continue
		}
		t.Run(c.op, func(t *testing.T) {
			id := *k.keyFor(c.op).KeyId
			wantError(t, c.do(t.Context(), k, id, yes), "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
			if err := c.do(t.Context(), k, id, no); err != nil {
				t.Error(err)
			}
			wantError(t, c.do(t.Context(), k, unknownID, yes), "NotFoundException", "Key '"+k.keyARN(unknownID)+"' does not exist")
		})
	}
	broken := *k
	broken.blob, broken.signature, broken.macTag = k.blob[:len(k.blob)-1], []byte{1}, []byte{1}
	for op, code := range map[string]string{"Decrypt": "InvalidCiphertextException", "ReEncrypt": "InvalidCiphertextException", "Verify": "KMSInvalidSignatureException", "VerifyMac": "KMSInvalidMacException"} {
		for _, c := range calls {
			if c.op == op {
				wantError(t, c.do(t.Context(), &broken, *k.keyFor(op).KeyId, yes), code, "")
			}
		}
	}

	// IGNORE_CIPHERTEXT asks whether the caller may, without a ciphertext.
	ignore := []types.DryRunModifierType{types.DryRunModifierTypeIgnoreCiphertext}
	_, err := k.Decrypt(t.Context(), &kms.DecryptInput{KeyId: k.symmetric.KeyId, DryRun: yes, DryRunModifiers: ignore})
	wantError(t, err, "DryRunOperationException", "...")
	_, err = k.Decrypt(t.Context(), &kms.DecryptInput{DryRun: yes, DryRunModifiers: ignore})
	wantError(t, err, "ValidationException", "...")
	_, err = k.Decrypt(t.Context(), &kms.DecryptInput{KeyId: k.symmetric.KeyId, CiphertextBlob: k.blob, DryRunModifiers: ignore})
	wantError(t, err, "ValidationException", "...")
}
