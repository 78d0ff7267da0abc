package kms

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keymill/engine"
	"keymill/hsm"
	"keymill/hsm/hsmtest"
	"keymill/keystore"
)

const (
	limitText    = "The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be performed for this key: "
	conflictText = "The request was rejected because an automatic rotation of this key is currently in progress or scheduled to begin within the next 20 minutes."
)

// wireTime is a time as answers have it.
func wireTime(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// wantRotation compares what GetKeyRotationStatus says of a key; a period of 0 is
// no rotation.
func (h *harness) wantRotation(id, arn string, days int, next time.Time) {
	h.Helper()
	want := map[string]any{"KeyId": arn, "KeyRotationEnabled": days > 0}
	if days > 0 {
		want["RotationPeriodInDays"], want["NextRotationDate"] = float64(days), wireTime(next)
	}
	if diff := cmp.Diff(want, h.must("GetKeyRotationStatus", args{"KeyId": id}).fields); diff != "" {
		h.Errorf("rotation of %s (-want +got):\n%s", id, diff)
	}
}

// listed returns what ListKeyRotations lists, page by page.
func (h *harness) listed(id string, all bool, limit int) (entries []map[string]any) {
	h.Helper()
	in := args{"KeyId": id, "Limit": limit}
	if all {
		in["IncludeKeyMaterial"] = "ALL_KEY_MATERIAL"
	}
	for {
		a := h.must("ListKeyRotations", in)
		page := a.fields["Rotations"].([]any)
		for _, e := range page {
			entries = append(entries, e.(map[string]any))
		}
		next, ok := a.fields["NextMarker"]
		if len(page) > limit || ok != a.fields["Truncated"].(bool) || ok && len(page) == 0 {
			h.Fatalf("a page of %d with limit %d: %s", len(page), limit, a)
		}
		if !ok {
			return entries
		}
		in["Marker"] = next
	}
}

// happen lets happen what is due.
func (h *harness) happen() {
	h.Helper()
	if err := h.svc.runDue(h.now); err != nil {
		h.Fatal(err)
	}
}

func TestRotationSchedule(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	h.wantRotation(id, arn, 0, time.Time{})
	h.must("DisableKeyRotation", args{"KeyId": id}) // says nothing new
	h.must("EnableKeyRotation", args{"KeyId": id})
	first := h.now.AddDate(0, 0, 365)
	h.wantRotation(id, arn, 365, first)

	// The same again does not put it off, by either form of the identifier.
	h.now = h.now.AddDate(0, 0, 10)
	h.must("EnableKeyRotation", args{"KeyId": arn})
	h.must("EnableKeyRotation", args{"KeyId": id, "RotationPeriodInDays": 365})
	h.wantRotation(arn, arn, 365, first)

	// Another period counts from now.
	for _, days := range []int{90, 2560, 91} {
		h.must("EnableKeyRotation", args{"KeyId": id, "RotationPeriodInDays": days})
		h.wantRotation(id, arn, days, h.now.AddDate(0, 0, days))
		h.now = h.now.AddDate(0, 0, 1)
	}
	h.must("EnableKeyRotation", args{"KeyId": id}) // none is the default, not the last
	h.wantRotation(id, arn, 365, h.now.AddDate(0, 0, 365))

	// Off and on again counts from then.
	h.must("DisableKeyRotation", args{"KeyId": id})
	h.wantRotation(id, arn, 0, time.Time{})
	h.now = h.now.AddDate(0, 0, 1)
	h.must("EnableKeyRotation", args{"KeyId": id, "RotationPeriodInDays": 365})
	next := h.now.AddDate(0, 0, 365)
	h.wantRotation(id, arn, 365, next)

	// The setting outlives other states, and a restart.
	h.must("DisableKey", args{"KeyId": id})
	h.wantRotation(id, arn, 365, next)
	h.must("EnableKey", args{"KeyId": id})
	h.must("ScheduleKeyDeletion", args{"KeyId": id})
	h.wantRotation(id, arn, 0, time.Time{})
	h.restart()
	h.wantRotation(id, arn, 0, time.Time{})
	h.must("CancelKeyDeletion", args{"KeyId": id})
	h.wantRotation(id, arn, 365, next)

	for days, text := range map[int]string{
		89:   "1 validation error detected: Value '89' at 'rotationPeriodInDays' failed to satisfy constraint: Member must have value greater than or equal to 90",
		2561: "1 validation error detected: Value '2561' at 'rotationPeriodInDays' failed to satisfy constraint: Member must have value less than or equal to 2560",
	} {
		h.refused("EnableKeyRotation", args{"KeyId": id, "RotationPeriodInDays": days}, "ValidationException", text)
	}
}

// TestRotationRefusals: every operation on every kind of key and identifier that
// it does not take.
func TestRotationRefusals(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	h.must("CreateAlias", args{"AliasName": "alias/a", "TargetKeyId": id})
	hmac, hmacARN := h.newKey(args{"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"})
	ecc, eccARN := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})
	external, externalARN := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	h.importInto(external, filled(1), nil)
	pending, pendingARN := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	rsa, rsaARN := h.external("RSA_2048", "SIGN_VERIFY", false)
	unknown := "12345678-1234-4234-8234-123456789012"
	const unsupported = "UnsupportedOperationException"
	wrongOrigin := func(arn string) string {
		return arn + " origin is EXTERNAL which is not valid for this operation."
	}
	for _, op := range []string{"EnableKeyRotation", "DisableKeyRotation", "GetKeyRotationStatus", "ListKeyRotations", "RotateKeyOnDemand"} {
		h.refused(op, args{}, "ValidationException", "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null")
		h.refused(op, args{"KeyId": "alias/a"}, "InvalidArnException", "Key Aliases are not supported for this operation.")
		h.refused(op, args{"KeyId": strings.Replace(arn, "key/"+id, "alias/a", 1)}, "InvalidArnException", "Key Aliases are not supported for this operation.")
		h.refused(op, args{"KeyId": unknown}, "NotFoundException", "Key '"+strings.Replace(arn, id, unknown, 1)+"' does not exist")
		h.refused(op, args{"KeyId": "nonsense"}, "NotFoundException", "Invalid keyId 'nonsense'")
		h.refused(op, args{"KeyId": strings.Replace(arn, testRegion, "us-east-1", 1)}, "NotFoundException", "Invalid arn us-east-1")
		if op == "GetKeyRotationStatus" {
			h.wantRotation(hmac, hmacARN, 0, time.Time{})
			h.wantRotation(ecc, eccARN, 0, time.Time{})
		} else {
			h.refused(op, args{"KeyId": hmac}, unsupported, "")
			h.refused(op, args{"KeyId": ecc}, unsupported, "")
		}
		switch op {
		case "EnableKeyRotation", "DisableKeyRotation":
			h.refused(op, args{"KeyId": external}, unsupported, wrongOrigin(externalARN))
			h.refused(op, args{"KeyId": pending}, unsupported, wrongOrigin(pendingARN))
			h.refused(op, args{"KeyId": rsa}, unsupported, wrongOrigin(rsaARN)) // before the spec
		case "GetKeyRotationStatus":
			h.refused(op, args{"KeyId": pending}, unsupported, wrongOrigin(pendingARN))
			h.refused(op, args{"KeyId": rsa}, unsupported, wrongOrigin(rsaARN))
			h.wantRotation(external, externalARN, 0, time.Time{})
		case "RotateKeyOnDemand":
			h.refused(op, args{"KeyId": pending}, "KMSInvalidStateException", pendingARN+" is pending import.")
			h.refused(op, args{"KeyId": rsa}, "KMSInvalidStateException", rsaARN+" is pending import.") // before the spec
		case "ListKeyRotations":
			if got := h.listed(pending, true, 10); len(got) != 0 {
				t.Errorf("rotations of a key without material: %v", got)
			}
		}
	}
	// Keys in custom key stores.
	store := h.record(id)
	store.Origin, store.State = "AWS_CLOUDHSM", "Unavailable"
	h.replace(store)
	for _, op := range []string{"EnableKeyRotation", "DisableKeyRotation", "GetKeyRotationStatus", "ListKeyRotations", "RotateKeyOnDemand"} {
		h.refused(op, args{"KeyId": id}, unsupported, arn+" origin is AWS_CLOUDHSM which is not valid for this operation.")
	}
	h.refused("ListKeyRotations", args{"KeyId": external, "IncludeKeyMaterial": "SOME"}, "ValidationException",
		"1 validation error detected: Value 'SOME' at 'includeKeyMaterial' failed to satisfy constraint: Member must satisfy enum value set: [ALL_KEY_MATERIAL, ROTATIONS_ONLY]")
	for _, m := range []string{"x", "!!", h.markerOf("ListKeyRotations", "-1"), h.markerOf("ListKeyRotations", "x"), h.markerOf("ListKeys", "1")} {
		if a := h.call("ListKeyRotations", args{"KeyId": external, "Marker": m}); a.code() != "InvalidMarkerException" {
			t.Errorf("marker %q: %s", m, a)
		}
	}
}

