package keystore

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestUsageIsAddedUp(t *testing.T) {
	h := newHarness(t)
	k := withoutMaterial(1)
	ref := k.Ref()
	add := func(u *Usage) { t.Helper(); h.commit(func(txn *Txn) { txn.AddUsage(ref, u) }) }
	want := func(want *Usage) {
		t.Helper()
		got, err := h.Usage(ref)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("usage (-want +got):\n%s", d)
		}
	}

	add(&Usage{Counts: []OperationCount{{"Encrypt", 1}}, Operation: "Encrypt", Time: now}) // of no key: forgotten
	want(&Usage{})
	h.commit(func(txn *Txn) { txn.PutKey(k, 0) })
	want(&Usage{})

	first := &Usage{Counts: []OperationCount{{"Encrypt", 3}, {"ReEncrypt", 1}}, Operation: "Encrypt", Time: now, RequestID: [16]byte{1}}
	add(first)
	want(first)
	add(&Usage{Counts: []OperationCount{{"Decrypt", 1 << 40}, {"Encrypt", 2}, {"Sign", 1}}, Operation: "Decrypt", Time: now.Add(-time.Second), RequestID: [16]byte{2}})
	sum := &Usage{Counts: []OperationCount{{"Decrypt", 1 << 40}, {"Encrypt", 5}, {"ReEncrypt", 1}, {"Sign", 1}}, Operation: "Encrypt", Time: now, RequestID: [16]byte{1}}
	want(sum) // the earlier use is not the last one
	add(&Usage{Operation: "Sign", Time: now, RequestID: [16]byte{3}})
	sum.Operation, sum.RequestID = "Sign", [16]byte{3}
	h.reopen()
	want(sum)

	// Twice in one commit, and a hundred keys in one.
	h.commit(func(txn *Txn) {
		txn.AddUsage(ref, &Usage{Counts: []OperationCount{{"Sign", 1}}})
		txn.AddUsage(ref, &Usage{Counts: []OperationCount{{"Sign", 1}}})
	})
	sum.Counts[3].Count = 3
	want(sum)
	h.commit(func(txn *Txn) {
		for i := range 100 {
			k := withoutMaterial(byte(100 + i))
			txn.AddUsage(k.Ref(), &Usage{Counts: []OperationCount{{"Sign", 1}}})
		}
	})

	h.fails(ErrInvalid, func(txn *Txn) { txn.AddUsage(ref, &Usage{Counts: []OperationCount{{"", 1}}}) })
	h.fails(ErrInvalid, func(txn *Txn) { txn.AddUsage(ref, &Usage{Counts: []OperationCount{{"\xff", 1}}}) })
	h.fails(ErrInvalid, func(txn *Txn) { txn.AddUsage(ref, &Usage{Operation: "\xff", Time: now.Add(time.Hour)}) })
	if err := h.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}

	// It goes with the key, also when use is still being added.
	got, err := h.Key(ref)
	if err != nil {
		t.Fatal(err)
	}
	h.commit(func(txn *Txn) { txn.AddUsage(ref, first); txn.DeleteKey(got) })
	want(&Usage{})
	if err := h.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
}

func TestUsageRecordsThatContradictThemselves(t *testing.T) {
	good := usageRecord{Counts: []operationCountRecord{{"A", 1}, {"B", 1}}, Operation: "B", Time: 1, RequestID: make([]byte, 16)}
	read := func(r usageRecord) error {
		b, err := encode(&r)
		if err != nil {
			t.Fatal(err)
		}
		_, err = decodeUsage(b)
		return err
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(r *usageRecord){
		"order":      func(r *usageRecord) { r.Counts = []operationCountRecord{{"B", 1}, {"A", 1}} },
		"repetition": func(r *usageRecord) { r.Counts = []operationCountRecord{{"A", 1}, {"A", 1}} },
		"zero":       func(r *usageRecord) { r.Counts = []operationCountRecord{{"A", 0}} },
		"no name":    func(r *usageRecord) { r.Counts = []operationCountRecord{{"", 1}} },
		"no time":    func(r *usageRecord) { r.Time = 0 },
		"past":       func(r *usageRecord) { r.Time = -1 },
		"short id":   func(r *usageRecord) { r.RequestID = make([]byte, 15) },
		"id alone":   func(r *usageRecord) { r.Operation, r.Time = "", 0 },
		"crowd":      func(r *usageRecord) { r.Counts = crowd(maxUsageOperations + 1) },
	} {
		bad := good
		spoil(&bad)
		if read(bad) == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if err := read(usageRecord{Counts: crowd(maxUsageOperations)}); err != nil {
		t.Error(err)
	}
}

func crowd(n int) []operationCountRecord {
	all := make([]operationCountRecord, n)
	for i := range all {
		all[i] = operationCountRecord{string(rune('A' + i)), 1}
	}
	return all
}
