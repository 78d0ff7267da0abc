package e2e

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"keymill/engine/wraptest"
)

// mostRotations is how often a key rotates on demand in its life.
const mostRotations = 25

func (s *story) rotate(id string) error {
	out, err := s.RotateKeyOnDemand(s.ctx(), &kms.RotateKeyOnDemandInput{KeyId: &id})
	if err == nil && *out.KeyId != s.keyARN(id) {
		s.Errorf("RotateKeyOnDemand answers %s", *out.KeyId)
	}
	return err
}

// rotations lists a key's rotations, or all its material, page by page.
func (s *story) rotations(id string, all bool, limit int32) (list []types.RotationsListEntry) {
	s.Helper()
	in := &kms.ListKeyRotationsInput{KeyId: &id, Limit: &limit}
	if all {
		in.IncludeKeyMaterial = types.IncludeKeyMaterialAllKeyMaterial
	}
	pages := kms.NewListKeyRotationsPaginator(s.Client, in)
	for pages.HasMorePages() {
		page := must(pages.NextPage(s.ctx()))(s)
		if len(page.Rotations) > int(limit) || page.Truncated != (page.NextMarker != nil) {
			s.Errorf("a page of %d, truncated %t, marker %v", len(page.Rotations), page.Truncated, page.NextMarker)
		}
		list = append(list, page.Rotations...)
	}
	return list
}

// rotationStatus is GetKeyRotationStatus without its metadata.
func (s *story) rotationStatus(id string) *kms.GetKeyRotationStatusOutput {
	s.Helper()
	out := must(s.GetKeyRotationStatus(s.ctx(), &kms.GetKeyRotationStatusInput{KeyId: &id}))(s)
	return &kms.GetKeyRotationStatusOutput{
		KeyId: out.KeyId, KeyRotationEnabled: out.KeyRotationEnabled, RotationPeriodInDays: out.RotationPeriodInDays,
		NextRotationDate: out.NextRotationDate, OnDemandRotationStartDate: out.OnDemandRotationStartDate,
	}
}

func TestRotationSetting(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	id := s.symmetricKey()
	unexported := cmpopts.IgnoreUnexported(kms.GetKeyRotationStatusOutput{})
	check := func(days int32, from time.Time) {
		t.Helper()
		got := s.rotationStatus(id)
		want := &kms.GetKeyRotationStatusOutput{KeyId: ptr(s.keyARN(id))}
		if days > 0 {
			want.KeyRotationEnabled, want.RotationPeriodInDays = true, &days
			if d := got.NextRotationDate; d == nil || d.Before(from.AddDate(0, 0, int(days))) || d.After(from.AddDate(0, 0, int(days)).Add(time.Minute)) {
				t.Errorf("the next rotation is on %v, %d days from %v", d, days, from)
			}
			want.NextRotationDate = got.NextRotationDate
		}
		if diff := cmp.Diff(want, got, unexported, cmpopts.IgnoreFields(kms.GetKeyRotationStatusOutput{}, "ResultMetadata")); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
	}
	enable := func(days *int32) time.Time {
		t.Helper()
		from := time.Now().UTC().Truncate(time.Millisecond)
		must(s.EnableKeyRotation(s.ctx(), &kms.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: days}))(t)
		return from
	}
	check(0, time.Time{})
	check(365, enable(nil))
	for _, days := range []int32{90, 180, 2560} {
		check(days, enable(&days))
	}
	// Pending deletion hides it, cancelling shows it again.
	from := enable(ptr[int32](100))
	must(s.ScheduleKeyDeletion(s.ctx(), &kms.ScheduleKeyDeletionInput{KeyId: &id}))(t)
	check(0, time.Time{})
	must(s.CancelKeyDeletion(s.ctx(), &kms.CancelKeyDeletionInput{KeyId: &id}))(t)
	check(100, from)
	_, err := s.DisableKeyRotation(s.ctx(), &kms.DisableKeyRotationInput{KeyId: &id})
	wantError(t, err, "DisabledException", s.keyARN(id)+" is disabled.")
	must(s.EnableKey(s.ctx(), &kms.EnableKeyInput{KeyId: &id}))(t)
	must(s.DisableKeyRotation(s.ctx(), &kms.DisableKeyRotationInput{KeyId: &id}))(t)
	check(0, time.Time{})

	const number = "1 validation error detected: Value '%d' at 'rotationPeriodInDays' failed to satisfy constraint: Member must have value %s than or equal to %d"
	_, err = s.EnableKeyRotation(s.ctx(), &kms.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: ptr[int32](89)})
	wantError(t, err, "ValidationException", fmt.Sprintf(number, 89, "greater", 90))
	_, err = s.EnableKeyRotation(s.ctx(), &kms.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: ptr[int32](2561)})
	wantError(t, err, "ValidationException", fmt.Sprintf(number, 2561, "less", 2560))
}