// replace writes a record that is to replace another, whatever is in it.
func (h *harness) replace(k *keystore.Key) {
	h.Helper()
	t := h.store.NewTxn()
	t.PutKey(k, k.Revision)
	if err := commit(t); err != nil {
		h.Fatal(err)
	}
	h.svc.dropView(k.Ref())
}

func (h *harness) markerOf(op, last string) string {
	for i := range operations {
		if operations[i].op.String() == op {
			x := exchange{row: &operations[i]}
			return x.marker(last)
		}
	}
	h.Fatal(op)
	return ""
}

// TestRotationStates tries the operations in every state of a key that has a
// schedule.
func TestRotationStates(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	h.must("EnableKeyRotation", args{"KeyId": id})
	next := h.now.AddDate(0, 0, 365)
	invalid := func(what string) [2]string {
		return [2]string{"KMSInvalidStateException", arn + " is " + what + "."}
	}
	for state, refusal := range map[keyState][2]string{
		stateEnabled:                {},
		stateDisabled:               {"DisabledException", arn + " is disabled."},
		statePendingDeletion:        invalid("pending deletion"),
		statePendingReplicaDeletion: invalid("pending replica deletion"),
		stateCreating:               invalid("creating"),
		stateUpdating:               {},
	} {
		h.inState(id, state)
		for _, op := range []string{"EnableKeyRotation", "DisableKeyRotation", "EnableKeyRotation", "RotateKeyOnDemand"} {
			if refusal[0] == "" {
				h.must(op, args{"KeyId": id})
			} else {
				h.refused(op, args{"KeyId": id}, refusal[0], refusal[1])
			}
		}
		if got := h.listed(id, true, 100); len(got) == 0 {
			t.Errorf("%s: nothing listed", state)
		}
		if state == statePendingDeletion || state == statePendingReplicaDeletion {
			h.wantRotation(id, arn, 0, time.Time{})
		} else {
			h.wantRotation(id, arn, 365, next)
		}
	}
}

