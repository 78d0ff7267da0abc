package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go/middleware"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	rootPrincipal = "arn:aws:iam::" + Account + ":root"
	grantee       = "arn:aws:iam::" + Account + ":role/app"
	noGrantID     = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

var decryption = []types.GrantOperation{types.GrantOperationDecrypt, types.GrantOperationGenerateDataKey}

// grants returns the grants that a paginated list has, and checks its pages.
func (s *story) grants(limit int32, page func(marker *string) ([]types.GrantListEntry, bool, *string, error)) (found []types.GrantListEntry) {
	s.Helper()
	seen := make(map[string]bool)
	for marker := (*string)(nil); ; {
		entries, truncated, next, err := page(marker)
		if err != nil {
			s.Fatal(err)
		}
		if len(entries) > int(limit) || truncated != (next != nil) {
			s.Errorf("a page of %d, truncated %t, marker %v", len(entries), truncated, next)
		}
		for _, g := range entries {
			if seen[*g.GrantId] {
				s.Errorf("%s is listed twice", *g.GrantId)
			}
			seen[*g.GrantId] = true
		}
		found = append(found, entries...)
		if marker = next; !truncated {
			return found
		}
	}
}

func (s *story) keyGrants(in *kms.ListGrantsInput) []types.GrantListEntry {
	s.Helper()
	in.Limit = ptr[int32](100)
	return s.grants(100, func(marker *string) ([]types.GrantListEntry, bool, *string, error) {
		in.Marker = marker
		out, err := s.ListGrants(s.ctx(), in)
		if err != nil {
			return nil, false, nil, err
		}
		return out.Grants, out.Truncated, out.NextMarker, nil
	})
}

func (s *story) retirable(principal string) []types.GrantListEntry {
	s.Helper()
	return s.grants(7, func(marker *string) ([]types.GrantListEntry, bool, *string, error) {
		out, err := s.ListRetirableGrants(s.ctx(), &kms.ListRetirableGrantsInput{RetiringPrincipal: &principal, Limit: ptr[int32](7), Marker: marker})
		if err != nil {
			return nil, false, nil, err
		}
		return out.Grants, out.Truncated, out.NextMarker, nil
	})
}

// TestGrants is the life of grants as the AWS SDK sees it.
func TestGrants(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := s.newKey("", "")
	in := &kms.CreateGrantInput{
		KeyId: key.Arn, GranteePrincipal: ptr(grantee), RetiringPrincipal: ptr(rootPrincipal), Name: ptr("app"), Operations: decryption,
		Constraints: &types.GrantConstraints{
			EncryptionContextEquals: map[string]string{"tenant": "1"}, EncryptionContextSubset: map[string]string{"tenant": "1"},
		},
	}
	made := must(s.CreateGrant(s.ctx(), in))(t)
	again := must(s.CreateGrant(s.ctx(), in))(t)
	if *again.GrantId != *made.GrantId || *again.GrantToken == *made.GrantToken {
		t.Errorf("made %s, then %s", *made.GrantId, *again.GrantId)
	}
	want := types.GrantListEntry{
		KeyId: key.Arn, GrantId: made.GrantId, Name: in.Name, GranteePrincipal: in.GranteePrincipal, RetiringPrincipal: in.RetiringPrincipal,
		IssuingAccount: ptr(rootPrincipal), Operations: decryption, Constraints: in.Constraints,
	}
	same := func(what string, got []types.GrantListEntry, want ...types.GrantListEntry) {
		t.Helper()
		ignore := cmp.Options{cmpopts.IgnoreFields(types.GrantListEntry{}, "CreationDate"), cmpopts.IgnoreUnexported(types.GrantListEntry{}, types.GrantConstraints{}), cmpopts.IgnoreTypes(middleware.Metadata{})}
		if d := cmp.Diff(want, got, ignore, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
		for _, g := range got {
			if g.CreationDate == nil || g.CreationDate.Before(*key.CreationDate) {
				t.Errorf("%s: made at %v", what, g.CreationDate)
			}
		}
	}
	same("ListGrants", s.keyGrants(&kms.ListGrantsInput{KeyId: key.KeyId}), want)
	same("of the grantee", s.keyGrants(&kms.ListGrantsInput{KeyId: key.KeyId, GranteePrincipal: ptr(grantee)}), want)
	same("of another", s.keyGrants(&kms.ListGrantsInput{KeyId: key.KeyId, GranteePrincipal: ptr(rootPrincipal)}))
	same("by ID", s.keyGrants(&kms.ListGrantsInput{KeyId: key.KeyId, GrantId: made.GrantId}), want)
	same("ListRetirableGrants", s.retirable(rootPrincipal), want)

	tokens := []string{*made.GrantToken, *again.GrantToken}
	out := must(s.GenerateDataKey(s.ctx(), &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: "AES_256", GrantTokens: tokens}))(t)
	must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob, GrantTokens: tokens}))(t)
	must(s.CreateGrant(s.ctx(), &kms.CreateGrantInput{KeyId: key.KeyId, GranteePrincipal: ptr(grantee), Operations: decryption, GrantTokens: tokens}))(t)

	_, err := s.RetireGrant(s.ctx(), &kms.RetireGrantInput{GrantToken: made.GrantToken, DryRun: ptr(true)})
	wantError(t, err, "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
	must(s.RetireGrant(s.ctx(), &kms.RetireGrantInput{GrantToken: again.GrantToken}))(t)
	_, err = s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), GrantTokens: tokens})
	wantError(t, err, "InvalidGrantTokenException", "Invalid grant token...")
	rest := s.keyGrants(&kms.ListGrantsInput{KeyId: key.KeyId})
	if len(rest) != 1 || *rest[0].Name != "" || rest[0].Constraints != nil || rest[0].RetiringPrincipal != nil {
		t.Fatalf("left: %+v", rest)
	}
	must(s.RetireGrant(s.ctx(), &kms.RetireGrantInput{KeyId: key.Arn, GrantId: rest[0].GrantId}))(t)
	last := must(s.CreateGrant(s.ctx(), &kms.CreateGrantInput{KeyId: key.KeyId, GranteePrincipal: ptr(grantee), Operations: decryption}))(t)
	_, err = s.RevokeGrant(s.ctx(), &kms.RevokeGrantInput{KeyId: key.KeyId, GrantId: last.GrantId, DryRun: ptr(true)})
	wantError(t, err, "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
	must(s.RevokeGrant(s.ctx(), &kms.RevokeGrantInput{KeyId: key.KeyId, GrantId: last.GrantId}))(t)
	same("in the end", s.keyGrants(&kms.ListGrantsInput{KeyId: key.KeyId}))
}

