package perf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A Load is one round of requests.
type Load struct {
	Target   Target
	Workload *Workload
	Conns    int

	// Rate, when it is not 0, makes an open loop of so many requests a second
	// over all connections. Otherwise each connection asks as fast as it is
	// answered.
	Rate float64

	// Warmup is how long the load runs before anything is counted; Duration is
	// how long it is measured.
	Warmup, Duration time.Duration

	// Process is the server's, when it runs on this machine.
	Process *Process

	// Background, when it is not nil, runs at the same time. Its warm-up and
	// duration are this load's, its process and background do not count.
	Background *Load
}

// A Round is what one Load measured.
type Round struct {
	Workload *Workload
	Conns    int
	Elapsed  time.Duration // measured time
	Requests uint64        // answered with 200 inside it
	Parts    []PartRound   // of the workload's parts

	// Latency is of the requests answered inside the measured time or, in an
	// open loop, of those due inside it, whenever they were answered.
	Latency *hdrhistogram.Histogram

	// In an open loop: how many requests were due; how many of them were not
	// sent because no connection was free before the end, and count in Latency
	// with the time they had waited until then; and how late requests were sent
	// although a connection waited to send them, which is the generator's fault.
	Due, Unsent uint64
	Lag         *hdrhistogram.Histogram

	// Errors counts answers other than 200 and broken connections, from the
	// first request of the warm-up on; FirstError is the first that any
	// connection met.
	Errors     uint64
	FirstError error

	// Redials counts connections made anew because the server had closed one
	// with an answer.
	Redials uint64

	// Processor time inside the measured time. Zero for the server when its
	// process is not known.
	ServerCPU, GeneratorCPU time.Duration

	// RSS is the server's resident memory at the end. Time and memory are those
	// of its [Process.Family].
	RSS int64

	Background *Round
}

// A PartRound is what concerns one part of the workload.
type PartRound struct {
	Requests uint64
	Latency  *hdrhistogram.Histogram
}

// Rate is requests per second.
func (r *Round) Rate() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// ItemRate is items per second, see [Part.Items].
func (r *Round) ItemRate() float64 {
	var items float64
	for i, p := range r.Parts {
		items += float64(p.Requests) * float64(r.Workload.Parts[i].Items)
	}
	return items / r.Elapsed.Seconds()
}

// OfferedRate is the rate of requests that were due; 0 in a closed loop.
func (r *Round) OfferedRate() float64 { return float64(r.Due) / r.Elapsed.Seconds() }

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
// was one; and so for the load in the background.
func (r *Round) Err() error {
	if r.Errors > 0 {
		return fmt.Errorf("%d errors beside %d answers; first: %w", r.Errors, r.Requests, r.FirstError)
	}
	if r.Requests == 0 {
		return errors.New("no request was answered")
	}
	if r.Background != nil {
		if err := r.Background.Err(); err != nil {
			return fmt.Errorf("in the background: %w", err)
		}
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

	// overtime is how long after the end a late request of an open loop is still
	// sent: one that is no later than that was not held up by the server.
	overtime = 20 * time.Millisecond
)

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(int64(minLatency), int64(maxLatency), digits)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	h.RecordValue(int64(max(0, min(d, maxLatency))))
}

// Run runs the load and returns what it measured. Errors of the server are in
// the round; the error returned means that the measurement itself could not be
// made. When ctx ends early, its error is returned.
func (l *Load) Run(ctx context.Context) (*Round, error) {
	all, err := l.connect(ctx)
	defer all.close()
	if err != nil {
		return nil, err
	}
	var others workers
	if b := l.Background; b != nil {
		others, err = b.connect(ctx)
		defer others.close()
		if err != nil {
			return nil, fmt.Errorf("in the background: %w", err)
		}
	}

	// Workers compare the clock with start and end; the coordinator sleeps to
	// the same moments and reads the meters.
	began := time.Now()
	start := began.Add(l.Warmup)
	end := start.Add(l.Duration)
	var group sync.WaitGroup
	all.start(ctx, &group, l.pacer(began), start, end)
	if b := l.Background; b != nil {
		others.start(ctx, &group, b.pacer(began), start, end)
	}
	before, err1 := l.meter(ctx, start)
	after, err2 := l.meter(ctx, end)
	group.Wait()
	if err := errors.Join(ctx.Err(), err1, err2); err != nil {
		return nil, err
	}

	r := all.round(l, start, end)
	r.ServerCPU = after.server - before.server
	r.GeneratorCPU = after.generator - before.generator
	r.RSS = after.rss
	if b := l.Background; b != nil {
		r.Background = others.round(b, start, end)
		r.Background.Elapsed = l.Duration
	}
	return r, nil
}

// pacer is the schedule of an open loop that begins at began, nil for a closed
// one.
func (l *Load) pacer(began time.Time) *pacer {
	if l.Rate == 0 {
		return nil
	}
	return &pacer{begin: began, rate: l.Rate}
}

// workers are a load's connections.
type workers []*worker

// connect makes the connections. Those that it returns with an error are to be
// closed too.
func (l *Load) connect(ctx context.Context) (workers, error) {
	all := make(workers, 0, l.Conns)
	counts := make([]*counts, min(l.Conns, maxCounts))
	for i := range counts {
		counts[i] = newCounts(len(l.Workload.Parts), l.Rate > 0)
	}
	for i := range l.Conns {
		c, err := dial(ctx, l.Target)
		if err != nil {
			return all, fmt.Errorf("connection %d of %d: %w", i+1, l.Conns, err)
		}
		w := &worker{conn: c, next: l.Workload.Requests(i), parts: l.Workload.Parts, counts: counts[i%len(counts)],
			redial: func() (*conn, error) { return dial(ctx, l.Target) }}
		all = append(all, w)
		if w.clock, err = newAlarm(); err != nil {
			return all, err
		}
	}
	return all, nil
}

func (all workers) close() {
	for _, w := range all {
		w.conn.close()
		clear(w.out)
		if w.forget != nil {
			w.forget()
		}
		if w.clock != nil {
			w.clock.close()
		}
	}
}

// start starts the workers in group.
func (all workers) start(ctx context.Context, group *sync.WaitGroup, p *pacer, start, end time.Time) {
	for _, w := range all {
		w.pacer, w.start, w.end = p, start, end
		w.deadline(ctx)
		group.Go(func() { w.run(ctx) })
	}
}

// round adds up what the workers, which have ended, counted.
func (all workers) round(l *Load, start, end time.Time) *Round {
	r := &Round{Workload: l.Workload, Conns: l.Conns, Elapsed: end.Sub(start), Latency: newHistogram(),
		Parts: make([]PartRound, len(l.Workload.Parts))}
	for i := range r.Parts {
		r.Parts[i].Latency = newHistogram()
	}
	if l.Rate > 0 {
		r.Lag = newHistogram()
		r.Due = all[0].pacer.between(start, end)
	}
	seen := make(map[*counts]bool)
	for _, w := range all {
		if !seen[w.counts] {
			seen[w.counts] = true
			w.counts.addTo(r)
		}
	}
	return r
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
	r.server, r.rss, err = l.Process.Use()
	return r, err
}