// TestRotateKeyOnDemand rotates a key as often as it may, and decrypts what it
// encrypted before each rotation, also after a restart.
func TestRotateKeyOnDemand(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	h.must("EnableKeyRotation", args{"KeyId": id})
	schedule := h.now.AddDate(0, 0, 365)
	other, _ := h.newKey(nil)
	type sealed struct{ material, blob, date string }
	var made []sealed
	seal := func() {
		t.Helper()
		material := h.metadata(id)["CurrentKeyMaterialId"].(string)
		for op, in := range map[string]args{
			"GenerateDataKey": {"KeySpec": "AES_256"}, "GenerateDataKeyWithoutPlaintext": {"KeySpec": "AES_128"},
			"GenerateDataKeyPair": {"KeyPairSpec": "ECC_NIST_P256"}, "GenerateDataKeyPairWithoutPlaintext": {"KeyPairSpec": "ECC_NIST_P256"},
		} {
			in["KeyId"] = id
			if got := h.must(op, in).str("KeyMaterialId"); got != material {
				t.Errorf("%s: KeyMaterialId %s, the current one is %s", op, got, material)
			}
		}
		blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": b64(fmt.Sprint("text ", len(made)))}).str("CiphertextBlob")
		made = append(made, sealed{material, blob, fmt.Sprint(wireTime(h.now))})
	}
	open := func() {
		t.Helper()
		for i, s := range made {
			a := h.must("Decrypt", args{"CiphertextBlob": s.blob})
			if a.str("Plaintext") != b64(fmt.Sprint("text ", i)) || a.str("KeyMaterialId") != s.material {
				t.Errorf("text %d of material %s: %s", i, s.material, a)
			}
		}
	}
	seal()
	const most = 25
	for range most {
		h.now = h.now.Add(time.Hour)
		if got := h.must("RotateKeyOnDemand", args{"KeyId": id}).fields; len(got) != 1 || got["KeyId"] != arn {
			t.Fatalf("RotateKeyOnDemand answers %v", got)
		}
		seal()
	}
	h.refused("RotateKeyOnDemand", args{"KeyId": arn}, "LimitExceededException", limitText+arn)
	h.wantRotation(id, arn, 365, schedule) // which rotations on demand leave alone
	open()
	h.restart()
	open()
	h.refused("RotateKeyOnDemand", args{"KeyId": id}, "LimitExceededException", limitText+arn)

	moved := h.must("ReEncrypt", args{"CiphertextBlob": made[3].blob, "DestinationKeyId": id})
	if moved.str("SourceKeyMaterialId") != made[3].material || moved.str("DestinationKeyMaterialId") != made[most].material {
		t.Errorf("ReEncrypt to the same key: %s", moved)
	}
	moved = h.must("ReEncrypt", args{"CiphertextBlob": made[7].blob, "DestinationKeyId": other})
	if moved.str("SourceKeyMaterialId") != made[7].material || moved.str("DestinationKeyMaterialId") != h.metadata(other)["CurrentKeyMaterialId"] {
		t.Errorf("ReEncrypt to another key: %s", moved)
	}

	var all []map[string]any
	for i, s := range made {
		e := map[string]any{"KeyId": arn, "KeyMaterialId": s.material, "KeyMaterialState": "NON_CURRENT"}
		if i > 0 {
			e["RotationType"], e["RotationDate"] = "ON_DEMAND", wireTime(h.record(id).Versions[i].Rotated)
			if got := fmt.Sprint(e["RotationDate"]); got != s.date {
				t.Errorf("rotation %d at %s, want %s", i, got, s.date)
			}
		}
		if i == most {
			e["KeyMaterialState"] = "CURRENT"
		}
		all = append(all, e)
	}
	for _, limit := range []int{1, 2, 7, 24, 25, 26, 1000} {
		if diff := cmp.Diff(all, h.listed(id, true, limit)); diff != "" {
			t.Errorf("all material by %d (-want +got):\n%s", limit, diff)
		}
		if diff := cmp.Diff(all[1:], h.listed(id, false, limit)); diff != "" {
			t.Errorf("rotations by %d (-want +got):\n%s", limit, diff)
		}
	}
	h.sound()
}

