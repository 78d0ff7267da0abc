package keystore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"keymill/hsm"
	"keymill/hsm/arena"
)

// # The bulk of a move
//
// One goroutine reads the materials in the order of their names and puts those that are to
// be moved together to batches; a few others take a batch each, have its KEKs
// decrypted in one call of the root and encrypted in another, and commit it in pieces. So
// while one batch is at the disk, others are at the root, and its sessions stay busy.
//
// A batch is as large as the root takes batchTime for, up to maxBatch: a token queues what
// it cannot do at once, and somebody who needs one KEK to answer a request waits behind
// what was queued before.
//
// An error of the root that may pass is tried again a few times, and ends the run then; the
// run can be begun again. One that will not pass (a wrapped KEK that is damaged)
// concerns one material: it is noted, the others go on, and the run ends
// unfinished, so that the source is not given up while something needs it.

const (
	movers    = 4
	minBatch  = 16
	maxBatch  = 512
	batchTime = 50 * time.Millisecond
	// pageSize is how many materials are read under one iterator of the storage
	// engine, which keeps files alive.
	pageSize = 1024
	// piece is how many materials one commit puts back.
	piece = 100
	// rootTries is how often the root is asked, rootPause the wait in between: a
	// token that is reset, or a process that is started again, needs about a second.
	rootTries = 5
	rootPause = time.Second
	// maxUnmoved bounds the list of materials that cannot be moved.
	maxUnmoved = 20
)

// The phases of a move.
const (
	PhaseCounting = "counting"
	PhaseMoving   = "moving"
	PhaseChecking = "checking"
	PhaseDone     = "done"
)

// RewrapProgress says how far a run of Rewrap has come.
type RewrapProgress struct {
	Phase     string `json:"phase"`
	Materials uint64 `json:"materials"` // looked at in this phase
	Total     uint64 `json:"total"`     // to be moved when the run began
	Moved     uint64 `json:"moved"`     // of those, by this run
	Unmoved   uint64 `json:"unmoved"`   // that cannot be
}

