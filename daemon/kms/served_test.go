package kms

import (
	"strings"
	"testing"

	"keymill/daemon/quota"
	"keymill/daemon/xks"
)

// TestServedKey: what the XKS proxy gets to see of a key, by either name, in
// its states, and of keys it may not use.
func TestServedKey(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	h.must("CreateAlias", args{"AliasName": "alias/served", "TargetKeyId": id})
	get := func(arn string) (xks.ServedKey, error) {
		t.Helper()
		ref, ok := xks.ParseKeyRef(arn)
		if !ok {
			t.Fatal(arn)
		}
		return h.svc.ServedKey(ref)
	}
	for _, name := range []string{arn, strings.Replace(arn, "key/"+id, "alias/served", 1)} {
		k, err := get(name)
		if err != nil || !k.Served || k.State != "Enabled" || k.ID.String() != id || len(k.Materials) != 1 || k.Handle == nil {
			t.Fatalf("%s: %+v, %v", name, k, err)
		}
	}
	k, err := get(arn)
	if err != nil {
		t.Fatal(err)
	}
	k.Used(xks.Encrypt)
	k.Used(xks.Decrypt)
	if a := h.must("GetKeyLastUsage", args{"KeyId": id}); !strings.Contains(a.body, `"Decrypt"`) {
		t.Errorf("last use: %s", a.body)
	}
	for _, name := range []string{
		strings.Replace(arn, id, "00000000-0000-0000-0000-000000000000", 1), strings.Replace(arn, id, "mrk-"+strings.ReplaceAll(id, "-", ""), 1),
		strings.Replace(arn, testAccount, "444455556666", 1), strings.Replace(arn, testRegion, "us-east-1", 1), strings.Replace(arn, testRegion, "us-west-2", 1),
		strings.Replace(arn, "key/"+id, "alias/other", 1), strings.Replace(arn, id, "x", 1),
	} {
		if _, err := get(name); err != xks.ErrNoKey {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !k.Admit() {
		t.Error("refused without a quota")
	}
	h.must("DisableKey", args{"KeyId": id})
	if k, err := get(arn); err != nil || k.State != "Disabled" {
		t.Errorf("%+v, %v", k, err)
	}
	mac, _ := h.newKey(args{"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"})
	if k, err := get(strings.Replace(arn, id, mac, 1)); err != nil || k.Served {
		t.Errorf("an HMAC key: %+v, %v", k, err)
	}
}

// What the proxy does with a key counts in the key's quota like any use of it.
func TestServedKeyQuota(t *testing.T) {
	quotas := quota.None()
	quotas.PerKey, quotas.PerKeyBurst = 1, 2
	h := newHarnessWith(t, quotas)
	id, arn := h.newKey(nil)
	ref, _ := xks.ParseKeyRef(arn)
	k, err := h.svc.ServedKey(ref)
	if err != nil {
		t.Fatal(err)
	}
	h.must("Encrypt", args{"KeyId": id, "Plaintext": "AAAA"})
	if !k.Admit() || k.Admit() {
		t.Error("a second and third use of the key's two")
	}
}
