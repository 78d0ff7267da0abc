package keystore

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"keymill/hsm/arena"
)

// # The commit pipeline
//
// A commit passes four steps. The first two run under Store.mu, one commit at
// a time; the last two outside, many at a time.
//
//	check    read the records the transaction expects something of, compare
//	         revisions, work out the derived records (indexes, counters)
//	apply    take the next revision, seal all changes with it, hand the batch to
//	         the storage engine, which writes it to its log buffer and makes it
//	         visible to readers, but does not wait for the disk
//	sync     wait until the log is on disk up to this batch
//	settle   wait until the commit before this one has settled, then publish
//	         the revision as durable and answer
//
// Since nobody holds mu while the disk works, commits that arrive during one
// fsync are all applied before the next, and share it: the slower the disk, the
// larger the group. There is no timer.
//
// The invariants:
//
//  1. Revisions are consecutive, and the log holds commits in the order of
//     their revisions, because apply runs under mu.
//  2. Whoever checks under mu sees every earlier commit, settled or not. A
//     commit may so build on one that is not on disk yet. By (1) the earlier is
//     in front of it in the log, so a crash that keeps the later keeps both; and
//     by settling in order, the later is never acknowledged without the earlier.
//  3. durable only grows, by one, and only after everything up to it is on disk.
//     The storage engine may wake the waiters of one fsync in any order; each
//     waits for its predecessor, so the watermark has no holes.
//  4. A failure sticks. When sync fails for one commit, it and all that follow
//     fail to settle, the store is poisoned and refuses new ones. After a failed
//     fsync the kernel may have dropped the dirty pages and a second fsync would
//     lie, so nothing is tried again: what is on disk is learnt by opening the
//     store again.
//
// A reader takes no lock. It reads what is visible, which may be newer than what
// is durable. The revision in front of every sealed record tells: one atomic load
// and one comparison when it is old enough. When it is not, or when a record is
// absent (a deletion leaves no revision to compare), the reader waits for the
// newest commit as of then. It is stored in tail before the batch is applied,
// so whoever sees an effect of a commit finds that commit, or a later one, in
// tail. So a reader never sees what a crash could take back, and after a failure
// it sees only what had settled before. The same holds for ErrConflict.
//
// Rejected: assigning revisions outside mu and validating optimistically (the
// indexes and counters would conflict all the time); one goroutine that
// commits for all (two hand-overs per commit, and the checks would run on it
// anyway); taking the highest synced revision as the watermark (right only as
// long as the engine syncs prefixes; the chain costs nothing measurable).

const (
	// MaxChanges bounds the records that one commit writes or deletes, indexes
	// and the audit record included. It is what an etcd transaction takes.
	MaxChanges = 128
	// MaxCommitBytes bounds the sealed bytes of one commit.
	MaxCommitBytes = 1 << 20
)

// An inflight is a commit that was applied and may not have settled.
type inflight struct {
	rev  uint64
	done chan struct{} // closed when settled or failed; nil of a commit without changes
	err  error         // read after done

	// Owned by the committing goroutine.
	prev  *inflight // nil when it had settled already, and in the end
	batch *pebble.Batch
	event Event
}

// A change is one record to be written, or deleted.
type change struct {
	key     []byte
	plain   []byte
	deleted bool
	derived bool // may be written again in the same commit
}

// A writer collects the changes of the commit that holds Store.mu.
type writer struct {
	s       *Store
	changes []change
	index   map[string]int
	keys    map[Ref]struct{} // keys that must exist in the end
	fresh   map[Ref]struct{} // keys that did not exist before this commit
}

func (w *writer) reset() {
	for i := range w.changes {
		arena.Wipe(w.changes[i].plain)
	}
	clear(w.changes)
	w.changes = w.changes[:0]
	if w.index == nil {
		w.index, w.keys, w.fresh = make(map[string]int), make(map[Ref]struct{}), make(map[Ref]struct{})
	}
	clear(w.index)
	clear(w.keys)
	clear(w.fresh)
}

// committed reads a record as the commits before this one left it. Absent is
// revision 0.
func (w *writer) committed(key []byte) (plain []byte, rev uint64, err error) {
	raw, closer, err := w.s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, 0, nil
	} else if err != nil {
		return nil, 0, w.s.readError(key, err)
	}
	defer closer.Close()
	return openRecord(w.s.key, key, raw)
}

// current reads a record as this commit would leave it so far. The caller must
// not keep the result.
func (w *writer) current(key []byte) (plain []byte, ok bool, err error) {
	if i, found := w.index[string(key)]; found {
		c := w.changes[i]
		return c.plain, !c.deleted, nil
	}
	plain, rev, err := w.committed(key)
	return plain, rev != 0, err
}

// expect compares the committed revision of a record and returns its value.
func (w *writer) expect(key []byte, rev uint64) (plain []byte, err error) {
	plain, at, err := w.committed(key)
	if err != nil {
		return nil, err
	}
	if rev != AnyRevision && at != rev {
		return nil, fmt.Errorf("%w: %s is at revision %d, not %d", ErrConflict, describe(key), at, rev)
	}
	return plain, nil
}

// existing is expect for a record that must be there.
func (w *writer) existing(key []byte, rev uint64) (plain []byte, err error) {
	plain, err = w.expect(key, rev)
	if err == nil && plain == nil {
		err = fmt.Errorf("%w: %s does not exist", ErrConflict, describe(key))
	}
	return plain, err
}

func (w *writer) put(key, plain []byte, derived bool) error {
	return w.add(change{key: key, plain: plain, derived: derived})
}

func (w *writer) delete(key []byte, derived bool) error {
	return w.add(change{key: key, deleted: true, derived: derived})
}

