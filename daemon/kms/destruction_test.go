package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keymill/engine"
	"keymill/keystore"
	"keymill/keystore/keystoretest"
)

// ref returns the reference of a key id, in a region.
func refOf(t testing.TB, region, id string) keystore.Ref {
	t.Helper()
	parsed, ok := engine.ParseKeyID(id)
	if !ok {
		t.Fatalf("key id %q", id)
	}
	return keystore.Ref{Region: region, ID: parsed.ID}
}

// due runs the scheduler once, at the harness's time.
func (h *harness) due() {
	h.Helper()
	if err := h.svc.runDue(h.now); err != nil {
		h.Fatal(err)
	}
}

// materialOnDisk returns the bytes of a key's material as they are on disk.
func (h *harness) materialOnDisk(ref keystore.Ref, version uint32) []byte {
	h.Helper()
	b, err := h.store.Sealed(keystore.Name{Kind: keystore.KindMaterial, Region: ref.Region, ID: ref.ID, Version: version})
	if err != nil {
		h.Fatal(err)
	}
	return b
}

// TestDestruction walks a key with everything that can hang on one to its date and
// beyond: nothing happens before, and after it nothing of it is left.
func TestDestruction(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(args{"Description": "to go", "Tags": []any{map[string]any{"TagKey": "a", "TagValue": "b"}}})
	stays, _ := h.newKey(nil)
	ref := refOf(t, testRegion, id)
	h.must("CreateAlias", args{"AliasName": "alias/going", "TargetKeyId": id})
	h.must("CreateAlias", args{"AliasName": "alias/staying", "TargetKeyId": stays})
	h.must("DescribeKey", args{"KeyId": "alias/going"})
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "eA=="}).str("CiphertextBlob")
	before, err := h.store.CountKeys(testAccount, testRegion)
	if err != nil {
		t.Fatal(err)
	}
	needle := h.materialOnDisk(ref, 1)

	h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7})
	h.due()
	h.now = h.now.Add(7*day - time.Nanosecond)
	h.due()
	if state := h.must("DescribeKey", args{"KeyId": id}).fields["KeyMetadata"].(map[string]any)["KeyState"]; state != "PendingDeletion" {
		t.Fatalf("a moment before its date the key is %v", state)
	}
	if found := keystoretest.FilesWith(t, h.dir, needle); len(found) == 0 {
		t.Fatal("material that exists was not found on disk: the search is wrong")
	}
	h.now = h.now.Add(time.Nanosecond)
	h.due()

	notFound := "Key '" + arn + "' does not exist"
	for op, in := range map[string]args{
		"DescribeKey": {"KeyId": id}, "Encrypt": {"KeyId": id, "Plaintext": "eA=="}, "CancelKeyDeletion": {"KeyId": id},
		"GetKeyPolicy": {"KeyId": id}, "ListResourceTags": {"KeyId": id}, "ListGrants": {"KeyId": arn},
		"ScheduleKeyDeletion": {"KeyId": id}, "EnableKey": {"KeyId": arn},
	} {
		h.refused(op, in, "NotFoundException", notFound)
	}
	h.refused("DescribeKey", args{"KeyId": "alias/going"}, "NotFoundException", "Alias "+aliasARN(testRegion, testAccount, "alias/going")+" is not found.")
	h.refused("Decrypt", args{"CiphertextBlob": blob}, "AccessDeniedException",
		"The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.")
	h.must("DescribeKey", args{"KeyId": "alias/staying"})
	for _, op := range []string{"ListKeys", "ListAliases"} {
		if a := h.must(op, nil); strings.Contains(a.body, id) || strings.Contains(a.body, "alias/going") {
			t.Errorf("%s still shows it: %s", op, a)
		}
	}
	if n, err := h.store.CountKeys(testAccount, testRegion); n != before-1 || err != nil {
		t.Errorf("%d keys are counted, %v, want %d", n, err, before-1)
	}
	h.must("CreateAlias", args{"AliasName": "alias/going", "TargetKeyId": stays}) // the name is free

	if n, err := h.svc.erase(context.Background()); n != 1 || err != nil {
		t.Errorf("erased %d keys, %v", n, err)
	}
	if found := keystoretest.FilesWith(t, h.dir, needle); len(found) > 0 {
		t.Errorf("the sealed material is still in %v", found)
	}
	if n, err := h.svc.erase(context.Background()); n != 0 || err != nil {
		t.Errorf("erased %d keys again, %v", n, err)
	}
	if err := h.store.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
}