func TestManyVersionsAreListed(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	k := h.record(id)
	for n := uint32(2); n <= keystore.MaxVersions; n++ {
		k.Versions = append(k.Versions, keystore.Version{Number: n, MaterialID: [32]byte{byte(n), byte(n >> 8)}, Created: h.now, Rotation: rotationAutomatic, Rotated: h.now})
	}
	h.replace(k)
	if got := len(h.must("ListKeyRotations", args{"KeyId": id}).fields["Rotations"].([]any)); got != 100 {
		t.Errorf("a page without Limit has %d", got)
	}
	for limit, want := range map[int]int{1000: keystore.MaxVersions - 1, 13: keystore.MaxVersions - 1} {
		if got := len(h.listed(id, false, limit)); got != want {
			t.Errorf("by %d: %d of %d rotations", limit, got, want)
		}
	}
	// There is no room for another: on demand that is an error, a schedule moves on.
	h.refused("RotateKeyOnDemand", args{"KeyId": id}, "LimitExceededException", limitText+arn)
	h.must("EnableKeyRotation", args{"KeyId": id, "RotationPeriodInDays": 90})
	h.now = h.now.AddDate(0, 0, 90)
	h.happen()
	h.wantRotation(id, arn, 90, h.now.AddDate(0, 0, 90))
	if got := len(h.record(id).Versions); got != keystore.MaxVersions {
		t.Errorf("%d versions", got)
	}
}

