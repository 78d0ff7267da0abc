package keystore

import (
	"context"
	"slices"
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

// TestUsagePages: keys of one page and of others, in one commit and in several, in
// any order; a key that goes leaves the others on its page alone.
func TestUsagePages(t *testing.T) {
	h := newHarness(t)
	const keys = 40
	refs := make([]Ref, keys)
	want := make([]Usage, keys)
	h.commit(func(txn *Txn) {
		for i := range refs {
			k := withoutMaterial(byte(i))
			k.ID = KeyID{byte(i % 3), 0, byte(i)}
			refs[i] = k.Ref()
			txn.PutKey(k, 0)
		}
	})
	if a, b := UsagePage(refs[0]), UsagePage(refs[3]); a != b {
		t.Fatalf("pages %d and %d", a, b)
	}
	if a, b := UsagePage(refs[0]), UsagePage(refs[1]); a == b {
		t.Fatalf("one page %d", a)
	}
	check := func() {
		t.Helper()
		for i, ref := range refs {
			got, err := h.Usage(ref)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&want[i], got); d != "" {
				t.Errorf("key %d (-want +got):\n%s", i, d)
			}
		}
		if err := h.Verify(context.Background(), nil); err != nil {
			t.Error(err)
		}
	}
	for round := range 4 {
		h.commit(func(txn *Txn) {
			for j := range keys {
				i := (j*7 + round) % keys
				if i%(round+1) != 0 {
					continue
				}
				u := &Usage{Counts: []OperationCount{{[]string{"Encrypt", "Decrypt", "Sign", "Verify"}[(i+round)%4], uint64(1+i) << (20 * round)}}}
				if i%5 != 0 {
					u.Operation, u.Time, u.RequestID = u.Counts[0].Operation, now.Add(time.Duration(round)*time.Second), [16]byte{byte(i), byte(round)}
				}
				txn.AddUsage(refs[i], u)
				want[i].Add(u)
			}
		})
		check()
	}
	h.reopen()
	check()
	for _, i := range []int{6, 0, 39, 1} {
		k, err := h.Key(refs[i])
		if err != nil {
			t.Fatal(err)
		}
		h.commit(func(txn *Txn) { txn.DeleteKey(k) })
		want[i] = Usage{}
		check()
	}
}

func TestUsagePagesThatContradictThemselves(t *testing.T) {
	n := usageName(Ref{Region: "eu-west-1", ID: KeyID{1, 2}})
	id := func(last byte) []byte { return []byte{1, 2, 15: last} }
	read := func(names []string, keys ...[]byte) error {
		b, err := encode(&usageRecord{names, slices.Concat(keys...)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = decodeUsage(&n, b)
		return err
	}
	names := []string{"A", "B"}
	last := append([]byte{2, 0, 0, 0, 0, 0, 0, 0, 1}, make([]byte, 16)...) // B, at 1 ns
	if err := read(names, id(1), []byte{2, 0, 1, 1, 1}, last, id(2), []byte{0, 0}); err != nil {
		t.Fatal(err)
	}
	if err := read(nil); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"operations out of order": read([]string{"B", "A"}, id(1), []byte{0, 0}),
		"an operation twice":      read([]string{"A", "A"}, id(1), []byte{0, 0}),
		"no name":                 read([]string{""}, id(1), []byte{0, 0}),
		"a crowd":                 read(crowd(maxUsageOperations+1), id(1), []byte{0, 0}),
		"keys out of order":       read(names, id(2), []byte{0, 0}, id(1), []byte{0, 0}),
		"a key twice":             read(names, id(1), []byte{0, 0}, id(1), []byte{0, 0}),
		"another page's key":      read(names, make([]byte, 16), []byte{0, 0}),
		"no end":                  read(names, id(1), []byte{0}),
		"half a key":              read(names, id(1)[:15]),
		"counts out of order":     read(names, id(1), []byte{2, 1, 1, 0, 1, 0}),
		"a count twice":           read(names, id(1), []byte{2, 0, 1, 0, 1, 0}),
		"a count of nothing":      read(names, id(1), []byte{1, 0, 0, 0}),
		"more counts than names":  read(names, id(1), []byte{3, 0, 1, 1, 1, 1, 1, 0}),
		"a count of what":         read(names, id(1), []byte{1, 2, 1, 0}),
		"a long number":           read(names, id(1), []byte{1, 0x80, 0, 1, 0}),
		"last of what":            read(names, id(1), []byte{0, 3}, last[1:]),
		"last without an id":      read(names, id(1), []byte{0}, last[:24]),
		"last without a time":     read(names, id(1), []byte{0, 1}, make([]byte, 24)),
		"last before 1970":        read(names, id(1), []byte{0, 1, 0x80}, make([]byte, 23)),
	} {
		if err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if err := read(crowd(maxUsageOperations), id(1), []byte{0, 0}); err != nil {
		t.Error(err)
	}
}

func crowd(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = string(rune('A' + i))
	}
	return all
}