// TestDestructionCancelled: a cancelled deletion does not happen, at its date or
// later.
func TestDestructionCancelled(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7})
	h.refused("ScheduleKeyDeletion", args{"KeyId": id}, "KMSInvalidStateException", arn+" is pending deletion.")
	h.now = h.now.Add(7*day - time.Second)
	if got := h.must("CancelKeyDeletion", args{"KeyId": id}).str("KeyId"); got != arn {
		t.Errorf("cancelled %q", got)
	}
	h.refused("CancelKeyDeletion", args{"KeyId": id}, "KMSInvalidStateException", arn+" is not pending deletion.")
	h.now = h.now.Add(30 * day)
	h.due()
	m := h.must("DescribeKey", args{"KeyId": id}).fields["KeyMetadata"].(map[string]any)
	if m["KeyState"] != "Disabled" || m["DeletionDate"] != nil {
		t.Errorf("%v", m)
	}
	h.must("EnableKey", args{"KeyId": id})
	for _, days := range []int{6, 31} {
		a := h.call("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": days})
		bound := map[int]string{6: "greater than or equal to 7", 31: "less than or equal to 30"}[days]
		want := fmt.Sprintf("1 validation error detected: Value '%d' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value %s", days, bound)
		if a.code() != "ValidationException" || a.str("message") != want {
			t.Errorf("%d days: %s", days, a)
		}
	}
}

// TestDestructionSuspended: while the clock is not believed nothing is destroyed,
// rotation's step is still taken, and a confirmation lets it go on.
func TestDestructionSuspended(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7})
	h.due()
	stopped := h.svc.guard.elapsed(h.now)
	h.svc.guard.elapsed = func(time.Time) time.Duration { return stopped }
	h.now = h.now.Add(8 * day)
	h.due()
	if state := h.must("DescribeKey", args{"KeyId": id}).fields["KeyMetadata"].(map[string]any)["KeyState"]; state != "PendingDeletion" {
		t.Fatalf("the key is %v", state)
	}
	var metrics bytes.Buffer
	h.svc.WriteMetrics(&metrics)
	if !strings.Contains(metrics.String(), "keymill_destruction_suspended 1\n") {
		t.Error("the metrics do not say so")
	}
	if _, was := h.svc.ConfirmClock(); !was {
		t.Error("nothing was suspended")
	}
	h.due()
	if a := h.call("DescribeKey", args{"KeyId": id}); a.code() != "NotFoundException" {
		t.Errorf("after the confirmation: %s", a)
	}
}

