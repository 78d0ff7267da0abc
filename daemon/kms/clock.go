package kms

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"keymill/keystore"
)

// # The clock of destruction
//
// Expiry and deletion cannot be undone, and both hang on a clock that an
// accident can set to 2040: a dead battery, a machine image, a slip of the hand.
// So the clock is compared with what time should be:
//
//	expected = base + what has passed since, on the monotonic clock
//
// where base is a time that was believed before. The clock is ahead by clock -
// expected. What follows from that:
//
//	ahead by at most the allowance   believed
//	ahead by more                    destruction is suspended
//	behind                           believed at once: destruction only gets later,
//	                                 and coming forward again counts as a jump
//
// While the daemon runs, base is a time of its own clock, renewed every
// baseEvery, and the allowance is maxStep: corrections of a clock that was never
// far off. At a start, base is the last believed time that the store has, and the
// allowance is maxDowntime: a daemon may be off that long without anybody being
// asked. When it stopped while destruction was suspended the allowance is maxStep
// there too, or restarting would be the same as confirming. A store without such a time is new,
// and its first clock is believed. A restored backup has a time from the past.
//
// Within the allowance a date has still to be reached by the expected time, so a
// step forward makes nothing earlier than the next base.
//
// A suspension ends when the clock is back within the allowance (somebody set
// it right), or when an operator confirms that it is right as it is. Suspended
// are the expiry of imported material and the destruction of keys, nothing else:
// expired material is refused on use all the same, keys pending deletion stay
// unusable, rotations go on.
//
// The time that is persisted is the believed one, at most once in persistEvery, and at a
// stop; while suspended it is the expected one. Tokens and signatures are judged by the clock
// as it is, since a caller's clock is not ours.
type clockGuard struct {
	store   *keystore.Store
	log     *slog.Logger
	clock   func() time.Time
	elapsed func(now time.Time) time.Duration // monotonic

	mu        sync.Mutex
	known     bool // base is set
	base      time.Time
	at        time.Duration // elapsed when base was set
	allowance time.Duration
	persisted time.Duration // elapsed when last persisted
	saved     bool

	suspended atomic.Bool // written under mu
}

const (
	maxDowntime  = 24 * time.Hour
	maxStep      = time.Hour
	baseEvery    = 24 * time.Hour
	persistEvery = time.Minute

	// clockRecord names the store's record of the last believed time.
	clockRecord = "daemon/clock"
)

// clockState is that record.
type clockState struct {
	Time      time.Time `json:"time"`
	Suspended bool      `json:"suspended,omitempty"`
}

// newClockGuard returns a guard of a clock. The monotonic clock is that of the
// readings of clock, when they have one; readings without, in tests, have their
// differences for it.
func newClockGuard(store *keystore.Store, clock func() time.Time, log *slog.Logger) *clockGuard {
	started := clock()
	return &clockGuard{store: store, clock: clock, log: log, elapsed: func(now time.Time) time.Duration { return now.Sub(started) }}
}

// look compares the clock, which shows now, and tells whether destruction may go
// on, and which time it is for that: what the clock shows, but never more than
// was expected.
func (g *clockGuard) look(now time.Time) (believed time.Time, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.load(now); err != nil {
		g.log.Error("the last time that was seen could not be read: destruction waits", "error", err)
		return time.Time{}, false
	}
	since := g.elapsed(now)
	wall := now.Round(0)
	expected := g.base.Add(since - g.at)
	switch ahead := wall.Sub(expected); {
	case ahead > g.allowance:
		if !g.suspended.Swap(true) {
			g.log.Warn("the clock is ahead of what it should show: expiry and deletion are suspended; set the clock right, or confirm it with keymill confirm-clock",
				"clock", wall.UTC().Format(time.RFC3339), "expected_at_most", expected.Add(g.allowance).UTC().Format(time.RFC3339), "last_believed", g.base.UTC().Format(time.RFC3339))
			g.saved = false
		}
	case ahead < -maxStep:
		g.log.Warn("the clock went back", "clock", wall.UTC().Format(time.RFC3339), "expected", expected.UTC().Format(time.RFC3339))
		fallthrough
	case ahead < 0, g.allowance != maxStep, g.suspended.Load(), since-g.at >= baseEvery:
		g.believe(wall, since)
	}
	if !g.saved || since-g.persisted >= persistEvery {
		g.save(now)
	}
	if most := g.base.Add(since - g.at); wall.After(most) {
		wall = most
	}
	return wall, !g.suspended.Load()
}

// believe makes the clock's time the base.
func (g *clockGuard) believe(wall time.Time, since time.Duration) {
	g.known, g.base, g.at, g.allowance = true, wall, since, maxStep
	if g.suspended.Swap(false) {
		g.saved = false
		g.log.Info("the clock is believed: expiry and deletion go on", "clock", wall.UTC().Format(time.RFC3339))
	}
}

// load reads the base that an earlier run left.
func (g *clockGuard) load(now time.Time) error {
	if g.known {
		return nil
	}
	value, _, err := g.store.Get(clockRecord)
	if errors.Is(err, keystore.ErrNotFound) {
		g.believe(now.Round(0), g.elapsed(now))
		return nil
	} else if err != nil {
		return err
	}
	var last clockState
	if err := json.Unmarshal(value, &last); err != nil {
		return fmt.Errorf("record %s: %w", clockRecord, err)
	}
	g.known, g.base, g.at = true, last.Time, g.elapsed(now)
	g.allowance = maxDowntime
	if last.Suspended {
		g.allowance = maxStep
	}
	return nil
}

// save persists the believed time. A failure is not one of destruction: an older
// time only makes the next start more careful.
func (g *clockGuard) save(now time.Time) {
	since := g.elapsed(now)
	last := clockState{Time: now.Round(0).UTC(), Suspended: g.suspended.Load()}
	if last.Suspended {
		last.Time = g.base.Add(since - g.at).UTC()
	}
	value, err := json.Marshal(&last)
	if err == nil {
		t := g.store.NewTxn()
		t.Put(clockRecord, value, keystore.AnyRevision)
		err = commit(t)
	}
	if err != nil {
		g.log.Error("the last time that was seen could not be written", "error", err)
		return
	}
	g.saved, g.persisted = true, since
}

// stop persists the believed time at the end of a run.
func (g *clockGuard) stop() {
	now := g.clock()
	g.look(now)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known {
		g.save(now)
	}
}

// confirm believes the clock as it is, on an operator's word. It returns the time
// that was confirmed, and whether destruction had been suspended.
func (g *clockGuard) confirm() (time.Time, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.clock()
	was := g.suspended.Load()
	g.believe(now.Round(0), g.elapsed(now))
	g.save(now)
	return now.Round(0), was
}

func (g *clockGuard) suspendedGauge() int {
	if g.suspended.Load() {
		return 1
	}
	return 0
}

// ConfirmClock is an operator's word that the clock is right: destruction that is
// suspended because it jumped goes on. It returns the time that was confirmed,
// and whether anything had been suspended.
func (s *Service) ConfirmClock() (now time.Time, suspended bool) {
	now, suspended = s.guard.confirm()
	s.sched.hurry()
	return now, suspended
}
