package keystore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"keymill/hsm/hsmtest"
	"keymill/keystore/keystoretest"
)

// diskHarness is a store in a directory of the machine's.
func diskHarness(t testing.TB, tune func(*pebble.Options)) *Store {
	t.Helper()
	s, err := Open(context.Background(), Options{Dir: filepath.Join(t.TempDir(), "store"), Root: hsmtest.NewMemory(), tune: tune})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// bytesOnDisk returns the bytes of a record as they are written, which nothing
// but its own file content can contain by accident.
func bytesOnDisk(t testing.TB, s *Store, n Name) []byte {
	t.Helper()
	raw, err := s.Sealed(n)
	if err != nil {
		t.Fatalf("%s: %v", n, err)
	}
	return raw
}

// fill writes keys with material of some size.
func fill(t testing.TB, s *Store, from, to, size int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(from), 3))
	for i := from; i < to; i++ {
		k := *testKey(0)
		k.ID = bulkID(i)
		sealed := make([]byte, size)
		for j := range sealed {
			sealed[j] = byte(rng.Uint32())
		}
		txn := s.NewTxn()
		txn.PutKey(&k, 0)
		txn.PutMaterial(&Material{Ref: k.Ref(), Version: 1, Sealed: sealed, WrappedKEK: []byte("wrapped")}, 0)
		txn.PutPolicy(k.Ref(), "{}", 0)
		if _, err := txn.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func drop(t testing.TB, s *Store, ref Ref) {
	t.Helper()
	k, err := s.Key(ref)
	if err != nil {
		t.Fatal(err)
	}
	txn := s.NewTxn()
	txn.DeleteKey(k)
	if _, err := txn.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestErase looks at the disk: the bytes of a deleted key's records are there
// until Erase has returned, and not after, wherever the storage engine had
// put them.
func TestErase(t *testing.T) {
	const keys = 1200
	for _, tc := range []struct {
		name string
		tune func(*pebble.Options)
		// settle moves what was written to where the case wants it, before and after the deletion.
		before, after func(*Store) error
	}{
		{"all in the log", nil, nil, nil},
		{"tables of the first level", nil, (*Store).flushNow, nil},
		{"marker and bytes in two tables", nil, (*Store).flushNow, (*Store).flushNow},
		{"the last level", nil, (*Store).compactAll, nil},
		{"the last level, marker flushed", nil, (*Store).compactAll, (*Store).flushNow},
		{"many small tables", smallTables, nil, nil},
		{"many small tables of the last level", smallTables, (*Store).compactAll, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := diskHarness(t, tc.tune)
			fill(t, s, 0, keys, 600)
			if tc.before != nil {
				if err := tc.before(s); err != nil {
					t.Fatal(err)
				}
			}
			var refs []Ref
			var needles [][]byte
			for i := 7; i < keys; i += 97 {
				ref := Ref{region, bulkID(i)}
				refs = append(refs, ref)
				needles = append(needles, bytesOnDisk(t, s, materialName(ref, 1)), bytesOnDisk(t, s, keyName(ref)), bytesOnDisk(t, s, policyName(ref)))
			}
			all := len(needles)
			needles = slices.DeleteFunc(needles, func(n []byte) bool { return len(keystoretest.FilesWith(t, s.dir, n)) == 0 })
			if len(needles) < all*9/10 { // the log cuts a record in two where its blocks end
				t.Fatalf("%d of %d records that exist were not found on disk: the search is wrong", all-len(needles), all)
			}
			for _, ref := range refs {
				drop(t, s, ref)
			}
			if tc.after != nil {
				if err := tc.after(s); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Erase(context.Background(), refs); err != nil {
				t.Fatal(err)
			}
			if found := keystoretest.FilesWith(t, s.dir, needles...); len(found) > 0 {
				t.Errorf("still in %v", found)
			}
			if err := s.Verify(context.Background(), nil); err != nil {
				t.Error(err)
			}
			if n, err := s.CountKeys(account, region); n != keys-len(refs) || err != nil {
				t.Errorf("%d keys left, %v", n, err)
			}
		})
	}
}

func (s *Store) flushNow() error { return s.db.Flush() }

func (s *Store) compactAll() error {
	return s.db.Compact(context.Background(), []byte{0}, []byte{0xff}, false)
}

// TestEraseMany erases more keys than are compacted one by one.
func TestEraseMany(t *testing.T) {
	s := diskHarness(t, smallTables)
	fill(t, s, 0, 2*maxSpans, 100)
	var refs []Ref
	var needles [][]byte
	for i := range maxSpans + 1 {
		refs = append(refs, Ref{region, bulkID(i)})
		needles = append(needles, bytesOnDisk(t, s, materialName(refs[i], 1)))
		drop(t, s, refs[i])
	}
	if err := s.Erase(context.Background(), refs); err != nil {
		t.Fatal(err)
	}
	if found := keystoretest.FilesWith(t, s.dir, needles...); len(found) > 0 {
		t.Errorf("still in %v", found)
	}
}

// TestEraseUnderLoad erases while others commit and read.
func TestEraseUnderLoad(t *testing.T) {
	s := diskHarness(t, smallTables)
	fill(t, s, 0, 300, 600)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				txn := s.NewTxn()
				txn.Put(fmt.Sprintf("load/%d/%d", w, i%50), make([]byte, 700), AnyRevision)
				if _, err := txn.Commit(context.Background()); err != nil {
					t.Error(err)
					return
				}
				if _, _, err := s.ListKeys(account, region, KeyID{}, false, 50); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 10 {
		ref := Ref{region, bulkID(i * 29)}
		needle := bytesOnDisk(t, s, materialName(ref, 1))
		drop(t, s, ref)
		if err := s.Erase(context.Background(), []Ref{ref}); err != nil {
			t.Fatal(err)
		}
		if found := keystoretest.FilesWith(t, s.dir, needle); len(found) > 0 {
			t.Errorf("key %d is still in %v", i, found)
		}
	}
	close(stop)
	wg.Wait()
}

// TestErasePinned: while a snapshot needs the bytes, Erase says so and can be
// called again.
func TestErasePinned(t *testing.T) {
	s := diskHarness(t, nil)
	fill(t, s, 0, 3, 600)
	ref := Ref{region, bulkID(1)}
	needle := bytesOnDisk(t, s, materialName(ref, 1))
	snapshot := s.db.NewSnapshot()
	drop(t, s, ref)
	if err := s.Erase(context.Background(), []Ref{ref}); !errors.Is(err, ErrPinned) {
		t.Fatalf("under a snapshot: %v", err)
	}
	if err := snapshot.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Erase(context.Background(), []Ref{ref}); err != nil {
		t.Fatal(err)
	}
	if found := keystoretest.FilesWith(t, s.dir, needle); len(found) > 0 {
		t.Errorf("still in %v", found)
	}
}
