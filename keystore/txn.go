package keystore

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"keymill/hsm/arena"
)

// AnyRevision, as the revision expected of a record, expects nothing.
const AnyRevision = ^uint64(0)

// A Txn collects changes for one commit. It belongs to one goroutine, is not
// valid after Commit and need not be committed. Mistakes in arguments show in
// Commit.
//
// Where a method takes an expected revision, 0 says that the record must not
// exist and AnyRevision that it does not matter. A record may be written once
// per transaction. Arguments are encoded at once: the caller may change them
// after.
//
// The store keeps its own rules, whatever the callers do: list indexes and
// counters follow the records; policy, tags, material and aliases exist only
// for keys that exist; names and owners of keys never change.
type Txn struct {
	s      *Store
	ops    []func(*writer) error
	plain  [][]byte // wiped after Commit
	audit  []byte
	usages []addition   // see usage.go
	kept   []*sealedPut // materials among the ops; see rewrap.go
	move   *move        // of a commit that moves the store to another domain key
	err    error
	used   bool
}

// NewTxn returns an empty transaction.
func (s *Store) NewTxn() *Txn { return &Txn{s: s} }

func (t *Txn) wipe() {
	for _, b := range t.plain {
		arena.Wipe(b)
	}
	t.plain, t.ops = nil, nil
}

func (t *Txn) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

// name checks a storage key and reports whether it can be used.
func (t *Txn) name(n Name) ([]byte, bool) {
	if !n.valid() {
		t.fail(fmt.Errorf("%w: %s cannot be a name", ErrInvalid, n))
		return nil, false
	}
	return n.key(), true
}

// value keeps an encoded value for wiping.
func (t *Txn) value(b []byte, err error) ([]byte, bool) {
	if err != nil {
		t.fail(err)
		return nil, false
	}
	t.plain = append(t.plain, b)
	return b, true
}

// PutKey writes a key's metadata. With expect 0 the key is new: it is listed
// and, if a customer manages it, counted. Account, MultiRegion and Manager of
// an existing key cannot change.
func (t *Txn) PutKey(k *Key, expect uint64) {
	key, ok := t.name(keyName(k.Ref()))
	listing, ok2 := t.name(listingName(k))
	plain, ok3 := t.value(encodeKey(k))
	if !ok || !ok2 || !ok3 {
		return
	}
	n, account, multi, manager, due := keyName(k.Ref()), k.Account, k.MultiRegion, k.Manager, k.Due()
	store, external := k.CustomKeyStore, k.ExternalKeyID
	t.ops = append(t.ops, func(w *writer) error {
		before, err := w.expect(key, expect)
		if err != nil {
			return err
		}
		if before != nil {
			old, err := decodeKey(&n, before)
			if err != nil {
				return tampered(key, err.Error())
			}
			if old.Account != account || old.MultiRegion != multi || old.Manager != manager || old.CustomKeyStore != store || old.ExternalKeyID != external {
				return fmt.Errorf("%w: account, kind of id, manager and key store of %s cannot change", ErrInvalid, describe(key))
			}
			if err := w.moveDue(old, due); err != nil {
				return err
			}
			return w.put(key, plain, false)
		}
		w.fresh[Ref{n.Region, n.ID}] = struct{}{}
		if err := w.moveDue(&Key{Region: n.Region, ID: n.ID}, due); err != nil {
			return err
		}
		if err := w.enterStore(Ref{n.Region, n.ID}, store, external); err != nil {
			return err
		}
		value, err := encode(&listingRecord{multi})
		if err != nil {
			return err
		}
		if err := w.put(listing, value, true); err != nil {
			return err
		}
		if err := w.count(account, n.Region, manager, +1); err != nil {
			return err
		}
		return w.put(key, plain, false)
	})
}

// DeleteKey removes a key as read, and with it everything that belongs to it:
// all material, policy, tags, grants and aliases. With more than a few dozen
// aliases or grants that is ErrTooLarge; delete those first.
func (t *Txn) DeleteKey(k *Key) {
	key, ok := t.name(keyName(k.Ref()))
	if !ok {
		return
	}
	ref, expect := k.Ref(), k.Revision
	t.ops = append(t.ops, func(w *writer) error {
		n := keyName(ref)
		before, err := w.existing(key, expect)
		if err != nil {
			return err
		}
		old, err := decodeKey(&n, before)
		if err != nil {
			return tampered(key, err.Error())
		}
		if err := w.delete(key, false); err != nil {
			return err
		}
		if err := w.delete(listingName(old).key(), true); err != nil {
			return err
		}
		if err := w.moveDue(old, time.Time{}); err != nil {
			return err
		}
		if err := w.leaveStore(old); err != nil {
			return err
		}
		if err := w.count(old.Account, old.Region, old.Manager, -1); err != nil {
			return err
		}
		return w.deleteBelongings(ref)
	})
}

