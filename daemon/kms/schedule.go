package kms

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"keymill/keystore"
)

// # What happens by itself
//
// Imported material expires, keys whose waiting period is over are destroyed,
// keys rotate. The store keeps an index of the keys to which something is due;
// one goroutine walks it. It wakes at the next date, and at least every
// scheduleEvery, and takes what is due, the earliest first:
//
//	for every due key   expire   its imported material    not while destruction
//	                    destroy  the key                  is suspended, clock.go
//	                    rotate   the key
//
// Each step gets the key's record as it is then, judges by itself whether its
// date has come, and moves the date when it has done its work, so that the key
// leaves the index. A step that fails leaves the key due: it is tried again,
// after a pause that doubles from setbackFirst to setbackMost; the others do not
// wait for it. A step that panics counts as failed.
//
// Steps change the store like requests do, with the revision of what they read
// as the expectation. So the goroutine holds nothing that a request waits for,
// and what a request changed in between is a conflict, looked at again in the
// next round. A stop, or a crash, between two steps loses nothing: what is due
// stays due. After a start nothing happens twice, since a step's commit contains
// the new date.
type scheduler struct {
	stop chan struct{} // closed by stopSchedule
	wake chan struct{} // buffered: a round is wanted now
	done chan struct{} // closed when the goroutine has ended; nil when never started

	mu       sync.Mutex                // held by a round: one at a time
	setbacks map[keystore.Ref]*setback // guarded by mu

	failing atomic.Int64  // keys in setbacks
	rounds  atomic.Uint64 // finished
}

const (
	// scheduleEvery bounds how late something happens of which the store did not
	// know when the last round ended.
	scheduleEvery = 30 * time.Second
	// duePage is how many due keys are listed at once.
	duePage = 256

	setbackFirst = 30 * time.Second
	setbackMost  = time.Hour
)

// A setback is the pause of a key that failed.
type setback struct {
	pause time.Duration
	until time.Time
}

// Start lets happen by itself what is due, from now on until Close. It may be
// called once.
func (s *Service) Start() {
	s.usage.start(func(err error) { s.log.Error("the use of keys is not durable at the moment", "error", err) })
	s.sched.stop, s.sched.done = make(chan struct{}), make(chan struct{})
	s.sched.wake = make(chan struct{}, 1)
	go func() {
		defer close(s.sched.done)
		timer := time.NewTimer(0)
		defer timer.Stop()
		for {
			select {
			case <-s.sched.stop:
				return
			case <-s.sched.wake:
			case <-timer.C:
			}
			timer.Reset(s.round())
		}
	}()
}

// stopSchedule ends the goroutine of Start after the step that it is in.
func (s *Service) stopSchedule() {
	if s.sched.done != nil {
		close(s.sched.stop)
		<-s.sched.done
		s.erasing.wg.Wait()
		s.guard.stop()
	}
}

// hurry has the next round begin at once.
func (c *scheduler) hurry() {
	select {
	case c.wake <- struct{}{}:
	default: // one is wanted already, or the goroutine was never started
	}
}

// round does what is due now and returns how long to wait before the next.
func (s *Service) round() time.Duration {
	if err := s.runDue(s.clock()); err != nil {
		s.log.Error("what is due could not be looked up; it is tried again", "error", err)
		return scheduleEvery
	}
	now := s.clock()
	if err := s.completeReplicas(); err != nil {
		s.log.Error("a replica could not be completed; it is tried again", "error", err)
	}
	if err := s.sweepPairs(now); err != nil {
		s.log.Error("wrapping keys whose time is over could not be removed; it is tried again", "error", err)
	}
	s.eraseDue(now)
	next, _, err := s.store.ListDue(now.Add(scheduleEvery), &keystore.DueKey{At: now}, 1)
	if err != nil || len(next) == 0 {
		return scheduleEvery
	}
	return max(next[0].At.Sub(now.Round(0)), 10*time.Millisecond)
}

// runDue does what is due at a time, once. It fails only when the store cannot
// say what that is.
func (s *Service) runDue(now time.Time) error {
	s.sched.mu.Lock()
	defer s.sched.mu.Unlock()
	believed, destroy := s.guard.look(now)
	var after *keystore.DueKey
	for {
		page, more, err := s.store.ListDue(now, after, duePage)
		if err != nil {
			return err
		}
		for i := range page {
			if s.sched.stopping() {
				return nil
			}
			s.runDueKey(page[i].Ref, now, believed, destroy)
		}
		if !more {
			break
		}
		after = &page[len(page)-1]
	}
	s.sched.forget(now)
	s.sched.rounds.Add(1)
	return nil
}

func (c *scheduler) stopping() bool {
	select {
	case <-c.stop:
		return true
	default: // also when never started
		return false
	}
}

// runDueKey does what is due to one key, unless it is in a pause.
func (s *Service) runDueKey(ref keystore.Ref, now, believed time.Time, destroy bool) {
	c := &s.sched
	if b := c.setbacks[ref]; b != nil && now.Before(b.until) {
		return
	}
	err := s.dueSteps(ref, now, believed, destroy)
	switch {
	case err == nil:
		delete(c.setbacks, ref)
	case errors.Is(err, keystore.ErrConflict):
		// Somebody changed the key meanwhile: the next round sees how.
	default:
		b := c.setbacks[ref]
		if b == nil {
			b = new(setback)
			if c.setbacks == nil {
				c.setbacks = make(map[keystore.Ref]*setback)
			}
			c.setbacks[ref] = b
		}
		b.pause = min(max(2*b.pause, setbackFirst), setbackMost)
		b.until = now.Add(b.pause)
		s.log.Error("what is due to a key could not be done; it is tried again", "region", ref.Region, "key", ref.ID.String(), "again_in", b.pause.String(), "error", err)
	}
	c.failing.Store(int64(len(c.setbacks)))
}

// dueSteps takes a key through the steps: those that destroy at the time that is
// believed, and only if they may.
func (s *Service) dueSteps(ref keystore.Ref, now, believed time.Time, destroy bool) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("a step of what is due panicked", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = errors.New("it panicked")
		}
	}()
	steps := [...]struct {
		do  func(*keystore.Key, time.Time) error
		now time.Time
		may bool
	}{{s.expireDue, believed, destroy}, {s.destroyDue, believed, destroy}, {s.rotateDue, now, true}}
	for _, step := range steps {
		if !step.may {
			continue
		}
		rec, err := s.store.Key(ref)
		if errors.Is(err, keystore.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		if due := rec.Due(); due.IsZero() || due.After(now) {
			return nil
		}
		if err := step.do(rec, step.now); err != nil {
			return err
		}
	}
	return nil
}

// forget drops setbacks of keys that are not due any more: a key that still is
// would have been tried again, and noted, soon after its pause.
func (c *scheduler) forget(now time.Time) {
	for ref, b := range c.setbacks {
		if now.Sub(b.until) > setbackMost {
			delete(c.setbacks, ref)
		}
	}
	c.failing.Store(int64(len(c.setbacks)))
}

func (s *Service) writeScheduleMetrics(w io.Writer) {
	fmt.Fprintf(w, "keymill_due_rounds_total %d\n", s.sched.rounds.Load())
	fmt.Fprintf(w, "keymill_due_keys_failing %d\n", s.sched.failing.Load())
	fmt.Fprintf(w, "keymill_keys_destroyed_total %d\n", s.destroyed.Load())
	fmt.Fprintf(w, "keymill_destruction_suspended %d\n", s.guard.suspendedGauge())
}
