package hsm

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// # The session pool
//
// A PKCS#11 session holds the state of the operation under way in it, so it belongs
// to one caller at a time; two threads in one session crash some modules outright.
// And a call into a module may hang: no signal, no context and no deadline gets a
// thread back out of vendor code.
//
// So a session is confined to a worker goroutine, and callers hand the worker a job:
//
//	caller                     worker                     watchdog (every timeout/4)
//	copy inputs into the job
//	send job -------------->   open a session if none
//	wait for done,             run the job in it; before
//	or for ctx                 each call: busySince=now
//	                           running -> finished,       busySince too old:
//	take the results <------   close done                 running -> overdue, close done;
//	                           (or wipe the results)      retire the worker,
//	ctx ended first:                                      start another in its place
//	running -> left
//
// Invariants
//
//   - Only the worker's goroutine touches its session and its object handles.
//   - A handle number has one owner among the live workers (table.claim). After a
//     token reset the module may give out a number again that another worker, who
//     has not noticed the reset yet, still holds: whoever is given a claimed number
//     leaves that session to its owner and opens another.
//   - A job leaves the state running exactly once, by compare-and-swap: to finished
//     (the worker), overdue (the watchdog) or left (the caller). Who wins decides: after
//     finished the results are the caller's; otherwise they stay the worker's, who
//     wipes them when the module at last returns.
//   - A job's memory is its own. The caller's buffers are not read or written once the
//     call has returned, however long the module still holds the job's.
//   - At most size workers are live and at most size are retired with their thread
//     still in the module. When no live worker is left, calls fail at once with
//     ErrBusy; they do not queue behind a token that has died. Each retired worker that
//     comes back makes room for a new live one.
//
// The jobs channel has no buffer: whatever waits is a caller with a context, and waits
// no longer than the timeout.
//
// Rejected: a free list of sessions from which callers call on their own goroutine. It
// saves one hand-over (about a microsecond beside 20 for the fastest software token)
// but a caller stuck in the module cannot return at its deadline. A goroutine per call
// gives that and the same cost, but then nothing bounds the threads inside the module.

// A job is one hand-over to a worker.
type job struct {
	// run does the work on the worker's goroutine, in memory of the job's own.
	run func(w *worker)
	// discard wipes the results when nobody will take them.
	discard func()

	state atomic.Int32
	done  chan struct{} // closed at finished and at overdue
}

// States of a job.
const (
	jobRunning  int32 = iota // waiting for a worker or in one
	jobFinished              // results may be taken
	jobOverdue               // the module did not come back in time
	jobLeft                  // the caller's context ended
)

func newJob(run func(*worker), discard func()) *job {
	return &job{run: run, discard: discard, done: make(chan struct{})}
}

type pool struct {
	// immutable after newPool
	size    int
	timeout time.Duration
	log     *slog.Logger
	jobs    chan *job
	quit    chan struct{}
	gone    chan struct{} // closed when the last worker has left or is retired
	newConn func(w *worker) conn
	running sync.WaitGroup // workers that are not retired

	live  atomic.Int32 // workers that take jobs; written under mu
	stuck atomic.Int32 // retired workers still in the module; written under mu

	waiting atomic.Int32 // callers of do that no worker has taken a job from yet

	mu      sync.Mutex
	workers map[*worker]struct{} // guarded by mu: the live ones
	closed  bool                 // guarded by mu
	empty   func()               // guarded by mu: see close; nil once called
}

// conn is what a worker drives: a session, opened when needed. Its methods are called
// on the worker's goroutine only.
type conn interface {
	// close ends the session if there is one.
	close()
}

// A worker owns one conn and thereby one session.
type worker struct {
	p    *pool
	conn conn // owned by the worker's goroutine

	busySince atomic.Int64        // start of the call under way, Unix nanoseconds; 0 when idle
	job       atomic.Pointer[job] // the job under way
	retired   bool                // guarded by p.mu
}

func newPool(size int, timeout time.Duration, log *slog.Logger, newConn func(*worker) conn) *pool {
	p := &pool{
		size: size, timeout: timeout, log: log, newConn: newConn,
		jobs: make(chan *job), quit: make(chan struct{}), gone: make(chan struct{}),
		workers: map[*worker]struct{}{},
	}
	p.mu.Lock()
	for range size {
		p.startWorker()
	}
	p.mu.Unlock()
	go p.watch()
	return p
}

// startWorker adds a live worker. Called with mu held.
func (p *pool) startWorker() {
	w := &worker{p: p}
	w.conn = p.newConn(w)
	p.workers[w] = struct{}{}
	p.live.Add(1)
	p.running.Add(1)
	go w.loop()
}

