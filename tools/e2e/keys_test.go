//lint:file-ignore SA1019 CustomerMasterKeySpec is deprecated and still part of the API under test.

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// ownerPolicy is AWS's default key policy for the daemon's account.
const ownerPolicy = `{"Version":"2012-10-17","Id":"own","Statement":[{"Sid":"Enable","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":"kms:*","Resource":"*"}]}`

var (
	uuidForm     = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	mrkForm      = regexp.MustCompile(`^mrk-[0-9a-f]{32}$`)
	materialForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// TestKeyMetadata makes a key of every spec and usage and looks at all that is
// said about it.
func TestKeyMetadata(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	type row struct {
		spec  types.KeySpec
		usage types.KeyUsageType
	}
	// The default and every pair of spec and usage that the service offers.
	rows := []row{{"", ""}, {types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt}}
	for _, spec := range keySpecs() {
		for _, usage := range keyUsages {
			if len(algorithmsOf(spec, usage)) > 0 && spec != types.KeySpecSymmetricDefault {
				rows = append(rows, row{spec, usage})
			}
		}
	}
	for _, r := range rows {
		t.Run(fmt.Sprintf("%s %s", r.spec, r.usage), func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			before := time.Now().Add(-time.Second)
			made := must(s.CreateKey(s.ctx(), &kms.CreateKeyInput{
				KeySpec: r.spec, KeyUsage: r.usage, Description: ptr("a key\tof \"tests\" ✓"),
				Tags: []types.Tag{{TagKey: ptr("k"), TagValue: ptr("")}},
			}))(t).KeyMetadata
			if !uuidForm.MatchString(*made.KeyId) {
				t.Errorf("KeyId %s", *made.KeyId)
			}
			if made.CreationDate == nil || made.CreationDate.Before(before) || made.CreationDate.After(time.Now().Add(time.Second)) {
				t.Errorf("CreationDate %v", made.CreationDate)
			}
			spec, usage := r.spec, r.usage
			if spec == "" {
				spec, usage = types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt
			}
			if symmetric := spec == types.KeySpecSymmetricDefault; symmetric != (made.CurrentKeyMaterialId != nil) || symmetric && !materialForm.MatchString(*made.CurrentKeyMaterialId) {
				t.Errorf("CurrentKeyMaterialId %v", made.CurrentKeyMaterialId)
			}
			want := &types.KeyMetadata{
				AWSAccountId: ptr(Account),
				KeyId:        made.KeyId,
				Arn:          ptr(s.keyARN(*made.KeyId)),
				Enabled:      true,
				Description:  ptr("a key\tof \"tests\" ✓"),
				KeyUsage:     usage,
				KeyState:     types.KeyStateEnabled,
				Origin:       types.OriginTypeAwsKms,
				KeyManager:   types.KeyManagerTypeCustomer,
				KeySpec:      spec,
				MultiRegion:  ptr(false),

				CustomerMasterKeySpec: types.CustomerMasterKeySpec(spec),
			}
			switch usage {
			case types.KeyUsageTypeEncryptDecrypt:
				want.EncryptionAlgorithms = enums[types.EncryptionAlgorithmSpec](algorithmsOf(spec, usage))
			case types.KeyUsageTypeSignVerify:
				want.SigningAlgorithms = enums[types.SigningAlgorithmSpec](algorithmsOf(spec, usage))
			case types.KeyUsageTypeGenerateVerifyMac:
				want.MacAlgorithms = enums[types.MacAlgorithmSpec](algorithmsOf(spec, usage))
			case types.KeyUsageTypeKeyAgreement:
				want.KeyAgreementAlgorithms = enums[types.KeyAgreementAlgorithmSpec](algorithmsOf(spec, usage))
			}
			opts := cmp.Options{
				cmpopts.IgnoreUnexported(types.KeyMetadata{}),
				cmpopts.IgnoreFields(types.KeyMetadata{}, "CreationDate", "CurrentKeyMaterialId"),
				cmpopts.SortSlices(func(a, b types.EncryptionAlgorithmSpec) bool { return a < b }),
				cmpopts.SortSlices(func(a, b types.SigningAlgorithmSpec) bool { return a < b }),
			}
			if diff := cmp.Diff(want, made, opts); diff != "" {
				t.Errorf("CreateKey (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(made, s.describe(*made.KeyId), cmpopts.IgnoreUnexported(types.KeyMetadata{})); diff != "" {
				t.Errorf("DescribeKey after CreateKey (-created +described):\n%s", diff)
			}
			if got, want := s.tags(*made.KeyId), map[string]string{"k": ""}; !cmp.Equal(got, want) {
				t.Errorf("tags %v", got)
			}
		})
	}
}

// keyUsages are those of the service model that the daemon follows; the SDK may
// know newer ones.
var keyUsages = []types.KeyUsageType{types.KeyUsageTypeEncryptDecrypt, types.KeyUsageTypeSignVerify, types.KeyUsageTypeGenerateVerifyMac, types.KeyUsageTypeKeyAgreement}

// keySpecs are all specs of the service model.
func keySpecs() []types.KeySpec {
	specs := []types.KeySpec{types.KeySpecSymmetricDefault, types.KeySpecHmac224, types.KeySpecHmac256, types.KeySpecHmac384, types.KeySpecHmac512}
	for _, s := range signingSpecs {
		specs = append(specs, s.spec)
	}
	return specs
}

// algorithmsOf is AWS's table of key specs (AWS KMS Developer Guide, Key spec
// reference); none means that the service does not offer the pair.
func algorithmsOf(spec types.KeySpec, usage types.KeyUsageType) []string {
	name := string(spec)
	switch usage {
	case types.KeyUsageTypeEncryptDecrypt:
		switch {
		case name == "SYMMETRIC_DEFAULT":
			return []string{name}
		case name == "SM2":
			return []string{"SM2PKE"}
		case strings.HasPrefix(name, "RSA"):
			return []string{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"}
		}
	case types.KeyUsageTypeSignVerify:
		for _, s := range signingSpecs {
			if s.spec == spec {
				var list []string
				for _, a := range s.algs {
					list = append(list, string(a))
				}
				return list
			}
		}
	case types.KeyUsageTypeGenerateVerifyMac:
		if bits, ok := strings.CutPrefix(name, "HMAC_"); ok {
			return []string{"HMAC_SHA_" + bits}
		}
	case types.KeyUsageTypeKeyAgreement:
		if strings.HasPrefix(name, "ECC_NIST_P") || name == "SM2" {
			return []string{"ECDH"}
		}
	}
	return nil
}

func enums[E ~string](names []string) []E {
	var list []E
	for _, n := range names {
		list = append(list, E(n))
	}
	return list
}

// TestCreateKeyRefusals: each wrong request has its own answer and makes no key.
func TestCreateKeyRefusals(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	const usageMissing = "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."
	tag := func(k, v string) types.Tag { return types.Tag{TagKey: &k, TagValue: &v} }
	var many []types.Tag
	for i := range 51 {
		many = append(many, tag(fmt.Sprint("k", i), "v"))
	}
	type row struct {
		name, code, text string
		in               kms.CreateKeyInput
	}
	rows := []row{
		{"no usage, RSA", "ValidationException", usageMissing, kms.CreateKeyInput{KeySpec: types.KeySpecRsa2048}},
		{"no usage, HMAC", "ValidationException", usageMissing, kms.CreateKeyInput{KeySpec: types.KeySpecHmac256}},
		{"unknown spec", "ValidationException", "1 validation error detected: Value 'DES' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: [...", kms.CreateKeyInput{KeySpec: "DES"}},
		{"unknown usage", "ValidationException", "1 validation error detected: Value 'PAINT' at 'keyUsage' failed to satisfy constraint: Member must satisfy enum value set: [...", kms.CreateKeyInput{KeyUsage: "PAINT"}},
		{"two violations", "ValidationException", "2 validation errors detected: Value '...", kms.CreateKeyInput{KeyUsage: "PAINT", KeySpec: "DES"}},
		{"both spec members", "ValidationException", "...", kms.CreateKeyInput{KeySpec: types.KeySpecSymmetricDefault, CustomerMasterKeySpec: types.CustomerMasterKeySpecSymmetricDefault}},
		{"imported ML-DSA", "UnsupportedOperationException", "KeySpec ML_DSA_44 is not supported for Origin EXTERNAL.", kms.CreateKeyInput{Origin: types.OriginTypeExternal, KeySpec: types.KeySpecMlDsa44, KeyUsage: types.KeyUsageTypeSignVerify}},
		{"unknown key store", "CustomKeyStoreNotFoundException", "The custom key store cks-1 does not exist.", kms.CreateKeyInput{Origin: types.OriginTypeAwsCloudhsm, CustomKeyStoreId: ptr("cks-1")}},
		{"long description", "ValidationException", "1 validation error detected: Value '...", kms.CreateKeyInput{Description: ptr(strings.Repeat("d", 8193))}},
		{"duplicate tags", "TagException", "Duplicate tag keys", kms.CreateKeyInput{Tags: []types.Tag{tag("a", "1"), tag("a", "2")}}},
		{"too many tags", "TagException", "Too many tags", kms.CreateKeyInput{Tags: many}},
		{"reserved tag", "TagException", "Tags beginning with aws: are reserved", kms.CreateKeyInput{Tags: []types.Tag{tag("aws:x", "1")}}},
		{"reserved tag in capitals", "TagException", "Tags beginning with aws: are reserved", kms.CreateKeyInput{Tags: []types.Tag{tag("AWS:x", "1")}}},
		{"long tag value", "ValidationException", "1 validation error detected: Value '" + strings.Repeat("v", 257) + "' at 'tags.1.member.tagValue' failed to satisfy constraint: Member must have length less than or equal to 256", kms.CreateKeyInput{Tags: []types.Tag{tag("a", strings.Repeat("v", 257))}}},
		{"empty tag key", "ValidationException", "1 validation error detected: Value '' at 'tags.2.member.tagKey' failed to satisfy constraint: Member must have length greater than or equal to 1", kms.CreateKeyInput{Tags: []types.Tag{tag("a", ""), tag("", "")}}},
		{"policy is not JSON", "MalformedPolicyDocumentException", "...", kms.CreateKeyInput{Policy: ptr("{")}},
		{"policy locks out", "MalformedPolicyDocumentException", "The new key policy will not allow you to update the key policy in the future.", kms.CreateKeyInput{Policy: ptr(strings.Replace(ownerPolicy, "kms:*", "kms:Encrypt", 1))}},
	}
	for _, spec := range keySpecs() {
		for _, usage := range keyUsages {
			if len(algorithmsOf(spec, usage)) == 0 {
				rows = append(rows, row{string(spec) + " " + string(usage), "ValidationException", fmt.Sprintf("KeyUsage %s is not compatible with KeySpec %s", usage, spec), kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage}})
			}
		}
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			_, err := s.CreateKey(t.Context(), &r.in)
			wantError(t, err, r.code, r.text)
		})
	}
	if list := must(s.ListKeys(s.ctx(), &kms.ListKeysInput{}))(t); len(list.Keys) != 0 {
		t.Errorf("refused requests made %d keys", len(list.Keys))
	}
}

