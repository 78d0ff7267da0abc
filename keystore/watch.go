package keystore

import (
	"context"
	"fmt"
	"sync"
)

// historyCommits is how many commits a watcher may lag behind. A daemon's own
// caches are invalidated by the operations themselves; watching serves other
// rooms, and those that lag read everything again.
const historyCommits = 1024

// historyChanges bounds the history's memory, to some 3 MB: commits may have
// up to MaxChanges changes, most have a handful.
const historyChanges = 16 << 10

// An Event is one commit as a watcher sees it.
type Event struct {
	Revision uint64
	Changes  []Change
}

// A Change names a record that a commit wrote or deleted.
type Change struct {
	Name    Name
	Deleted bool
}

// event lists the changes of a commit.
func (w *writer) event(rev uint64) Event {
	e := Event{Revision: rev, Changes: make([]Change, 0, len(w.changes))}
	for i := range w.changes {
		if n, ok := ParseName(w.changes[i].key); ok {
			e.Changes = append(e.Changes, Change{n, w.changes[i].deleted})
		}
	}
	return e
}

// A history keeps the last durable commits in memory. Commits settle in order,
// so add is called with consecutive revisions.
type history struct {
	mu      sync.Mutex
	events  [historyCommits]Event // guarded by mu; revision r is at r % historyCommits
	changes int                   // guarded by mu; in all events kept
	first   uint64                // guarded by mu; oldest revision kept
	next    uint64                // guarded by mu; the next revision to come
	wake    chan struct{}         // guarded by mu; closed and replaced by add; nil when nobody waits
	closed  bool                  // guarded by mu
}

func (h *history) start(rev uint64) {
	h.first, h.next = rev+1, rev+1
}

func (h *history) add(e Event) {
	h.mu.Lock()
	h.changes += len(e.Changes)
	for h.next-h.first >= historyCommits || h.changes > historyChanges && h.first < h.next {
		oldest := &h.events[h.first%historyCommits]
		h.changes -= len(oldest.Changes)
		*oldest = Event{}
		h.first++
	}
	h.events[e.Revision%historyCommits] = e
	h.next = e.Revision + 1
	h.wakeLocked()
	h.mu.Unlock()
}

func (h *history) close() {
	h.mu.Lock()
	h.closed = true
	h.wakeLocked()
	h.mu.Unlock()
}

func (h *history) wakeLocked() {
	if h.wake != nil {
		close(h.wake)
		h.wake = nil
	}
}

// Watch calls yield with every durable commit from the given revision on, in
// order and each once, as they come. It returns when yield returns false (nil),
// the context ends (its error), the store closes (ErrClosed), or the revision
// is not in memory any more, or was made before the store was opened
// (ErrCompacted). To miss nothing, take r := s.Revision(), read what is of
// interest, and watch from r+1.
func (s *Store) Watch(ctx context.Context, from uint64, yield func(Event) bool) error {
	h := &s.history
	for {
		h.mu.Lock()
		var e Event
		var wake chan struct{}
		var err error
		switch {
		case from < h.first:
			err = fmt.Errorf("%w: %d; the oldest is %d", ErrCompacted, from, h.first)
		case from < h.next:
			e = h.events[from%historyCommits]
		case h.closed:
			err = ErrClosed
		default:
			if h.wake == nil {
				h.wake = make(chan struct{})
			}
			wake = h.wake
		}
		h.mu.Unlock()
		switch {
		case err != nil:
			return err
		case wake == nil:
			if !yield(e) {
				return nil
			}
			from++
		default:
			select {
			case <-wake:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}