// deleteBelongings removes what hangs on a key.
func (w *writer) deleteBelongings(ref Ref) error {
	for _, n := range []Name{policyName(ref), tagsName(ref)} {
		if _, ok, err := w.current(n.key()); err != nil {
			return err
		} else if ok {
			if err := w.delete(n.key(), true); err != nil {
				return err
			}
		}
	}
	if err := w.deleteUsage(ref); err != nil {
		return err
	}
	if _, err := w.deleteGrants(ref, nil, MaxChanges); err != nil {
		return err
	}
	materials := materialName(ref, 0)
	err := w.s.scan(materials.prefix(2), nil, func(r *raw) (bool, error) {
		return true, w.delete(slices.Clone(r.key), true)
	})
	if err != nil {
		return err
	}
	targets := Name{Kind: KindTarget, Region: ref.Region, ID: ref.ID}
	return w.s.scan(targets.prefix(2), nil, func(r *raw) (bool, error) {
		plain, err := r.open()
		if err != nil {
			return false, err
		}
		a, err := decodeAlias(&r.name, plain)
		if err != nil {
			return false, tampered(r.key, err.Error())
		}
		if len(w.changes) > MaxChanges {
			return false, nil // finish will refuse
		}
		if err := w.delete(slices.Clone(r.key), true); err != nil {
			return false, err
		}
		return true, w.delete(aliasName(a.Account, a.Region, a.Name).key(), true)
	})
}

// count changes the counter of customer keys.
func (w *writer) count(account, region, manager string, by int) error {
	if manager != ManagerCustomer {
		return nil
	}
	key := countName(account, region).key()
	plain, ok, err := w.current(key)
	if err != nil {
		return err
	}
	var n uint64
	if ok {
		if n, err = decodeCount(plain); err != nil {
			return tampered(key, err.Error())
		}
	}
	if by < 0 && n == 0 {
		return tampered(key, "counts fewer keys than there are")
	}
	n += uint64(by)
	if n == 0 {
		return w.delete(key, true)
	}
	value, err := encode(&countRecord{n})
	if err != nil {
		return err
	}
	return w.put(key, value, true)
}

// belongs writes a record of a key, which must exist after the commit.
func (t *Txn) belongs(n Name, plain []byte, expect uint64) {
	t.belongsLater(n, func() []byte { return plain }, expect)
}

// belongsLater is belongs with a value that is looked up when the commit is applied.
func (t *Txn) belongsLater(n Name, plain func() []byte, expect uint64) {
	key, ok := t.name(n)
	if !ok {
		return
	}
	t.ops = append(t.ops, func(w *writer) error {
		// Nothing belongs to a key that did not exist: no need to look, while others
		// wait for the lock.
		if _, fresh := w.fresh[Ref{n.Region, n.ID}]; !fresh || expect != 0 && expect != AnyRevision {
			if _, err := w.expect(key, expect); err != nil {
				return err
			}
		}
		w.keys[Ref{n.Region, n.ID}] = struct{}{}
		return w.put(key, plain(), false)
	})
}

// remove deletes a record. With an expectation it must exist.
func (t *Txn) remove(n Name, expect uint64) {
	key, ok := t.name(n)
	if !ok {
		return
	}
	t.ops = append(t.ops, func(w *writer) error {
		before, err := w.expect(key, expect)
		if err != nil || before == nil {
			return err
		}
		return w.delete(key, false)
	})
}

// PutMaterial writes the sealed secret of one key version. Its key-encryption key
// may be under a domain key that the store has begun to move away from: Commit has
// it wrapped anew then.
func (t *Txn) PutMaterial(m *Material, expect uint64) {
	if plain, ok := t.value(encodeMaterial(m)); ok {
		put := &sealedPut{name: materialName(m.Ref, m.Version), domain: m.DomainKey, plain: plain}
		t.kept = append(t.kept, put)
		t.belongsLater(put.name, func() []byte { return put.plain }, expect)
	}
}

// DeleteMaterial removes the sealed secret of one key version.
func (t *Txn) DeleteMaterial(ref Ref, version uint32, expect uint64) {
	t.remove(materialName(ref, version), expect)
}

// PutPolicy writes the key policy.
func (t *Txn) PutPolicy(ref Ref, policy string, expect uint64) {
	if plain, ok := t.value(encode(&policyRecord{policy})); ok {
		t.belongs(policyName(ref), plain, expect)
	}
}

// PutTags writes all tags of a key, in any order. No tags is revision 0.
func (t *Txn) PutTags(ref Ref, tags []Tag, expect uint64) {
	if len(tags) == 0 {
		t.remove(tagsName(ref), expect)
		return
	}
	sorted := slices.Clone(tags)
	slices.SortFunc(sorted, func(a, b Tag) int { return strings.Compare(a.Key, b.Key) })
	if plain, ok := t.value(encodeTags(sorted)); ok {
		t.belongs(tagsName(ref), plain, expect)
	}
}

