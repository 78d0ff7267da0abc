package keystore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"keymill/hsm/hsmtest"
)

const (
	alice = "arn:aws:iam::000000000000:user/alice"
	bob   = "arn:aws:iam::000000000000:role/ops/bob"
)

func grantID(i int) string { return fmt.Sprintf("%08x%056x", uint32(i)*0x9e3779b1, i) }

func testGrant(ref Ref, i int) *Grant {
	return &Grant{
		Ref: ref, ID: grantID(i), Grantee: alice, Issuer: account, Operations: []string{"Decrypt", "Encrypt"}, Created: now,
	}
}

func named(g *Grant) *Grant {
	g.Name, g.Retiring = "app:1/x", bob
	g.Equals = []Pair{{"a", ""}, {"b", "2"}}
	g.Subset = []Pair{{"c", "ü"}}
	return g
}

// withKey returns a harness with one key and its name.
func withKey(t testing.TB) (*harness, Ref) {
	h := newHarness(t)
	k := withoutMaterial(1)
	h.commit(func(txn *Txn) { txn.PutKey(k, 0) })
	return h, k.Ref()
}

func (h *harness) verify() {
	h.t.Helper()
	if err := h.Verify(context.Background(), nil); err != nil {
		h.t.Error(err)
	}
}

func (h *harness) grantCount(ref Ref, want int) {
	h.t.Helper()
	if n, err := h.CountGrants(ref); n != want || err != nil {
		h.t.Errorf("%d grants counted (%v), %d made", n, err, want)
	}
}

func TestGrantLife(t *testing.T) {
	h, ref := withKey(t)
	g := named(testGrant(ref, 1))
	if _, err := h.Grant(ref, g.ID); !errors.Is(err, ErrNotFound) {
		t.Fatalf("before: %v", err)
	}
	if _, err := h.SameGrant(g); !errors.Is(err, ErrNotFound) {
		t.Fatalf("before: %v", err)
	}
	h.grantCount(ref, 0)
	rev := h.commit(func(txn *Txn) { txn.PutGrant(g, 0) })
	other := testGrant(ref, 2)
	other.Grantee = bob
	other.Equals = []Pair{} // no context at all: not the same as no constraint
	h.commit(func(txn *Txn) { txn.PutGrant(other, 0) })
	h.reopen()
	h.verify()

	want := *g
	want.Revision = rev
	got, err := h.Grant(ref, g.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&want, got); d != "" {
		t.Error(d)
	}
	if got, err := h.Grant(ref, other.ID); err != nil || got.Equals == nil || len(got.Equals) != 0 || got.Subset != nil {
		t.Errorf("%+v, %v", got, err)
	}
	alike := named(testGrant(ref, 3))
	alike.Created = now.Add(1)
	if got, err := h.SameGrant(alike); err != nil || got.ID != g.ID {
		t.Errorf("the same grant: %v, %v", got, err)
	}
	for i, change := range []func(*Grant){
		func(g *Grant) { g.Name = "" },
		func(g *Grant) { g.Name = "app:1/y" },
		func(g *Grant) { g.Grantee = bob },
		func(g *Grant) { g.Retiring = "" },
		func(g *Grant) { g.Issuer = "111111111111" },
		func(g *Grant) { g.Operations = []string{"Decrypt"} },
		func(g *Grant) { g.Equals = g.Equals[:1] },
		func(g *Grant) { g.Subset = nil },
		func(g *Grant) { g.Equals, g.Subset = g.Subset, g.Equals },
		func(g *Grant) { g.Ref.ID[3]++ },
	} {
		differs := named(testGrant(ref, 3))
		change(differs)
		if got, err := h.SameGrant(differs); !errors.Is(err, ErrNotFound) {
			t.Errorf("change %d finds %v, %v", i, got, err)
		}
	}
	h.fails(ErrConflict, func(txn *Txn) { txn.PutGrant(alike, 0) })
	h.fails(ErrConflict, func(txn *Txn) { txn.PutGrant(testGrant(ref, 1), 0) })
	h.fails(ErrConflict, func(txn *Txn) { txn.PutGrant(testGrant(Ref{region, KeyID{9}}, 4), 0) })
	h.fails(ErrLimit, func(txn *Txn) { txn.PutGrant(testGrant(ref, 4), 2) })
	h.grantCount(ref, 2)

	for _, c := range []struct {
		grantee string
		want    []string
	}{{alice, []string{g.ID}}, {bob, []string{other.ID}}, {"arn:aws:iam::000000000000:user/ali", nil}, {alice + "s", nil}} {
		found, more, err := h.ListGranteeGrants(ref, c.grantee, "", 10)
		if err != nil || more || !cmp.Equal(ids(found), c.want) {
			t.Errorf("grants of %s: %v, %v, %v", c.grantee, ids(found), more, err)
		}
	}
	if found, _, more, err := h.ListRetirable(region, bob, nil, 10); err != nil || more || !cmp.Equal(ids(found), []string{g.ID}) {
		t.Errorf("retirable: %v, %v, %v", ids(found), more, err)
	}
	if found, _, _, err := h.ListRetirable("us-west-2", bob, nil, 10); err != nil || found != nil {
		t.Errorf("retirable in another region: %v, %v", found, err)
	}

	stale := *got
	stale.Revision--
	h.fails(ErrConflict, func(txn *Txn) { txn.DeleteGrant(&stale) })
	h.commit(func(txn *Txn) { txn.DeleteGrant(got) })
	h.fails(ErrConflict, func(txn *Txn) { txn.DeleteGrant(got) })
	if _, err := h.SameGrant(alike); !errors.Is(err, ErrNotFound) {
		t.Errorf("after deletion: %v", err)
	}
	h.commit(func(txn *Txn) { txn.PutGrant(alike, 2) }) // the name is free again
	h.grantCount(ref, 2)
	h.verify()
}

