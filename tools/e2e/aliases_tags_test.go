package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
)

// aliases returns the story's aliases and their targets, page by page; id, when
// given, restricts them to a key. Predefined names without a key are left out.
func (s *story) aliases(id *string, limit int32) map[string]string {
	s.Helper()
	found := make(map[string]string)
	in := &kms.ListAliasesInput{KeyId: id, Limit: &limit}
	for {
		out := must(s.ListAliases(s.ctx(), in))(s)
		if len(out.Aliases) > int(limit) || out.Truncated != (out.NextMarker != nil) {
			s.Errorf("a page of %d, truncated %t, marker %v", len(out.Aliases), out.Truncated, out.NextMarker)
		}
		for _, a := range out.Aliases {
			if a.TargetKeyId == nil && strings.HasPrefix(*a.AliasName, "alias/aws/") && a.CreationDate == nil && id == nil {
				continue
			}
			if _, twice := found[*a.AliasName]; twice {
				s.Errorf("%s is listed twice", *a.AliasName)
			}
			if *a.AliasArn != s.aliasARN(*a.AliasName) || a.CreationDate == nil || a.LastUpdatedDate == nil || a.LastUpdatedDate.Before(*a.CreationDate) {
				s.Errorf("entry %+v", a)
			}
			found[*a.AliasName] = *a.TargetKeyId
		}
		if !out.Truncated {
			return found
		}
		in.Marker = out.NextMarker
	}
}

func (s *story) tags(id string) map[string]string {
	s.Helper()
	found := make(map[string]string)
	in := &kms.ListResourceTagsInput{KeyId: &id, Limit: ptr[int32](7)}
	for {
		out := must(s.ListResourceTags(s.ctx(), in))(s)
		if len(out.Tags) > 7 || out.Truncated != (out.NextMarker != nil) {
			s.Errorf("a page of %d, truncated %t, marker %v", len(out.Tags), out.Truncated, out.NextMarker)
		}
		for _, t := range out.Tags {
			if _, twice := found[*t.TagKey]; twice {
				s.Errorf("tag %s is listed twice", *t.TagKey)
			}
			found[*t.TagKey] = *t.TagValue
		}
		if !out.Truncated {
			return found
		}
		in.Marker = out.NextMarker
	}
}

