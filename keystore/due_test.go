package keystore

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestKeyFieldsAreKept(t *testing.T) {
	h := newHarness(t)
	k := testKey(1)
	k.Service, k.RotationPeriodDays, k.NextRotation, k.OnDemandRotations = "s3", 365, now.Add(time.Hour), 3
	k.PrimaryRegion, k.ReplicaRegions = "eu-west-1", []string{"us-east-1", "us-east-2"}
	k.CustomKeyStore, k.ExternalKeyID, k.TokenKeyID = "cks-1", "external", []byte{1, 2, 3}
	k.Versions = []Version{{
		Number: 1, Created: now, Rotation: "ON_DEMAND", Rotated: now, Description: "imported", Pending: "PENDING_ROTATION",
		Missing: true, Expires: true, ValidTo: now.Add(time.Minute),
	}}
	k.Origin = "EXTERNAL"
	rev := h.commit(func(txn *Txn) { txn.PutKey(k, 0) })
	h.reopen()
	got, err := h.Key(k.Ref())
	if err != nil {
		t.Fatal(err)
	}
	k.Revision = rev
	if d := cmp.Diff(k, got); d != "" {
		t.Error(d)
	}
	if err := h.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
}

// The list of what is due follows every change of a key.
func TestDueFollowsTheKey(t *testing.T) {
	h := newHarness(t)
	k := withoutMaterial(1)
	k.State = stateEnabled
	day := func(n int) time.Time { return now.Add(time.Duration(n) * 24 * time.Hour) }
	steps := []struct {
		name   string
		change func()
		want   time.Time
	}{
		{"new", func() {}, time.Time{}},
		{"rotates", func() { k.NextRotation = day(90) }, day(90)},
		{"disabled: rotation waits", func() { k.State = "Disabled" }, time.Time{}},
		{"enabled again", func() { k.State = stateEnabled }, day(90)},
		{"material expires first", func() { k.Versions[0].Expires, k.Versions[0].ValidTo = true, day(2) }, day(2)},
		{"expired", func() { k.Versions[0].Missing = true }, day(90)},
		{"to be deleted", func() { k.State, k.DeletionDate = "PendingDeletion", day(7) }, day(7)},
		{"cancelled", func() { k.State, k.DeletionDate = "Disabled", time.Time{} }, time.Time{}},
		{"to be deleted again", func() { k.State, k.DeletionDate = "PendingDeletion", day(30) }, day(30)},
	}
	for _, step := range steps {
		step.change()
		k.Revision = h.commit(func(txn *Txn) { txn.PutKey(k, k.Revision) })
		due, more, err := h.ListDue(day(1000), nil, 10)
		if err != nil || more {
			t.Fatalf("%s: %v, %v", step.name, more, err)
		}
		var want []DueKey
		if !step.want.IsZero() {
			want = []DueKey{{k.Ref(), step.want}}
		}
		if d := cmp.Diff(want, due); d != "" {
			t.Errorf("%s: %s", step.name, d)
		}
		if due, _, _ := h.ListDue(step.want.Add(-1), nil, 10); !step.want.IsZero() && len(due) != 0 {
			t.Errorf("%s: listed before its time", step.name)
		}
		if err := h.Verify(context.Background(), nil); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
	}
	h.commit(func(txn *Txn) { txn.DeleteKey(k) })
	if due, _, err := h.ListDue(day(1000), nil, 10); len(due) != 0 || err != nil {
		t.Errorf("after deletion: %v, %v", due, err)
	}
}

func TestDuePages(t *testing.T) {
	h := newHarness(t)
	for i := range 25 {
		k := testKey(byte(i + 1))
		k.State, k.DeletionDate = "PendingDeletion", now.Add(time.Duration(i/3)*time.Hour)
		h.commit(func(txn *Txn) { txn.PutKey(k, 0) })
	}
	var all []DueKey
	var after *DueKey
	for {
		page, more, err := h.ListDue(now.Add(100*time.Hour), after, 4)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page...)
		if !more {
			break
		}
		after = &all[len(all)-1]
	}
	for i := range all {
		if i > 0 && (all[i].At.Before(all[i-1].At) || all[i] == all[i-1]) {
			t.Errorf("%d: %v after %v", i, all[i], all[i-1])
		}
	}
	if len(all) != 25 {
		t.Errorf("%d of 25", len(all))
	}
}

func TestStoreKeys(t *testing.T) {
	h := newHarness(t)
	a, b, c := testKey(1), testKey(2), testKey(3)
	a.Origin, b.Origin, c.Origin = "EXTERNAL_KEY_STORE", "EXTERNAL_KEY_STORE", "EXTERNAL_KEY_STORE"
	a.CustomKeyStore, a.ExternalKeyID = "cks-1", "external"
	b.CustomKeyStore, b.ExternalKeyID = "cks-1", "external"
	c.CustomKeyStore, c.ExternalKeyID = "cks-2", "external"
	a.Revision = h.commit(func(txn *Txn) { txn.PutKey(a, 0) })
	h.commit(func(txn *Txn) { txn.PutKey(c, 0) })
	h.fails(ErrConflict, func(txn *Txn) { txn.PutKey(b, 0) })
	if ref, err := h.ExternalKey("cks-1", "external"); ref != a.Ref() || err != nil {
		t.Errorf("external key: %v, %v", ref, err)
	}
	if keys, more, err := h.ListStoreKeys("cks-1", nil, 10); len(keys) != 1 || keys[0] != a.Ref() || more || err != nil {
		t.Errorf("keys: %v, %v, %v", keys, more, err)
	}
	if keys, _, err := h.ListStoreKeys("cks-1", &Ref{a.Region, a.ID}, 10); len(keys) != 0 || err != nil {
		t.Errorf("second page: %v, %v", keys, err)
	}
	moved := *a
	moved.CustomKeyStore = "cks-2"
	h.fails(ErrInvalid, func(txn *Txn) { txn.PutKey(&moved, a.Revision) })
	if err := h.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
	h.commit(func(txn *Txn) { txn.DeleteKey(a) })
	h.commit(func(txn *Txn) { txn.PutKey(b, 0) }) // its external key is free again
	if err := h.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
}
