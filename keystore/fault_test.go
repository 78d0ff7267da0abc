package keystore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"keymill/hsm/hsmtest"
)

// A gate holds back matching file operations, and may then fail them.
type gate struct {
	match func(errorfs.Op) bool

	mu   sync.Mutex
	open chan struct{} // operations wait for it when not nil
	err  error         // what they return then
	hits atomic.Int64
}

func (g *gate) String() string { return "gate" }

func (g *gate) MaybeError(op errorfs.Op) error {
	if !g.match(op) {
		return nil
	}
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open != nil {
		g.hits.Add(1)
		<-open
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

// release lets the waiting operations go, with an error if not nil, which
// stays.
func (g *gate) release(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
	if g.open != nil {
		close(g.open)
		g.open = nil
	}
}

func isSync(op errorfs.Op) bool {
	switch op.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo, errorfs.OpFileFlush:
		return true
	}
	return false
}

func walSync(op errorfs.Op) bool { return isSync(op) && strings.HasSuffix(op.Path, ".log") }

var errDisk = errors.New("disk on fire")

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for range 1_000_000 {
		if cond() {
			return
		}
		runtime.Gosched()
	}
	t.Fatalf("%s: did not happen", what)
}

// TestReadersWaitForTheDisk holds back an fsync while commits are under way.
// What they did is visible to the storage engine; but whoever asks must not be
// told before the disk has it. When the fsync fails, everybody gets the failure,
// which is how the test knows that they waited.
func TestReadersWaitForTheDisk(t *testing.T) {
	for _, outcome := range []error{nil, errDisk} {
		t.Run(fmt.Sprint(outcome), func(t *testing.T) {
			g := &gate{match: walSync}
			h := &harness{t: t, root: hsmtest.NewMemory(), fs: errorfs.Wrap(vfs.NewMem(), g)}
			h.open()
			old, gone := testKey(1), testKey(2)
			gone.Revision = h.commit(func(txn *Txn) { txn.PutKey(old, 0); txn.PutKey(gone, 0) })
			settled := h.Revision()

			g.shut()
			fresh := testKey(3)
			results := make(chan error, 2)
			commit := func(build func(*Txn)) {
				txn := h.NewTxn()
				build(txn)
				before := h.tail.Load()
				go func() {
					_, err := txn.Commit(context.Background())
					results <- err
				}()
				eventually(t, "apply", func() bool { return h.tail.Load() != before })
			}
			commit(func(txn *Txn) { txn.PutKey(fresh, 0) })
			commit(func(txn *Txn) { txn.DeleteKey(gone) })

			// Old news is served meanwhile.
			if _, err := h.Key(old.Ref()); err != nil {
				t.Errorf("a settled record: %v", err)
			}
			conflicting := h.NewTxn()
			conflicting.PutKey(fresh, 0)
			asks := []struct {
				name string
				ask  func() error
				want error // after the disk has it
			}{
				{"new record", func() error { _, err := h.Key(fresh.Ref()); return err }, nil},
				{"deleted record", func() error { _, err := h.Key(gone.Ref()); return err }, ErrNotFound},
				{"list", func() error { _, _, err := h.ListKeys(account, region, KeyID{}, false, 9); return err }, nil},
				{"count", func() error { _, err := h.CountKeys(account, region); return err }, nil},
				{"conflict", func() error { _, err := conflicting.Commit(context.Background()); return err }, ErrConflict},
				{"commit of nothing", func() error { _, err := h.NewTxn().Commit(context.Background()); return err }, nil},
			}
			answers := make([]chan error, len(asks))
			for i, a := range asks {
				answers[i] = make(chan error, 1)
				go func() { answers[i] <- a.ask() }()
			}
			for i, a := range asks {
				select {
				case err := <-answers[i]:
					t.Errorf("%s: answered %v before the disk had it", a.name, err)
					answers[i] <- err
				default:
				}
			}
			if h.Revision() != settled {
				t.Errorf("revision %d is published, %d is on disk", h.Revision(), settled)
			}
			g.release(outcome)
			for i, a := range asks {
				want := a.want
				if outcome != nil {
					want = ErrFailed
				}
				if err := <-answers[i]; !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", a.name, err, want)
				}
			}
			for range cap(results) {
				err := <-results
				if outcome == nil && err != nil || outcome != nil && !(errors.Is(err, ErrFailed) && errors.Is(err, errDisk)) {
					t.Errorf("commit: %v", err)
				}
			}
			if outcome != nil {
				h.Close()
				h.Store = nil
			}
		})
	}
}

