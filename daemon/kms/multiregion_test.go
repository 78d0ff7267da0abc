package kms

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
	"keymill/keystore"
)

// A relation is what DescribeKey says of a multi-Region key.
type relation struct {
	kind, primary string
	replicas      []string
}

func (h *harness) describe(region, id string) (m map[string]any) {
	h.Helper()
	h.inRegion(region, func() {
		m = h.must("DescribeKey", args{"KeyId": id}).fields["KeyMetadata"].(map[string]any)
	})
	return m
}

func relationOf(m map[string]any) relation {
	c := m["MultiRegionConfiguration"].(map[string]any)
	r := relation{kind: c["MultiRegionKeyType"].(string), primary: c["PrimaryKey"].(map[string]any)["Region"].(string), replicas: []string{}}
	for _, k := range c["ReplicaKeys"].([]any) {
		r.replicas = append(r.replicas, k.(map[string]any)["Region"].(string))
	}
	return r
}

// related checks that all related keys say the same of each other.
func (h *harness) related(id, primary string, replicas ...string) {
	h.Helper()
	if replicas == nil {
		replicas = []string{}
	}
	for _, region := range append([]string{primary}, replicas...) {
		want := relation{"REPLICA", primary, replicas}
		if region == primary {
			want.kind = "PRIMARY"
		}
		m := h.describe(region, id)
		if got := relationOf(m); !reflect.DeepEqual(got, want) {
			h.Errorf("%s: %+v, want %+v", region, got, want)
		}
		if arn := keyARN(region, testAccount, id); m["Arn"] != arn || m["MultiRegion"] != true {
			h.Errorf("%s: %v", region, m)
		}
	}
}

// multiRegion makes a multi-Region key.
func (h *harness) multiRegion(in args) (id, arn string) {
	h.Helper()
	if in == nil {
		in = args{}
	}
	in["MultiRegion"] = true
	return h.newKey(in)
}

// TestReplicate: a replica shares what related keys share and nothing else.
func TestReplicate(t *testing.T) {
	h := newHarness(t)
	id, arn := h.multiRegion(args{"Description": "the primary", "Tags": []any{map[string]any{"TagKey": "p", "TagValue": "1"}}})
	h.must("CreateAlias", args{"AliasName": "alias/primary", "TargetKeyId": id})
	h.related(id, testRegion)
	a := h.must("ReplicateKey", args{"KeyId": arn, "ReplicaRegion": replicaRegion, "Description": "the replica", "Tags": []any{map[string]any{"TagKey": "r", "TagValue": "2"}}})
	m := a.fields["ReplicaKeyMetadata"].(map[string]any)
	if m["KeyState"] != "Creating" || m["Enabled"] != false || m["Description"] != "the replica" || m["CurrentKeyMaterialId"] != nil || m["Arn"] != keyARN(replicaRegion, testAccount, id) {
		t.Errorf("answered %v", m)
	}
	if got, want := relationOf(m), (relation{"REPLICA", testRegion, []string{replicaRegion}}); !reflect.DeepEqual(got, want) {
		t.Errorf("answered %+v, want %+v", got, want)
	}
	if !strings.Contains(a.str("ReplicaPolicy"), "arn:aws:iam::"+testAccount+":root") {
		t.Errorf("answered the policy %q", a.str("ReplicaPolicy"))
	}
	if got := fmt.Sprint(a.fields["ReplicaTags"]); got != "[map[TagKey:r TagValue:2]]" {
		t.Errorf("answered the tags %s", got)
	}
	h.related(id, testRegion, replicaRegion)
	primary, replica := h.describe(testRegion, id), h.describe(replicaRegion, id)
	if replica["KeyState"] != "Enabled" || replica["Enabled"] != true || replica["Description"] != "the replica" || replica["CurrentKeyMaterialId"] != primary["CurrentKeyMaterialId"] {
		t.Errorf("the replica is %v", replica)
	}
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8=", "EncryptionContext": args{"a": "b"}}).str("CiphertextBlob")
	h.inRegion(replicaRegion, func() {
		d := h.must("Decrypt", args{"CiphertextBlob": blob, "EncryptionContext": args{"a": "b"}})
		if d.str("Plaintext") != "aGVsbG8=" || d.str("KeyId") != keyARN(replicaRegion, testAccount, id) || d.str("KeyMaterialId") != primary["CurrentKeyMaterialId"] {
			t.Errorf("decrypted there: %s", d)
		}
		h.refused("DescribeKey", args{"KeyId": "alias/primary"}, "NotFoundException", "Alias "+aliasARN(replicaRegion, testAccount, "alias/primary")+" is not found.")
		if got := fmt.Sprint(h.must("ListResourceTags", args{"KeyId": id}).fields["Tags"]); got != "[map[TagKey:r TagValue:2]]" {
			t.Errorf("tags there: %s", got)
		}
		h.must("DisableKey", args{"KeyId": id})
		back := h.call("Encrypt", args{"KeyId": id, "Plaintext": "eA=="})
		if back.code() != "DisabledException" {
			t.Errorf("the disabled replica: %s", back)
		}
	})
	if state := h.describe(testRegion, id)["KeyState"]; state != "Enabled" {
		t.Errorf("disabling the replica made the primary %v", state)
	}
	if err := h.store.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
}