// TestAutomaticRotation follows a key through years.
func TestAutomaticRotation(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": b64("old")}).str("CiphertextBlob")
	h.must("EnableKeyRotation", args{"KeyId": id, "RotationPeriodInDays": 90})
	date := h.now.AddDate(0, 0, 90)
	versions := func(want int) {
		t.Helper()
		if got := len(h.record(id).Versions); got != want {
			t.Errorf("%s: %d versions, want %d", h.now.Format(time.DateOnly), got, want)
		}
	}
	h.now = date.Add(-time.Millisecond)
	h.happen()
	versions(1)
	for n := 2; n <= 30; n++ {
		h.now = date.Add(time.Hour) // late, and in the rhythm all the same
		h.happen()
		h.happen()
		versions(n)
		date = date.AddDate(0, 0, 90)
		h.wantRotation(id, arn, 90, date)
		if n == 15 {
			h.restart()
			h.happen()
			versions(n)
		}
		if a := h.must("Decrypt", args{"CiphertextBlob": blob}); a.str("Plaintext") != b64("old") {
			t.Fatalf("after %d rotations: %s", n-1, a)
		}
	}
	list := h.listed(id, false, 100)
	if last := list[len(list)-1]; len(list) != 29 || last["RotationType"] != "AUTOMATIC" || last["RotationDate"] != wireTime(h.now) || last["KeyMaterialState"] != "CURRENT" {
		t.Errorf("%d rotations, the last %v", len(list), last)
	}
	if h.record(id).OnDemandRotations != 0 {
		t.Error("automatic rotations count as on demand")
	}

	// Not while it is disabled; once it is enabled, at once, and a period from then.
	h.must("DisableKey", args{"KeyId": id})
	h.now = h.now.AddDate(3, 0, 0)
	h.happen()
	versions(30)
	h.wantRotation(id, arn, 90, date)
	h.svc.sched.wake = make(chan struct{}, 1)
	h.must("EnableKey", args{"KeyId": id})
	if len(h.svc.sched.wake) != 1 {
		t.Error("nobody looks at what is due once the key is enabled")
	}
	h.happen()
	h.happen()
	versions(31)
	h.wantRotation(id, arn, 90, h.now.AddDate(0, 0, 90))

	// Nor while it is pending deletion, or with rotation switched off.
	h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 30})
	h.now = h.now.AddDate(0, 0, 29)
	h.happen()
	h.must("CancelKeyDeletion", args{"KeyId": id})
	h.must("EnableKey", args{"KeyId": id})
	h.must("DisableKeyRotation", args{"KeyId": id})
	h.now = h.now.AddDate(1, 0, 0)
	h.happen()
	versions(31)
	h.sound()
}

// TestOneRotationPerDate has everybody rotate for the same date, and the root of
// trust fail in all ways.
func TestOneRotationPerDate(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	h.must("EnableKeyRotation", args{"KeyId": id})
	h.now = h.now.AddDate(1, 0, 2)
	rec := h.record(id)
	h.root.Inject(hsmtest.Encrypt, hsmtest.Fault{Err: hsm.ErrTokenMissing})
	if err := h.svc.rotateDue(rec, h.now); !errors.Is(err, hsm.ErrTokenMissing) {
		t.Errorf("without a root: %v", err)
	}
	h.root.Heal()
	if got := h.record(id); got.Revision != rec.Revision {
		t.Error("a rotation that failed changed the key")
	}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if err := h.svc.rotateDue(rec, h.now); err != nil && !errors.Is(err, keystore.ErrConflict) {
				t.Error(err)
			}
		})
		all.Go(func() { h.must("DescribeKey", args{"KeyId": id}) })
	}
	all.Wait()
	if got := len(h.record(id).Versions); got != 2 {
		t.Errorf("%d versions", got)
	}
	if err := h.svc.rotateDue(rec, h.now); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("an outdated record: %v", err)
	}
	h.wantRotation(id, arn, 365, h.now.AddDate(0, 0, 365))
	h.sound()
}

