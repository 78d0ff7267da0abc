package keystore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// TestRewrapRootFaults breaks a root during a run. Each row says whether the run finishes
// all the same; when it does not, the store serves on, and another run finishes.
func TestRewrapRootFaults(t *testing.T) {
	const keys = 60
	type on func(*migration) *hsmtest.Memory
	oldRoot := func(m *migration) *hsmtest.Memory { return m.now.a }
	newRoot := func(m *migration) *hsmtest.Memory { return m.now.b }
	for _, row := range []struct {
		name     string
		root     on
		op       hsmtest.Op
		fault    hsmtest.Fault
		finishes bool
		want     error
		unmoved  bool
	}{
		{"one decryption fails", oldRoot, hsmtest.Decrypt, hsmtest.Fault{Skip: 1, Err: hsm.ErrDevice}, true, nil, false},
		{"some decryptions of a call fail", oldRoot, hsmtest.Decrypt, hsmtest.Fault{Err: hsm.ErrSession, Items: []int{1, 3}}, true, nil, false},
		{"one encryption fails", newRoot, hsmtest.Encrypt, hsmtest.Fault{Skip: 2, Err: hsm.ErrTimeout}, true, nil, false},
		{"encryptions fail after they were done", newRoot, hsmtest.Encrypt, hsmtest.Fault{Skip: 1, Count: 2, Err: hsm.ErrBusy, TookEffect: true}, true, nil, false},
		{"the old root is gone for good", oldRoot, hsmtest.Decrypt, hsmtest.Fault{Skip: 1, Count: -1, Err: hsm.ErrTokenMissing}, false, hsm.ErrTokenMissing, false},
		{"the new root is gone for good", newRoot, hsmtest.Encrypt, hsmtest.Fault{Skip: 1, Count: -1, Err: hsm.ErrDevice}, false, hsm.ErrDevice, false},
		{"a KEK is damaged", oldRoot, hsmtest.Decrypt, hsmtest.Fault{Err: hsm.ErrBadWrapped, Items: []int{2}}, false, hsm.ErrBadWrapped, true},
		{"all KEKs are damaged", oldRoot, hsmtest.Decrypt, hsmtest.Fault{Count: -1, Err: hsm.ErrBadWrapped}, false, hsm.ErrBadWrapped, true},
		{"the domain key is used up", newRoot, hsmtest.Encrypt, hsmtest.Fault{Skip: 1, Count: -1, Err: hsm.ErrDomainKeyUsedUp}, false, hsm.ErrDomainKeyUsedUp, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := newMigration(t, keys)
			m.begin()
			row.root(m).Inject(row.op, row.fault)
			p, err := m.Rewrap(context.Background(), nil)
			if row.finishes {
				if err != nil || p.Moved != 2*keys {
					t.Fatalf("%+v, %v", p, err)
				}
				m.checkDone()
				return
			}
			if !errors.Is(err, row.want) {
				t.Fatalf("got %v, want %v", err, row.want)
			}
			if (p.Unmoved > 0) != row.unmoved {
				t.Errorf("%+v", p)
			}
			if row.unmoved && !strings.Contains(err.Error(), "material") {
				t.Errorf("the error names no material: %v", err)
			}
			if m.Header().DomainKey == m.target {
				t.Error("the header has moved")
			}
			row.root(m).Heal()
			m.checkSecrets("after a run that failed")
			m.newKey(2000)
			if p, err = m.Rewrap(context.Background(), nil); err != nil {
				t.Fatal(err)
			}
			m.checkDone()
		})
	}
}

// TestRewrapHeaderFaults breaks the roots when only the header is left to do.
func TestRewrapHeaderFaults(t *testing.T) {
	for _, row := range []struct {
		name string
		old  bool
		op   hsmtest.Op
	}{
		{"old root unwraps", true, hsmtest.Decrypt},
		{"new root wraps", false, hsmtest.Encrypt},
		{"new root unwraps again", false, hsmtest.Decrypt},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := newMigration(t, 0)
			m.begin()
			root := m.now.b
			if row.old {
				root = m.now.a
			}
			root.Inject(row.op, hsmtest.Fault{Err: hsm.ErrDevice})
			if _, err := m.Rewrap(context.Background(), nil); !errors.Is(err, hsm.ErrDevice) {
				t.Fatalf("%v", err)
			}
			m.close()
			m.open(m.fs, true, true)
			if p, err := m.PendingRewrap(); err != nil || p == nil {
				t.Fatalf("%+v, %v", p, err)
			}
			if _, err := m.Rewrap(context.Background(), nil); err != nil {
				t.Fatal(err)
			}
			m.checkDone()
		})
	}
}

