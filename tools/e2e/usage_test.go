package e2e

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go/middleware"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func (s *story) lastUsage(id string) *kms.GetKeyLastUsageOutput {
	s.Helper()
	return must(s.GetKeyLastUsage(s.ctx(), &kms.GetKeyLastUsageInput{KeyId: &id}))(s)
}

// used expects a request to be the last use of a key.
func (s *story) used(id, operation string, of middleware.Metadata) {
	s.Helper()
	request, ok := awsmiddleware.GetRequestIDMetadata(of)
	got := s.lastUsage(id).KeyLastUsage
	if !ok || got == nil || string(got.Operation) != operation || got.KmsRequestId == nil || *got.KmsRequestId != request ||
		got.Timestamp == nil || time.Since(*got.Timestamp).Abs() > time.Minute || got.CloudTrailEventId == nil || len(*got.CloudTrailEventId) != 36 {
		s.Errorf("last use %+v, want %s by request %s", got, operation, request)
	}
}

// TestLastUsage makes every operation that uses a key, and one after the other is
// the last.
func TestLastUsage(t *testing.T) {
	t.Parallel()
	d := start(t, Options{Regions: "all", Coverage: coverage})
	s := storyIn(t, d, "us-east-1")
	began := time.Now()
	k := newKeyring(s)
	unused := s.newKey("", "")
	got := s.lastUsage(*unused.KeyId)
	if *got.KeyId != *unused.Arn || !got.KeyCreationDate.Equal(*unused.CreationDate) || !got.TrackingStartDate.Equal(*unused.CreationDate) ||
		got.KeyLastUsage == nil || got.KeyLastUsage.Operation != "" || got.KeyLastUsage.Timestamp != nil || began.Sub(*got.KeyCreationDate) > time.Minute {
		t.Errorf("a key that was not used: %+v, %+v", got, got.KeyLastUsage)
	}

	id := *k.symmetric.KeyId
	ctx := s.ctx()
	s.used(id, "Encrypt", must(k.Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x")}))(t).ResultMetadata)
	s.used(id, "Decrypt", must(k.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: k.blob}))(t).ResultMetadata)
	s.used(id, "GenerateDataKey", must(k.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &id, NumberOfBytes: ptr[int32](9)}))(t).ResultMetadata)
	s.used(id, "GenerateDataKeyWithoutPlaintext", must(k.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, NumberOfBytes: ptr[int32](9)}))(t).ResultMetadata)
	s.used(id, "GenerateDataKeyPair", must(k.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: types.DataKeyPairSpecEccNistP256}))(t).ResultMetadata)
	s.used(id, "GenerateDataKeyPairWithoutPlaintext", must(k.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: types.DataKeyPairSpecEccNistP256}))(t).ResultMetadata)
	s.used(*k.mac.KeyId, "GenerateMac", must(k.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: k.mac.KeyId, Message: []byte("x"), MacAlgorithm: "HMAC_SHA_256"}))(t).ResultMetadata)
	s.used(*k.mac.KeyId, "VerifyMac", must(k.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: k.mac.KeyId, Message: []byte("ring"), Mac: k.macTag, MacAlgorithm: "HMAC_SHA_256"}))(t).ResultMetadata)
	s.used(*k.signer.KeyId, "Sign", must(k.Sign(ctx, &kms.SignInput{KeyId: k.signer.KeyId, Message: []byte("x"), SigningAlgorithm: "ECDSA_SHA_256"}))(t).ResultMetadata)
	s.used(*k.signer.KeyId, "Verify", must(k.Verify(ctx, &kms.VerifyInput{KeyId: k.signer.KeyId, Message: []byte("ring"), Signature: k.signature, SigningAlgorithm: "ECDSA_SHA_256"}))(t).ResultMetadata)
	s.used(*k.agree.KeyId, "DeriveSharedSecret", must(k.DeriveSharedSecret(ctx, &kms.DeriveSharedSecretInput{KeyId: k.agree.KeyId, KeyAgreementAlgorithm: "ECDH", PublicKey: k.peer}))(t).ResultMetadata)
	moved := must(k.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: k.blob, DestinationKeyId: unused.KeyId}))(t).ResultMetadata
	s.used(id, "ReEncrypt", moved)
	s.used(*unused.KeyId, "ReEncrypt", moved)

	// The operator sees how often, too.
	usage := func(arn string) (string, error) {
		out, err := exec.Command(binary, "usage", "--data", d.Dir(), arn).CombinedOutput()
		return string(out), err
	}
	out, err := usage(*k.signer.Arn)
	want := regexp.MustCompile(`^recorded since  20\S+Z\nSign            2\nVerify          1\nlast use        20\S+Z, Verify, request [0-9a-f-]{36}\n$`)
	if err != nil || !want.MatchString(out) {
		t.Errorf("keymill usage: %v\n%s", err, out)
	}
	if out, err := usage(*s.newKey("", "").Arn); err != nil || !strings.HasSuffix(out, "\nlast use        none\n") {
		t.Errorf("of a key that was not used: %v\n%s", err, out)
	}
	for arn, text := range map[string]string{
		s.keyARN(unknownID): "there is no key " + s.keyARN(unknownID), id: `"` + id + `" is not a key ARN`,
		strings.Replace(*k.signer.Arn, Account, "111122223333", 1): "there is no key",
	} {
		if out, err := usage(arn); err == nil || !strings.Contains(out, text) {
			t.Errorf("of %s: %v\n%s", arn, err, out)
		}
	}

	// The daemon writes it down before it stops; a key keeps it while it goes.
	must(k.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &id}))(t)
	before := s.lastUsage(id)
	if err := d.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, s.lastUsage(id), cmpopts.IgnoreUnexported(kms.GetKeyLastUsageOutput{}, types.KeyLastUsageData{}),
		cmpopts.IgnoreFields(kms.GetKeyLastUsageOutput{}, "ResultMetadata")); diff != "" {
		t.Errorf("after a restart (-before +after):\n%s", diff)
	}
}