// TestGrantPages makes 2,500 grants from several clients and lists them.
func TestGrantPages(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key, elsewhere := s.newKey("", ""), s.newKey("", "")
	const clients, each = 20, 125
	var wg sync.WaitGroup
	made := make([][]string, clients)
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				in := &kms.CreateGrantInput{KeyId: key.KeyId, GranteePrincipal: ptr(fmt.Sprint(grantee, c)), Operations: decryption}
				if i < 2 {
					in.RetiringPrincipal = ptr(grantee)
				}
				out, err := s.CreateGrant(s.ctx(), in)
				if err != nil {
					t.Error(err)
					return
				}
				made[c] = append(made[c], *out.GrantId)
			}
		})
	}
	wg.Wait()
	must(s.CreateGrant(s.ctx(), &kms.CreateGrantInput{KeyId: elsewhere.KeyId, GranteePrincipal: ptr(grantee), RetiringPrincipal: ptr(grantee), Operations: decryption}))(t)
	ids := func(grants []types.GrantListEntry) (out []string) {
		for _, g := range grants {
			out = append(out, *g.GrantId)
		}
		slices.Sort(out)
		return out
	}
	want := slices.Concat(made...)
	slices.Sort(want)
	if got := ids(s.keyGrants(&kms.ListGrantsInput{KeyId: key.Arn})); !slices.Equal(got, want) {
		t.Errorf("%d grants listed, %d made", len(got), len(want))
	}
	slices.Sort(made[3])
	if got := ids(s.keyGrants(&kms.ListGrantsInput{KeyId: key.Arn, GranteePrincipal: ptr(fmt.Sprint(grantee, 3))})); !slices.Equal(got, made[3]) {
		t.Errorf("%d grants of a grantee listed, %d made", len(got), len(made[3]))
	}
	if got := s.retirable(grantee); len(got) != 2*clients+1 {
		t.Errorf("%d grants to retire", len(got))
	}
	p := kms.NewListGrantsPaginator(s.Client, &kms.ListGrantsInput{KeyId: key.KeyId})
	n := 0
	for p.HasMorePages() {
		n += len(must(p.NextPage(s.ctx()))(t).Grants)
	}
	if n != len(want) {
		t.Errorf("the SDK's paginator finds %d", n)
	}
}

