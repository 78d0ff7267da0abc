package kms

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"keymill/hsm/hsmtest"
	"keymill/keystore"
)

// A clockRig is a guard under a clock and a monotonic clock that a test moves.
type clockRig struct {
	testing.TB
	store *keystore.Store
	wall  time.Time
	mono  time.Duration
	guard *clockGuard
}

func newClockRig(t *testing.T) *clockRig {
	t.Helper()
	store, err := keystore.Open(context.Background(), keystore.Options{Dir: t.TempDir(), Root: hsmtest.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	r := &clockRig{TB: t, store: store, wall: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)}
	r.start()
	return r
}

// start is a start of the daemon: the monotonic clock begins anew.
func (r *clockRig) start() {
	r.mono = 0
	r.guard = newClockGuard(r.store, func() time.Time { return r.wall }, slog.New(slog.NewTextHandler(testLog{r}, nil)))
	r.guard.elapsed = func(time.Time) time.Duration { return r.mono }
}

// pass lets time pass, on both clocks.
func (r *clockRig) pass(d time.Duration) { r.wall, r.mono = r.wall.Add(d), r.mono+d }

func (r *clockRig) persisted() clockState {
	r.Helper()
	value, _, err := r.store.Get(clockRecord)
	if err != nil {
		r.Fatal(err)
	}
	var s clockState
	if err := json.Unmarshal(value, &s); err != nil {
		r.Fatal(err)
	}
	return s
}

// TestClockGuard plays histories of the clock. After every step the guard looks
// once, and tells whether destruction may go on.
func TestClockGuard(t *testing.T) {
	type step struct {
		what string
		do   func(*clockRig)
		goes bool
	}
	pass := func(d time.Duration) func(*clockRig) { return func(r *clockRig) { r.pass(d) } }
	jump := func(d time.Duration) func(*clockRig) { return func(r *clockRig) { r.wall = r.wall.Add(d) } }
	off := func(d time.Duration) func(*clockRig) {
		return func(r *clockRig) {
			r.guard.stop()
			r.wall = r.wall.Add(d)
			r.start()
		}
	}
	crash := func(d time.Duration) func(*clockRig) {
		return func(r *clockRig) {
			r.wall = r.wall.Add(d)
			r.start()
		}
	}
	confirm := func(r *clockRig) { r.guard.confirm() }
	begin := step{"a new store", pass(0), true}
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"time passes", []step{begin, {"a minute", pass(time.Minute), true}, {"a month in one go", pass(30 * day), true}, {"a year", pass(365 * day), true}}},
		{"small corrections", []step{begin, {"half an hour ahead", jump(30 * time.Minute), true}, {"a little back", jump(-10 * time.Minute), true}, {"an hour passes", pass(time.Hour), true}}},
		{"corrections do not add up unseen", []step{
			begin, {"40 minutes ahead", jump(40 * time.Minute), true}, {"and again", jump(40 * time.Minute), false},
			{"and half of it back", jump(-40 * time.Minute), true}}},
		{"corrections on different days are different ones", []step{
			begin, {"40 minutes ahead", jump(40 * time.Minute), true}, {"a day", pass(day), true}, {"40 minutes ahead", jump(40 * time.Minute), true}}},
		{"forward while running", []step{
			begin, {"a year ahead", jump(365 * day), false}, {"two months pass", pass(60 * day), false},
			{"set right", jump(-365 * day), true}, {"a day", pass(day), true}}},
		{"forward and confirmed", []step{
			begin, {"a year ahead", jump(365 * day), false}, {"confirmed", confirm, true}, {"a day", pass(day), true},
			{"another year", jump(365 * day), false}}},
		{"forward, and restarted", []step{
			begin, {"five hours ahead", jump(5 * time.Hour), false}, {"off for a moment", off(time.Second), false},
			{"crashed", crash(time.Second), false}, {"confirmed", confirm, true}, {"off for a moment", off(time.Second), true}}},
		{"forward, stopped, and set right while off", []step{
			begin, {"five hours ahead", jump(5 * time.Hour), false}, {"off", off(-5 * time.Hour), true}}},
		{"off for less than a day", []step{begin, {"off", off(23 * time.Hour), true}, {"off again", off(23 * time.Hour), true}}},
		{"off for long", []step{begin, {"off", off(25 * time.Hour), false}, {"a day", pass(day), false}, {"confirmed", confirm, true}}},
		{"crashed, and off for long", []step{begin, {"a day", pass(day), true}, {"off", crash(25 * time.Hour), false}, {"confirmed", confirm, true}, {"crashed", crash(time.Minute), true}}},
		{"back", []step{begin, {"a week back", jump(-7 * day), true}, {"a day", pass(day), true}, {"forward again", jump(7 * day), false}}},
		{"back while off", []step{begin, {"off", off(-7 * day), true}, {"forward again", jump(7 * day), false}}},
		{"confirmed for nothing", []step{begin, {"confirmed", confirm, true}, {"an hour", pass(time.Hour), true}}},
		{"confirmed before anything", []step{{"confirmed", confirm, true}, {"an hour", pass(time.Hour), true}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newClockRig(t)
			for _, s := range tc.steps {
				s.do(r)
				believed, goes := r.guard.look(r.wall)
				if goes != s.goes || (r.guard.suspendedGauge() == 0) != s.goes {
					t.Fatalf("%s: destruction goes on: %t, want %t", s.what, goes, s.goes)
				}
				if believed.After(r.wall) {
					t.Errorf("%s: believes %v at %v", s.what, believed, r.wall)
				}
			}
		})
	}
}

