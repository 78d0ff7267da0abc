package keystore

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func isError(err, want error) bool { return errors.Is(err, want) }

func TestKeyLife(t *testing.T) {
	h := newHarness(t)
	k := testKey(1)
	k.PublicKey = []byte{1, 2, 3}
	ref := k.Ref()
	if _, err := h.Key(ref); !errors.Is(err, ErrNotFound) {
		t.Fatalf("before creation: %v", err)
	}
	id := Identity{account, region, k.Spec, k.ID, 1}
	m, err := h.SealMaterial(context.Background(), id, []byte("the secret"))
	if err != nil {
		t.Fatal(err)
	}
	rev := h.commit(func(txn *Txn) {
		txn.PutMaterial(m, 0) // before its key, in one transaction
		txn.PutKey(k, 0)
		txn.PutPolicy(ref, `{"Version":"2012-10-17"}`, 0)
		txn.PutTags(ref, []Tag{{"b", "2"}, {"a", "1"}}, 0)
		txn.PutAlias(&Alias{Account: account, Region: region, Name: "alias/one", Target: k.ID, Created: now, Updated: now}, 0)
		txn.SetAudit([]byte("created"))
	})
	h.reopen()

	k.Revision = rev
	got, err := h.Key(ref)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(k, got); d != "" {
		t.Error(d)
	}
	if secret, err := h.OpenMaterial(context.Background(), id); err != nil || !bytes.Equal(secret, []byte("the secret")) {
		t.Errorf("material: %q, %v", secret, err)
	}
	if p, r, err := h.Policy(ref); p != `{"Version":"2012-10-17"}` || r != rev || err != nil {
		t.Errorf("policy: %q, %d, %v", p, r, err)
	}
	if tags, r, err := h.Tags(ref); r != rev || err != nil || !cmp.Equal(tags, []Tag{{"a", "1"}, {"b", "2"}}) {
		t.Errorf("tags: %v, %d, %v", tags, r, err)
	}
	if n, err := h.CountKeys(account, region); n != 1 || err != nil {
		t.Errorf("count: %d, %v", n, err)
	}
	if rows, more, err := h.ListKeys(account, region, KeyID{}, false, 10); len(rows) != 1 || rows[0].ID != k.ID || more || err != nil {
		t.Errorf("list: %v, %v, %v", rows, more, err)
	}
	if a, _, err := h.ListAudit(0, 10); len(a) != 1 || string(a[0].Data) != "created" || a[0].Revision != rev || err != nil {
		t.Errorf("audit: %v, %v", a, err)
	}

	h.fails(ErrConflict, func(txn *Txn) { txn.PutKey(k, 0) })
	h.fails(ErrConflict, func(txn *Txn) { txn.PutKey(k, rev+1) })
	h.fails(ErrConflict, func(txn *Txn) { txn.ExpectKey(ref, rev-1); txn.PutPolicy(ref, "{}", rev) })
	h.fails(ErrInvalid, func(txn *Txn) { other := *k; other.Account = "111111111111"; txn.PutKey(&other, rev) })
	h.fails(ErrInvalid, func(txn *Txn) { other := *k; other.Description = "\xff"; txn.PutKey(&other, rev) })
	h.fails(ErrInvalid, func(txn *Txn) { txn.PutPolicy(ref, "{}", rev); txn.PutPolicy(ref, "{}", rev) })

	changed := *got
	changed.State = "Disabled"
	rev2 := h.commit(func(txn *Txn) { txn.PutKey(&changed, rev); txn.ExpectKey(ref, rev) })
	if rev2 != rev+1 {
		t.Errorf("revision %d after %d", rev2, rev)
	}
	changed.Revision = rev2
	h.commit(func(txn *Txn) { txn.DeleteKey(&changed) })
	if n, _ := h.CountKeys(account, region); n != 0 {
		t.Errorf("count after deletion: %d", n)
	}
	for what, err := range map[string]error{
		"key": second(h.Key(ref)), "alias": second(h.Alias(account, region, "alias/one")),
		"material": second(h.OpenMaterial(context.Background(), id)), "policy": third(h.Policy(ref)),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s after deletion: %v", what, err)
		}
	}
	h.fails(ErrConflict, func(txn *Txn) { txn.PutPolicy(ref, "{}", AnyRevision) })
	h.fails(ErrConflict, func(txn *Txn) { txn.PutMaterial(m, 0) })
}

func second[A, B any](_ A, b B) B        { return b }
func third[A, B, C any](_ A, _ B, c C) C { return c }
