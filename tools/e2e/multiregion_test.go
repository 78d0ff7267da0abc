package e2e

import (
	"bytes"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// wantRelated checks what a key says of those related to it.
func (s *story) wantRelated(id, primary string, replicas ...string) {
	s.Helper()
	m := s.describe(id)
	c := m.MultiRegionConfiguration
	if c == nil || !*m.MultiRegion {
		s.Fatalf("%s: %+v", s.region, m)
	}
	kind := types.MultiRegionKeyTypeReplica
	if primary == s.region {
		kind = types.MultiRegionKeyTypePrimary
	}
	var got []string
	for _, k := range c.ReplicaKeys {
		got = append(got, *k.Region)
		if *k.Arn != (&story{region: *k.Region}).keyARN(id) {
			s.Errorf("%s: replica %s", s.region, *k.Arn)
		}
	}
	slices.Sort(replicas)
	if c.MultiRegionKeyType != kind || *c.PrimaryKey.Region != primary || *c.PrimaryKey.Arn != (&story{region: primary}).keyARN(id) || !slices.Equal(got, replicas) {
		s.Errorf("%s: %s, primary %s, replicas %v; want %s, %s, %v", s.region, c.MultiRegionKeyType, *c.PrimaryKey.Region, got, kind, primary, replicas)
	}
}

// TestMultiRegion walks a key through three regions with the SDK.
func TestMultiRegion(t *testing.T) {
	t.Parallel()
	a := newStory(t)
	b, c := newStory(t), newStory(t)
	key := must(a.CreateKey(a.ctx(), &kms.CreateKeyInput{MultiRegion: ptr(true), Description: ptr("first")}))(t).KeyMetadata
	id := *key.KeyId
	a.wantRelated(id, a.region)

	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":"kms:*","Resource":"*"}]}`
	out := must(a.ReplicateKey(a.ctx(), &kms.ReplicateKeyInput{
		KeyId: key.Arn, ReplicaRegion: &b.region, Description: ptr("second"), Policy: &policy, BypassPolicyLockoutSafetyCheck: true,
		Tags: []types.Tag{{TagKey: ptr("where"), TagValue: ptr("b")}},
	}))(t)
	m := out.ReplicaKeyMetadata
	if m.KeyState != types.KeyStateCreating || m.Enabled || *m.Arn != b.keyARN(id) || *m.Description != "second" || m.CurrentKeyMaterialId != nil ||
		m.MultiRegionConfiguration.MultiRegionKeyType != types.MultiRegionKeyTypeReplica || *out.ReplicaPolicy != policy ||
		len(out.ReplicaTags) != 1 || *out.ReplicaTags[0].TagKey != "where" {
		t.Errorf("answered %+v, %+v", out, m)
	}
	must(a.ReplicateKey(a.ctx(), &kms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: &c.region}))(t)
	for _, s := range []*story{a, b, c} {
		s.wantRelated(id, a.region, b.region, c.region)
		if got := s.describe(id); got.KeyState != types.KeyStateEnabled || *got.CurrentKeyMaterialId != *key.CurrentKeyMaterialId {
			t.Errorf("%s: %s, material %s", s.region, got.KeyState, *got.CurrentKeyMaterialId)
		}
	}
	if got := must(b.GetKeyPolicy(b.ctx(), &kms.GetKeyPolicyInput{KeyId: &id}))(t); *got.Policy != policy {
		t.Errorf("the replica's policy is %s", *got.Policy)
	}
	_, err := a.ReplicateKey(a.ctx(), &kms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: &b.region})
	wantError(t, err, "AlreadyExistsException", b.keyARN(id)+" already exists.")
	_, err = b.ReplicateKey(b.ctx(), &kms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: &c.region})
	wantError(t, err, "UnsupportedOperationException", b.keyARN(id)+" is not a multi-region primary key.")

	// Ciphertexts cross regions, before and after a rotation.
	seal := func(s *story, text string) []byte {
		t.Helper()
		return must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte(text)}))(t).CiphertextBlob
	}
	blobs := map[string][]byte{"from a": seal(a, "from a"), "from b": seal(b, "from b")}
	must(a.RotateKeyOnDemand(a.ctx(), &kms.RotateKeyOnDemandInput{KeyId: &id}))(t)
	blobs["rotated"] = seal(c, "rotated")
	for _, s := range []*story{a, b, c} {
		for text, blob := range blobs {
			d := must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob}))(t)
			if !bytes.Equal(d.Plaintext, []byte(text)) || *d.KeyId != s.keyARN(id) {
				t.Errorf("%s: %q of %s", s.region, d.Plaintext, *d.KeyId)
			}
		}
	}

	// The primary moves.
	must(a.UpdatePrimaryRegion(a.ctx(), &kms.UpdatePrimaryRegionInput{KeyId: &id, PrimaryRegion: &c.region}))(t)
	for _, s := range []*story{a, b, c} {
		s.wantRelated(id, c.region, a.region, b.region)
	}
	_, err = a.UpdatePrimaryRegion(a.ctx(), &kms.UpdatePrimaryRegionInput{KeyId: &id, PrimaryRegion: &b.region})
	wantError(t, err, "UnsupportedOperationException", a.keyARN(id)+" is not a multi-region primary key.")
	must(b.DisableKey(b.ctx(), &kms.DisableKeyInput{KeyId: &id}))(t)
	_, err = c.UpdatePrimaryRegion(c.ctx(), &kms.UpdatePrimaryRegionInput{KeyId: &id, PrimaryRegion: &b.region})
	wantError(t, err, "DisabledException", b.keyARN(id)+" is disabled.")

	// Deletion: the primary waits for its replicas.
	gone := must(c.ScheduleKeyDeletion(c.ctx(), &kms.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: ptr[int32](8)}))(t)
	if gone.KeyState != types.KeyStatePendingReplicaDeletion || gone.DeletionDate != nil || *gone.PendingWindowInDays != 8 || *gone.KeyId != c.keyARN(id) {
		t.Errorf("answered %+v", gone)
	}
	if m := c.describe(id); m.KeyState != types.KeyStatePendingReplicaDeletion || m.DeletionDate != nil || *m.PendingDeletionWindowInDays != 8 {
		t.Errorf("%+v", m)
	}
	_, err = c.ScheduleKeyDeletion(c.ctx(), &kms.ScheduleKeyDeletionInput{KeyId: &id})
	wantError(t, err, "KMSInvalidStateException", c.keyARN(id)+" is pending replica deletion.")
	must(c.CancelKeyDeletion(c.ctx(), &kms.CancelKeyDeletionInput{KeyId: &id}))(t)
	if m := c.describe(id); m.KeyState != types.KeyStateDisabled || m.PendingDeletionWindowInDays != nil {
		t.Errorf("%+v", m)
	}
	if replica := must(a.ScheduleKeyDeletion(a.ctx(), &kms.ScheduleKeyDeletionInput{KeyId: &id}))(t); replica.KeyState != types.KeyStatePendingDeletion || replica.DeletionDate == nil {
		t.Errorf("answered %+v", replica)
	}
}

// TestRegionNotServed: a replica cannot be made where nobody serves.
func TestRegionNotServed(t *testing.T) {
	t.Parallel()
	d := start(t, Options{Regions: "eu-west-1"})
	s := storyIn(t, d, "us-east-1")
	key := must(s.CreateKey(s.ctx(), &kms.CreateKeyInput{MultiRegion: ptr(true)}))(t).KeyMetadata
	_, err := s.ReplicateKey(s.ctx(), &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: ptr("us-west-2")})
	wantError(t, err, "UnsupportedOperationException", "The Region us-west-2 is not served here: this Keymill serves us-east-1, eu-west-1.")
	must(s.ReplicateKey(s.ctx(), &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: ptr("eu-west-1")}))(t)
	if err := d.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	storyIn(t, d, "eu-west-1").wantRelated(*key.KeyId, "us-east-1", "eu-west-1")
}