// Rewrap does what is left of the move that has begun: all of it, or as much as it could
// with an error that says what stopped it. It may be called again then, by this process
// or the next. The store stays in use meanwhile. progress may be nil; it is called often
// and by several goroutines, one at a time. ErrNoRewrap: no move has begun.
func (s *Store) Rewrap(ctx context.Context, progress func(RewrapProgress)) (RewrapProgress, error) {
	if !s.rewrapping.TryLock() {
		return RewrapProgress{}, ErrRewrapping
	}
	defer s.rewrapping.Unlock()
	p, err := s.PendingRewrap()
	if err != nil {
		return RewrapProgress{}, err
	}
	if p == nil {
		return RewrapProgress{}, ErrNoRewrap
	}
	m := &mover{s: s, target: p.Target, tell: progress}
	m.size.Store(minBatch)
	err = m.run(ctx)
	if err == nil {
		if err = s.finishRewrap(ctx, p); err == nil {
			m.update(func(p *RewrapProgress) { p.Phase = PhaseDone })
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.progress, err
}

// eachMaterial calls fn with every material, in order, a page at a time.
func (s *Store) eachMaterial(ctx context.Context, fn func(*Material) error) error {
	prefix := []byte{byte(KindMaterial)}
	var after []byte
	for {
		var page []*Material
		more := false
		err := s.scan(prefix, after, func(r *raw) (bool, error) {
			if len(page) == pageSize {
				more = true
				return false, nil
			}
			plain, err := r.open()
			if err != nil {
				return false, err
			}
			m, err := decodeMaterial(&r.name, plain)
			arena.Wipe(plain)
			if err != nil {
				return false, tampered(r.key, err.Error())
			}
			m.Revision = r.rev
			page = append(page, m)
			after = bytes.Clone(r.key)
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, m := range page {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(m); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
}

// A mover is one run of a move.
type mover struct {
	// Immutable.
	s      *Store
	target hsm.DomainKeyID
	tell   func(RewrapProgress)

	size atomic.Int64 // of the next batch

	mu       sync.Mutex
	progress RewrapProgress // guarded by mu
	unmoved  []error        // guarded by mu
}

func (m *mover) update(change func(*RewrapProgress)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.progress)
	if m.tell != nil {
		m.tell(m.progress)
	}
}

// run moves everything and checks that everything was moved.
func (m *mover) run(ctx context.Context) error {
	total, err := m.count(ctx, PhaseCounting)
	if err != nil {
		return err
	}
	m.update(func(p *RewrapProgress) { p.Total = total })
	if total > 0 {
		if err := m.moveAll(ctx); err != nil {
			return err
		}
	}
	if err := errors.Join(m.unmoved...); err != nil {
		return fmt.Errorf("keystore: %d materials cannot be moved; delete their keys, or restore a backup: %w", m.progress.Unmoved, err)
	}
	left, err := m.count(ctx, PhaseChecking)
	if err != nil {
		return err
	}
	if left > 0 {
		return fmt.Errorf("keystore: %d materials are still under another domain key; run it once more", left)
	}
	// What was looked at must be on disk before the source is given up.
	return m.s.waitSettled()
}

// count returns how many materials are to be moved.
func (m *mover) count(ctx context.Context, phase string) (foreign uint64, err error) {
	m.update(func(p *RewrapProgress) { p.Phase, p.Materials = phase, 0 })
	err = m.s.eachMaterial(ctx, func(mat *Material) error {
		if mat.DomainKey != m.target {
			foreign++
		}
		m.looked()
		return nil
	})
	return foreign, err
}

// looked counts a material, and tells now and then.
func (m *mover) looked() {
	m.mu.Lock()
	m.progress.Materials++
	tell := m.progress.Materials%pageSize == 0
	m.mu.Unlock()
	if tell {
		m.update(func(*RewrapProgress) {})
	}
}

// moveAll makes one pass over all materials.
func (m *mover) moveAll(ctx context.Context) error {
	m.update(func(p *RewrapProgress) { p.Phase, p.Materials = PhaseMoving, 0 })
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan []*Material)
	var wg sync.WaitGroup
	for range movers {
		wg.Go(func() {
			for batch := range batches {
				if err := m.moveBatch(ctx, batch); err != nil {
					cancel(err)
				}
			}
		})
	}
	var batch []*Material
	send := func() error {
		select {
		case batches <- batch:
			batch = nil
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := m.s.eachMaterial(ctx, func(mat *Material) error {
		m.looked()
		if mat.DomainKey == m.target {
			return nil
		}
		batch = append(batch, mat)
		if len(batch) < int(m.size.Load()) {
			return nil
		}
		return send()
	})
	if err == nil && len(batch) > 0 {
		err = send()
	}
	close(batches)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause // the first thing that went wrong
	}
	return err
}

// moveBatch moves materials until each is moved, gone or known not to move.
func (m *mover) moveBatch(ctx context.Context, batch []*Material) error {
	for len(batch) > 0 {
		wrapped, err := m.wrap(ctx, batch)
		if err != nil {
			return err
		}
		batch = nil
		for part := range slices.Chunk(wrapped, piece) {
			again, err := m.put(ctx, part)
			if err != nil {
				return err
			}
			batch = append(batch, again...)
		}
	}
	return nil
}

// wrap returns the materials with their KEKs under the target, without those that cannot
// be moved.
func (m *mover) wrap(ctx context.Context, batch []*Material) ([]*Material, error) {
	var moved []*Material
	began := time.Now()
	for try := 1; ; try++ {
		again, passing, err := m.wrapOnce(ctx, batch, &moved)
		if err != nil {
			return nil, err
		}
		if len(again) == 0 {
			break
		}
		if try == rootTries {
			return nil, fmt.Errorf("keystore: the root of trust failed %d times: %w", try, passing)
		}
		m.size.Store(minBatch)
		batch = again
		if err := m.s.pause(ctx, rootPause); err != nil {
			return nil, err
		}
	}
	if took := time.Since(began); took > 0 {
		fits := int64(float64(len(moved)) * float64(batchTime) / float64(took))
		m.size.Store(max(minBatch, min(fits, 2*m.size.Load(), maxBatch)))
	}
	return moved, nil
}

// wrapOnce asks the root for all of a batch, each domain key's part in a call of its own. It
// appends to moved what worked and returns what may work later, and why it did not.
func (m *mover) wrapOnce(ctx context.Context, batch []*Material, moved *[]*Material) (again []*Material, passing, err error) {
	parts := make(map[hsm.DomainKeyID][]*Material)
	for _, mat := range batch {
		parts[mat.DomainKey] = append(parts[mat.DomainKey], mat)
	}
	failed := func(mat *Material, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if hsm.Classify(err) != hsm.Fatal {
			again, passing = append(again, mat), err
			return nil
		}
		return m.cannot(mat, err)
	}
	for source, part := range parts {
		keks := make([]hsm.Item, len(part))
		for i, mat := range part {
			keks[i].In = mat.WrappedKEK
		}
		m.s.root.Decrypt(ctx, source, keks)
		var open []*Material
		var items []hsm.Item
		for i, mat := range part {
			switch k := &keks[i]; {
			case k.Err == nil && len(k.Out) == hsm.KEKSize:
				open, items = append(open, mat), append(items, hsm.Item{In: k.Out})
				continue
			case k.Err == nil:
				arena.Wipe(k.Out)
				k.Err = errNoItem
				fallthrough
			default:
				if err == nil {
					err = failed(mat, k.Err)
				}
			}
		}
		if err == nil && len(items) > 0 {
			m.s.root.Encrypt(ctx, m.target, items)
		}
		for i, mat := range open {
			arena.Wipe(items[i].In)
			switch it := &items[i]; {
			case err != nil:
			case it.Err == nil && len(it.Out) > 0:
				next := *mat
				next.DomainKey, next.WrappedKEK = m.target, it.Out
				*moved = append(*moved, &next)
			case it.Err == nil:
				err = errNoItem
			default:
				err = failed(mat, it.Err)
			}
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return again, passing, nil
}

// cannot notes a material that the root will never move. When there are many of them, it is
// not the materials' fault.
func (m *mover) cannot(mat *Material, err error) error {
	err = fmt.Errorf("%s: %w", materialName(mat.Ref, mat.Version), err)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.Unmoved++
	m.unmoved = append(m.unmoved, err)
	if len(m.unmoved) > maxUnmoved {
		return fmt.Errorf("keystore: more than %d materials cannot be moved: %w", maxUnmoved, errors.Join(m.unmoved...))
	}
	return nil
}

// put commits materials that were moved. It returns those that somebody else has changed
// since, as they are now, unless they are under the target or gone.
func (m *mover) put(ctx context.Context, part []*Material) (again []*Material, err error) {
	for len(part) > 0 {
		txn := m.s.NewTxn()
		n, size := 0, 0
		for _, mat := range part {
			if size += len(mat.Sealed) + len(mat.WrappedKEK) + 1024; n > 0 && size > MaxCommitBytes {
				break
			}
			txn.PutMaterial(mat, mat.Revision)
			n++
		}
		_, err := txn.Commit(ctx)
		if err == nil {
			m.update(func(p *RewrapProgress) { p.Moved += uint64(n) })
			part = part[n:]
			continue
		}
		if !errors.Is(err, ErrConflict) {
			return nil, err
		}
		kept, changed, err := m.compare(part, err)
		if err != nil {
			return nil, err
		}
		part, again = kept, append(again, changed...)
	}
	return again, nil
}

// compare reads again what could not be committed for the reason given. It returns what
// is as it was and what must be moved once more; something must have changed.
func (m *mover) compare(part []*Material, reason error) (kept, changed []*Material, err error) {
	gone := uint64(0)
	for _, mat := range part {
		now, err := m.s.Material(mat.Ref, mat.Version)
		switch {
		case errors.Is(err, ErrNotFound):
			gone++
		case err != nil:
			return nil, nil, err
		case now.Revision == mat.Revision:
			kept = append(kept, mat)
		case now.DomainKey == m.target:
			gone++
		default:
			changed = append(changed, now)
		}
	}
	if len(kept) < len(part) {
		m.update(func(p *RewrapProgress) { p.Moved += gone })
		return kept, changed, nil
	}
	// Nobody changed anything: a material whose key does not exist.
	var rest []*Material
	for _, mat := range part {
		if _, err := m.s.Key(mat.Ref); errors.Is(err, ErrNotFound) {
			if err := m.cannot(mat, errors.New("its key does not exist")); err != nil {
				return nil, nil, err
			}
		} else if err != nil {
			return nil, nil, err
		} else {
			rest = append(rest, mat)
		}
	}
	if len(rest) == len(part) {
		return nil, nil, reason
	}
	return rest, nil, nil
}

// pause waits, unless the context ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