// TestRewrapIsCancelled: a run ends soon after its context, and the next goes on.
func TestRewrapIsCancelled(t *testing.T) {
	m := newMigration(t, 200)
	m.begin()
	ctx, cancel := context.WithCancel(context.Background())
	p, err := m.Rewrap(ctx, func(p RewrapProgress) {
		if p.Moved > 0 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || p.Moved == 0 || p.Moved == p.Total {
		t.Fatalf("%+v, %v", p, err)
	}
	// The rest begins where this one ended.
	q, err := m.Rewrap(context.Background(), nil)
	if err != nil || q.Total != p.Total-p.Moved || q.Moved != q.Total {
		t.Fatalf("%+v after %+v, %v", q, p, err)
	}
	m.checkDone()
}

// TestRewrapConflicts makes somebody else change materials between the reading and the
// commit of a run.
func TestRewrapConflicts(t *testing.T) {
	m := newMigration(t, 40)
	ctx := context.Background()
	m.begin()
	// While the first call of the new root is held up, things happen to what is in it.
	release := make(chan struct{})
	m.now.b.Inject(hsmtest.Encrypt, hsmtest.Fault{Block: release})
	result := make(chan error, 1)
	calls := m.now.b.Calls(hsmtest.Encrypt)
	go func() { _, err := m.Rewrap(ctx, nil); result <- err }()
	eventually(t, "the run's call", func() bool { return m.now.b.Calls(hsmtest.Encrypt) > calls })
	for i := range 40 {
		ref := Ref{region, numbered(i)}
		switch i % 4 {
		case 0: // gone
			k, err := m.Key(ref)
			if err != nil {
				t.Fatal(err)
			}
			txn := m.NewTxn()
			txn.DeleteKey(k)
			if _, err := txn.Commit(ctx); err != nil {
				t.Fatal(err)
			}
		case 1: // written again, as it was: still under the source, like a restored record
			mat, err := m.Material(ref, 1)
			if err != nil {
				t.Fatal(err)
			}
			if mat.DomainKey == m.target {
				continue
			}
			txn := m.NewTxn()
			txn.PutMaterial(mat, mat.Revision)
			txn.kept = nil // as if by a commit from before begin
			if _, err := txn.Commit(ctx); err != nil {
				t.Fatal(err)
			}
		case 2: // replaced, under the target
			id := Identity{account, region, testKey(0).Spec, ref.ID, 2}
			mat, err := m.SealMaterial(ctx, id, []byte(secretOf(id)))
			if err != nil {
				t.Fatal(err)
			}
			txn := m.NewTxn()
			txn.PutMaterial(mat, AnyRevision)
			if _, err := txn.Commit(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(release)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	kept := m.ids[:0]
	for _, id := range m.ids {
		if int(id.ID[1])%4 != 0 {
			kept = append(kept, id)
		}
	}
	m.ids = kept
	m.checkDone()
}

// TestOrphanIsNamed: material whose key is missing cannot be written back; the run says
// so instead of trying for ever.
func TestOrphanIsNamed(t *testing.T) {
	m := newMigration(t, 3)
	m.begin()
	if err := m.db.Delete(keyName(Ref{region, numbered(1)}).key(), nil); err != nil {
		t.Fatal(err)
	}
	p, err := m.Rewrap(context.Background(), nil)
	if err == nil || p.Unmoved != 2 || !strings.Contains(err.Error(), numbered(1).String()) {
		t.Errorf("%+v, %v", p, err)
	}
}

// A camera takes what the disk would hold after a power failure just before the next
// matching operations.
type camera struct {
	fs    *vfs.MemFS
	every int64
	count atomic.Int64
	on    atomic.Bool

	mu   sync.Mutex
	rng  *rand.Rand
	shot []*vfs.MemFS
}

func (c *camera) String() string { return "camera" }

func (c *camera) MaybeError(op errorfs.Op) error {
	write := isSync(op) || op.Kind == errorfs.OpFileWrite
	if !c.on.Load() || !write || c.count.Add(1)%c.every != 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, unsynced := range []int{0, 50, 100} {
		c.shot = append(c.shot, c.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: c.rng}))
	}
	return nil
}

// TestRewrapCrashes loses power at the writes and syncs of a whole move, from before its
// record to after its end. Each time the store opens (with both roots, or with
// the one that its state allows), has every secret, and another run finishes the move.
func TestRewrapCrashes(t *testing.T) {
	m := newMigration(t, 70)
	m.close()
	mem := m.fs.(*vfs.MemFS)
	cam := &camera{fs: mem, every: 1, rng: rand.New(rand.NewPCG(1, 2))}
	if raceEnabled {
		cam.every = 7
	}
	m.open(errorfs.Wrap(mem, cam), true, true)
	cam.on.Store(true)
	m.begin()
	if _, err := m.Rewrap(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	cam.on.Store(false)
	target := m.target
	m.checkDone()
	m.close()
	states := map[string]int{}
	for i, shot := range append(cam.shot, mem) {
		c := &migration{t: t, a: m.a, b: m.b, ids: m.ids, target: target}
		c.open(shot, true, true)
		p, err := c.PendingRewrap()
		if err != nil {
			t.Fatal(err)
		}
		state := "pending"
		switch {
		case p == nil && c.Header().DomainKey == target:
			state = "done"
			c.checkDone() // needs the new root alone
		case p == nil:
			state = "not begun"
			c.close()
			c.open(shot, true, false) // needs the old root alone
		case c.Header().DomainKey == target:
			t.Fatalf("crash %d: the header has moved before the end", i)
		default:
			if n := c.count(target); n > 0 && n < len(c.ids) {
				state = "in the middle"
			}
			// The old root alone opens the store, and serves what has not moved.
			c.close()
			c.open(shot, true, false)
			c.close()
			if err := c.tryOpen(shot, false, true); !errors.Is(err, ErrWrongRoot) {
				t.Errorf("crash %d: the new root alone: %v", i, err)
			}
			c.open(shot, true, true)
		}
		states[state]++
		c.checkSecrets("after a crash")
		if err := c.Verify(context.Background(), nil); err != nil {
			t.Errorf("crash %d: %v", i, err)
		}
		if state == "pending" || state == "in the middle" {
			c.newKey(4000)
			if _, err := c.Rewrap(context.Background(), nil); err != nil {
				t.Fatalf("crash %d: %v", i, err)
			}
			c.checkDone()
		}
		c.close()
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d crashes: %v", len(cam.shot), states)
	for _, s := range []string{"not begun", "pending", "in the middle", "done"} {
		if states[s] == 0 && !raceEnabled {
			t.Errorf("no crash left the store %s", s)
		}
	}
}

// TestRewrapRecordDisagrees: a record that cannot be read, or names other domain keys than
// the header, stops the start.
func TestRewrapRecordDisagrees(t *testing.T) {
	other, err := encodeRewrap(&Rewrap{Source: hsm.DomainKeyID{1}, Target: hsm.DomainKeyID{2}, From: placeA, To: placeB})
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string][]byte{"other keys": other, "junk": []byte("junk")} {
		m := newMigration(t, 0)
		txn := m.NewTxn()
		txn.Put(pendingRewrap, value, 0)
		if _, err := txn.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		m.close()
		if err := m.tryOpen(m.fs, true, false); !errors.Is(err, ErrTampered) || !strings.Contains(err.Error(), pendingRewrap) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNoKEKStaysInMemory: what the old root decrypts for a move is wiped.
func TestNoKEKStaysInMemory(t *testing.T) {
	m := newMigration(t, 30)
	m.begin()
	spy := &spyRoot{Root: m.root}
	m.Store.root = spy
	if _, err := m.Rewrap(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	if len(spy.seen) < 60 {
		t.Fatalf("%d KEKs seen", len(spy.seen))
	}
	for _, kek := range spy.seen {
		if !bytes.Equal(kek, make([]byte, len(kek))) {
			t.Fatal("a key-encryption key was not wiped")
		}
	}
}

type spyRoot struct {
	hsm.Root
	mu   sync.Mutex
	seen [][]byte
}

func (r *spyRoot) Decrypt(ctx context.Context, id hsm.DomainKeyID, items []hsm.Item) {
	r.Root.Decrypt(ctx, id, items)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, it := range items {
		r.seen = append(r.seen, it.Out)
	}
}
