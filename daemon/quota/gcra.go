package quota

import (
	"math"
	"sync/atomic"
	"time"
)

// A Limit is a rate and a burst, in the form that decisions are computed with.
// The zero Limit is no limit.
type Limit struct {
	interval int64 // nanoseconds that one unit takes to come back; 0: no limit
	burst    int64 // units a full bucket holds
	window   int64 // interval * burst: how far ahead the arrival time may be
}

// NewLimit returns the limit of a rate, no limit when that is 0. The interval
// between units is rounded up to whole nanoseconds, so a limit never admits more
// than its rate, and less than 1 % less at [MaxRate].
func NewLimit(perSecond Rate, burst int64) Limit {
	if perSecond == 0 {
		return Limit{}
	}
	l := Limit{interval: int64(math.Ceil(float64(time.Second) / float64(perSecond))), burst: burst}
	l.window = l.interval * l.burst
	return l
}

// Burst returns how many units a full bucket holds, 0 for no limit.
func (l *Limit) Burst() int64 { return l.burst }

// maxStale is how late a request may come to its bucket, measured from when it
// read the clock. A clock that seems to be further back than that was set back.
const maxStale = int64(5 * time.Second)

// Decide says whether n units may be taken at the time now from a bucket whose
// theoretical arrival time is tat, and the arrival time from then on. Times are
// nanoseconds from one origin. A refusal changes nothing, unless the clock was
// set back: the bucket is then as empty as it can be at the new time.
func (l *Limit) Decide(tat, now, n int64) (next int64, ok bool) {
	if l.interval == 0 || n <= 0 {
		return tat, true
	}
	ahead := max(tat-now, 0)
	if ahead > l.window+maxStale {
		return now + l.window, false
	}
	if n > l.burst || ahead+n*l.interval > l.window {
		return tat, false
	}
	return now + ahead + n*l.interval, true
}

// A bucket is a limit and its state. The zero value is no limit.
type bucket struct {
	Limit              // immutable
	tat   atomic.Int64 // theoretical arrival time
}

// maxTries bounds the attempts of take. Each failed one means that somebody else
// took units; with 64 cores on one bucket and nothing else to do, a thousand
// failures in a row have a chance of 1 in 10^7.
const maxTries = 1000

// take takes n units or none. It allocates nothing and takes no lock. Any
// goroutine may call it; the units taken by all of them together keep the limit,
// because each decision holds only if the state it was made on is still there.
func (b *bucket) take(now, n int64) bool {
	for range maxTries {
		tat := b.tat.Load()
		next, ok := b.Decide(tat, now, n)
		if next == tat || b.tat.CompareAndSwap(tat, next) {
			return ok
		}
	}
	return false
}

// A Bucket is one limit that callers hold themselves: a key's or a custom key
// store's. A nil Bucket has no limit.
type Bucket struct {
	bucket
	origin time.Time
}

// Take takes n units at the time now, all or none. No units are always there.
func (b *Bucket) Take(n int64, now time.Time) bool {
	return b == nil || b.take(int64(now.Sub(b.origin)), n)
}