func TestOldSpecMember(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := must(s.CreateKey(s.ctx(), &kms.CreateKeyInput{CustomerMasterKeySpec: types.CustomerMasterKeySpecEccNistP256, KeyUsage: types.KeyUsageTypeSignVerify}))(t).KeyMetadata
	if key.KeySpec != types.KeySpecEccNistP256 || key.CustomerMasterKeySpec != types.CustomerMasterKeySpecEccNistP256 {
		t.Errorf("KeySpec %s, CustomerMasterKeySpec %s", key.KeySpec, key.CustomerMasterKeySpec)
	}
}

// TestMultiRegionKey: a primary without replicas.
func TestMultiRegionKey(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := must(s.CreateKey(s.ctx(), &kms.CreateKeyInput{MultiRegion: ptr(true)}))(t).KeyMetadata
	if !mrkForm.MatchString(*key.KeyId) || !*key.MultiRegion {
		t.Errorf("KeyId %s, MultiRegion %t", *key.KeyId, *key.MultiRegion)
	}
	want := &types.MultiRegionConfiguration{
		MultiRegionKeyType: types.MultiRegionKeyTypePrimary,
		PrimaryKey:         &types.MultiRegionKey{Arn: key.Arn, Region: &s.region},
		ReplicaKeys:        []types.MultiRegionKey{},
	}
	if diff := cmp.Diff(want, key.MultiRegionConfiguration, cmpopts.IgnoreUnexported(types.MultiRegionConfiguration{}, types.MultiRegionKey{})); diff != "" {
		t.Error(diff)
	}
	enc := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.Arn, Plaintext: []byte("x")}))(t)
	must(s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: enc.CiphertextBlob}))(t)
	must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: enc.CiphertextBlob}))(t)
}