func TestAliases(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	a, b := s.symmetricKey(), s.symmetricKey()
	want := make(map[string]string)
	create := func(name, target string) error {
		_, err := s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: &name, TargetKeyId: &target})
		return err
	}
	for i := range 25 {
		name, target := fmt.Sprintf("alias/n/%02d:x_y-Z", i), a
		if i%2 == 1 {
			target = s.keyARN(b)
		}
		if err := create(name, target); err != nil {
			t.Fatal(err)
		}
		want[name] = strings.TrimPrefix(target, s.keyARN(""))
	}
	long := "alias/" + strings.Repeat("l", 250)
	if err := create(long, a); err != nil {
		t.Error(err)
	}
	want[long] = a
	check := func() {
		t.Helper()
		for _, limit := range []int32{1, 7, 50, 100, 1000} {
			if diff := cmp.Diff(want, s.aliases(nil, limit)); diff != "" {
				t.Errorf("by %d (-want +got):\n%s", limit, diff)
			}
		}
		for _, id := range []string{a, b} {
			ofKey := make(map[string]string)
			for name, target := range want {
				if target == id {
					ofKey[name] = target
				}
			}
			if diff := cmp.Diff(ofKey, s.aliases(&id, 3)); diff != "" {
				t.Errorf("of one key (-want +got):\n%s", diff)
			}
		}
		for name, target := range want {
			if got := s.describe(name); *got.KeyId != target {
				t.Errorf("%s finds %s, want %s", name, *got.KeyId, target)
			}
		}
	}
	check()

	moved := "alias/n/00:x_y-Z"
	must(s.UpdateAlias(s.ctx(), &kms.UpdateAliasInput{AliasName: &moved, TargetKeyId: &b}))(t)
	want[moved] = b
	gone := "alias/n/24:x_y-Z"
	must(s.DeleteAlias(s.ctx(), &kms.DeleteAliasInput{AliasName: &gone}))(t)
	delete(want, gone)
	check()
	_, err := s.DescribeKey(s.ctx(), &kms.DescribeKeyInput{KeyId: &gone})
	wantError(t, err, "NotFoundException", "Alias "+s.aliasARN(gone)+" is not found.")
	_, err = s.DeleteAlias(s.ctx(), &kms.DeleteAliasInput{AliasName: &gone})
	wantError(t, err, "NotFoundException", "Alias "+s.aliasARN(gone)+" is not found.")
	_, err = s.UpdateAlias(s.ctx(), &kms.UpdateAliasInput{AliasName: &gone, TargetKeyId: &a})
	wantError(t, err, "NotFoundException", "Alias "+s.aliasARN(gone)+" is not found.")

	signer := s.newKey(types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
	agree := s.newKey(types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement)
	for _, target := range []*types.KeyMetadata{signer, agree} {
		_, err = s.UpdateAlias(s.ctx(), &kms.UpdateAliasInput{AliasName: &moved, TargetKeyId: target.KeyId})
		wantError(t, err, "ValidationException", "...")
	}
	if err := create("alias/signer", *signer.KeyId); err != nil {
		t.Error(err)
	}
	want["alias/signer"] = *signer.KeyId
	_, err = s.UpdateAlias(s.ctx(), &kms.UpdateAliasInput{AliasName: ptr("alias/signer"), TargetKeyId: agree.KeyId})
	wantError(t, err, "ValidationException", "...")

	for _, tc := range []struct{ name, target, code, text string }{
		{moved, a, "AlreadyExistsException", "An alias with the name " + s.aliasARN(moved) + " already exists"},
		{"no-prefix", a, "ValidationException", "Alias must start with the prefix \"alias/\". Please see ..."},
		{"alias/", a, "InvalidAliasNameException", "..."},
		{"alias/aws/s3", a, "NotAuthorizedException", "..."},
		{"alias/with space", a, "ValidationException", "1 validation error detected: Value 'alias/with space' at 'aliasName' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{"alias/" + strings.Repeat("l", 251), a, "ValidationException", "1 validation error detected: Value 'alias/" + strings.Repeat("l", 251) + "' at 'aliasName' failed to satisfy constraint: Member must have length less than or equal to 256"},
		{"alias/new", "alias/signer", "ValidationException", "Aliases must refer to keys. Not aliases"},
		{"alias/new", unknownID, "NotFoundException", "Key '" + s.keyARN(unknownID) + "' does not exist"},
	} {
		t.Run("refuses "+tc.name[:min(len(tc.name), 20)]+" to "+tc.target[:8], func(t *testing.T) { wantError(t, create(tc.name, tc.target), tc.code, tc.text) })
	}
	check()
}

// TestAliasLimit: a key has at most 50 aliases.
func TestAliasLimit(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	full, other := s.symmetricKey(), s.symmetricKey()
	for i := range 50 {
		must(s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: ptr(fmt.Sprint("alias/", i)), TargetKeyId: &full}))(t)
	}
	_, err := s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: ptr("alias/more"), TargetKeyId: &full})
	wantError(t, err, "LimitExceededException", "...")
	must(s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: ptr("alias/more"), TargetKeyId: &other}))(t)
	_, err = s.UpdateAlias(s.ctx(), &kms.UpdateAliasInput{AliasName: ptr("alias/more"), TargetKeyId: &full})
	wantError(t, err, "LimitExceededException", "...")
	must(s.UpdateAlias(s.ctx(), &kms.UpdateAliasInput{AliasName: ptr("alias/0"), TargetKeyId: &full}))(t) // stays where it is
	if got := len(s.aliases(&full, 100)); got != 50 {
		t.Errorf("%d aliases", got)
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	id := s.symmetricKey()
	tag := func(k, v string) types.Tag { return types.Tag{TagKey: &k, TagValue: &v} }
	put := func(tags ...types.Tag) error {
		_, err := s.TagResource(s.ctx(), &kms.TagResourceInput{KeyId: &id, Tags: tags})
		return err
	}
	want := make(map[string]string)
	for i := range 49 {
		k, v := fmt.Sprintf("Key %02d / ä:=+@_-", i), strings.Repeat("v", i*5)
		if err := put(tag(k, v)); err != nil {
			t.Fatal(err)
		}
		want[k] = v
	}
	check := func() {
		t.Helper()
		if diff := cmp.Diff(want, s.tags(id)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	check()
	if err := put(tag(strings.Repeat("k", 128), strings.Repeat("v", 256)), tag("Key 00 / ä:=+@_-", "changed")); err != nil {
		t.Error(err)
	}
	want[strings.Repeat("k", 128)], want["Key 00 / ä:=+@_-"] = strings.Repeat("v", 256), "changed"
	check()
	for _, tc := range []struct {
		name, code, text string
		tags             []types.Tag
	}{
		{"fifty-first", "TagException", "Too many tags", []types.Tag{tag("more", "")}},
		{"duplicates", "TagException", "Duplicate tag keys", []types.Tag{tag("Key 01 / ä:=+@_-", "1"), tag("Key 01 / ä:=+@_-", "1")}},
		{"reserved", "TagException", "Tags beginning with aws: are reserved", []types.Tag{tag("Aws:a", "1")}},
		{"long key", "ValidationException", "1 validation error detected: Value '" + strings.Repeat("k", 129) + "' at 'tags.1.member.tagKey' failed to satisfy constraint: Member must have length less than or equal to 128", []types.Tag{tag(strings.Repeat("k", 129), "")}},
		{"long value", "ValidationException", "1 validation error detected: Value '" + strings.Repeat("v", 257) + "' at 'tags.2.member.tagValue' failed to satisfy constraint: Member must have length less than or equal to 256", []types.Tag{tag("a", ""), tag("b", strings.Repeat("v", 257))}},
	} {
		t.Run(tc.name, func(t *testing.T) { wantError(t, put(tc.tags...), tc.code, tc.text); check() })
	}
	must(s.UntagResource(s.ctx(), &kms.UntagResourceInput{KeyId: &id, TagKeys: []string{"Key 01 / ä:=+@_-", "never there"}}))(t)
	delete(want, "Key 01 / ä:=+@_-")
	check()
	// A tag's key is case-sensitive.
	must(s.UntagResource(s.ctx(), &kms.UntagResourceInput{KeyId: &id, TagKeys: []string{"key 02 / ä:=+@_-"}}))(t)
	check()
}

// TestListKeys pages through the keys of a region; other regions' are not there.
func TestListKeys(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	var want []string
	for range 23 {
		want = append(want, s.symmetricKey())
	}
	key := must(s.CreateKey(s.ctx(), &kms.CreateKeyInput{MultiRegion: ptr(true)}))(t).KeyMetadata
	want = append(want, *key.KeyId)
	slices.Sort(want)
	for _, limit := range []int32{1, 5, 23, 24, 1000} {
		var got []string
		pages := kms.NewListKeysPaginator(s.Client, &kms.ListKeysInput{Limit: &limit})
		for pages.HasMorePages() {
			page := must(pages.NextPage(s.ctx()))(t)
			if len(page.Keys) > int(limit) || page.Truncated != (page.NextMarker != nil) {
				t.Errorf("by %d: a page of %d, truncated %t, marker %v", limit, len(page.Keys), page.Truncated, page.NextMarker)
			}
			for _, k := range page.Keys {
				if *k.KeyArn != s.keyARN(*k.KeyId) {
					t.Errorf("entry %s, %s", *k.KeyId, *k.KeyArn)
				}
				got = append(got, *k.KeyId)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("by %d (-want +got):\n%s", limit, diff)
		}
	}
}

// TestBadPages: wrong limits and markers, also one list's marker on another.
func TestBadPages(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	id := s.symmetricKey()
	s.symmetricKey()
	for i := range 3 {
		must(s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: ptr(fmt.Sprint("alias/", i)), TargetKeyId: &id}))(t)
	}
	ofKeys := must(s.ListKeys(s.ctx(), &kms.ListKeysInput{Limit: ptr[int32](1)}))(t).NextMarker
	ofAliases := must(s.ListAliases(s.ctx(), &kms.ListAliasesInput{Limit: ptr[int32](1)}))(t).NextMarker
	lists := map[string]func(limit *int32, marker *string) error{
		"ListKeys": func(limit *int32, marker *string) error {
			_, err := s.ListKeys(s.ctx(), &kms.ListKeysInput{Limit: limit, Marker: marker})
			return err
		},
		"ListAliases": func(limit *int32, marker *string) error {
			_, err := s.ListAliases(s.ctx(), &kms.ListAliasesInput{Limit: limit, Marker: marker})
			return err
		},
		"ListResourceTags": func(limit *int32, marker *string) error {
			_, err := s.ListResourceTags(s.ctx(), &kms.ListResourceTagsInput{KeyId: &id, Limit: limit, Marker: marker})
			return err
		},
		"ListKeyPolicies": func(limit *int32, marker *string) error {
			_, err := s.ListKeyPolicies(s.ctx(), &kms.ListKeyPoliciesInput{KeyId: &id, Limit: limit, Marker: marker})
			return err
		},
	}
	for name, list := range lists {
		t.Run(name, func(t *testing.T) {
			const number = "1 validation error detected: Value '%d' at 'limit' failed to satisfy constraint: Member must have value %s than or equal to %d"
			wantError(t, list(ptr[int32](0), nil), "ValidationException", fmt.Sprintf(number, 0, "greater", 1))
			wantError(t, list(ptr[int32](1001), nil), "ValidationException", fmt.Sprintf(number, 1001, "less", 1000))
			markers := []string{"nonsense", "AAAA", "%%%"}
			if name != "ListKeys" {
				markers = append(markers, *ofKeys)
			}
			if name != "ListAliases" {
				markers = append(markers, *ofAliases)
			}
			for _, m := range markers {
				wantError(t, list(nil, &m), "InvalidMarkerException", "...")
			}
			wantError(t, list(nil, ptr(strings.Repeat("m", 1025))), "ValidationException", "1 validation error detected: Value '...")
		})
	}
}

// keyIDs lists the region's keys.
func (s *story) keyIDs() []string {
	s.Helper()
	var ids []string
	pages := kms.NewListKeysPaginator(s.Client, &kms.ListKeysInput{Limit: ptr[int32](1000)})
	for pages.HasMorePages() {
		for _, k := range must(pages.NextPage(s.ctx()))(s).Keys {
			ids = append(ids, *k.KeyId)
		}
	}
	return ids
}