// TestWriteFaults breaks the disk under running commits in different ways. Each
// row says whether the store may go on, and what was acknowledged must be there
// after the disk is replaced by what it really holds.
func TestWriteFaults(t *testing.T) {
	suffix := func(kinds func(errorfs.Op) bool, ext string) func(errorfs.Op) bool {
		return func(op errorfs.Op) bool { return kinds(op) && strings.HasSuffix(op.Path, ext) }
	}
	isWrite := func(op errorfs.Op) bool {
		return op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpFileWriteAt
	}
	isCreate := func(op errorfs.Op) bool {
		return op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpReuseForWrite
	}
	manifest := func(kinds func(errorfs.Op) bool) func(errorfs.Op) bool {
		return func(op errorfs.Op) bool { return kinds(op) && strings.Contains(op.Path, "MANIFEST") }
	}
	for _, row := range []struct {
		name  string
		match func(errorfs.Op) bool
		fatal bool // the store must refuse further commits
		flush bool // shows only when a table is flushed
	}{
		{"log fsync", walSync, true, false},
		{"log write", suffix(isWrite, ".log"), true, false},
		{"manifest fsync", manifest(isSync), true, true},
		{"manifest write", manifest(isWrite), true, true},
		{"table creation", suffix(isCreate, ".sst"), false, true},
		{"table write", suffix(isWrite, ".sst"), false, true},
		{"table fsync", suffix(isSync, ".sst"), false, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := &gate{match: row.match}
			mem := vfs.NewCrashableMem()
			h := &harness{t: t, root: hsmtest.NewMemory(), fs: errorfs.Wrap(mem, g)}
			fatal := make(chan error, 2)
			o := h.options()
			o.OnFatal = func(err error) { fatal <- err }
			s, err := Open(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			var acked sync.Map
			var failed atomic.Int64
			commit := func(n byte) {
				txn := s.NewTxn()
				txn.PutKey(withoutMaterial(n), 0)
				switch _, err := txn.Commit(context.Background()); {
				case err == nil:
					acked.Store(n, true)
				case errors.Is(err, ErrFailed):
					failed.Add(1)
				default:
					t.Errorf("key %d: %v", n, err)
				}
			}
			for n := range byte(10) {
				commit(n)
			}
			g.release(errDisk)
			if row.flush {
				flushed, err := s.db.AsyncFlush()
				if err == nil && !row.fatal {
					eventually(t, "failed flush", func() bool { return s.db.Metrics().Flush.NumInProgress > 0 || isClosed(flushed) })
				} else if err == nil {
					eventually(t, "poisoning", func() bool { return s.Err() != nil })
				}
			}
			var wg sync.WaitGroup
			for n := byte(10); n < 40; n++ {
				wg.Go(func() { commit(n) })
			}
			wg.Wait()
			if row.fatal {
				commit(200)
				if _, ok := acked.Load(byte(200)); ok {
					t.Error("a commit was acknowledged after the failure")
				}
				if err := <-fatal; !errors.Is(err, ErrFailed) {
					t.Errorf("OnFatal: %v", err)
				}
				if len(fatal) > 0 {
					t.Error("OnFatal was called twice")
				}
			} else if failed.Load() > 0 {
				t.Errorf("%d commits failed, though the log was in order", failed.Load())
			}
			// Settled records can be read in any case.
			if _, err := s.Key(testKey(3).Ref()); err != nil {
				t.Errorf("settled record: %v", err)
			}

			crashed := mem.CrashClone(vfs.CrashCloneCfg{})
			if err := s.Close(); row.fatal && !errors.Is(err, ErrFailed) {
				t.Errorf("close: %v", err)
			}
			g.release(nil)
			again, err := Open(context.Background(), Options{Dir: "store", Root: h.root, fs: crashed})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			acked.Range(func(n, _ any) bool {
				if _, err := again.Key(testKey(n.(byte)).Ref()); err != nil {
					t.Errorf("acknowledged key %d: %v", n, err)
				}
				return true
			})
			if err := again.Verify(context.Background(), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// withoutMaterial is a key that needs none here.
func withoutMaterial(n byte) *Key {
	k := testKey(n)
	k.Origin = "AWS_CLOUDHSM"
	return k
}

// TestReadFaults: a failing or lying disk gives an error that names the record,
// never a wrong answer.
func TestReadFaults(t *testing.T) {
	g := &gate{match: func(op errorfs.Op) bool {
		return op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, ".sst")
	}}
	mem := vfs.NewMem()
	h := &harness{t: t, root: hsmtest.NewMemory(), fs: errorfs.Wrap(mem, g)}
	h.open()
	// Enough that the record asked for lies in a block that Open has not read.
	for n := range byte(40) {
		h.commit(func(txn *Txn) {
			k := withoutMaterial(n)
			txn.PutKey(k, 0)
			txn.PutPolicy(k.Ref(), strings.Repeat("p", 4000), 0)
		})
	}
	ref := withoutMaterial(39).Ref()
	if err := h.db.Flush(); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	g.release(errDisk)
	_, _, err := h.Policy(ref)
	if !errors.Is(err, errDisk) || !strings.Contains(err.Error(), ref.ID.String()) {
		t.Errorf("unreadable: %v", err)
	}
	if h.Err() != nil {
		t.Errorf("a failed read stopped the store: %v", h.Err())
	}
	g.release(nil)
	if _, _, err := h.Policy(ref); err != nil {
		t.Errorf("after the disk recovered: %v", err)
	}
}