// TestRotationOnDemand rotates a key as often as it goes, with the daemon killed
// in between, and decrypts everything that any of its materials encrypted.
func TestRotationOnDemand(t *testing.T) {
	t.Parallel()
	d := start(t, Options{Coverage: coverage})
	s := storyIn(t, d, "us-east-1")
	id := s.symmetricKey()
	var blobs [][]byte
	var materials []string
	seal := func() {
		t.Helper()
		blobs = append(blobs, must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &id, Plaintext: fmt.Append(nil, len(blobs))}))(t).CiphertextBlob)
		materials = append(materials, *must(s.GenerateDataKey(s.ctx(), &kms.GenerateDataKeyInput{KeyId: &id, KeySpec: types.DataKeySpecAes256}))(t).KeyMaterialId)
		if got := s.describe(id).CurrentKeyMaterialId; *got != materials[len(materials)-1] {
			t.Errorf("CurrentKeyMaterialId %s, data keys are under %s", *got, materials[len(materials)-1])
		}
	}
	seal()
	for n := range mostRotations {
		if err := s.rotate(id); err != nil {
			t.Fatal(err)
		}
		seal()
		if n == 12 {
			d.Kill()
			if err := d.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantError(t, s.rotate(id), "LimitExceededException",
		"The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be performed for this key: "+s.keyARN(id))
	if err := d.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, blob := range blobs {
		out := must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob}))(t)
		if !bytes.Equal(out.Plaintext, fmt.Append(nil, i)) || *out.KeyMaterialId != materials[i] {
			t.Errorf("text %d: %q of material %s", i, out.Plaintext, *out.KeyMaterialId)
		}
	}
	moved := must(s.ReEncrypt(s.ctx(), &kms.ReEncryptInput{CiphertextBlob: blobs[0], DestinationKeyId: &id}))(t)
	if *moved.SourceKeyMaterialId != materials[0] || *moved.DestinationKeyMaterialId != materials[mostRotations] {
		t.Errorf("ReEncrypt from %s to %s", *moved.SourceKeyMaterialId, *moved.DestinationKeyMaterialId)
	}

	all := s.rotations(id, true, 7)
	if len(all) != mostRotations+1 || all[0].RotationDate != nil || all[0].RotationType != "" {
		t.Fatalf("%d materials, the first %+v", len(all), all[0])
	}
	for i, e := range all {
		state := types.KeyMaterialStateNonCurrent
		if i == mostRotations {
			state = types.KeyMaterialStateCurrent
		}
		if *e.KeyId != s.keyARN(id) || *e.KeyMaterialId != materials[i] || e.KeyMaterialState != state || e.ImportState != "" || e.ExpirationModel != "" {
			t.Errorf("material %d: %+v", i, e)
		}
		if i > 0 && (e.RotationType != types.RotationTypeOnDemand || e.RotationDate.Before(all[max(i-1, 1)].RotationDate.Add(0))) {
			t.Errorf("rotation %d: %+v", i, e)
		}
	}
	if diff := cmp.Diff(all[1:], s.rotations(id, false, 1000), cmpopts.IgnoreUnexported(types.RotationsListEntry{})); diff != "" {
		t.Errorf("rotations (-of all +alone):\n%s", diff)
	}
}