// TestClockBelieved: a small step forward makes nothing due before its time.
func TestClockBelieved(t *testing.T) {
	r := newClockRig(t)
	began := r.wall
	r.guard.look(r.wall)
	r.wall = r.wall.Add(30 * time.Minute)
	r.pass(time.Minute)
	if believed, ok := r.guard.look(r.wall); !ok || !believed.Equal(began.Add(time.Minute)) {
		t.Errorf("believes %v, %t", believed, ok)
	}
}

// TestClockPersisted: at most once a minute, at a stop, and never a time that is
// not believed.
func TestClockPersisted(t *testing.T) {
	r := newClockRig(t)
	r.guard.look(r.wall)
	began := r.wall
	if got := r.persisted(); !got.Time.Equal(began) || got.Suspended {
		t.Fatalf("at the start: %+v", got)
	}
	r.pass(50 * time.Second)
	r.guard.look(r.wall)
	if got := r.persisted(); !got.Time.Equal(began) {
		t.Errorf("after 50 s: %+v", got)
	}
	r.pass(10 * time.Second)
	r.guard.look(r.wall)
	if got := r.persisted(); !got.Time.Equal(r.wall) {
		t.Errorf("after a minute: %+v", got)
	}
	r.pass(5 * time.Second)
	r.guard.stop()
	right := r.wall
	if got := r.persisted(); !got.Time.Equal(right) {
		t.Errorf("at the stop: %+v", got)
	}
	r.wall = r.wall.Add(365 * day)
	r.guard.look(r.wall)
	if got := r.persisted(); !got.Time.Equal(right) || !got.Suspended {
		t.Errorf("after a jump: %+v", got)
	}
	r.pass(time.Hour)
	r.guard.look(r.wall)
	if got := r.persisted(); !got.Time.Equal(right.Add(time.Hour)) || !got.Suspended {
		t.Errorf("an hour later: %+v", got)
	}
	if now, was := r.guard.confirm(); !was || !now.Equal(r.wall) {
		t.Errorf("confirmed %v, %t", now, was)
	}
	if got := r.persisted(); !got.Time.Equal(r.wall) || got.Suspended {
		t.Errorf("after the confirmation: %+v", got)
	}
}

// TestClockUnreadable: a record that cannot be read suspends too.
func TestClockUnreadable(t *testing.T) {
	r := newClockRig(t)
	tx := r.store.NewTxn()
	tx.Put(clockRecord, []byte("{"), 0)
	if err := commit(tx); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.guard.look(r.wall); ok {
		t.Error("destruction goes on")
	}
}
