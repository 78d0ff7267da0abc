package quota

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	ms  = int64(time.Millisecond)
	sec = int64(time.Second)
)

func TestNewLimit(t *testing.T) {
	for _, tt := range []struct {
		rate               Rate
		interval, oneBurst int64
	}{
		{0, 0, 1},
		{1, sec, 1},
		{0.1, 10 * sec, 1},
		{0.5, 2 * sec, 1},
		{2.5, 400 * ms, 2},
		{3, 333_333_334, 3}, // rounded up: never more than the rate
		{10_000, 100_000, 10_000},
		{MaxRate, 100, 10_000_000},
		{9_900_000, 102, 9_900_000},
		{MinRate, 1000 * sec, 1},
	} {
		if l := NewLimit(tt.rate, tt.rate.burst()); l.interval != tt.interval || tt.rate.burst() != tt.oneBurst {
			t.Errorf("%v a second: interval %d, burst %d; want %d, %d", tt.rate, l.interval, tt.rate.burst(), tt.interval, tt.oneBurst)
		}
	}
}

// TestDecide walks one bucket of 10 a second and a burst of 4 through time.
func TestDecide(t *testing.T) {
	l := NewLimit(10, 4)
	tat := int64(0)
	for i, step := range []struct {
		at, n int64
		ok    bool
		tat   int64 // afterwards
	}{
		{0, 1, true, 100 * ms},
		{0, 4, false, 100 * ms}, // all or none
		{0, 3, true, 400 * ms},
		{0, 1, false, 400 * ms},
		{99 * ms, 1, false, 400 * ms},
		{100*ms - 1, 1, false, 400 * ms}, // a nanosecond early
		{100 * ms, 1, true, 500 * ms},
		{100 * ms, 0, true, 500 * ms}, // nothing is always there
		{100 * ms, -5, true, 500 * ms},
		{50 * ms, 1, false, 500 * ms}, // a late comer is judged strictly
		{300 * ms, 2, true, 700 * ms},
		{299 * ms, 1, false, 700 * ms},
		{10 * sec, 5, false, 700 * ms}, // more than the burst
		{10 * sec, 4, true, 10*sec + 400*ms},
		{10 * sec, 1, false, 10*sec + 400*ms},
		{9 * sec, 1, false, 10*sec + 400*ms},              // a second late: refused, nothing changes
		{5 * sec, 1, false, 10*sec + 400*ms},              // as late as can be
		{5*sec - 1, 1, false, 5*sec - 1 + 400*ms},         // later: the clock was set back, empty at the new time
		{5*sec - 1 + 100*ms, 1, true, 5*sec - 1 + 500*ms}, // and it fills
		{-3 * sec, 1, false, -3*sec + 400*ms},
		{-3*sec + 400*ms, 4, true, -3*sec + 800*ms},
		{1 << 62, 4, true, 1<<62 + 400*ms},
	} {
		next, ok := l.Decide(tat, step.at, step.n)
		if ok != step.ok || next != step.tat {
			t.Fatalf("step %d: %d units at %v: %v, arrival %v; want %v, %v", i, step.n, time.Duration(step.at), ok, time.Duration(next), step.ok, time.Duration(step.tat))
		}
		tat = next
	}
}

func TestZeroLimit(t *testing.T) {
	var l Limit
	if next, ok := l.Decide(7, 0, 1<<62); next != 7 || !ok {
		t.Errorf("no limit: %d, %v", next, ok)
	}
	var b *Bucket
	var a *Account
	if !b.Take(1<<62, time.Time{}) || !a.Take(RSA, 1<<62, time.Time{}) || a.Burst(RSA) != 0 {
		t.Error("nil has a limit")
	}
}

// A plainBucket is the token bucket as textbooks have it, under a mutex, in
// units of a nanosecond's worth: the oracle, and what Bucket is compared with.
type plainBucket struct {
	mu             sync.Mutex
	interval, full int64
	level, last    int64
}

func newPlainBucket(l Limit) *plainBucket {
	return &plainBucket{interval: l.interval, full: l.window, level: l.window}
}

func (b *plainBucket) take(now, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now > b.last {
		b.level = min(b.full, b.level+now-b.last)
		b.last = now
	}
	if n*b.interval > b.level {
		return false
	}
	b.level -= n * b.interval
	return true
}

// While the clock goes forward, GCRA and the token bucket decide alike.
func TestDecideIsATokenBucket(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		l := NewLimit(Rate(1+rng.IntN(100000))/10, 1+rng.Int64N(50))
		plain := newPlainBucket(l)
		b := bucket{Limit: l}
		now := int64(0)
		taken := 0
		for i := range 500 {
			if rng.IntN(3) > 0 {
				now += rng.Int64N(2 * l.interval)
			}
			n := 1 + rng.Int64N(l.burst+1)
			got, want := b.take(now, n), plain.take(now, n)
			if got != want {
				t.Fatalf("%+v, step %d: %d at %d: %v, the token bucket says %v", l, i, n, now, got, want)
			}
			if got {
				taken++
			}
		}
		if taken == 0 || taken == 500 {
			t.Fatalf("%+v: %d of 500 taken: the case says nothing", l, taken)
		}
	}
}

// Whatever takes at the same time, at times that come out of order: no more than
// burst + rate*t get through, and with the clock standing still exactly the burst.
func TestTakeConcurrently(t *testing.T) {
	const goroutines = 8
	for name, tt := range map[string]struct {
		ticks int64 // how far each step may move the clock
		late  int64 // how far behind the clock a request may be
		steps int
		most  int64 // units in one take
	}{
		"standing clock":   {0, 0, 40_000, 1},
		"standing, bulk":   {0, 0, 20_000, 7},
		"moving":           {60, 0, 40_000, 1},
		"moving, bulk":     {200, 0, 20_000, 9},
		"late by a second": {60, sec, 40_000, 3},
	} {
		t.Run(name, func(t *testing.T) {
			l := NewLimit(1_000_000, 50_000)
			b := bucket{Limit: l}
			var clock, admitted, refused atomic.Int64
			var wg sync.WaitGroup
			for g := range goroutines {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(7, uint64(g)))
					for range tt.steps {
						now := clock.Load()
						if tt.ticks > 0 {
							now = clock.Add(rng.Int64N(tt.ticks))
						}
						if tt.late > 0 && rng.IntN(4) == 0 {
							now -= rng.Int64N(tt.late)
						}
						n := 1 + rng.Int64N(tt.most)
						if b.take(now, n) {
							admitted.Add(n)
						} else {
							refused.Add(n)
						}
					}
				})
			}
			wg.Wait()
			most := l.burst + clock.Load()/l.interval
			if tt.late > 0 {
				most += tt.late / l.interval // the earliest request's time began then
			}
			got := admitted.Load()
			if got > most || refused.Load() == 0 {
				t.Errorf("admitted %d, refused %d; at most %d may pass", got, refused.Load(), most)
			}
			if tt.ticks == 0 && tt.most == 1 && got != l.burst {
				t.Errorf("admitted %d of a burst of %d", got, l.burst)
			}
			// Refusals took nothing: one unit at a time fills it up to the brim.
			if tt.ticks == 0 {
				for b.take(0, 1) {
					got++
				}
				if got != l.burst {
					t.Errorf("%d units in all, the burst is %d", got, l.burst)
				}
			}
		})
	}
}
