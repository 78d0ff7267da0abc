package keystore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

var (
	placeA = Place{Kind: hsm.KindSoftware}
	placeB = Place{Kind: hsm.KindPKCS11, Module: "/m.so", Token: "b", PINFile: "/pin"}
)

// A migration is a store that moves from root a to root b.
type migration struct {
	t    testing.TB
	fs   vfs.FS
	a, b *hsmtest.Memory // what the roots of each start share their domain keys with
	now  struct{ a, b *hsmtest.Memory }
	root *hsm.Composite
	both bool // root has both
	*Store
	ids    []Identity
	target hsm.DomainKeyID
}

// newMigration returns a store with n keys under root a.
func newMigration(t testing.TB, n int) *migration {
	m := &migration{t: t, fs: vfs.NewCrashableMem(), a: hsmtest.NewMemory(), b: hsmtest.NewMemory()}
	m.open(m.fs, true, false)
	for i := range n {
		m.newKey(i)
	}
	return m
}

// open opens the store on some of the roots.
func (m *migration) open(fs vfs.FS, withA, withB bool) {
	m.t.Helper()
	if err := m.tryOpen(fs, withA, withB); err != nil {
		m.t.Fatal(err)
	}
	s, root := m.Store, m.root
	m.t.Cleanup(func() {
		if m.Store == s {
			s.Close()
			root.Close()
		}
	})
}

func (m *migration) tryOpen(fs vfs.FS, withA, withB bool) error {
	m.now.a, m.now.b, m.both = m.a.Reopen(), m.b.Reopen(), withA && withB
	switch {
	case withA && withB:
		m.root = hsm.NewComposite(m.now.a)
		m.root.Add(m.now.b)
	case withA:
		m.root = hsm.NewComposite(m.now.a)
	default:
		m.root = hsm.NewComposite(m.now.b)
	}
	s, err := Open(context.Background(), Options{Dir: "store", Root: m.root, fs: fs, Clock: func() time.Time { return now }})
	if err != nil {
		return err
	}
	s.pause = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	m.fs, m.Store = fs, s
	return nil
}

func (m *migration) close() {
	m.t.Helper()
	if err := errors.Join(m.Store.Close(), m.root.Close()); err != nil {
		m.t.Fatal(err)
	}
	m.Store = nil
}

func numbered(i int) KeyID { return KeyID{0: byte(i >> 8), 1: byte(i), 15: 1} }

func secretOf(id Identity) string { return fmt.Sprintf("secret of %s/%d", id.ID, id.Version) }

// newKey makes a key of two versions and remembers it.
func (m *migration) newKey(i int) {
	m.t.Helper()
	k := testKey(0)
	k.ID = numbered(i)
	k.Versions = append(k.Versions, Version{Number: 2, Created: now})
	txn := m.NewTxn()
	txn.PutKey(k, 0)
	for _, v := range k.Versions {
		id := Identity{account, region, k.Spec, k.ID, v.Number}
		mat, err := m.SealMaterial(context.Background(), id, []byte(secretOf(id)))
		if err != nil {
			m.t.Fatal(err)
		}
		txn.PutMaterial(mat, 0)
		m.ids = append(m.ids, id)
	}
	if _, err := txn.Commit(context.Background()); err != nil {
		m.t.Fatal(err)
	}
}

// begin begins the move to root b, which it adds if need be.
func (m *migration) begin() {
	m.t.Helper()
	if !m.both {
		m.both = true
		if err := m.root.Add(m.now.b); err != nil {
			m.t.Fatal(err)
		}
	}
	var err error
	if m.target, err = m.now.b.CreateDomainKey(context.Background()); err != nil {
		m.t.Fatal(err)
	}
	if err := m.BeginRewrap(context.Background(), Rewrap{Target: m.target, From: placeA, To: placeB, Begun: now}); err != nil {
		m.t.Fatal(err)
	}
}

