package e2e

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// TestManagedKeys: predefined aliases have no key until somebody asks for it, and
// then one that nobody but AWS may change.
func TestManagedKeys(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	mine := s.symmetricKey()
	// What a client does that finds the name of an alias without a key.
	listed := func(name string) (entry types.AliasListEntry) {
		t.Helper()
		pages := kms.NewListAliasesPaginator(s.Client, &kms.ListAliasesInput{})
		for pages.HasMorePages() {
			for _, a := range must(pages.NextPage(s.ctx()))(t).Aliases {
				if *a.AliasName == name {
					entry = a
				}
			}
		}
		return entry
	}
	name := "alias/aws/secretsmanager"
	if e := listed(name); e.AliasArn == nil || *e.AliasArn != s.aliasARN(name) || e.TargetKeyId != nil || e.CreationDate != nil {
		t.Fatalf("before its first use: %+v", e)
	}
	_, err := s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &name, Plaintext: []byte("x")})
	wantError(t, err, "NotFoundException", "Alias "+s.aliasARN(name)+" is not found.")

	var all sync.WaitGroup
	ids := make([]string, 12)
	for i := range ids {
		form := name
		if i%2 == 1 {
			form = s.aliasARN(name)
		}
		all.Go(func() {
			if out, err := s.DescribeKey(s.ctx(), &kms.DescribeKeyInput{KeyId: &form}); err != nil {
				t.Error(err)
			} else {
				ids[i] = *out.KeyMetadata.KeyId
			}
		})
	}
	all.Wait()
	id := ids[0]
	for _, other := range ids {
		if other != id {
			t.Fatalf("made more than once: %v", ids)
		}
	}
	if e := listed(name); e.TargetKeyId == nil || *e.TargetKeyId != id || e.CreationDate == nil {
		t.Errorf("afterwards: %+v", e)
	}
	m := s.describe(id)
	if m.KeyManager != types.KeyManagerTypeAws || !m.Enabled || m.KeySpec != types.KeySpecSymmetricDefault || *m.MultiRegion || *m.Arn != s.keyARN(id) {
		t.Errorf("metadata %+v", m)
	}
	if r := s.rotationStatus(id); !r.KeyRotationEnabled || *r.RotationPeriodInDays != 365 || r.NextRotationDate.Before(m.CreationDate.AddDate(0, 0, 364)) {
		t.Errorf("rotation %+v", r)
	}
	policy := *must(s.GetKeyPolicy(s.ctx(), &kms.GetKeyPolicyInput{KeyId: &id}))(t).Policy
	for _, part := range []string{`"kms:ViaService"`, `"kms:CallerAccount"`, `"secretsmanager.` + s.region + `.amazonaws.com"`} {
		if !strings.Contains(policy, part) {
			t.Errorf("no %s in %s", part, policy)
		}
	}

	denied := func(op string, err error) {
		t.Helper()
		got := apiErrorOf(err)
		want := apiError{"AccessDeniedException", "User: arn:aws:iam::" + Account + ":root is not authorized to perform: kms:" + op + " on resource: " + s.keyARN(id) +
			" because no resource-based policy allows the kms:" + op + " action", http.StatusBadRequest}
		if got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", op, got, want)
		}
	}
	ctx := s.ctx()
	_, err = s.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &name, NumberOfBytes: ptr[int32](32)})
	denied("GenerateDataKey", err)
	_, err = s.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &id})
	denied("DisableKey", err)
	_, err = s.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &id})
	denied("ScheduleKeyDeletion", err)
	_, err = s.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &id, Policy: ptr(ownerPolicy)})
	denied("PutKeyPolicy", err)
	_, err = s.TagResource(ctx, &kms.TagResourceInput{KeyId: &id, Tags: []types.Tag{{TagKey: ptr("a"), TagValue: ptr("b")}}})
	denied("TagResource", err)
	_, err = s.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: &id, Description: ptr("d")})
	denied("UpdateKeyDescription", err)
	_, err = s.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: ptr("alias/theirs"), TargetKeyId: &id})
	denied("CreateAlias", err)
	_, err = s.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: &id})
	denied("EnableKeyRotation", err)
	denied("RotateKeyOnDemand", s.rotate(id))
	_, err = s.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &name})
	wantError(t, err, "NotAuthorizedException", "...")
	_, err = s.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &name, TargetKeyId: &mine})
	wantError(t, err, "NotAuthorizedException", "...")
}