func ids(grants []*Grant) (out []string) {
	for _, g := range grants {
		out = append(out, g.ID)
	}
	return out
}

func TestGrantRules(t *testing.T) {
	h, ref := withKey(t)
	for name, change := range map[string]func(*Grant){
		"no grantee":              func(g *Grant) { g.Grantee = "" },
		"space in the grantee":    func(g *Grant) { g.Grantee = "a b" },
		"long grantee":            func(g *Grant) { g.Grantee = strings.Repeat("a", maxPrincipal+1) },
		"space in the retiring":   func(g *Grant) { g.Retiring = "a b" },
		"space in the name":       func(g *Grant) { g.Name = "a b" },
		"no operation":            func(g *Grant) { g.Operations = nil },
		"no issuer":               func(g *Grant) { g.Issuer = "" },
		"upper-case ID":           func(g *Grant) { g.ID = strings.Repeat("A", 64) },
		"short ID":                func(g *Grant) { g.ID = g.ID[:63] },
		"pairs not in order":      func(g *Grant) { g.Subset = []Pair{{"b", ""}, {"a", ""}} },
		"pairs with one key":      func(g *Grant) { g.Equals = []Pair{{"a", "1"}, {"a", "2"}} },
		"too many pairs":          func(g *Grant) { g.Subset = make([]Pair, maxGrantPairs+1) },
		"context that is no text": func(g *Grant) { g.Subset = []Pair{{"\xff", ""}} },
		"region without a name":   func(g *Grant) { g.Ref.Region = "" },
	} {
		g := testGrant(ref, 1)
		change(g)
		txn := h.NewTxn()
		txn.PutGrant(g, 0)
		if _, err := txn.Commit(context.Background()); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestListGrants walks over the grants of two keys page by page in each way.
func TestListGrants(t *testing.T) {
	h, ref := withKey(t)
	k2 := withoutMaterial(2)
	h.commit(func(txn *Txn) { txn.PutKey(k2, 0) })
	made := make(map[string]int)
	for i := range 137 {
		g, g2 := testGrant(ref, i), testGrant(k2.Ref(), 1000+i)
		made["key"]++
		if g.Grantee = bob; i%3 == 0 {
			g.Grantee = alice
			made["alice"]++
		}
		if g2.Retiring = alice; i%2 == 0 {
			g.Retiring, g2.Retiring = bob, bob
			made["bob retires"] += 2
		}
		h.commit(func(txn *Txn) { txn.PutGrant(g, 0); txn.PutGrant(g2, 0) })
	}
	h.verify()
	walk := func(what string, page func(last *Grant) ([]*Grant, bool, error)) {
		t.Helper()
		var all []*Grant
		var last *Grant
		for more := true; more; {
			var grants []*Grant
			var err error
			if grants, more, err = page(last); err != nil {
				t.Fatal(err)
			}
			if len(grants) > 10 || more && len(grants) < 10 {
				t.Fatalf("%s: a page of %d, more %v", what, len(grants), more)
			}
			for _, g := range grants {
				if last != nil && g.Ref.ID.String()+g.ID <= last.Ref.ID.String()+last.ID {
					t.Fatalf("%s: %s after %s", what, g.ID, last.ID)
				}
				last = g
			}
			all = append(all, grants...)
		}
		if len(all) != made[what] {
			t.Errorf("%s: %d listed, %d made", what, len(all), made[what])
		}
	}
	id := func(g *Grant) string {
		if g == nil {
			return ""
		}
		return g.ID
	}
	walk("key", func(last *Grant) ([]*Grant, bool, error) { return h.ListGrants(ref, id(last), 10) })
	walk("alice", func(last *Grant) ([]*Grant, bool, error) { return h.ListGranteeGrants(ref, alice, id(last), 10) })
	walk("bob retires", func(last *Grant) ([]*Grant, bool, error) {
		var after *GrantRef
		if last != nil {
			after = &GrantRef{last.Ref, last.ID}
		}
		grants, next, more, err := h.ListRetirable(region, bob, after, 10)
		if n := len(grants); n > 0 && next != (GrantRef{grants[n-1].Ref, grants[n-1].ID}) {
			t.Errorf("next is %v", next)
		}
		return grants, more, err
	})
}

// TestDeleteGrants: a key with a few grants is deleted with them; one with many
// after they were.
func TestDeleteGrants(t *testing.T) {
	h, ref := withKey(t)
	k2 := withoutMaterial(2)
	h.commit(func(txn *Txn) { txn.PutKey(k2, 0) })
	for i := range 20 {
		h.commit(func(txn *Txn) { txn.PutGrant(testGrant(k2.Ref(), i), 0) })
	}
	const many = 5*grantsPerCommit + 3
	for i := range many {
		g := named(testGrant(ref, i))
		g.Name = fmt.Sprint("grant-", i)
		h.commit(func(txn *Txn) { txn.PutGrant(g, 0) })
	}
	h.verify()
	k, err := h.Key(ref)
	if err != nil {
		t.Fatal(err)
	}
	h.fails(ErrTooLarge, func(txn *Txn) { txn.DeleteKey(k) })
	h.grantCount(ref, many)
	if err := h.DeleteGrants(context.Background(), ref); err != nil {
		t.Fatal(err)
	}
	h.grantCount(ref, 0)
	if k2, err = h.Key(k2.Ref()); err != nil {
		t.Fatal(err)
	}
	h.commit(func(txn *Txn) { txn.DeleteKey(k); txn.DeleteKey(k2) })
	h.verify()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	edit(t, h.fs, func(db *pebble.DB) {
		for _, key := range rawKeys(t, db) {
			if n, ok := ParseName(key); !ok || isGrantKind(n.Kind) {
				t.Errorf("left: %s", describe(key))
			}
		}
	})
	h.open()
}

func isGrantKind(k Kind) bool {
	switch k {
	case KindGrant, KindGrantee, KindRetiring, KindGrantName, KindGrantCount:
		return true
	}
	return false
}

// TestVerifyGrants removes each record of a grant, and puts each of another
// store's, in turn: Verify names it.
func TestVerifyGrants(t *testing.T) {
	for _, kind := range []Kind{KindGrant, KindGrantee, KindRetiring, KindGrantName, KindGrantCount} {
		t.Run(kindNames[kind], func(t *testing.T) {
			h, ref := withKey(t)
			h.commit(func(txn *Txn) { txn.PutGrant(named(testGrant(ref, 1)), 0) })
			h.verify()
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			var gone string
			edit(t, h.fs, func(db *pebble.DB) {
				for _, key := range rawKeys(t, db) {
					if Kind(key[0]) == kind {
						gone = describe(key)
						if err := db.Delete(key, pebble.Sync); err != nil {
							t.Fatal(err)
						}
					}
				}
			})
			h.open()
			err := h.Verify(context.Background(), nil)
			if !errors.Is(err, ErrTampered) || gone == "" || !strings.Contains(err.Error(), gone) {
				t.Errorf("without %s: %v", gone, err)
			}
		})
	}
	t.Run("counter", func(t *testing.T) {
		h, ref := withKey(t)
		h.commit(func(txn *Txn) { txn.PutGrant(testGrant(ref, 1), 0) })
		h.commit(func(txn *Txn) {
			txn.ops = append(txn.ops, func(w *writer) error { return w.countGrants(ref, +1, 0) })
		})
		if err := h.Verify(context.Background(), nil); !errors.Is(err, ErrTampered) || !strings.Contains(err.Error(), "number of grants") {
			t.Errorf("with a wrong counter: %v", err)
		}
	})
}

// TestGrantLimit: of many who make grants at once, exactly as many succeed as
// the limit allows.
func TestGrantLimit(t *testing.T) {
	h, ref := withKey(t)
	const most = 50
	var made, refused atomic.Int32
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for j := range 3 {
				txn := h.NewTxn()
				txn.PutGrant(testGrant(ref, i*10+j), most)
				switch _, err := txn.Commit(context.Background()); {
				case err == nil:
					made.Add(1)
				case errors.Is(err, ErrLimit):
					refused.Add(1)
				default:
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if made.Load() != most || refused.Load() != 64*3-most {
		t.Errorf("%d made, %d refused", made.Load(), refused.Load())
	}
	h.grantCount(ref, most)
	h.verify()
}

// TestGrantCrashes makes and removes grants of one key from several sides until
// the disk forgets what was not synced. What was acknowledged is there, what was
// acknowledged as removed is not, and the records agree.
func TestGrantCrashes(t *testing.T) {
	rounds := 20
	if raceEnabled {
		rounds = 5
	}
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 11))
			fs, root := vfs.NewCrashableMem(), hsmtest.NewMemory()
			s, err := Open(context.Background(), Options{Dir: "store", Root: root, fs: fs, tune: smallTables})
			if err != nil {
				t.Fatal(err)
			}
			k := withoutMaterial(1)
			txn := s.NewTxn()
			txn.PutKey(k, 0)
			if _, err := txn.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			const (
				absent = iota
				present
				unknown
			)
			var mu sync.Mutex // of known and crashed
			known := make(map[string]int)
			crashed := false
			note := func(id string, state int) bool {
				mu.Lock()
				defer mu.Unlock()
				if !crashed {
					known[id] = state
				}
				return !crashed
			}
			var wg sync.WaitGroup
			for p := range 4 {
				rng := rand.New(rand.NewPCG(seed, uint64(p)))
				wg.Go(func() {
					var mine []string
					for i := 0; ; i++ {
						txn := s.NewTxn()
						var id string
						after := present
						if len(mine) > 0 && rng.IntN(3) == 0 {
							id, mine = mine[0], mine[1:]
							g, err := s.Grant(k.Ref(), id)
							if err != nil {
								t.Errorf("%s: %v", id, err)
								return
							}
							txn.DeleteGrant(g)
							after = absent
						} else {
							g := named(testGrant(k.Ref(), p*10_000+i))
							g.Name = fmt.Sprint(p, "-", i)
							id = g.ID
							mine = append(mine, id)
							txn.PutGrant(g, 0)
						}
						if !note(id, unknown) {
							return
						}
						if _, err := txn.Commit(context.Background()); err != nil {
							t.Error(err)
							return
						}
						if !note(id, after) {
							return
						}
					}
				})
			}
			for target := s.Revision() + uint64(50+rng.IntN(300)); s.Revision() < target && !t.Failed(); {
				_, _ = s.CountGrants(k.Ref())
			}
			mu.Lock()
			crashed = true
			disk := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[rng.IntN(3)], RNG: rng})
			mu.Unlock()
			wg.Wait()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(context.Background(), Options{Dir: "store", Root: root, fs: disk}); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			n := 0
			for id, state := range known {
				_, err := s.Grant(k.Ref(), id)
				if err == nil {
					n++
				} else if !errors.Is(err, ErrNotFound) {
					t.Fatal(err)
				}
				if state == present && err != nil || state == absent && err == nil {
					t.Errorf("grant %s was left in state %d: %v", id, state, err)
				}
			}
			if got, err := s.CountGrants(k.Ref()); got != n || err != nil {
				t.Errorf("%d counted, %d there, %v", got, n, err)
			}
			if err := s.Verify(context.Background(), nil); err != nil {
				t.Error(err)
			}
		})
	}
}
