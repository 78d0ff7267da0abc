package perf

import (
	"context"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// counts is where workers count.
type counts struct {
	mu sync.Mutex // guards the rest

	parts    []PartRound
	lag      *hdrhistogram.Histogram // nil in a closed loop
	unsent   uint64
	errors   uint64
	first    error
	redials  uint64
	unsentOf *hdrhistogram.Histogram // nil in a closed loop
}

// maxCounts is how many counts a load has at most. A histogram takes 170 kB, so
// that thousands of connections share; up to here each has its own and its lock
// is never contended.
const maxCounts = 64

func newCounts(parts int, open bool) *counts {
	c := &counts{parts: make([]PartRound, parts)}
	for i := range c.parts {
		c.parts[i].Latency = newHistogram()
	}
	if open {
		c.lag, c.unsentOf = newHistogram(), newHistogram()
	}
	return c
}

// addTo adds c to r.
func (c *counts) addTo(r *Round) {
	for i, p := range c.parts {
		r.Requests += p.Requests
		r.Parts[i].Requests += p.Requests
		r.Parts[i].Latency.Merge(p.Latency)
		r.Latency.Merge(p.Latency)
	}
	r.Errors += c.errors
	r.Unsent += c.unsent
	r.Redials += c.redials
	if r.FirstError == nil {
		r.FirstError = c.first
	}
	if c.lag != nil {
		r.Latency.Merge(c.unsentOf)
		r.Lag.Merge(c.lag)
	}
}

// An exchanger sends a request and returns its answer.
type exchanger interface {
	roundTrip(request []byte) (Response, error)
	close()
}

// A worker is one connection's loop; it belongs to one goroutine until that
// ends.
type worker struct {
	conn   *conn
	via    exchanger // instead of conn, in tests
	redial func() (*conn, error)
	clock  clock
	next   Request
	parts  []Part
	out    []byte      // request
	forget func() bool // ends the watch over the connection

	pacer      *pacer // nil in a closed loop
	start, end time.Time

	counts *counts
}

// deadline bounds how long the connection may be waited for. When ctx ends, it
// is waited for no longer.
func (w *worker) deadline(ctx context.Context) {
	c := w.conn.c
	c.SetDeadline(w.end.Add(grace))
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	if w.forget != nil {
		w.forget() // the connection before
	}
	w.forget = stop
}

// run asks and is answered until the end.
func (w *worker) run(ctx context.Context) {
	if w.pacer != nil {
		w.runOpen(ctx)
		return
	}
	for now := w.clock.now(); now.Before(w.end); {
		part, then, ok := w.ask(ctx, now)
		if !ok {
			return
		}
		if part >= 0 && !then.Before(w.start) && then.Before(w.end) {
			w.counts.answered(part, then.Sub(now))
		}
		now = then
	}
}

// runOpen sends what is due until nothing is due before the end.
func (w *worker) runOpen(ctx context.Context) {
	for {
		due := w.pacer.take()
		if !due.Before(w.end) {
			return
		}
		now := w.clock.now()
		if waited := now.Before(due); waited {
			if w.clock.sleepUntil(ctx, due) != nil {
				return
			}
			now = w.clock.now()
			w.counts.lagged(now.Sub(due))
		}
		counts := !due.Before(w.start)
		if now.Sub(w.end) > overtime {
			if counts {
				w.counts.notSent(w.end.Sub(due))
			}
			continue
		}
		part, then, ok := w.ask(ctx, now)
		if !ok {
			return
		}
		if part < 0 {
			continue
		}
		w.counts.answeredOpen(part, then.Sub(due), counts, !then.Before(w.start) && then.Before(w.end))
	}
}

// ask makes one request, signed for the time now. The part is -1 when the
// answer was an error; when nothing more can be asked, ok is false.
func (w *worker) ask(ctx context.Context, now time.Time) (part int, then time.Time, ok bool) {
	var via exchanger = w.conn
	if w.via != nil {
		via = w.via
	}
	w.out, part = w.next(w.out[:0], now)
	answer, err := via.roundTrip(w.out)
	then = w.clock.now()
	if err != nil {
		w.counts.failed(err)
		return -1, then, false
	}
	if err = w.check(part, answer); err != nil {
		w.counts.failed(err)
		part = -1
	}
	if !answer.Close {
		return part, then, true
	}
	// Some servers close after every answer. What making another connection
	// takes is part of the next request.
	if then.Before(w.end) {
		next, err := w.redial()
		if err != nil {
			w.counts.failed(err)
			return part, then, false
		}
		w.conn.close()
		w.conn = next
		w.deadline(ctx)
		w.counts.redialled()
	}
	return part, then, true
}

func (w *worker) check(part int, answer Response) error {
	if answer.Status != 200 {
		return newAnswerError(answer)
	}
	if check := w.parts[part].Check; check != nil {
		return check(answer.Body)
	}
	return nil
}

// answered counts an answer of a closed loop.
func (c *counts) answered(part int, latency time.Duration) {
	c.mu.Lock()
	c.parts[part].Requests++
	record(c.parts[part].Latency, latency)
	c.mu.Unlock()
}

// answeredOpen counts an answer of an open loop: its latency, when it was due
// inside the measured time; itself, when it came inside it.
func (c *counts) answeredOpen(part int, latency time.Duration, due, came bool) {
	c.mu.Lock()
	if came {
		c.parts[part].Requests++
	}
	if due {
		record(c.parts[part].Latency, latency)
	}
	c.mu.Unlock()
}

func (c *counts) lagged(d time.Duration) {
	c.mu.Lock()
	record(c.lag, d)
	c.mu.Unlock()
}

func (c *counts) notSent(waited time.Duration) {
	c.mu.Lock()
	c.unsent++
	record(c.unsentOf, waited)
	c.mu.Unlock()
}

func (c *counts) failed(err error) {
	c.mu.Lock()
	c.errors++
	if c.first == nil {
		c.first = err
	}
	c.mu.Unlock()
}

func (c *counts) redialled() {
	c.mu.Lock()
	c.redials++
	c.mu.Unlock()
}
