package keystore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"keymill/hsm/hsmtest"
)

// furnish fills a store with one record of every kind.
func furnish(h *harness) (k *Key, id Identity) {
	h.t.Helper()
	k = testKey(1)
	id = Identity{account, region, k.Spec, k.ID, 1}
	m, err := h.SealMaterial(context.Background(), id, []byte("the secret"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.commit(func(txn *Txn) {
		txn.PutKey(k, 0)
		txn.PutMaterial(m, 0)
		txn.PutPolicy(k.Ref(), "{}", 0)
		txn.PutTags(k.Ref(), []Tag{{"a", "1"}}, 0)
		txn.AddUsage(k.Ref(), &Usage{Counts: []OperationCount{{"Sign", 1}}, Operation: "Sign", Time: now})
		txn.PutAlias(&Alias{Account: account, Region: region, Name: "alias/one", Target: k.ID, Created: now, Updated: now}, 0)
		txn.PutPrincipal(&Principal{ID: "AIDAROOT", Account: account, ARN: "arn:aws:iam::000000000000:root", Root: true, Created: now}, 0)
		txn.PutAccessKey(&AccessKey{ID: "AKIAROOT", Account: account, PrincipalID: "AIDAROOT", Secret: []byte("secret"), Active: true, Created: now}, 0)
		txn.PutGrant(named(testGrant(k.Ref(), 1)), 0)
		txn.Put("room/name", []byte("value"), 0)
		txn.SetAudit([]byte("furnished"))
	})
	// A second of some kinds, to be swapped with.
	k2 := withoutMaterial(2)
	h.commit(func(txn *Txn) {
		txn.PutKey(k2, 0)
		txn.PutPolicy(k2.Ref(), "[]", 0)
	})
	return k, id
}

// reads asks for one record in every way there is.
func reads(s *Store, k *Key, id Identity) map[Kind]func() error {
	ref := k.Ref()
	return map[Kind]func() error{
		KindKey:        func() error { _, err := s.Key(ref); return err },
		KindPolicy:     func() error { _, _, err := s.Policy(ref); return err },
		KindTags:       func() error { _, _, err := s.Tags(ref); return err },
		KindUsage:      func() error { _, err := s.Usage(ref); return err },
		KindMaterial:   func() error { _, err := s.OpenMaterial(context.Background(), id); return err },
		KindAlias:      func() error { _, err := s.Alias(account, region, "alias/one"); return err },
		KindTarget:     func() error { _, _, err := s.ListKeyAliases(ref, "", 10); return err },
		KindListing:    func() error { _, _, err := s.ListKeys(account, region, KeyID{}, false, 10); return err },
		KindCount:      func() error { _, err := s.CountKeys(account, region); return err },
		KindPrincipal:  func() error { _, err := s.Principal("AIDAROOT"); return err },
		KindAccessKey:  func() error { _, err := s.AccessKey("AKIAROOT"); return err },
		KindAudit:      func() error { _, _, err := s.ListAudit(0, 10); return err },
		KindRecord:     func() error { _, _, err := s.Get("room/name"); return err },
		KindGrant:      func() error { _, err := s.Grant(ref, grantID(1)); return err },
		KindGrantee:    func() error { _, _, err := s.ListGranteeGrants(ref, alice, "", 10); return err },
		KindRetiring:   func() error { _, _, _, err := s.ListRetirable(region, bob, nil, 10); return err },
		KindGrantName:  func() error { _, err := s.SameGrant(named(testGrant(ref, 1))); return err },
		KindGrantCount: func() error { _, err := s.CountGrants(ref); return err },
	}
}

// edit opens the storage files without the store and changes records.
func edit(t *testing.T, fs vfs.FS, change func(db *pebble.DB)) {
	t.Helper()
	db, err := pebble.Open("store", &pebble.Options{FS: fs, FormatMajorVersion: pebble.FormatNewest, Logger: silent{}})
	if err != nil {
		t.Fatal(err)
	}
	change(db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Errorf(string, ...any) {}
func (silent) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

func rawGet(t *testing.T, db *pebble.DB, key []byte) []byte {
	t.Helper()
	v, c, err := db.Get(key)
	if err != nil {
		t.Fatalf("%s: %v", describe(key), err)
	}
	defer c.Close()
	return bytes.Clone(v)
}

func rawKeys(t *testing.T, db *pebble.DB) (keys [][]byte) {
	t.Helper()
	it, err := db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		keys = append(keys, bytes.Clone(it.Key()))
	}
	return keys
}

// TestTamperedRecords changes every kind of record in every way in turn. The
// next read of that record, and Verify, must say which.
func TestTamperedRecords(t *testing.T) {
	flip := func(at func(v []byte) int) func([]byte, []byte) []byte {
		return func(v, _ []byte) []byte { v[at(v)] ^= 0x40; return v }
	}
	edits := []struct {
		name string
		edit func(v, other []byte) []byte
	}{
		{"format byte", flip(func([]byte) int { return 0 })},
		{"revision", flip(func([]byte) int { return 8 })},
		{"nonce", flip(func([]byte) int { return 20 })},
		{"body", flip(func(v []byte) int { return sealHead + 24 })},
		{"tag", flip(func(v []byte) int { return len(v) - 1 })},
		{"cut by one", func(v, _ []byte) []byte { return v[:len(v)-1] }},
		{"cut to the head", func(v, _ []byte) []byte { return v[:sealHead] }},
		{"empty", func(_, _ []byte) []byte { return nil }},
		{"longer", func(v, _ []byte) []byte { return append(v, 0) }},
		{"another record's value", func(_, other []byte) []byte { return other }},
	}
	h := newHarness(t)
	k, id := furnish(h)
	if err := h.Verify(context.Background(), nil); err != nil {
		t.Fatalf("untouched: %v", err)
	}
	h.Close()
	h.Store = nil
	kinds := reads(nil, k, id)
	for _, e := range edits {
		t.Run(e.name, func(t *testing.T) {
			var keys [][]byte
			before := make(map[string][]byte)
			edit(t, h.fs, func(db *pebble.DB) {
				keys = rawKeys(t, db)
				for _, key := range keys {
					before[string(key)] = rawGet(t, db, key)
				}
			})
			other := before[string(policyName(testKey(2).Ref()).key())]
			seen := 0
			for _, key := range keys {
				n, _ := ParseName(key)
				if n.ID == testKey(2).ID || n.Number == 3 || kinds[n.Kind] == nil {
					continue
				}
				seen++
				edit(t, h.fs, func(db *pebble.DB) {
					db.Set(key, e.edit(bytes.Clone(before[string(key)]), other), pebble.Sync)
				})
				h.t = t
				h.open()
				check := func(what string, err error) {
					var te *TamperedError
					if !errors.Is(err, ErrTampered) || !errors.As(err, &te) || te.Record != n.String() {
						t.Errorf("%s of a changed %s: %v", what, n, err)
					}
				}
				check("read", reads(h.Store, k, id)[n.Kind]())
				err := h.Verify(context.Background(), nil)
				if !errors.Is(err, ErrTampered) || !strings.Contains(err.Error(), n.String()+":") {
					t.Errorf("verify of a changed %s: %v", n, err)
				}
				if n.Kind == KindKey {
					txn := h.NewTxn()
					txn.PutKey(k, AnyRevision)
					_, err := txn.Commit(context.Background())
					check("commit", err)
				}
				h.Close()
				h.Store = nil
				edit(t, h.fs, func(db *pebble.DB) { db.Set(key, before[string(key)], pebble.Sync) })
			}
			if seen != len(kinds) {
				t.Errorf("%d kinds were changed, there are %d", seen, len(kinds))
			}
		})
	}
}

// TestVerifyFindsWhatDisagrees removes, moves or puts back whole records, each
// of which is authentic.
func TestVerifyFindsWhatDisagrees(t *testing.T) {
	remove := func(n Name) func(*testing.T, *pebble.DB, map[string][]byte) {
		return func(t *testing.T, db *pebble.DB, _ map[string][]byte) {
			rawGet(t, db, n.key())
			db.Delete(n.key(), pebble.Sync)
		}
	}
	restore := func(names ...Name) func(*testing.T, *pebble.DB, map[string][]byte) {
		return func(t *testing.T, db *pebble.DB, old map[string][]byte) {
			for _, n := range names {
				db.Set(n.key(), old[string(n.key())], pebble.Sync)
			}
		}
	}
	k := testKey(1)
	alias := &Alias{Account: account, Region: region, Name: "alias/one", Target: k.ID}
	for _, row := range []struct {
		name string
		edit func(*testing.T, *pebble.DB, map[string][]byte)
		want string // in the text of the finding
	}{
		{"key removed", remove(keyName(k.Ref())), "which is missing"},
		{"list entry removed", remove(listingName(k)), listingName(k).String() + ", which is missing"},
		{"material removed", remove(materialName(k.Ref(), 1)), materialName(k.Ref(), 1).String() + ", which is missing"},
		{"count removed", remove(countName(account, region)), "disagrees with the number of keys"},
		{"alias removed", remove(aliasName(account, region, "alias/one")), "which is missing"},
		{"alias list entry removed", remove(targetName(alias)), "which is missing"},
		{"principal removed", remove(Name{Kind: KindPrincipal, Name: "AIDAROOT"}), "which is missing"},
		{"older count put back", restore(countName(account, region)), "disagrees with the number of keys"},
		{"older alias put back", restore(aliasName(account, region, "alias/one")), "disagrees with"},
		{"older revision put back", restore(Name{Kind: KindRevision}), "newer than the store"},
		{"foreign record", func(t *testing.T, db *pebble.DB, _ map[string][]byte) {
			db.Set([]byte("zzz"), []byte("zzz"), pebble.Sync)
		}, "not a name the store writes"},
		{"revision removed", remove(Name{Kind: KindRevision}), "record revision: missing"},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := newHarness(t)
			furnish(h)
			old := make(map[string][]byte)
			for _, key := range rawKeys(t, h.db) {
				old[string(key)] = rawGet(t, h.db, key)
			}
			h.commit(func(txn *Txn) { txn.PutKey(withoutMaterial(3), 0) })
			moved := *alias
			moved.Target = testKey(3).ID
			h.commit(func(txn *Txn) { txn.PutAlias(&moved, AnyRevision) })
			moved.Target = k.ID
			h.commit(func(txn *Txn) { moved.Updated = now; txn.PutAlias(&moved, AnyRevision) })
			if err := h.Verify(context.Background(), nil); err != nil {
				t.Fatalf("untouched: %v", err)
			}
			h.Close()
			h.Store = nil
			edit(t, h.fs, func(db *pebble.DB) { row.edit(t, db, old) })
			s, err := Open(context.Background(), h.options())
			if err == nil {
				err = s.Verify(context.Background(), nil)
				s.Close()
			}
			if !errors.Is(err, ErrTampered) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
}

// TestHeader changes the header, takes it away, or brings the wrong root.
func TestHeader(t *testing.T) {
	headerKey := Name{Kind: KindHeader}.key()
	set := func(change func(v []byte) []byte) func(*testing.T, *harness) {
		return func(t *testing.T, h *harness) {
			edit(t, h.fs, func(db *pebble.DB) { db.Set(headerKey, change(rawGet(t, db, headerKey)), pebble.Sync) })
		}
	}
	flip := func(at int) func(*testing.T, *harness) {
		return set(func(v []byte) []byte {
			if at < 0 {
				at += len(v)
			}
			v[at] ^= 1
			return v
		})
	}
	for _, row := range []struct {
		name  string
		edit  func(*testing.T, *harness)
		want  error
		text  string
		calls int // of the root's Decrypt
	}{
		{"magic", flip(3), ErrTampered, "not a header", 0},
		{"newer format", flip(18), ErrUnknownFormat, "this program reads format 1", 0},
		{"store id", flip(25), ErrTampered, "store header: does not authenticate", 1},
		{"domain key", flip(40), ErrWrongRoot, "start with the root the store was made with", 0},
		{"time", flip(55), ErrTampered, "does not authenticate", 1},
		{"length", flip(61), ErrTampered, "wrong length", 0},
		{"wrapped key", flip(80), ErrWrongRoot, "or the store's header was changed", 1},
		{"mac", flip(-1), ErrTampered, "does not authenticate", 1},
		{"cut", set(func(v []byte) []byte { return v[:50] }), ErrTampered, "cut short", 0},
		{"longer", set(func(v []byte) []byte { return append(v, 1) }), ErrTampered, "wrong length", 0},
		{"missing", func(t *testing.T, h *harness) {
			edit(t, h.fs, func(db *pebble.DB) { db.Delete(headerKey, pebble.Sync) })
		}, ErrTampered, "missing, though there are other records", 0},
		{"another root", func(t *testing.T, h *harness) { h.root = hsmtest.NewMemory() }, ErrWrongRoot, "start with the root", 0},
		{"root busy", func(t *testing.T, h *harness) {
			h.root.Inject(hsmtest.Decrypt, hsmtest.Fault{Err: errDisk})
		}, errDisk, "could not unwrap the store key", 1},
		{"root gone", func(t *testing.T, h *harness) {
			h.root.Inject(hsmtest.CheckDomainKey, hsmtest.Fault{Err: errDisk})
		}, errDisk, "could not look for domain key", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := newHarness(t)
			furnish(h)
			h.Close()
			h.Store = nil
			row.edit(t, h)
			calls := h.root.Calls(hsmtest.Decrypt)
			s, err := Open(context.Background(), h.options())
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, row.want) || !strings.Contains(err.Error(), row.text) {
				t.Errorf("got %v, want %q", err, row.text)
			}
			if errors.Is(err, ErrWrongRoot) && errors.Is(err, ErrTampered) {
				t.Errorf("%v is two things at once", err)
			}
			if n := h.root.Calls(hsmtest.Decrypt) - calls; n != row.calls {
				t.Errorf("the root was asked %d times, want %d", n, row.calls)
			}
		})
	}
}

// TestDamagedFile flips one byte of a table file: a record is then reported as
// damaged, with its name.
func TestDamagedFile(t *testing.T) {
	fs := vfs.NewMem()
	h := &harness{t: t, root: hsmtest.NewMemory(), fs: fs}
	h.open()
	for n := range byte(40) {
		h.commit(func(txn *Txn) {
			k := withoutMaterial(n)
			txn.PutKey(k, 0)
			txn.PutPolicy(k.Ref(), strings.Repeat("p", 4000), 0)
		})
	}
	if err := h.db.Flush(); err != nil {
		t.Fatal(err)
	}
	h.Close()
	h.Store = nil
	names, _ := fs.List("store")
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		f, err := fs.OpenReadWrite("store/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		info, _ := f.Stat()
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, info.Size()/2); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		b[0] ^= 1
		f.WriteAt(b, info.Size()/2)
		f.Close()
	}
	h.open()
	var damaged error
	for n := range byte(40) {
		if _, _, err := h.Policy(testKey(n).Ref()); err != nil {
			if !errors.Is(err, ErrTampered) || !strings.Contains(err.Error(), testKey(n).ID.String()) {
				t.Errorf("key %d: %v", n, err)
			}
			damaged = err
		}
	}
	if damaged == nil {
		t.Error("nobody noticed")
	}
	if err := h.Verify(context.Background(), nil); !errors.Is(err, ErrTampered) {
		t.Errorf("verify: %v", err)
	}
}