// TestReplicateSpecs: what one related key makes the other takes, for each kind of key.
func TestReplicateSpecs(t *testing.T) {
	h := newHarness(t)
	for _, tc := range []struct {
		spec, usage, op string
		in              args
		back, result    string
		more            args
	}{
		{"HMAC_256", "GENERATE_VERIFY_MAC", "GenerateMac", args{"Message": "eA==", "MacAlgorithm": "HMAC_SHA_256"}, "VerifyMac", "Mac", nil},
		{"ECC_NIST_P256", "SIGN_VERIFY", "Sign", args{"Message": "eA==", "SigningAlgorithm": "ECDSA_SHA_256"}, "Verify", "Signature", nil},
		{"ECC_NIST_EDWARDS25519", "SIGN_VERIFY", "Sign", args{"Message": "eA==", "SigningAlgorithm": "ED25519_SHA_512", "MessageType": "RAW"}, "Verify", "Signature", nil},
		{"ML_DSA_44", "SIGN_VERIFY", "Sign", args{"Message": "eA==", "SigningAlgorithm": "ML_DSA_SHAKE_256"}, "Verify", "Signature", nil},
	} {
		t.Run(tc.spec, func(t *testing.T) {
			id, _ := h.multiRegion(args{"KeySpec": tc.spec, "KeyUsage": tc.usage})
			a := h.must("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion, "Tags": []any{}})
			if got, ok := a.fields["ReplicaTags"]; ok {
				t.Errorf("answered the tags %v of a replica without", got)
			}
			in := args{"KeyId": id}
			for k, v := range tc.in {
				in[k] = v
			}
			h.inRegion(replicaRegion, func() { in[tc.result] = h.must(tc.op, in).str(tc.result) })
			h.must(tc.back, in)
			here, there := h.describe(testRegion, id), h.describe(replicaRegion, id)
			for _, field := range []string{"KeySpec", "KeyUsage", "Origin", "CurrentKeyMaterialId", "SigningAlgorithms", "MacAlgorithms"} {
				if !reflect.DeepEqual(here[field], there[field]) {
					t.Errorf("%s: %v here, %v there", field, here[field], there[field])
				}
			}
		})
	}
}

// TestReplicateRefused goes through what ReplicateKey refuses.
func TestReplicateRefused(t *testing.T) {
	h := newHarness(t)
	id, arn := h.multiRegion(nil)
	single, singleARN := h.newKey(nil)
	h.must("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion})
	replicaARN := keyARN(replicaRegion, testAccount, id)
	h.refused("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion}, "AlreadyExistsException", replicaARN+" already exists.")
	h.refused("ReplicateKey", args{"KeyId": id, "ReplicaRegion": testRegion}, "AlreadyExistsException", arn+" already exists.")
	h.refused("ReplicateKey", args{"KeyId": single, "ReplicaRegion": replicaRegion}, "UnsupportedOperationException", singleARN+" is not a multi-region primary key.")
	h.refused("ReplicateKey", args{"KeyId": id, "ReplicaRegion": "us-west-2"}, "UnsupportedOperationException",
		"The Region us-west-2 is not served here: this Keymill serves eu-west-1, us-east-1.")
	h.refused("ReplicateKey", args{"KeyId": id, "ReplicaRegion": "cn-north-1"}, "UnsupportedOperationException",
		"The Region cn-north-1 is in another partition than eu-west-1: multi-Region keys are related within one partition.")
	h.refused("ReplicateKey", args{"KeyId": "alias/x", "ReplicaRegion": replicaRegion}, "InvalidArnException", "Key Aliases are not supported for this operation.")
	missing := "mrk-00000000000000000000000000000000"
	h.refused("ReplicateKey", args{"KeyId": missing, "ReplicaRegion": replicaRegion}, "NotFoundException", "Key '"+keyARN(testRegion, testAccount, missing)+"' does not exist")
	h.inRegion(replicaRegion, func() {
		h.refused("ReplicateKey", args{"KeyId": id, "ReplicaRegion": testRegion}, "UnsupportedOperationException", replicaARN+" is not a multi-region primary key.")
	})
	other, otherARN := h.multiRegion(nil)
	h.refused("ReplicateKey", args{"KeyId": other, "ReplicaRegion": replicaRegion, "Tags": []any{map[string]any{"TagKey": "aws:x", "TagValue": ""}}},
		"TagException", "Tags beginning with aws: are reserved")
	if a := h.call("ReplicateKey", args{"KeyId": other, "ReplicaRegion": replicaRegion, "Policy": "{}"}); a.code() != "MalformedPolicyDocumentException" {
		t.Errorf("an empty policy: %s", a)
	}
	if a := h.call("ReplicateKey", args{"KeyId": other, "ReplicaRegion": "nowhere"}); a.code() != "ValidationException" {
		t.Errorf("a name that is no Region: %s", a)
	}
	h.must("DisableKey", args{"KeyId": other})
	h.refused("ReplicateKey", args{"KeyId": other, "ReplicaRegion": replicaRegion}, "DisabledException", otherARN+" is disabled.")
	h.must("ScheduleKeyDeletion", args{"KeyId": other})
	h.refused("ReplicateKey", args{"KeyId": other, "ReplicaRegion": replicaRegion}, "KMSInvalidStateException", otherARN+" is pending deletion.")
	for state, want := range map[string]string{"PendingImport": "pending import", "Creating": "creating", "Updating": "updating", "PendingReplicaDeletion": "pending replica deletion"} {
		h.setState(testRegion, other, state)
		h.refused("ReplicateKey", args{"KeyId": other, "ReplicaRegion": replicaRegion}, "KMSInvalidStateException", otherARN+" is "+want+".")
	}
}

// setState writes a key's state as if something had led to it.
func (h *harness) setState(region, id, state string) {
	h.Helper()
	rec, err := h.store.Key(refOf(h, region, id))
	if err != nil {
		h.Fatal(err)
	}
	next := *rec
	next.State, next.DeletionDate = state, time.Time{}
	tx := h.store.NewTxn()
	tx.PutKey(&next, rec.Revision)
	if err := commit(tx); err != nil {
		h.Fatal(err)
	}
	h.svc.dropView(rec.Ref())
}

// TestReplicateQuotas: a replica counts in its own region, as a key and as two
// CreateKey requests.
func TestReplicateQuotas(t *testing.T) {
	h := newHarnessWith(t, profile(t, "base: none\nrequests: {CreateKey: 5}\nresources: {keys: 4}\n"))
	var ids []string
	for range 4 {
		id, _ := h.multiRegion(nil)
		ids = append(ids, id)
	}
	h.must("ReplicateKey", args{"KeyId": ids[0], "ReplicaRegion": replicaRegion})
	h.must("ReplicateKey", args{"KeyId": ids[1], "ReplicaRegion": replicaRegion})
	if a := h.call("ReplicateKey", args{"KeyId": ids[2], "ReplicaRegion": replicaRegion}); a.code() != "ThrottlingException" {
		t.Errorf("the sixth CreateKey within a second: %s", a)
	}
	h.now = h.now.Add(time.Minute)
	h.inRegion(replicaRegion, func() {
		h.newKey(nil)
		h.newKey(nil)
	})
	h.now = h.now.Add(time.Minute)
	h.refused("ReplicateKey", args{"KeyId": ids[2], "ReplicaRegion": replicaRegion}, "LimitExceededException",
		"The account "+testAccount+" has 4 KMS keys in "+replicaRegion+", which is the limit.")
}

// TestReplicateInPieces: a key with more versions than one commit takes is replicated in
// pieces, and a daemon that stopped in between goes on.
func TestReplicateInPieces(t *testing.T) {
	h := newHarness(t)
	id, _ := h.multiRegion(nil)
	first := h.must("Encrypt", args{"KeyId": id, "Plaintext": "MQ=="}).str("CiphertextBlob")
	ref, there := refOf(t, testRegion, id), refOf(t, replicaRegion, id)
	h.addVersions(ref, 2*materialsPerCommit+3)
	last := h.must("Encrypt", args{"KeyId": id, "Plaintext": "Mg=="}).str("CiphertextBlob")

	h.root.Inject(hsmtest.Encrypt, hsmtest.Fault{Skip: 1, Count: -1, Err: hsm.ErrDevice}) // the root goes away
	m := h.must("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion}).fields["ReplicaKeyMetadata"].(map[string]any)
	h.root.Heal()
	if m["KeyState"] != "Creating" {
		t.Errorf("answered %v", m)
	}
	if state := h.describe(replicaRegion, id)["KeyState"]; state != "Creating" {
		t.Fatalf("without its material the replica is %v", state)
	}
	h.inRegion(replicaRegion, func() {
		h.refused("Encrypt", args{"KeyId": id, "Plaintext": "eA=="}, "KMSInvalidStateException", keyARN(replicaRegion, testAccount, id)+" is creating.")
		h.refused("EnableKey", args{"KeyId": id}, "KMSInvalidStateException", keyARN(replicaRegion, testAccount, id)+" is creating.")
		h.must("TagResource", args{"KeyId": id, "Tags": []any{map[string]any{"TagKey": "a", "TagValue": "b"}}})
	})
	if err := h.store.Verify(context.Background(), nil); err != nil {
		t.Errorf("in the middle: %v", err)
	}
	after := h.crashed()
	if err := after.svc.completeReplicas(); err != nil {
		t.Fatal(err)
	}
	if rec, err := after.store.Key(there); err != nil || rec.State != "Enabled" {
		t.Errorf("on the crashed copy: %+v, %v", rec, err)
	}
	if err := after.store.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
	if err := h.svc.completeReplicas(); err != nil {
		t.Fatal(err)
	}
	h.inRegion(replicaRegion, func() {
		for blob, want := range map[string]string{first: "MQ==", last: "Mg=="} {
			if got := h.must("Decrypt", args{"CiphertextBlob": blob}).str("Plaintext"); got != want {
				t.Errorf("decrypted %q, want %q", got, want)
			}
		}
	})
	if notes, _, err := h.store.Scan(creatingPrefix, "", 1); len(notes) > 0 || err != nil {
		t.Errorf("notes are left: %v, %v", notes, err)
	}
}

// TestUpdatePrimaryRegion moves the primary to and fro.
func TestUpdatePrimaryRegion(t *testing.T) {
	h := newHarness(t)
	id, arn := h.multiRegion(nil)
	there := keyARN(replicaRegion, testAccount, id)
	h.must("EnableKeyRotation", args{"KeyId": id, "RotationPeriodInDays": 100})
	h.refused("UpdatePrimaryRegion", args{"KeyId": id, "PrimaryRegion": replicaRegion}, "NotFoundException", "Key '"+there+"' does not exist")
	h.must("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion})
	if a := h.must("UpdatePrimaryRegion", args{"KeyId": arn, "PrimaryRegion": replicaRegion}); a.body != "" {
		t.Errorf("answered %q", a.body)
	}
	h.related(id, replicaRegion, testRegion)
	h.refused("UpdatePrimaryRegion", args{"KeyId": id, "PrimaryRegion": replicaRegion}, "UnsupportedOperationException", arn+" is not a multi-region primary key.")
	h.refused("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion}, "UnsupportedOperationException", arn+" is not a multi-region primary key.")
	h.refused("DisableKeyRotation", args{"KeyId": id}, "UnsupportedOperationException", arn+" is not a multi-region primary key.")
	h.inRegion(replicaRegion, func() {
		h.refused("UpdatePrimaryRegion", args{"KeyId": id, "PrimaryRegion": replicaRegion}, "UnsupportedOperationException", there+" is the primary key already.")
		if a := h.must("GetKeyRotationStatus", args{"KeyId": id}); a.fields["KeyRotationEnabled"] != true || a.fields["RotationPeriodInDays"] != 100.0 {
			t.Errorf("the schedule of the new primary: %s", a)
		}
		h.must("RotateKeyOnDemand", args{"KeyId": id})
		h.must("DisableKeyRotation", args{"KeyId": id})
	})
	if here, there := h.describe(testRegion, id), h.describe(replicaRegion, id); here["CurrentKeyMaterialId"] != there["CurrentKeyMaterialId"] {
		t.Error("after a rotation related keys have different material")
	}
	h.inRegion(replicaRegion, func() {
		for _, state := range []struct{ state, code, text string }{
			{"Disabled", "DisabledException", " is disabled."},
			{"PendingDeletion", "KMSInvalidStateException", " is pending deletion."},
			{"PendingImport", "KMSInvalidStateException", " is pending import."},
			{"Creating", "KMSInvalidStateException", " is creating."},
		} {
			for _, which := range []string{testRegion, replicaRegion} {
				h.setState(which, id, state.state)
				h.refused("UpdatePrimaryRegion", args{"KeyId": id, "PrimaryRegion": testRegion}, state.code, keyARN(which, testAccount, id)+state.text)
				h.setState(which, id, "Enabled")
			}
		}
		h.refused("UpdatePrimaryRegion", args{"KeyId": id, "PrimaryRegion": "us-west-2"}, "UnsupportedOperationException",
			"The Region us-west-2 is not served here: this Keymill serves eu-west-1, us-east-1.")
		h.must("UpdatePrimaryRegion", args{"KeyId": id, "PrimaryRegion": testRegion})
	})
	h.related(id, testRegion, replicaRegion)
	if err := h.store.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
}

// TestDeletionOrder: a primary waits for its replicas, and its waiting period
// begins when the last one is gone.
func TestDeletionOrder(t *testing.T) {
	h := newHarness(t)
	id, arn := h.multiRegion(nil)
	h.must("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion})
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "eA=="}).str("CiphertextBlob")

	a := h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 9})
	if a.str("KeyState") != "PendingReplicaDeletion" || a.fields["DeletionDate"] != nil || a.fields["PendingWindowInDays"] != 9.0 {
		t.Errorf("answered %s", a)
	}
	m := h.describe(testRegion, id)
	if m["KeyState"] != "PendingReplicaDeletion" || m["DeletionDate"] != nil || m["PendingDeletionWindowInDays"] != 9.0 || m["Enabled"] != false {
		t.Errorf("%v", m)
	}
	for op, in := range map[string]args{"Encrypt": {"KeyId": id, "Plaintext": "eA=="}, "ScheduleKeyDeletion": {"KeyId": id}, "EnableKey": {"KeyId": id}, "ReplicateKey": {"KeyId": id, "ReplicaRegion": replicaRegion}} {
		h.refused(op, in, "KMSInvalidStateException", arn+" is pending replica deletion.")
	}
	h.must("CancelKeyDeletion", args{"KeyId": id})
	m = h.describe(testRegion, id)
	if m["KeyState"] != "Disabled" || m["PendingDeletionWindowInDays"] != nil {
		t.Errorf("after cancelling: %v", m)
	}
	h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 9})
	h.now = h.now.Add(100 * day)
	h.due()
	if state := h.describe(testRegion, id)["KeyState"]; state != "PendingReplicaDeletion" {
		t.Errorf("with a replica left the primary is %v", state)
	}

	h.inRegion(replicaRegion, func() {
		h.must("Decrypt", args{"CiphertextBlob": blob})
		r := h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7})
		if r.str("KeyState") != "PendingDeletion" || r.fields["DeletionDate"] == nil {
			t.Errorf("the replica: %s", r)
		}
	})
	h.related(id, testRegion, replicaRegion) // until it is really deleted
	h.now = h.now.Add(7 * day)
	h.due()
	h.inRegion(replicaRegion, func() {
		h.refused("DescribeKey", args{"KeyId": id}, "NotFoundException", "Key '"+keyARN(replicaRegion, testAccount, id)+"' does not exist")
	})
	h.related(id, testRegion)
	m = h.describe(testRegion, id)
	want := float64(h.now.Add(9*day).UnixMilli()) / 1000
	if m["KeyState"] != "PendingDeletion" || m["DeletionDate"] != want || m["PendingDeletionWindowInDays"] != nil {
		t.Errorf("the primary, its last replica gone: %v, want the date %v", m, want)
	}

	// A replica that is deleted may be made again, and decrypts old data.
	h.must("CancelKeyDeletion", args{"KeyId": id})
	h.must("EnableKey", args{"KeyId": id})
	h.must("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion})
	h.inRegion(replicaRegion, func() { h.must("Decrypt", args{"CiphertextBlob": blob}) })
	h.inRegion(replicaRegion, func() { h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7}) })
	h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7})
	for range 2 {
		h.now = h.now.Add(7 * day)
		h.due()
	}
	h.refused("DescribeKey", args{"KeyId": id}, "NotFoundException", "Key '"+arn+"' does not exist")
	if n, err := h.svc.erase(context.Background()); n != 2 || err != nil {
		t.Errorf("erased %d, %v", n, err)
	}
	if err := h.store.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
}