func TestRotationRefusals(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	for _, key := range []*types.KeyMetadata{
		s.newKey(types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac), s.newKey(types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify),
	} {
		id := *key.KeyId
		_, err := s.EnableKeyRotation(s.ctx(), &kms.EnableKeyRotationInput{KeyId: &id})
		wantError(t, err, "UnsupportedOperationException", "")
		_, err = s.DisableKeyRotation(s.ctx(), &kms.DisableKeyRotationInput{KeyId: &id})
		wantError(t, err, "UnsupportedOperationException", "")
		if got := s.rotationStatus(id); got.KeyRotationEnabled || *got.KeyId != *key.Arn {
			t.Errorf("rotation status %+v", got)
		}
		_, err = s.ListKeyRotations(s.ctx(), &kms.ListKeyRotationsInput{KeyId: &id})
		wantError(t, err, "UnsupportedOperationException", "")
		wantError(t, s.rotate(id), "UnsupportedOperationException", "")
	}
	external := s.externalKey("", "")
	wrongOrigin := *external.Arn + " origin is EXTERNAL which is not valid for this operation."
	_, err := s.EnableKeyRotation(s.ctx(), &kms.EnableKeyRotationInput{KeyId: external.KeyId})
	wantError(t, err, "UnsupportedOperationException", wrongOrigin)
	_, err = s.GetKeyRotationStatus(s.ctx(), &kms.GetKeyRotationStatusInput{KeyId: external.KeyId})
	wantError(t, err, "UnsupportedOperationException", wrongOrigin)
	wantError(t, s.rotate(*external.KeyId), "KMSInvalidStateException", *external.Arn+" is pending import.")
	_, err = s.ListKeyRotations(s.ctx(), &kms.ListKeyRotationsInput{KeyId: external.KeyId, Marker: ptr("nonsense")})
	wantError(t, err, "InvalidMarkerException", "...")
}

// TestRotationToImportedMaterial follows material from its import to its use.
func TestRotationToImportedMaterial(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := s.externalKey("", "")
	id := *key.KeyId
	first := s.importInput(&id, types.AlgorithmSpecRsaesOaepSha256, types.WrappingKeySpecRsa2048, bytes.Repeat([]byte{1}, 32))
	first.KeyMaterialDescription = ptr("the first")
	one := *must(s.ImportKeyMaterial(s.ctx(), first))(t).KeyMaterialId
	wantError(t, s.rotate(id), "KMSInvalidStateException", "No available key material pending rotation for the key: "+*key.Arn+".")

	p := s.importParameters(&id, types.AlgorithmSpecRsaesOaepSha256, types.WrappingKeySpecRsa2048)
	until := time.Now().Add(time.Hour).Truncate(time.Second).UTC()
	two := *must(s.ImportKeyMaterial(s.ctx(), &kms.ImportKeyMaterialInput{
		KeyId: &id, ImportToken: p.ImportToken, EncryptedKeyMaterial: must(wraptest.Wrap("RSAES_OAEP_SHA_256", p.PublicKey, bytes.Repeat([]byte{2}, 32)))(t),
		ImportType: types.ImportTypeNewKeyMaterial, ExpirationModel: types.ExpirationModelTypeKeyMaterialExpires, ValidTo: &until,
	}))(t).KeyMaterialId
	want := []types.RotationsListEntry{
		{
			KeyId: key.Arn, KeyMaterialId: &one, KeyMaterialDescription: ptr("the first"), KeyMaterialState: types.KeyMaterialStateCurrent,
			ImportState: types.ImportStateImported, ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
		},
		{
			KeyId: key.Arn, KeyMaterialId: &two, KeyMaterialState: types.KeyMaterialStatePendingRotation,
			ImportState: types.ImportStateImported, ExpirationModel: types.ExpirationModelTypeKeyMaterialExpires, ValidTo: &until,
		},
	}
	check := func() {
		t.Helper()
		if diff := cmp.Diff(want, s.rotations(id, true, 1), cmpopts.IgnoreUnexported(types.RotationsListEntry{}), cmpopts.IgnoreFields(types.RotationsListEntry{}, "RotationDate")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	check()
	if err := s.rotate(id); err != nil {
		t.Fatal(err)
	}
	want[0].KeyMaterialState, want[1].KeyMaterialState, want[1].RotationType = types.KeyMaterialStateNonCurrent, types.KeyMaterialStateCurrent, types.RotationTypeOnDemand
	check()
	if got := *s.describe(id).CurrentKeyMaterialId; got != two {
		t.Errorf("CurrentKeyMaterialId %s, want %s", got, two)
	}
}