func (w *writer) add(c change) error {
	i, found := w.index[string(c.key)]
	switch {
	case !found:
		w.index[string(c.key)] = len(w.changes)
		w.changes = append(w.changes, c)
	case c.derived && w.changes[i].derived:
		arena.Wipe(w.changes[i].plain)
		w.changes[i] = c
	default:
		arena.Wipe(c.plain)
		return fmt.Errorf("%w: %s is written twice", ErrInvalid, describe(c.key))
	}
	return nil
}

// finish checks what can only be known when all changes are there.
func (w *writer) finish() error {
	for ref := range w.keys {
		key := keyName(ref).key()
		if _, ok, err := w.current(key); err != nil {
			return err
		} else if !ok {
			return fmt.Errorf("%w: %s does not exist", ErrConflict, describe(key))
		}
	}
	size := 0
	for i := range w.changes {
		size += len(w.changes[i].key) + len(w.changes[i].plain) + sealOverhead
	}
	if len(w.changes) > MaxChanges || size > MaxCommitBytes {
		return fmt.Errorf("%w: %d changes, %d bytes", ErrTooLarge, len(w.changes), size)
	}
	return nil
}

// Commit makes all changes of the transaction, or none. On return without
// error they are on disk, and every later read sees them. A transaction can be
// committed once.
//
// ErrConflict, ErrTooLarge, ErrInvalid and errors of reading mean that nothing
// was changed. ErrFailed means that it is not known: the store must be opened
// again. The context is looked at before anything is applied; from then on the
// commit takes its course.
func (t *Txn) Commit(ctx context.Context) (uint64, error) {
	if t.used {
		return 0, fmt.Errorf("%w: the transaction was committed before", ErrInvalid)
	}
	t.used = true
	s := t.s
	fl, err := t.apply(ctx)
	if errors.Is(err, errRetired) {
		fl, err = t.applyRewrapped(ctx)
	}
	t.wipe()
	if err != nil {
		if errors.Is(err, ErrConflict) {
			// What we conflict with must not be taken back by a crash.
			if failed := s.waitSettled(); failed != nil {
				return 0, failed
			}
		}
		return 0, err
	}
	if fl.done == nil { // nothing to write: true when what was there is durable
		<-fl.prev.done
		return fl.rev, fl.prev.err
	}
	return fl.rev, s.settle(fl)
}

// apply is the part of Commit under mu.
func (t *Txn) apply(ctx context.Context) (*inflight, error) {
	if t.err != nil {
		return nil, t.err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, w := t.s, &t.s.w
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if t.retired() {
		return nil, errRetired // nothing was done: apply may be called again
	}
	w.reset()
	defer w.reset()
	for _, op := range t.ops {
		if err := op(w); err != nil {
			return nil, err
		}
	}
	prev := s.tail.Load()
	if t.audit != nil {
		n := Name{Kind: KindAudit, Number: prev.rev + 1}
		value, err := encode(&bytesRecord{t.audit})
		if err != nil {
			return nil, err
		}
		if err := w.put(n.key(), value, false); err != nil {
			return nil, err
		}
	}
	if err := w.finish(); err != nil {
		return nil, err
	}
	if len(w.changes) == 0 {
		return &inflight{rev: prev.rev, prev: prev}, nil
	}

	fl := &inflight{rev: prev.rev + 1, done: make(chan struct{}), batch: s.db.NewBatch()}
	if prev.rev > s.durable.Load() {
		fl.prev = prev
	}
	fl.event = w.event(fl.rev)
	for i := range w.changes {
		c := &w.changes[i]
		if c.deleted {
			fl.batch.Delete(c.key, nil)
			continue
		}
		op := fl.batch.SetDeferred(len(c.key), len(c.plain)+sealOverhead)
		copy(op.Key, c.key)
		sealRecord(op.Value[:0], s.key, c.key, c.plain, fl.rev)
		op.Finish()
	}
	revisionKey := []byte{byte(KindRevision)}
	fl.batch.Set(revisionKey, sealRecord(nil, s.key, revisionKey, revisionValue, fl.rev), nil)
	if t.move != nil {
		t.move.write(fl.batch)
	}

	s.tail.Store(fl) // before anybody can see an effect
	var err error
	if s.noSync {
		err = s.db.Apply(fl.batch, pebble.NoSync)
	} else {
		err = s.db.ApplyNoSyncWait(fl.batch, pebble.Sync)
	}
	// The engine reports what it cannot go on from to the logger, too, and
	// returns nil; see bridge.
	if err == nil {
		err = s.Err()
	}
	if err != nil {
		fl.err = s.poison(err)
		close(fl.done)
		return nil, fl.err
	}
	if t.move != nil {
		t.move.apply(s)
	}
	return fl, nil
}

var revisionValue = must(encode(&revisionRecord{}))

// settle waits for the disk and for the commits before, and publishes.
func (s *Store) settle(fl *inflight) error {
	var err error
	if !s.noSync {
		err = fl.batch.SyncWait()
	}
	if fl.prev != nil {
		<-fl.prev.done
		err = errors.Join(err, fl.prev.err)
		fl.prev = nil
	}
	if err == nil {
		s.durable.Store(fl.rev)
		s.history.add(fl.event)
		err = fl.batch.Close()
	}
	if err != nil {
		err = s.poison(err)
	}
	fl.batch, fl.event = nil, Event{}
	fl.err = err
	close(fl.done)
	return err
}

// waitRevision returns once what a reader found at the revision is durable.
func (s *Store) waitRevision(rev uint64) error {
	if rev <= s.durable.Load() {
		return nil
	}
	return s.waitSettled()
}

// waitSettled returns once everything visible by now is durable.
func (s *Store) waitSettled() error {
	fl := s.tail.Load()
	if fl.rev <= s.durable.Load() {
		return nil
	}
	<-fl.done
	return fl.err
}