// TestGrantErrors raises every error of the operations on grants.
func TestGrantErrors(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := s.newKey("", "")
	grant := func(change func(*kms.CreateGrantInput)) error {
		in := &kms.CreateGrantInput{KeyId: key.KeyId, GranteePrincipal: ptr(grantee), Operations: decryption}
		change(in)
		_, err := s.CreateGrant(s.ctx(), in)
		return err
	}
	list := func(in *kms.ListGrantsInput) error { _, err := s.ListGrants(s.ctx(), in); return err }
	retirable := func(in *kms.ListRetirableGrantsInput) error { _, err := s.ListRetirableGrants(s.ctx(), in); return err }
	retire := func(in *kms.RetireGrantInput) error { _, err := s.RetireGrant(s.ctx(), in); return err }
	revoke := func(in *kms.RevokeGrantInput) error { _, err := s.RevokeGrant(s.ctx(), in); return err }
	unknown := "1234abcd-12ab-34cd-56ef-1234567890ab"
	missing := "Key '" + s.keyARN(unknown) + "' does not exist"
	const alias = "Key Aliases are not supported for this operation."
	const notFound = "Grant ID " + noGrantID + " not found"
	for i, c := range []struct {
		err        error
		code, text string
	}{
		{grant(func(in *kms.CreateGrantInput) { in.KeyId = &unknown }), "NotFoundException", missing},
		{grant(func(in *kms.CreateGrantInput) { in.KeyId = ptr("alias/a") }), "InvalidArnException", alias},
		{grant(func(in *kms.CreateGrantInput) { in.GranteePrincipal = ptr("app") }), "InvalidArnException", "ARN does not refer to a valid principal: app"},
		{grant(func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{"CreateGrant"} }), "ValidationException", "Grants must not contain only the CreateGrant operation."},
		{grant(func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{"Sign"} }), "ValidationException", "The grant operations [Sign] are not valid for..."},
		{grant(func(in *kms.CreateGrantInput) { in.GrantTokens = []string{"x"} }), "InvalidGrantTokenException", "Invalid grant token..."},
		{grant(func(in *kms.CreateGrantInput) { in.DryRun = ptr(true) }), "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."},
		{list(&kms.ListGrantsInput{KeyId: &unknown}), "NotFoundException", missing},
		{list(&kms.ListGrantsInput{KeyId: ptr("alias/a")}), "InvalidArnException", alias},
		{list(&kms.ListGrantsInput{KeyId: key.KeyId, GrantId: ptr("x")}), "InvalidGrantIdException", "Invalid grant ID x..."},
		{list(&kms.ListGrantsInput{KeyId: key.KeyId, Marker: ptr("x")}), "InvalidMarkerException", "The marker is not one that this operation returned as NextMarker."},
		{retirable(&kms.ListRetirableGrantsInput{RetiringPrincipal: ptr("x")}), "InvalidArnException", "ARN does not refer to a valid principal: x"},
		{retirable(&kms.ListRetirableGrantsInput{RetiringPrincipal: ptr(grantee), Marker: ptr("x")}), "InvalidMarkerException", "The marker is not one that this operation returned as NextMarker."},
		{retire(&kms.RetireGrantInput{}), "ValidationException", "Name the grant by GrantToken, or by both KeyId and GrantId."},
		{retire(&kms.RetireGrantInput{KeyId: ptr("alias/a"), GrantId: ptr(noGrantID)}), "InvalidArnException", alias},
		{retire(&kms.RetireGrantInput{KeyId: key.KeyId, GrantId: ptr(noGrantID)}), "NotFoundException", notFound},
		{retire(&kms.RetireGrantInput{KeyId: key.Arn, GrantId: ptr("x")}), "InvalidGrantIdException", "Invalid grant ID x..."},
		{retire(&kms.RetireGrantInput{KeyId: key.Arn, GrantId: ptr(noGrantID)}), "NotFoundException", notFound},
		{retire(&kms.RetireGrantInput{GrantToken: ptr("x")}), "InvalidGrantTokenException", "Invalid grant token..."},
		{revoke(&kms.RevokeGrantInput{KeyId: key.KeyId, GrantId: ptr("x")}), "InvalidGrantIdException", "Invalid grant ID x..."},
		{revoke(&kms.RevokeGrantInput{KeyId: key.KeyId, GrantId: ptr(noGrantID)}), "NotFoundException", notFound},
		{revoke(&kms.RevokeGrantInput{KeyId: ptr("alias/a"), GrantId: ptr(noGrantID)}), "InvalidArnException", alias},
	} {
		t.Run(fmt.Sprint(i, c.code), func(t *testing.T) { wantError(t, c.err, c.code, c.text) })
	}
}

// TestGrantLimit: the quota of grants per key holds, also over a restart, which
// grants and their tokens survive.
func TestGrantLimit(t *testing.T) {
	t.Parallel()
	profile := filepath.Join(t.TempDir(), "quotas.yaml")
	if err := os.WriteFile(profile, []byte("base: none\nresources: {grants-per-key: 2}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := start(t, Options{Args: []string{"--quota-profile", profile}})
	s := storyIn(t, d, "us-east-1")
	key := s.newKey("", "")
	in := &kms.CreateGrantInput{KeyId: key.KeyId, GranteePrincipal: ptr(grantee), Operations: decryption}
	first := must(s.CreateGrant(s.ctx(), in))(t)
	must(s.CreateGrant(s.ctx(), in))(t)
	full := func() {
		t.Helper()
		_, err := s.CreateGrant(s.ctx(), in)
		wantError(t, err, "LimitExceededException", "The key "+*key.Arn+" has 2 grants, which is the limit.")
	}
	full()
	if err := d.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = storyIn(t, d, "us-east-1")
	full()
	must(s.DescribeKey(s.ctx(), &kms.DescribeKeyInput{KeyId: key.KeyId, GrantTokens: []string{*first.GrantToken}}))(t)
	must(s.RetireGrant(s.ctx(), &kms.RetireGrantInput{GrantToken: first.GrantToken}))(t)
	must(s.CreateGrant(s.ctx(), in))(t)
	full()
}