// checkSecrets opens every material.
func (m *migration) checkSecrets(when string) {
	m.t.Helper()
	for _, id := range m.ids {
		secret, err := m.OpenMaterial(context.Background(), id)
		if err != nil || string(secret) != secretOf(id) {
			m.t.Fatalf("%s: %s: %q, %v", when, id.ID, secret, err)
		}
	}
}

// count returns how many materials are under a domain key.
func (m *migration) count(id hsm.DomainKeyID) (n int) {
	m.t.Helper()
	err := m.eachMaterial(context.Background(), func(mat *Material) error {
		if mat.DomainKey == id {
			n++
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// checkDone checks a store that has moved to b: nothing but b opens it.
func (m *migration) checkDone() {
	m.t.Helper()
	if p, err := m.PendingRewrap(); p != nil || err != nil {
		m.t.Fatalf("still pending: %+v, %v", p, err)
	}
	if got := m.Header().DomainKey; got != m.target {
		m.t.Fatalf("the header is under %s", got)
	}
	if n := m.count(m.target); n != len(m.ids) {
		m.t.Fatalf("%d of %d materials are under the target", n, len(m.ids))
	}
	if err := m.Verify(context.Background(), nil); err != nil {
		m.t.Fatal(err)
	}
	storeID := m.Header().StoreID
	m.close()
	if err := m.tryOpen(m.fs, true, false); !errors.Is(err, ErrWrongRoot) || !strings.Contains(err.Error(), "keymill rewrap") {
		m.t.Fatalf("the old root alone: %v", err)
	}
	m.open(m.fs, false, true)
	m.checkSecrets("on the new root alone")
	if m.Header().StoreID != storeID || !m.Header().Created.Equal(now) {
		m.t.Error("the store is another one")
	}
}

// TestRewrap moves a store that is open from one root to another.
func TestRewrap(t *testing.T) {
	m := newMigration(t, 150)
	ctx := context.Background()
	if _, err := m.Rewrap(ctx, nil); !errors.Is(err, ErrNoRewrap) {
		t.Errorf("before it began: %v", err)
	}
	source := m.Header().DomainKey
	m.begin()
	if err := m.BeginRewrap(ctx, Rewrap{Target: m.target, From: placeA, To: placeB}); !errors.Is(err, ErrConflict) {
		t.Errorf("begun twice: %v", err)
	}
	want := &Rewrap{Source: source, Target: m.target, From: placeA, To: placeB, Begun: now, Revision: m.Revision()}
	if p, err := m.PendingRewrap(); err != nil || cmp.Diff(want, p) != "" {
		t.Errorf("%v %s", err, cmp.Diff(want, p))
	}
	m.newKey(1000)
	if n := m.count(m.target); n != 2 {
		t.Errorf("%d materials of a new key are under the target", n)
	}
	m.checkSecrets("between begin and move")

	decrypts, encrypts := m.now.a.Calls(hsmtest.Decrypt), m.now.b.Calls(hsmtest.Encrypt)
	var phases []string
	last := RewrapProgress{}
	p, err := m.Rewrap(ctx, func(p RewrapProgress) {
		if p.Phase != last.Phase {
			phases = append(phases, p.Phase)
		}
		if p.Moved < last.Moved || p.Total < last.Total {
			t.Errorf("progress went back: %+v after %+v", p, last)
		}
		last = p
	})
	if err != nil {
		t.Fatal(err)
	}
	if wantP := (RewrapProgress{Phase: PhaseDone, Materials: 302, Total: 300, Moved: 300}); p != wantP || p != last {
		t.Errorf("progress %+v, want %+v", p, wantP)
	}
	if d := cmp.Diff([]string{PhaseCounting, PhaseMoving, PhaseChecking, PhaseDone}, phases); d != "" {
		t.Error(d)
	}
	// In bulk: besides the header's, a call takes minBatch materials at least.
	if n := m.now.a.Calls(hsmtest.Decrypt) - decrypts; n > 300/minBatch+2 {
		t.Errorf("%d calls of the old root", n)
	}
	if n := m.now.b.Calls(hsmtest.Encrypt) - encrypts; n > 300/minBatch+2 {
		t.Errorf("%d calls of the new root", n)
	}

	// The daemon lets the old root go, and goes on.
	if err := m.root.Keep(m.now.b); err != nil {
		t.Fatal(err)
	}
	m.checkSecrets("without the old root")
	m.newKey(1001)
	keys, err := m.RetiredDomainKeys()
	if err != nil || cmp.Diff([]RetiredKey{{source, placeA, now}}, keys) != "" {
		t.Errorf("retired: %+v, %v", keys, err)
	}
	m.checkDone()
}

// TestRotate moves a store to a new domain key of the same root, several times.
func TestRotate(t *testing.T) {
	m := newMigration(t, 20)
	ctx := context.Background()
	first := m.Header().DomainKey
	for range 3 {
		target, err := m.root.CreateDomainKey(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.BeginRewrap(ctx, Rewrap{Target: target, From: placeA, To: placeA}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Rewrap(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if m.count(target) != len(m.ids) || m.Header().DomainKey != target {
			t.Error("not everything is under the new domain key")
		}
		m.checkSecrets("after a rotation")
	}
	// Back to the first one: it is no longer a retired key then.
	if err := m.BeginRewrap(ctx, Rewrap{Target: first, From: placeA, To: placeA}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Rewrap(ctx, nil); err != nil {
		t.Fatal(err)
	}
	keys, err := m.RetiredDomainKeys()
	if err != nil || len(keys) != 3 {
		t.Errorf("%d retired keys, %v", len(keys), err)
	}
	for _, k := range keys {
		if k.ID == first {
			t.Error("the key in use is listed as retired")
		}
	}
	m.newKey(50)
	m.close()
	m.open(m.fs, true, false)
	m.checkSecrets("after reopening")
}

// TestRewrapRefusals: what cannot be begun changes nothing.
func TestRewrapRefusals(t *testing.T) {
	m := newMigration(t, 2)
	ctx := context.Background()
	other, err := m.root.CreateDomainKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		r    Rewrap
		want error
	}{
		"the key in use":    {Rewrap{Target: m.Header().DomainKey, From: placeA, To: placeA}, ErrInvalid},
		"an unknown key":    {Rewrap{Target: hsm.DomainKeyID{1}, From: placeA, To: placeB}, hsm.ErrNoDomainKey},
		"no place":          {Rewrap{Target: other, From: placeA}, ErrInvalid},
		"text not in UTF-8": {Rewrap{Target: other, From: placeA, To: Place{Kind: hsm.KindPKCS11, Token: "\xff"}}, ErrInvalid},
	} {
		if err := m.BeginRewrap(ctx, row.r); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", name, err, row.want)
		}
	}
	m.now.a.Inject(hsmtest.CheckDomainKey, hsmtest.Fault{Err: hsm.ErrTokenMissing})
	if err := m.BeginRewrap(ctx, Rewrap{Target: other, From: placeA, To: placeA}); !errors.Is(err, hsm.ErrTokenMissing) {
		t.Errorf("without a token: %v", err)
	}
	if p, err := m.PendingRewrap(); p != nil || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
	for _, err := range []error{m.RewrapBack(ctx), m.RelocateRewrap(ctx, placeB)} {
		if !errors.Is(err, ErrNoRewrap) {
			t.Errorf("nothing has begun: %v", err)
		}
	}
	id := m.ids[0]
	if mat, err := m.SealMaterial(ctx, id, nil); err != nil || mat.DomainKey != m.Header().DomainKey {
		t.Errorf("%v", err)
	}
}

// TestStragglers commits material that was sealed before the move began, at every later
// time. It always ends under the target, or in a conflict when the old root has gone.
func TestStragglers(t *testing.T) {
	m := newMigration(t, 5)
	ctx := context.Background()
	var sealed []*Txn
	for i := range 4 {
		k := testKey(0)
		k.ID = numbered(500 + i)
		id := Identity{account, region, k.Spec, k.ID, 1}
		mat, err := m.SealMaterial(ctx, id, []byte(secretOf(id)))
		if err != nil {
			t.Fatal(err)
		}
		txn := m.NewTxn()
		txn.PutKey(k, 0)
		txn.PutMaterial(mat, 0)
		sealed = append(sealed, txn)
		if i < 3 {
			m.ids = append(m.ids, id)
		}
	}
	commit := func(i int) error { _, err := sealed[i].Commit(ctx); return err }
	m.begin()
	if err := commit(0); err != nil {
		t.Errorf("after begin: %v", err)
	}
	if err := commit(0); !errors.Is(err, ErrInvalid) {
		t.Errorf("committed twice: %v", err)
	}
	// An error of the root leaves nothing behind.
	m.now.b.Inject(hsmtest.Encrypt, hsmtest.Fault{Err: hsm.ErrDevice})
	before := m.Revision()
	if err := commit(1); !errors.Is(err, hsm.ErrDevice) || m.Revision() != before {
		t.Errorf("with a broken root: %v", err)
	}
	m.ids = append(m.ids[:len(m.ids)-2], m.ids[len(m.ids)-1])
	var once sync.Once
	_, err := m.Rewrap(ctx, func(p RewrapProgress) {
		if p.Phase == PhaseChecking {
			once.Do(func() {
				if err := commit(2); err != nil {
					t.Errorf("during the check: %v", err)
				}
			})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	m.checkSecrets("after the move")
	if n := m.count(m.target); n != len(m.ids) {
		t.Errorf("%d of %d are under the target", n, len(m.ids))
	}
	if err := m.root.Keep(m.now.b); err != nil {
		t.Fatal(err)
	}
	if err := commit(3); !errors.Is(err, ErrConflict) {
		t.Errorf("without the old root: %v", err)
	}
	m.checkDone()
}

// TestLateReader opens material whose record it had read before the old root went away.
func TestLateReader(t *testing.T) {
	m := newMigration(t, 1)
	m.begin()
	release := make(chan struct{})
	m.now.a.Inject(hsmtest.Decrypt, hsmtest.Fault{Block: release, Err: hsm.ErrNoDomainKey})
	got := make(chan error, 1)
	calls := m.now.a.Calls(hsmtest.Decrypt)
	go func() {
		secret, err := m.OpenMaterial(context.Background(), m.ids[0])
		if err == nil && string(secret) != secretOf(m.ids[0]) {
			err = fmt.Errorf("got %q", secret)
		}
		got <- err
	}()
	eventually(t, "the reader's call", func() bool { return m.now.a.Calls(hsmtest.Decrypt) > calls })
	if _, err := m.Rewrap(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// TestRewrapUnderTraffic moves a store back and forth while others make, change, delete
// and read keys. Nobody is disturbed, and in the end everything is where it belongs.
func TestRewrapUnderTraffic(t *testing.T) {
	m := newMigration(t, 80)
	ctx := context.Background()
	if err := m.root.Add(m.now.b); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	var ops, conflicts atomic.Int64
	for w := range 4 {
		rng := rand.New(rand.NewPCG(uint64(w), 1))
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				k := testKey(0)
				k.ID = numbered(10_000 + w*1000 + rng.IntN(20))
				id := Identity{account, region, k.Spec, k.ID, 1}
				old, err := m.Key(k.Ref())
				txn := m.NewTxn()
				switch {
				case err == nil && rng.IntN(3) == 0:
					txn.DeleteKey(old)
				case err == nil && rng.IntN(2) == 0:
					if secret, err := m.OpenMaterial(ctx, id); err != nil || string(secret) != secretOf(id) {
						t.Errorf("worker %d: %q, %v", w, secret, err)
						return
					}
					continue
				default:
					mat, err := m.SealMaterial(ctx, id, []byte(secretOf(id)))
					if err != nil {
						t.Errorf("worker %d: %v", w, err)
						return
					}
					rev := uint64(0)
					if old != nil {
						rev = old.Revision
					}
					txn.PutKey(k, rev)
					txn.PutMaterial(mat, AnyRevision)
				}
				switch _, err := txn.Commit(ctx); {
				case errors.Is(err, ErrConflict): // the move has put a material in between
					conflicts.Add(1)
				case err != nil:
					t.Errorf("worker %d: %v", w, err)
					return
				}
				ops.Add(1)
			}
		})
	}
	roots := []*hsmtest.Memory{m.now.b, m.now.a}
	places := []Place{placeB, placeA}
	rounds := 10
	if raceEnabled {
		rounds = 4
	}
	for round := range rounds {
		target, err := roots[round%2].CreateDomainKey(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.BeginRewrap(ctx, Rewrap{Target: target, From: places[(round+1)%2], To: places[round%2]}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Rewrap(ctx, nil); err != nil {
			t.Fatal(err)
		}
		foreign := 0
		if err := m.eachMaterial(ctx, func(mat *Material) error {
			if mat.DomainKey != target {
				foreign++
			}
			return nil
		}); err != nil || foreign > 0 {
			t.Errorf("round %d: %d materials are left behind, %v", round, foreign, err)
		}
		m.checkSecrets("during traffic")
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d operations, %d conflicts", ops.Load(), conflicts.Load())
	if err := m.Verify(ctx, nil); err != nil {
		t.Error(err)
	}
}

// TestRewrapBack turns a move round in the middle.
func TestRewrapBack(t *testing.T) {
	m := newMigration(t, 60)
	ctx := context.Background()
	source := m.Header().DomainKey
	m.begin()
	for moved := uint64(0); moved == 0; { // before one gives up the others may have moved nothing
		m.now.b.Inject(hsmtest.Encrypt, hsmtest.Fault{Skip: 2, Count: -1, Err: hsm.ErrDevice})
		p, err := m.Rewrap(ctx, nil)
		if err == nil {
			t.Fatalf("%+v, %v", p, err)
		}
		moved = p.Moved
	}
	abandoned := m.target
	for range 2 {
		if err := m.RewrapBack(ctx); err != nil {
			t.Fatal(err)
		}
	}
	m.newKey(3000)
	m.close()
	m.open(m.fs, true, true)
	if p, err := m.PendingRewrap(); err != nil || p.Target != source || p.Source != abandoned || p.To != placeA {
		t.Fatalf("%+v, %v", p, err)
	}
	m.newKey(3001)
	if p, err := m.Rewrap(ctx, nil); err != nil || p.Moved == 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	if m.count(source) != len(m.ids) || m.Header().DomainKey != source {
		t.Error("not everything is back")
	}
	if keys, err := m.RetiredDomainKeys(); err != nil || len(keys) != 1 || keys[0].ID != abandoned || keys[0].Place != placeB {
		t.Errorf("%+v, %v", keys, err)
	}
	m.close()
	m.open(m.fs, true, false)
	m.checkSecrets("on the old root alone")
}

// TestRelocate: the place of the target can be corrected.
func TestRelocate(t *testing.T) {
	m := newMigration(t, 1)
	ctx := context.Background()
	m.begin()
	moved := placeB
	moved.PINFile = "/elsewhere/pin"
	for range 2 {
		if err := m.RelocateRewrap(ctx, moved); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := m.PendingRewrap(); err != nil || p.To != moved || p.Target != m.target {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := m.Rewrap(ctx, nil); err != nil {
		t.Fatal(err)
	}
	m.checkDone()
}

// TestForgetDomainKey: a domain key is only given up when nothing needs it.
func TestForgetDomainKey(t *testing.T) {
	m := newMigration(t, 5)
	ctx := context.Background()
	source := m.Header().DomainKey
	destroyed := 0
	destroy := func() error { destroyed++; return nil }
	if err := m.ForgetDomainKey(ctx, source, destroy); !errors.Is(err, ErrInvalid) {
		t.Errorf("the key in use: %v", err)
	}
	m.begin()
	if err := m.ForgetDomainKey(ctx, source, destroy); !errors.Is(err, ErrInvalid) {
		t.Errorf("during the move: %v", err)
	}
	if _, err := m.Rewrap(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.ForgetDomainKey(ctx, m.target, destroy); !errors.Is(err, ErrInvalid) {
		t.Errorf("the new key: %v", err)
	}
	if err := m.ForgetDomainKey(ctx, hsm.DomainKeyID{9}, destroy); !errors.Is(err, ErrInvalid) {
		t.Errorf("a stranger's key: %v", err)
	}
	// Material under it, as a record put back from outside would be.
	mat, err := m.Material(Ref{region, numbered(2)}, 1)
	if err != nil {
		t.Fatal(err)
	}
	sound := *mat
	mat.DomainKey = source
	put := func(mat *Material) {
		txn := m.NewTxn()
		txn.PutMaterial(mat, AnyRevision)
		txn.kept = nil
		if _, err := txn.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	put(mat)
	if err := m.ForgetDomainKey(ctx, source, destroy); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), numbered(2).String()) {
		t.Errorf("while a material needs it: %v", err)
	}
	put(&sound)
	failed := errors.New("no token")
	if err := m.ForgetDomainKey(ctx, source, func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	if destroyed != 0 {
		t.Fatalf("destroyed %d times", destroyed)
	}
	if err := m.ForgetDomainKey(ctx, source, destroy); err != nil || destroyed != 1 {
		t.Errorf("destroyed %d times, %v", destroyed, err)
	}
	if keys, err := m.RetiredDomainKeys(); len(keys) != 0 || err != nil {
		t.Errorf("%+v, %v", keys, err)
	}
	if err := m.ForgetDomainKey(ctx, source, destroy); !errors.Is(err, ErrInvalid) || destroyed != 1 {
		t.Errorf("twice: %v", err)
	}
}

// TestOneRewrapAtATime: the second is refused while the first runs.
func TestOneRewrapAtATime(t *testing.T) {
	m := newMigration(t, 1)
	m.begin()
	ctx := context.Background()
	var inside []error
	_, err := m.Rewrap(ctx, func(p RewrapProgress) {
		if p.Phase != PhaseChecking || inside != nil {
			return
		}
		_, err := m.Rewrap(ctx, nil)
		inside = append(inside, err, m.RewrapBack(ctx), m.RelocateRewrap(ctx, placeB), m.BeginRewrap(ctx, Rewrap{}),
			m.ForgetDomainKey(ctx, m.target, nil))
	})
	if err != nil || len(inside) != 5 {
		t.Fatal(err, inside)
	}
	for i, err := range inside {
		if !errors.Is(err, ErrRewrapping) {
			t.Errorf("call %d: %v", i, err)
		}
	}
}

// TestEverythingWrappedIsMoved: materials are the only records with a key that the root has
// wrapped. Whoever adds another kind has to move it, too.
func TestEverythingWrappedIsMoved(t *testing.T) {
	wrapped := 0
	for kind, name := range kindNames {
		if name == "" || Kind(kind) == KindHeader {
			continue
		}
		n := Name{Kind: Kind(kind), Account: account, Region: region, Name: "n"}
		v, _ := ParseRecord(n, []byte{schemaVersion, 0xa0})
		typ := reflect.TypeOf(v)
		for typ != nil && typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ == nil || typ.Kind() != reflect.Struct {
			continue
		}
		for i := range typ.NumField() {
			if typ.Field(i).Type == reflect.TypeOf(hsm.DomainKeyID{}) {
				wrapped++
				if Kind(kind) != KindMaterial {
					t.Errorf("records of kind %s name a domain key and are not moved by Rewrap", name)
				}
			}
		}
	}
	if wrapped == 0 {
		t.Error("the test finds nothing, not even materials")
	}
}