// tick tells the watchdog that the module came back and is entered again.
func (w *worker) tick() { w.busySince.Store(time.Now().UnixNano()) }

func (w *worker) loop() {
	p := w.p
	for {
		var j *job
		select {
		case j = <-p.jobs:
		case <-p.quit:
			w.tick()
			w.conn.close()
			w.leave()
			return
		}
		w.job.Store(j)
		w.tick()
		j.run(w)
		if j.state.CompareAndSwap(jobRunning, jobFinished) {
			close(j.done)
		} else {
			j.discard()
		}
		w.job.Store(nil)
		if w.leaveIfRetired() {
			return
		}
		w.busySince.Store(0)
	}
}

// leave takes a worker out of the pool at the end of its goroutine.
func (w *worker) leave() {
	p := w.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.retired {
		p.unstick()
		return
	}
	delete(p.workers, w)
	p.live.Add(-1)
	p.running.Done()
}

// unstick notes that a retired worker has left the module. Called with mu held.
func (p *pool) unstick() {
	if p.stuck.Load() == 1 && p.empty != nil {
		p.empty()
		p.empty = nil
	}
	p.stuck.Add(-1)
}

// leaveIfRetired ends a worker that the watchdog gave up and whose call has now
// returned after all. Its session is not trusted any more; closing it may hang again,
// so the worker counts as stuck until that is over.
func (w *worker) leaveIfRetired() bool {
	p := w.p
	p.mu.Lock()
	retired := w.retired
	p.mu.Unlock()
	if !retired {
		return false
	}
	w.conn.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unstick()
	p.log.Info("a token call that had hung came back", "stuck", p.stuck.Load())
	if !p.closed && len(p.workers) < p.size {
		p.startWorker()
	}
	return true
}

// watch retires workers whose call does not come back.
func (p *pool) watch() {
	t := time.NewTicker(max(p.timeout/4, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			p.retireOverdue(now)
		case <-p.gone:
			return
		}
	}
}

func (p *pool) retireOverdue(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.workers {
		since := w.busySince.Load()
		if since == 0 || now.UnixNano()-since < int64(p.timeout) {
			continue
		}
		p.retire(w)
		if !p.closed && len(p.workers) < p.size && int(p.stuck.Load()) < p.size {
			p.startWorker()
		}
	}
}

// retire gives a worker up. Called with mu held.
func (p *pool) retire(w *worker) {
	w.retired = true
	delete(p.workers, w)
	p.live.Add(-1)
	p.stuck.Add(1)
	p.running.Done()
	p.log.Warn("a token call hangs; its session is given up", "timeout", p.timeout, "stuck", p.stuck.Load(), "sessions_left", p.live.Load())
	if j := w.job.Load(); j != nil && j.state.CompareAndSwap(jobRunning, jobOverdue) {
		close(j.done)
	}
}

// do has a worker run j and waits for it. On nil the results are the caller's;
// otherwise they are nobody's and will be wiped.
func (p *pool) do(ctx context.Context, j *job) error {
	if p.live.Load() == 0 {
		select {
		case <-p.quit:
			return ErrClosed
		default:
		}
		return fmt.Errorf("%w: %d calls hang in the module and none is answered", ErrBusy, p.stuck.Load())
	}
	select {
	case p.jobs <- j: // the common case needs no timer
	default:
		if err := p.wait(ctx, j); err != nil {
			return err
		}
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		if j.state.CompareAndSwap(jobRunning, jobLeft) {
			return contextError(ctx)
		}
		<-j.done // finished in the same moment
	}
	if j.state.Load() == jobOverdue {
		return fmt.Errorf("%w (%v)", ErrTimeout, p.timeout)
	}
	return nil
}

// wait hands j over to the first worker that becomes free.
func (p *pool) wait(ctx context.Context, j *job) error {
	p.waiting.Add(1)
	defer p.waiting.Add(-1)
	t := time.NewTimer(p.timeout)
	defer t.Stop()
	select {
	case p.jobs <- j:
		return nil
	case <-ctx.Done():
		return contextError(ctx)
	case <-p.quit:
		return ErrClosed
	case <-t.C:
		return fmt.Errorf("%w: none of %d became free within %v", ErrBusy, p.size, p.timeout)
	}
}

// close stops the workers and waits for those that are not stuck. It calls empty once all
// threads have left the module: before it returns, or when the last one that hangs comes
// back, if ever. It may be called once.
func (p *pool) close(empty func()) {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	close(p.quit)
	p.running.Wait() // the watchdog retires who hangs in a job or in closing
	close(p.gone)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stuck.Load() == 0 {
		empty()
	} else {
		p.empty = empty
	}
}