// TestPartition: the partition in an ARN follows from the region.
func TestPartition(t *testing.T) {
	t.Parallel()
	for region, partition := range map[string]string{"cn-north-1": "aws-cn", "us-gov-west-1": "aws-us-gov", "eu-west-1": "aws"} {
		s := storyIn(t, shared, region)
		key := s.newKey("", "")
		if want := "arn:" + partition + ":kms:" + region + ":" + Account + ":key/" + *key.KeyId; *key.Arn != want {
			t.Errorf("ARN %s, want %s", *key.Arn, want)
		}
		if got := s.describe(*key.Arn); *got.KeyId != *key.KeyId {
			t.Errorf("%s finds %s", *key.Arn, *got.KeyId)
		}
	}
}

func TestDescription(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	id := s.symmetricKey()
	for _, text := range []string{"first", strings.Repeat("é", 8192), "<&>\u2028 \"quoted\" \\ \u0001", ""} {
		must(s.UpdateKeyDescription(s.ctx(), &kms.UpdateKeyDescriptionInput{KeyId: &id, Description: &text}))(t)
		if got := s.describe(id).Description; got == nil || *got != text {
			t.Errorf("description %q, want %q", *got, text)
		}
	}
	_, err := s.UpdateKeyDescription(s.ctx(), &kms.UpdateKeyDescriptionInput{KeyId: &id, Description: ptr(strings.Repeat("é", 8193))})
	wantError(t, err, "ValidationException", "1 validation error detected: Value '...")
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	id := s.symmetricKey()
	get := func() string {
		t.Helper()
		out := must(s.GetKeyPolicy(s.ctx(), &kms.GetKeyPolicyInput{KeyId: &id, PolicyName: ptr("default")}))(t)
		if *out.PolicyName != "default" {
			t.Errorf("PolicyName %s", *out.PolicyName)
		}
		return *out.Policy
	}
	if p := get(); !strings.Contains(p, "arn:aws:iam::"+Account+":root") {
		t.Errorf("default policy %s", p)
	}
	names := must(s.ListKeyPolicies(s.ctx(), &kms.ListKeyPoliciesInput{KeyId: &id}))(t)
	if diff := cmp.Diff([]string{"default"}, names.PolicyNames); diff != "" || names.Truncated || names.NextMarker != nil {
		t.Errorf("ListKeyPolicies answered %+v", names)
	}
	text := "\n" + strings.ReplaceAll(ownerPolicy, ",", ",\n  ") // kept as it was written
	must(s.PutKeyPolicy(s.ctx(), &kms.PutKeyPolicyInput{KeyId: &id, Policy: &text}))(t)
	if got := get(); got != text {
		t.Errorf("policy %q, want %q", got, text)
	}

	locked := strings.Replace(ownerPolicy, "kms:*", "kms:Decrypt", 1)
	const lockout = "The new key policy will not allow you to update the key policy in the future."
	for _, tc := range []struct{ name, policy, policyName, code, text string }{
		{"not JSON", "policy", "", "MalformedPolicyDocumentException", "..."},
		{"no statement", `{"Version":"2012-10-17"}`, "", "MalformedPolicyDocumentException", "..."},
		{"unknown element", strings.Replace(ownerPolicy, `"Sid"`, `"Side"`, 1), "", "MalformedPolicyDocumentException", "..."},
		{"lockout", locked, "", "MalformedPolicyDocumentException", lockout},
		{"another account", strings.Replace(ownerPolicy, Account, "111122223333", 1), "", "MalformedPolicyDocumentException", lockout},
		{"too long", strings.Replace(ownerPolicy, `"own"`, `"`+strings.Repeat("x", 32769)+`"`, 1), "", "LimitExceededException", "..."},
		{"far too long", strings.Repeat(" ", 131073), "", "ValidationException", "1 validation error detected: Value '..."},
		{"another name", ownerPolicy, "other", "UnsupportedOperationException", "Only default policy is supported"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := &kms.PutKeyPolicyInput{KeyId: &id, Policy: &tc.policy}
			if tc.policyName != "" {
				in.PolicyName = &tc.policyName
			}
			_, err := s.PutKeyPolicy(t.Context(), in)
			wantError(t, err, tc.code, tc.text)
			if got := get(); got != text {
				t.Errorf("the policy is now %q", got)
			}
		})
	}
	must(s.PutKeyPolicy(s.ctx(), &kms.PutKeyPolicyInput{KeyId: &id, Policy: &locked, BypassPolicyLockoutSafetyCheck: true}))(t)
	if got := get(); got != locked {
		t.Errorf("policy %q, want %q", got, locked)
	}
	_, err := s.GetKeyPolicy(s.ctx(), &kms.GetKeyPolicyInput{KeyId: &id, PolicyName: ptr("other")})
	wantError(t, err, "NotFoundException", "No such policy exists")
}
