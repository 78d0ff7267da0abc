package kms

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keymill/daemon/policy"
)

func (h *harness) aliasARN(name string) string {
	return "arn:aws:kms:" + h.key.Region + ":" + testAccount + ":" + name
}

func TestManagedKey(t *testing.T) {
	h := newHarness(t)
	name := "alias/aws/s3"
	// Nothing but DescribeKey makes it.
	h.refused("Encrypt", args{"KeyId": name, "Plaintext": b64("x")}, "NotFoundException", "Alias "+h.aliasARN(name)+" is not found.")
	h.refused("GetPublicKey", args{"KeyId": h.aliasARN(name)}, "NotFoundException", "Alias "+h.aliasARN(name)+" is not found.")
	if keys := h.must("ListKeys", nil).fields["Keys"].([]any); len(keys) != 0 {
		t.Fatalf("there are keys: %v", keys)
	}

	m := h.metadata(name)
	id, _ := m["KeyId"].(string)
	arn := "arn:aws:kms:" + testRegion + ":" + testAccount + ":key/" + id
	want := map[string]any{
		"AWSAccountId": testAccount, "KeyId": id, "Arn": arn, "CreationDate": wireTime(h.now), "Enabled": true,
		"Description": "Default key that protects data of s3 when no other key is defined",
		"KeyUsage":    "ENCRYPT_DECRYPT", "KeyState": "Enabled", "Origin": "AWS_KMS", "KeyManager": "AWS",
		"CustomerMasterKeySpec": "SYMMETRIC_DEFAULT", "KeySpec": "SYMMETRIC_DEFAULT", "EncryptionAlgorithms": []any{"SYMMETRIC_DEFAULT"},
		"MultiRegion": false, "CurrentKeyMaterialId": m["CurrentKeyMaterialId"],
	}
	if diff := cmp.Diff(want, m); diff != "" || len(id) != 36 {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	// It is the same one for ever, by every form of the identifier.
	h.now = h.now.AddDate(0, 0, 1)
	h.restart()
	for _, form := range []string{name, h.aliasARN(name), id, arn} {
		if diff := cmp.Diff(m, h.metadata(form)); diff != "" {
			t.Errorf("by %s: %s", form, diff)
		}
	}
	if keys := h.must("ListKeys", nil).fields["Keys"].([]any); len(keys) != 1 {
		t.Errorf("ListKeys: %v", keys)
	}
	aliases := h.must("ListAliases", args{"KeyId": id}).fields["Aliases"].([]any)
	entry := map[string]any{"AliasName": name, "AliasArn": h.aliasARN(name), "TargetKeyId": id, "CreationDate": m["CreationDate"], "LastUpdatedDate": m["CreationDate"]}
	if diff := cmp.Diff([]any{entry}, aliases); diff != "" {
		t.Errorf("its aliases (-want +got):\n%s", diff)
	}

	// In another region it is another key; of another account, or of a service that
	// has none, there is none.
	there := *h
	there.key.Region = "us-east-1"
	if other := there.metadata(name)["KeyId"]; other == id {
		t.Error("one key in two regions")
	}
	for _, alias := range []string{"alias/aws/nothing", "alias/aws/", "alias/aws/s3/x", "alias/AWS/s3", "alias/s3"} {
		h.refused("DescribeKey", args{"KeyId": alias}, "NotFoundException", "Alias "+h.aliasARN(alias)+" is not found.")
	}
	foreign := strings.Replace(h.aliasARN("alias/aws/ebs"), testAccount, "444455556666", 1)
	h.refused("DescribeKey", args{"KeyId": foreign}, "NotFoundException", "Alias "+foreign+" is not found.")
	h.sound()
}

func TestManagedKeyPolicy(t *testing.T) {
	h := newHarness(t)
	for _, service := range managedServices {
		id := h.metadata("alias/aws/" + service)["KeyId"]
		text := h.must("GetKeyPolicy", args{"KeyId": id}).str("Policy")
		p, err := policy.Parse(text)
		if err != nil || len(p.Statements) != 2 {
			t.Fatalf("%s: %v\n%s", service, err, text)
		}
	}
	text := managedPolicy("us-east-1", testAccount, "ebs")
	for _, part := range []string{`"auto-ebs-1"`, `"kms:ViaService" : "ec2.us-east-1.amazonaws.com"`, `"kms:CallerAccount" : "` + testAccount + `"`, `"arn:aws:iam::` + testAccount + `:root"`} {
		if !strings.Contains(text, part) {
			t.Errorf("no %s in %s", part, text)
		}
	}
	if text := managedPolicy("cn-north-1", testAccount, "s3"); !strings.Contains(text, `"s3.cn-north-1.amazonaws.com.cn"`) || !strings.Contains(text, `"arn:aws-cn:iam::`) {
		t.Error(text)
	}
	if !slices.IsSorted(managedServices) {
		t.Error("managedServices is searched, and not sorted")
	}
}

// TestManagedKeyIsNotTheirs: everything that uses or changes an AWS managed key is
// denied, everything that looks is not.
func TestManagedKeyIsNotTheirs(t *testing.T) {
	h := newHarness(t)
	id := h.metadata("alias/aws/ebs")["KeyId"].(string)
	arn := "arn:aws:kms:" + testRegion + ":" + testAccount + ":key/" + id
	mine, _ := h.newKey(nil)
	h.must("CreateAlias", args{"AliasName": "alias/mine", "TargetKeyId": mine})
	blob := h.must("Encrypt", args{"KeyId": mine, "Plaintext": b64("x")}).str("CiphertextBlob")
	before := h.record(id)
	for _, c := range []struct {
		op, action string
		in         args
	}{
		{"Encrypt", "", args{"Plaintext": b64("x")}},
		{"Decrypt", "", args{"CiphertextBlob": blob}},
		{"GenerateDataKey", "", args{"KeySpec": "AES_256"}},
		{"GenerateDataKeyWithoutPlaintext", "", args{"KeySpec": "AES_256"}},
		{"GenerateDataKeyPair", "", args{"KeyPairSpec": "ECC_NIST_P256"}},
		{"GenerateDataKeyPairWithoutPlaintext", "", args{"KeyPairSpec": "ECC_NIST_P256"}},
		{"GenerateDataKeys", "GenerateDataKey", args{"KeySpec": "AES_256", "NumberOfKeys": 2}},
		{"BatchEncrypt", "Encrypt", args{"Items": []args{{"Plaintext": b64("x")}}}},
		{"GenerateMac", "", args{"Message": b64("x"), "MacAlgorithm": "HMAC_SHA_256"}},
		{"EnableKey", "", nil},
		{"DisableKey", "", nil},
		{"EnableKeyRotation", "", nil},
		{"DisableKeyRotation", "", nil},
		{"RotateKeyOnDemand", "", nil},
		{"ScheduleKeyDeletion", "", nil},
		{"CancelKeyDeletion", "", nil},
		{"UpdateKeyDescription", "", args{"Description": "mine"}},
		{"PutKeyPolicy", "", args{"Policy": policy.Default("aws", testAccount)}},
		{"TagResource", "", args{"Tags": []args{{"TagKey": "a", "TagValue": "b"}}}},
		{"UntagResource", "", args{"TagKeys": []string{"a"}}},
		{"DeleteImportedKeyMaterial", "", nil},
		{"CreateGrant", "", args{"GranteePrincipal": "arn:aws:iam::" + testAccount + ":root", "Operations": []string{"Encrypt"}}},
		{"ReEncrypt", "ReEncryptTo", args{"CiphertextBlob": blob, "DestinationKeyId": arn}},
		{"ReEncrypt", "ReEncryptFrom", args{"CiphertextBlob": blob, "SourceKeyId": arn, "DestinationKeyId": mine}},
		{"CreateAlias", "", args{"AliasName": "alias/new", "TargetKeyId": id}},
		{"UpdateAlias", "", args{"AliasName": "alias/mine", "TargetKeyId": arn}},
	} {
		in := args{"KeyId": id}
		for k, v := range c.in {
			in[k] = v
		}
		if _, named := c.in["DestinationKeyId"]; named {
			delete(in, "KeyId")
		}
		if c.action == "" {
			c.action = c.op
		}
		h.refused(c.op, in, "AccessDeniedException", fmt.Sprintf(
			"User: arn:aws:iam::%s:root is not authorized to perform: kms:%s on resource: %s because no resource-based policy allows the kms:%s action",
			testAccount, c.action, arn, c.action))
	}
	for _, c := range []struct {
		op string
		in args
	}{
		{"DescribeKey", nil}, {"GetKeyPolicy", nil}, {"ListKeyPolicies", nil}, {"ListResourceTags", nil}, {"GetKeyRotationStatus", nil},
		{"ListKeyRotations", nil}, {"GetKeyLastUsage", nil}, {"ListAliases", nil}, {"ListGrants", nil},
	} {
		h.must(c.op, args{"KeyId": id})
	}
	h.refused("GetPublicKey", args{"KeyId": id}, h.call("GetPublicKey", args{"KeyId": mine}).code(), strings.Replace(h.call("GetPublicKey", args{"KeyId": mine}).str("message"), mine, id, 1))
	const reserved = "Aliases that begin with alias/aws/ are reserved."
	h.refused("CreateAlias", args{"AliasName": "alias/aws/rds", "TargetKeyId": mine}, "NotAuthorizedException", reserved)
	h.refused("UpdateAlias", args{"AliasName": "alias/aws/ebs", "TargetKeyId": mine}, "NotAuthorizedException", reserved)
	h.refused("DeleteAlias", args{"AliasName": "alias/aws/ebs"}, "NotAuthorizedException", reserved)
	if got := h.record(id); got.Revision != before.Revision {
		t.Error("the key was changed")
	}
}

func TestManagedKeyIsMadeOnce(t *testing.T) {
	h := newHarnessWith(t, profile(t, "base: none\nresources: {keys: 1}\n"))
	h.newKey(nil)
	h.refused("CreateKey", nil, "LimitExceededException", "The account "+testAccount+" has 1 KMS keys in "+testRegion+", which is the limit.")
	var all sync.WaitGroup
	ids := make([]any, 24)
	for i := range ids {
		all.Go(func() { ids[i] = h.metadata("alias/aws/rds")["KeyId"] })
	}
	all.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("several keys: %v", ids)
		}
	}
	if keys := h.must("ListKeys", nil).fields["Keys"].([]any); len(keys) != 2 {
		t.Errorf("%d keys", len(keys))
	}
	// It does not count.
	if n, err := h.store.CountKeys(testAccount, testRegion); n != 1 || err != nil {
		t.Errorf("%d keys are counted, %v", n, err)
	}
	h.sound()
}