// TestRotationsMeet: what is under way is shown, joined, or in the way.
func TestRotationsMeet(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	ref := h.record(id).Ref()
	block := func() (release func()) {
		c := make(chan struct{})
		h.root.Inject(hsmtest.Encrypt, hsmtest.Fault{Block: c})
		return func() { close(c) }
	}
	running := func() *rotation {
		h.svc.rotations.mu.Lock()
		defer h.svc.rotations.mu.Unlock()
		return h.svc.rotations.running[ref]
	}
	release := block()
	started := h.now
	var all sync.WaitGroup
	all.Go(func() { h.must("RotateKeyOnDemand", args{"KeyId": id}) })
	comes(t, func() bool { return running() != nil })
	want := map[string]any{"KeyId": arn, "KeyRotationEnabled": false, "OnDemandRotationStartDate": wireTime(started)}
	if diff := cmp.Diff(want, h.must("GetKeyRotationStatus", args{"KeyId": id}).fields); diff != "" {
		t.Errorf("status meanwhile (-want +got):\n%s", diff)
	}
	before := h.svc.counts.ok[operationOf("RotateKeyOnDemand")].Load()
	all.Go(func() { h.must("RotateKeyOnDemand", args{"KeyId": id}) })
	release()
	all.Wait()
	if done := h.svc.counts.ok[operationOf("RotateKeyOnDemand")].Load() - before; done != 2 {
		t.Errorf("%d answers", done)
	}
	// Whether the second came in time to join is up to the scheduler of goroutines.
	if got := len(h.record(id).Versions); got != 2 && got != 3 {
		t.Errorf("%d versions", got)
	}
	h.wantRotation(id, arn, 0, time.Time{})

	// One who waits gets the outcome of the one under way.
	one, mine := h.svc.rotations.begin(ref, rotationOnDemand, h.now)
	if !mine {
		t.Fatal("not mine")
	}
	versions := len(h.record(id).Versions)
	failed := make(chan answer, 1)
	go func() { failed <- h.call("RotateKeyOnDemand", args{"KeyId": id}) }()
	one.err = errBusy
	h.svc.rotations.end(ref, one)
	if a := <-failed; a.code() == "" && len(h.record(id).Versions) != versions+1 { // it came after the end
		t.Errorf("joined a rotation that failed: %s", a)
	}

	// An automatic one is in the way, while it runs and 20 minutes before.
	h.must("EnableKeyRotation", args{"KeyId": id})
	next := h.now.AddDate(0, 0, 365)
	h.now = next.Add(-20*time.Minute - time.Millisecond)
	h.must("RotateKeyOnDemand", args{"KeyId": id})
	for _, h.now = range []time.Time{next.Add(-20 * time.Minute), next, next.AddDate(0, 0, 9)} {
		h.refused("RotateKeyOnDemand", args{"KeyId": id}, "ConflictException", conflictText)
	}
	release = block()
	all.Go(h.happen)
	comes(t, func() bool { return running() != nil })
	h.refused("RotateKeyOnDemand", args{"KeyId": id}, "ConflictException", conflictText)
	release()
	all.Wait()
	h.must("RotateKeyOnDemand", args{"KeyId": id})
}