// TestDestructionInterrupted stops a destruction at each of its points, looks at what
// callers see, and has another daemon, on a copy of the store as of that moment,
// finish it.
func TestDestructionInterrupted(t *testing.T) {
	errStop := errors.New("stopped by the test")
	for _, point := range []string{"marked", "some aliases gone", "pieces gone"} {
		t.Run(point, func(t *testing.T) {
			h := newHarness(t)
			id, arn := h.newKey(nil)
			ref := refOf(t, testRegion, id)
			h.addVersions(ref, 3*materialsPerCommit)
			for i := range 50 {
				h.must("CreateAlias", args{"AliasName": fmt.Sprintf("alias/%d", i), "TargetKeyId": id})
			}
			for i := range 200 {
				h.must("CreateGrant", args{"KeyId": id, "GranteePrincipal": fmt.Sprintf("arn:aws:iam::%s:user/u%d", testAccount, i), "Operations": []string{"Decrypt"}})
			}
			h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7})
			h.now = h.now.Add(7 * day)
			h.svc.destroyExternal = func(rec *keystore.Key) error {
				switch point {
				case "some aliases gone":
					aliases, _, err := h.store.ListKeyAliases(rec.Ref(), "", 20)
					if err != nil {
						return err
					}
					tx := h.store.NewTxn()
					for _, a := range aliases {
						tx.DeleteAlias(a)
					}
					if err := commit(tx); err != nil {
						return err
					}
				case "pieces gone":
					if err := h.svc.destroyPieces(rec); err != nil {
						return err
					}
				}
				return errStop
			}
			h.svc.log = slog.New(slog.DiscardHandler) // it logs the failure
			h.due()
			h.svc.log = slog.Default()
			h.refused("DescribeKey", args{"KeyId": id}, "NotFoundException", "Key '"+arn+"' does not exist")
			h.refused("CancelKeyDeletion", args{"KeyId": id}, "NotFoundException", "Key '"+arn+"' does not exist")
			h.refused("PutKeyPolicy", args{"KeyId": id, "Policy": "{}", "BypassPolicyLockoutSafetyCheck": true}, "NotFoundException", "Key '"+arn+"' does not exist")
			if err := h.store.Verify(context.Background(), nil); err != nil {
				t.Errorf("in the middle: %v", err)
			}

			after := h.crashed()
			after.due()
			if _, err := after.store.Key(ref); !errors.Is(err, keystore.ErrNotFound) {
				t.Errorf("the record is still there: %v", err)
			}
			if n, err := after.store.CountGrants(ref); n != 0 || err != nil {
				t.Errorf("%d grants are left, %v", n, err)
			}
			if n, err := after.store.CountKeyAliases(ref, 100); n != 0 || err != nil {
				t.Errorf("%d aliases are left, %v", n, err)
			}
			if n, err := after.store.CountKeys(testAccount, testRegion); n != 0 || err != nil {
				t.Errorf("%d keys are counted, %v", n, err)
			}
			if err := after.store.Verify(context.Background(), nil); err != nil {
				t.Error(err)
			}
			if n, err := after.svc.erase(context.Background()); n != 1 || err != nil {
				t.Errorf("erased %d, %v", n, err)
			}
		})
	}
}

// addVersions gives a key more versions of material.
func (h *harness) addVersions(ref keystore.Ref, n int) {
	h.Helper()
	rec, err := h.store.Key(ref)
	if err != nil {
		h.Fatal(err)
	}
	next := copies([]*keystore.Key{rec})[0]
	for range n {
		v := next.Versions[len(next.Versions)-1]
		v.Number++
		v.MaterialID[0]++
		secret := bytes.Repeat([]byte{byte(v.Number)}, 32)
		v.MaterialID = engine.ComputeMaterialID(engine.KeyID{ID: ref.ID, MultiRegion: rec.MultiRegion}, secret)
		m, err := h.store.SealMaterial(context.Background(), keystore.Identity{Account: rec.Account, Region: rec.Region, Spec: rec.Spec, ID: rec.ID, Version: v.Number}, secret)
		if err != nil {
			h.Fatal(err)
		}
		next.Versions = append(next.Versions, v)
		next.CurrentVersion = v.Number
		tx := h.store.NewTxn()
		tx.PutKey(next, keystore.AnyRevision)
		tx.PutMaterial(m, 0)
		if err := commit(tx); err != nil {
			h.Fatal(err)
		}
	}
	h.svc.dropView(ref)
}

// crashed returns a service on a copy of the store as a crash at this moment would
// leave it.
func (h *harness) crashed() *harness {
	h.Helper()
	dir := filepath.Join(h.TempDir(), "crashed")
	if err := h.store.Backup(context.Background(), dir); err != nil {
		h.Fatal(err)
	}
	if err := keystore.Restore(dir, dir+"-store"); err != nil {
		h.Fatal(err)
	}
	clock := func() time.Time { return h.now }
	store, err := keystore.Open(context.Background(), keystore.Options{Dir: dir + "-store", Root: h.root, Clock: clock, MustExist: true})
	if err != nil {
		h.Fatal(err)
	}
	svc, err := New(Config{Store: store, Account: testAccount, Region: testRegion, Regions: []string{"us-east-1"}, Clock: clock})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		svc.Close()
		store.Close()
	})
	return &harness{TB: h.TB, svc: svc, store: store, root: h.root, key: h.key, now: h.now}
}

// FuzzRefName: a name that is read is one that is written.
func FuzzRefName(f *testing.F) {
	f.Add("eu-west-1/000102030405060708090a0b0c0d0e0f")
	f.Add("/00")
	f.Add("eu-west-1/000102030405060708090A0B0C0D0E0F")
	f.Fuzz(func(t *testing.T, name string) {
		if ref, ok := parseRefName(name); ok && refName(ref) != name {
			t.Errorf("%q was read as %v", name, ref)
		}
	})
}