func TestManagedKeyRotates(t *testing.T) {
	h := newHarness(t)
	m := h.metadata("alias/aws/ssm")
	id, arn := m["KeyId"].(string), m["Arn"].(string)
	date := h.now.AddDate(0, 0, 365)
	for n := 1; n <= 3; n++ {
		h.wantRotation(id, arn, 365, date)
		h.now = date
		h.happen()
		date = date.AddDate(0, 0, 365)
		if list := h.listed(id, false, 10); len(list) != n || list[n-1]["RotationType"] != "AUTOMATIC" {
			t.Errorf("rotations: %v", list)
		}
	}
}

// TestPredefinedAliases: the names without a key are listed in their places, on
// every page.
func TestPredefinedAliases(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	managed := h.metadata("alias/aws/s3")["KeyId"]
	want := map[string]any{"alias/aws/s3": managed}
	var names []string
	for _, name := range []string{"alias/a", "alias/aws", "alias/awt", "alias/z", "alias/aws-s3", "alias/b"} {
		h.must("CreateAlias", args{"AliasName": name, "TargetKeyId": id})
		want[name] = id
		names = append(names, name)
	}
	for _, service := range managedServices {
		names = append(names, "alias/aws/"+service)
	}
	slices.Sort(names)
	for limit := 1; limit <= len(names)+1; limit++ {
		var got []string
		in := args{"Limit": limit}
		for {
			a := h.must("ListAliases", in)
			page := a.fields["Aliases"].([]any)
			for _, e := range page {
				e := e.(map[string]any)
				name := e["AliasName"].(string)
				got = append(got, name)
				_, dated := e["CreationDate"]
				if e["TargetKeyId"] != want[name] || e["AliasArn"] != h.aliasARN(name) || dated != (want[name] != nil) {
					t.Errorf("entry %v", e)
				}
			}
			next, more := a.fields["NextMarker"]
			if len(page) > limit || len(page) < limit && more || more != a.fields["Truncated"].(bool) {
				t.Fatalf("a page of %d with limit %d, more %t", len(page), limit, more)
			}
			if !more {
				break
			}
			in["Marker"] = next
		}
		if diff := cmp.Diff(names, got); diff != "" {
			t.Errorf("by %d (-want +got):\n%s", limit, diff)
		}
	}
}
