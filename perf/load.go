package perf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"keymill/daemon/wire"
)

// A Load is one closed-loop round: all connections ask for one operation, each
// as fast as it is answered.
type Load struct {
	Target Target
	Op     wire.Op
	Bodies Bodies
	Conns  int

	// Warmup is how long the load runs before anything is counted; Duration is
	// how long it is measured.
	Warmup, Duration time.Duration

	// Process is the server's, when it runs on this machine.
	Process *Process
}

// A Round is what one Load measured.
type Round struct {
	Conns    int
	Elapsed  time.Duration // measured time
	Requests uint64        // answered with 200 inside it
	Latency  *hdrhistogram.Histogram

	// Errors counts answers other than 200 and broken connections, from the
	// first request of the warm-up on; FirstError is the first that any
	// connection met.
	Errors     uint64
	FirstError error

	// Processor time inside the measured time. Zero for the server when its
	// process is not known.
	ServerCPU, GeneratorCPU time.Duration

	// RSS is the server's resident memory at the end.
	RSS int64
}

// Rate is requests per second.
func (r *Round) Rate() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// CPUPerRequest is the server's processor time for one request.
func (r *Round) CPUPerRequest() time.Duration { return perRequest(r.ServerCPU, r.Requests) }

// GeneratorCPUPerRequest is the generator's own.
func (r *Round) GeneratorCPUPerRequest() time.Duration { return perRequest(r.GeneratorCPU, r.Requests) }

func perRequest(d time.Duration, n uint64) time.Duration {
	if n == 0 {
		return 0
	}
	return d / time.Duration(n)
}

// Quantile is the latency that the fraction q of the requests did not exceed.
func (r *Round) Quantile(q float64) time.Duration {
	return time.Duration(r.Latency.ValueAtQuantile(100 * q))
}

// Err is nil when every request of the round was answered with 200, and there
// was one.
func (r *Round) Err() error {
	if r.Errors > 0 {
		return fmt.Errorf("%d errors beside %d answers; first: %w", r.Errors, r.Requests, r.FirstError)
	}
	if r.Requests == 0 {
		return errors.New("no request was answered")
	}
	return nil
}

// Bounds of the histograms: latencies are recorded in steps of 64 ns, growing
// to keep three digits, up to a minute; longer ones as a minute.
const (
	minLatency = 100 * time.Nanosecond
	maxLatency = time.Minute
	digits     = 3

	// grace is how long an answer may come late after the end.
	grace = 10 * time.Second
)

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(int64(minLatency), int64(maxLatency), digits)
}

// Run runs the load and returns what it measured. Errors of the server are in
// the round; the error returned means that the measurement itself could not be
// made. When ctx ends early, its error is returned.
func (l *Load) Run(ctx context.Context) (*Round, error) {
	workers := make([]*worker, l.Conns)
	for i := range workers {
		c, err := dial(ctx, l.Target.Addr)
		if err != nil {
			return nil, fmt.Errorf("connection %d of %d: %w", i+1, l.Conns, err)
		}
		defer c.close()
		workers[i] = &worker{
			conn:    c,
			builder: newBuilder(l.Target.Addr, l.Target.Region, targetOf(l.Op), l.Target.Credentials),
			next:    l.Bodies(i),
			latency: newHistogram(),
		}
	}

	// Workers compare the clock with start and end; the coordinator sleeps to
	// the same moments and reads the meters.
	start := time.Now().Add(l.Warmup)
	end := start.Add(l.Duration)
	var group sync.WaitGroup
	for _, w := range workers {
		w.conn.c.SetDeadline(end.Add(grace))
		defer context.AfterFunc(ctx, func() { w.conn.c.SetDeadline(time.Unix(1, 0)) })()
		group.Go(func() { w.run(start, end) })
	}
	before, err1 := l.meter(ctx, start)
	after, err2 := l.meter(ctx, end)
	group.Wait()
	if err := errors.Join(ctx.Err(), err1, err2); err != nil {
		return nil, err
	}

	r := &Round{
		Conns:        l.Conns,
		Elapsed:      l.Duration,
		Latency:      newHistogram(),
		ServerCPU:    after.server - before.server,
		GeneratorCPU: after.generator - before.generator,
		RSS:          after.rss,
	}
	for _, w := range workers {
		w.addTo(r)
	}
	return r, nil
}

// A reading is the meters at one moment.
type reading struct {
	server, generator time.Duration
	rss               int64
}

// meter waits for the moment at and reads the meters.
func (l *Load) meter(ctx context.Context, at time.Time) (r reading, err error) {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return r, ctx.Err()
	}
	if r.generator, err = (Process{os.Getpid()}).CPU(); err != nil || l.Process == nil {
		return r, err
	}
	if r.server, err = l.Process.CPU(); err != nil {
		return r, err
	}
	r.rss, err = l.Process.RSS()
	return r, err
}

// A worker is one connection's loop; it belongs to one goroutine until that
// ends.
type worker struct {
	conn    *conn
	builder *builder
	next    Body
	body    []byte

	requests uint64
	latency  *hdrhistogram.Histogram
	errors   uint64
	first    error
}

// run asks and is answered until end.
func (w *worker) run(start, end time.Time) {
	for now := time.Now(); now.Before(end); {
		w.body = w.next(w.body[:0])
		w.conn.out = w.builder.append(w.conn.out[:0], now, w.body)
		answer, err := w.conn.roundTrip()
		then := time.Now()
		switch {
		case err != nil:
			w.failed(err)
			return
		case answer.Status != 200:
			w.failed(newAnswerError(answer))
		case !then.Before(start) && then.Before(end):
			w.requests++
			w.latency.RecordValue(int64(min(then.Sub(now), maxLatency)))
		}
		if answer.Close {
			w.failed(errors.New("the server closed the connection"))
			return
		}
		now = then
	}
}

func (w *worker) failed(err error) {
	w.errors++
	if w.first == nil {
		w.first = err
	}
}

// addTo adds what the worker counted to r.
func (w *worker) addTo(r *Round) {
	r.Requests += w.requests
	r.Errors += w.errors
	if r.FirstError == nil {
		r.FirstError = w.first
	}
	r.Latency.Merge(w.latency)
}