// TestReplicateExternal: a replica of imported material knows which, and waits for
// it.
func TestReplicateExternal(t *testing.T) {
	h := newHarness(t)
	id, arn := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", true)
	h.refused("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion}, "KMSInvalidStateException", arn+" is pending import.")
	h.importInto(id, filled(1), nil)
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "eA=="}).str("CiphertextBlob")
	h.must("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion})
	m := h.describe(replicaRegion, id)
	if m["KeyState"] != "PendingImport" || m["Origin"] != "EXTERNAL" || m["ExpirationModel"] != nil {
		t.Errorf("the replica is %v", m)
	}
	rec, err := h.store.Key(refOf(t, replicaRegion, id))
	if err != nil || len(rec.Versions) != 1 || !rec.Versions[0].Missing {
		t.Fatalf("%+v, %v", rec, err)
	}
	if _, err := h.store.Material(rec.Ref(), 1); !errors.Is(err, keystore.ErrNotFound) {
		t.Errorf("imported material was copied: %v", err)
	}
	h.inRegion(replicaRegion, func() {
		if a := h.call("Decrypt", args{"CiphertextBlob": blob}); a.code() != "KMSInvalidStateException" {
			t.Errorf("without its material: %s", a)
		}
		h.importInto(id, filled(1), nil)
		h.must("Decrypt", args{"CiphertextBlob": blob})
	})
	h.related(id, testRegion, replicaRegion)
}