// comes waits for what other goroutines are about to do.
func comes(t *testing.T, done func() bool) {
	t.Helper()
	for range 10_000 {
		if done() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("it never happened")
}

func operationOf(name string) int {
	for i := range operations {
		if operations[i].op.String() == name {
			return i
		}
	}
	return 0
}

// TestRotationOfImportedMaterial: only on demand, to what was imported for it.
func TestRotationOfImportedMaterial(t *testing.T) {
	h := newHarness(t)
	id, arn := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	first := h.importInto(id, filled(1), args{"KeyMaterialDescription": "first"})
	nothing := "No available key material pending rotation for the key: " + arn + "."
	h.refused("RotateKeyOnDemand", args{"KeyId": id}, "KMSInvalidStateException", nothing)
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": b64("x")}).str("CiphertextBlob")

	until := h.now.Add(time.Hour)
	second := h.importInto(id, filled(2), args{"ImportType": "NEW_KEY_MATERIAL", "ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": until.Unix()})
	want := []map[string]any{
		{"KeyId": arn, "KeyMaterialId": first, "KeyMaterialDescription": "first", "ImportState": "IMPORTED", "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE", "KeyMaterialState": "CURRENT"},
		{"KeyId": arn, "KeyMaterialId": second, "ImportState": "IMPORTED", "ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": float64(until.Unix()), "KeyMaterialState": "PENDING_ROTATION"},
	}
	check := func() {
		t.Helper()
		if diff := cmp.Diff(want, h.listed(id, true, 1)); diff != "" {
			t.Errorf("all material (-want +got):\n%s", diff)
		}
	}
	check()
	if got := h.listed(id, false, 10); len(got) != 0 {
		t.Errorf("rotations before any: %v", got)
	}
	if got := h.must("GenerateDataKey", args{"KeyId": id, "KeySpec": "AES_256"}).str("KeyMaterialId"); got != first {
		t.Errorf("material that waits is in use: %s", got)
	}
	h.must("RotateKeyOnDemand", args{"KeyId": id})
	want[0]["KeyMaterialState"], want[1]["KeyMaterialState"] = "NON_CURRENT", "CURRENT"
	want[1]["RotationType"], want[1]["RotationDate"] = "ON_DEMAND", wireTime(h.now)
	check()
	if diff := cmp.Diff(want[1:], h.listed(id, false, 10)); diff != "" {
		t.Errorf("rotations (-want +got):\n%s", diff)
	}
	if got := h.must("GenerateDataKey", args{"KeyId": id, "KeySpec": "AES_256"}).str("KeyMaterialId"); got != second {
		t.Errorf("in use after the rotation: %s", got)
	}
	if a := h.must("Decrypt", args{"CiphertextBlob": blob}); a.str("Plaintext") != b64("x") || a.str("KeyMaterialId") != first {
		t.Errorf("what the first material encrypted: %s", a)
	}
	h.refused("RotateKeyOnDemand", args{"KeyId": id}, "KMSInvalidStateException", nothing)

	// What is gone is listed as to be imported; the key needs it back.
	h.must("DeleteImportedKeyMaterial", args{"KeyId": id, "KeyMaterialId": first})
	want[0]["ImportState"] = "PENDING_IMPORT"
	delete(want[0], "ExpirationModel")
	check()
	h.refused("RotateKeyOnDemand", args{"KeyId": id}, "KMSInvalidStateException", arn+" is pending import.")
	h.importInto(id, filled(1), nil)

	// Pending material whose time is over is not there any more.
	h.importInto(id, filled(3), args{"ImportType": "NEW_KEY_MATERIAL", "ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": h.now.Add(time.Minute).Unix()})
	h.now = h.now.Add(2 * time.Minute)
	h.refused("RotateKeyOnDemand", args{"KeyId": id}, "KMSInvalidStateException", nothing)
	h.sound()
}

// TestRotationOfRelatedKeys: a primary rotates all, a replica nothing.
func TestRotationOfRelatedKeys(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(args{"MultiRegion": true})
	h.must("ReplicateKey", args{"KeyId": id, "ReplicaRegion": "us-east-1"})
	there := *h
	there.key.Region = "us-east-1"
	replicaARN := strings.Replace(arn, testRegion, "us-east-1", 1)
	notPrimary := replicaARN + " is not a multi-region primary key."

	for _, op := range []string{"EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand"} {
		there.refused(op, args{"KeyId": id}, "UnsupportedOperationException", notPrimary)
	}
	h.must("EnableKeyRotation", args{"KeyId": id, "RotationPeriodInDays": 100})
	date := h.now.AddDate(0, 0, 100)
	h.wantRotation(id, arn, 100, date)
	there.wantRotation(id, replicaARN, 100, date)

	before := there.must("Encrypt", args{"KeyId": id, "Plaintext": b64("before")}).str("CiphertextBlob")
	h.must("RotateKeyOnDemand", args{"KeyId": id})
	there.must("DisableKey", args{"KeyId": id}) // its state is its own, its material is not
	h.now = date
	there.now = date
	h.happen()
	there.must("EnableKey", args{"KeyId": id})
	h.wantRotation(id, arn, 100, date.AddDate(0, 0, 100))
	there.wantRotation(id, replicaARN, 100, date.AddDate(0, 0, 100))

	mine, other := h.listed(id, true, 10), there.listed(id, true, 10)
	if len(mine) != 3 || len(other) != 3 {
		t.Fatalf("%d and %d versions", len(mine), len(other))
	}
	for i := range mine {
		mine[i]["KeyId"], other[i]["KeyId"] = "", ""
	}
	if diff := cmp.Diff(mine, other); diff != "" {
		t.Errorf("related keys' materials (-primary +replica):\n%s", diff)
	}
	after := h.must("Encrypt", args{"KeyId": id, "Plaintext": b64("after")}).str("CiphertextBlob")
	for _, h := range []*harness{h, &there} {
		for text, blob := range map[string]string{"before": before, "after": after} {
			if a := h.must("Decrypt", args{"CiphertextBlob": blob}); a.str("Plaintext") != b64(text) {
				t.Errorf("%s in %s: %s", text, h.key.Region, a)
			}
		}
	}

	// A schedule that stands in a replica's record goes to the primary.
	h.must("DisableKeyRotation", args{"KeyId": id})
	k := there.record(id)
	k.NextRotation, k.RotationPeriodDays = h.now, 90
	h.replace(k)
	h.happen()
	if got := there.record(id); !got.NextRotation.IsZero() || len(got.Versions) != 3 {
		t.Errorf("the replica has a schedule: %v, %d versions", got.NextRotation, len(got.Versions))
	}
	h.happen()
	h.wantRotation(id, arn, 90, h.now.AddDate(0, 0, 90))
	if got := len(there.record(id).Versions); got != 4 {
		t.Errorf("%d versions", got)
	}

	// A related key whose record is gone is no obstacle.
	k = there.record(id)
	txn := h.store.NewTxn()
	txn.DeleteKey(k)
	if err := commit(txn); err != nil {
		t.Fatal(err)
	}
	h.must("RotateKeyOnDemand", args{"KeyId": id})
	h.sound()
}

// TestRotationPurges: no derived key of the former current material stays in
// memory.
func TestRotationPurges(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	h.must("Encrypt", args{"KeyId": id, "Plaintext": b64("x")})
	old, err := h.svc.view(h.record(id).Ref())
	if err != nil {
		t.Fatal(err)
	}
	h.must("RotateKeyOnDemand", args{"KeyId": id})
	if _, ok := h.svc.handles.Get(old.handleName()); ok {
		t.Error("the former handle is in the cache")
	}
	op := []engine.Op{{Verb: engine.Encrypt, Alg: engine.AlgSymmetric, In: []byte("x")}}
	if old.handle.Do(op); op[0].Err != engine.ErrPending {
		t.Errorf("the former handle is warm: %v", op[0].Err)
	}
	// A request that was under way on the old view finishes on it.
	if err := old.handle.Warm(context.Background(), op); err != nil {
		t.Error(err)
	}
	if old.handle.Do(op); op[0].Err != nil {
		t.Error(op[0].Err)
	}
}

func TestNextRotation(t *testing.T) {
	date := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	k := &keystore.Key{NextRotation: date, RotationPeriodDays: 365}
	for late, want := range map[time.Duration]time.Time{
		0:               date.AddDate(1, 0, 0),
		day:             date.AddDate(1, 0, 0),
		day + 1:         date.Add(day+1).AddDate(0, 0, 365),
		10_000 * day:    date.Add(10_000*day + 365*day),
		math.MaxInt32:   date.AddDate(1, 0, 0), // 2 s
		day - time.Hour: date.AddDate(1, 0, 0),
	} {
		if got := nextRotation(k, date.Add(late)); !got.Equal(want) {
			t.Errorf("%v late: %v, want %v", late, got, want)
		}
	}
}