// PutAlias writes an alias, also one that pointed elsewhere before. Its target
// must exist, unless it is zero.
func (t *Txn) PutAlias(a *Alias, expect uint64) {
	n := aliasName(a.Account, a.Region, a.Name)
	key, ok := t.name(n)
	plain, ok2 := t.value(encodeAlias(a))
	if !ok || !ok2 {
		return
	}
	next := *a
	t.ops = append(t.ops, func(w *writer) error {
		before, err := w.expect(key, expect)
		if err != nil {
			return err
		}
		if err := w.put(key, plain, false); err != nil {
			return err
		}
		if before != nil {
			old, err := decodeAlias(&n, before)
			if err != nil {
				return tampered(key, err.Error())
			}
			if old.Target != (KeyID{}) && old.Target != next.Target {
				if err := w.delete(targetName(old).key(), true); err != nil {
					return err
				}
			}
		}
		if next.Target == (KeyID{}) {
			return nil
		}
		w.keys[Ref{next.Region, next.Target}] = struct{}{}
		return w.put(targetName(&next).key(), slices.Clone(plain), true)
	})
}

// DeleteAlias removes an alias as read.
func (t *Txn) DeleteAlias(a *Alias) {
	n := aliasName(a.Account, a.Region, a.Name)
	key, ok := t.name(n)
	if !ok {
		return
	}
	expect := a.Revision
	t.ops = append(t.ops, func(w *writer) error {
		before, err := w.existing(key, expect)
		if err != nil {
			return err
		}
		old, err := decodeAlias(&n, before)
		if err != nil {
			return tampered(key, err.Error())
		}
		if old.Target != (KeyID{}) {
			if err := w.delete(targetName(old).key(), true); err != nil {
				return err
			}
		}
		return w.delete(key, false)
	})
}

// ExpectKey lets the transaction commit only while the key is at the revision.
func (t *Txn) ExpectKey(ref Ref, rev uint64) { t.expectOnly(keyName(ref), rev) }

func (t *Txn) expectOnly(n Name, rev uint64) {
	key, ok := t.name(n)
	if !ok {
		return
	}
	t.ops = append(t.ops, func(w *writer) error {
		_, err := w.expect(key, rev)
		return err
	})
}

// plainPut writes a record that has no indexes and belongs to nothing.
func (t *Txn) plainPut(n Name, plain []byte, expect uint64) {
	key, ok := t.name(n)
	if !ok {
		return
	}
	t.ops = append(t.ops, func(w *writer) error {
		if _, err := w.expect(key, expect); err != nil {
			return err
		}
		return w.put(key, plain, false)
	})
}

// PutPrincipal writes a principal.
func (t *Txn) PutPrincipal(p *Principal, expect uint64) {
	if plain, ok := t.value(encodePrincipal(p)); ok {
		t.plainPut(Name{Kind: KindPrincipal, Name: p.ID}, plain, expect)
	}
}

// DeletePrincipal removes a principal.
func (t *Txn) DeletePrincipal(id string, expect uint64) {
	t.remove(Name{Kind: KindPrincipal, Name: id}, expect)
}

// PutAccessKey writes an access key with its secret.
func (t *Txn) PutAccessKey(k *AccessKey, expect uint64) {
	if plain, ok := t.value(encodeAccessKey(k)); ok {
		t.plainPut(Name{Kind: KindAccessKey, Name: k.ID}, plain, expect)
	}
}

// DeleteAccessKey removes an access key.
func (t *Txn) DeleteAccessKey(id string, expect uint64) {
	t.remove(Name{Kind: KindAccessKey, Name: id}, expect)
}

// Put writes a record of the general-purpose space: for rooms whose records
// the store need not understand. Names sort by their bytes; use a prefix per
// purpose.
func (t *Txn) Put(name string, value []byte, expect uint64) {
	if plain, ok := t.value(encode(&bytesRecord{value})); ok {
		t.plainPut(Name{Kind: KindRecord, Name: name}, plain, expect)
	}
}

// Delete removes a record of the general-purpose space.
func (t *Txn) Delete(name string, expect uint64) {
	t.remove(Name{Kind: KindRecord, Name: name}, expect)
}

// Expect lets the transaction commit only while a record of the
// general-purpose space is at the revision.
func (t *Txn) Expect(name string, rev uint64) {
	t.expectOnly(Name{Kind: KindRecord, Name: name}, rev)
}

// SetAudit adds the audit record of the change: both are on disk, or neither.
// It is kept until the commit; nil is none.
func (t *Txn) SetAudit(rec []byte) { t.audit = rec }