// TestFamilyBound: one commit has room for the records of all related keys.
func TestFamilyBound(t *testing.T) {
	h := newHarness(t)
	id, arn := h.multiRegion(nil)
	ref := refOf(t, testRegion, id)
	h.addVersions(ref, materialsPerCommit-1)
	rec, err := h.store.Key(ref)
	if err != nil {
		t.Fatal(err)
	}
	family := copies([]*keystore.Key{rec})
	for i := range maxRelated - 2 {
		k := copies(family[:1])[0]
		k.Region, k.Origin, k.Versions, k.CurrentVersion = fmt.Sprintf("eu-west-%d", i+100), "EXTERNAL", nil, 0
		family = append(family, k)
	}
	relate(family, testRegion)
	for _, k := range family {
		tx := h.store.NewTxn()
		tx.PutKey(k, keystore.AnyRevision)
		if err := commit(tx); err != nil {
			t.Fatal(err)
		}
	}
	h.svc.dropView(ref)
	h.must("ReplicateKey", args{"KeyId": id, "ReplicaRegion": replicaRegion, "Tags": []any{map[string]any{"TagKey": "a", "TagValue": "b"}}})
	if got := relationOf(h.describe(replicaRegion, id)); len(got.replicas) != maxRelated-1 || !slices.IsSorted(got.replicas) {
		t.Errorf("%+v", got)
	}
	more, err := NewRegions(testRegion, []string{AllRegions})
	if err != nil {
		t.Fatal(err)
	}
	h.svc.regions = more
	h.refused("ReplicateKey", args{"KeyId": id, "ReplicaRegion": "us-west-2"}, "LimitExceededException", fmt.Sprintf("%s has related keys in %d Regions, which is the limit.", arn, maxRelated))
	h.must("UpdatePrimaryRegion", args{"KeyId": id, "PrimaryRegion": replicaRegion})
	h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7})
	h.now = h.now.Add(7 * day)
	h.due()
	if a := h.call("DescribeKey", args{"KeyId": id}); a.code() != "NotFoundException" {
		t.Errorf("the old primary is still there: %s", a)
	}
	if err := h.store.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
}
