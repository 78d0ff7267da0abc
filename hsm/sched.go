package hsm

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"keymill/hsm/arena"
)

// # The scheduler over the session pool
//
// Callers come with one item or ten thousand; a token works on one thing per session at
// a time. In between is one queue of tasks, an item each, and a number of runners, each
// of which has one job in the pool at a time, so one session:
//
//	callers                queue                runners (at most width)   pool
//	Encrypt(items) --+
//	Decrypt(items) --+-->  t t t t t t t t  --> take some --> a session
//	Random(bufs)   --+                          settle their results <--+
//
// Invariants
//
//   - Whoever queues tasks starts runners, up to the width and the number of tasks, under
//     the same lock under which a runner finds the queue empty and ends. So a queued
//     task always has a runner, and an idle token has none: there is no timer.
//   - A task's memory is the worker's from the moment it is taken: the inputs are copies,
//     the results are handed to the caller's group only when the chunk it was taken in is
//     done. If that never comes (a call hangs), the runner fails the tasks, and the
//     worker wipes what it may yet get; which of the two it is, chunk.owner decides.
//   - A group is settled under its lock, task by task, and whoever settles the last one
//     calls the group's done. A caller who leaves settles what is left with an error: he
//     takes what has a result by then; the rest is wiped as it comes in, and tasks of
//     his that have not begun are not run.
//   - Tasks start in the order they were queued. A caller with many does not make another
//     with one wait for more than what was queued before: nothing is held back.
//
// How many tasks a runner takes: as many as take about chunkTime, by what the last ones
// took, but no more than its share of what is queued. On a token that needs
// milliseconds that is one, so that every session is busy to the last; on one that needs
// microseconds it is up to maxChunk, so that the hand-over costs little.
//
// How many runners there are follows what the token can take, see the governor below.
//
// Rejected: cutting each call evenly into as many parts as there are sessions (the
// slowest part decides, and the items of two calls do not share a session).
const (
	maxChunk  = 32
	chunkTime = time.Millisecond
)

type taskKind uint8

const (
	taskEncrypt taskKind = iota
	taskDecrypt
	taskUse    // of a key that lives in the token
	taskRandom // in is nil, out is filled
)

// work is what a session does for one task, in memory of the job's own.
type work struct {
	kind    taskKind
	id      [16]byte // of the key
	in, out []byte
	err     error

	mech TokenMech // taskUse
	aad  []byte    // taskUse

	left *atomic.Bool // nobody waits for it any more: need not be done
}

// calls is how many operations of the token a task is: what is encrypted is decrypted
// again.
func (w *work) calls() int {
	if w.kind == taskEncrypt {
		return 2
	}
	return 1
}

// A task is an item of a group.
type task struct {
	work
	g *group
	i int
}

// A group is one caller's call.
type group struct {
	// done takes the results, which are then its own to wipe. It is called once, without a
	// lock, by whoever settles the last task: most often a worker, so it must not wait.
	done func([]work)

	mu      sync.Mutex
	results []work      // guarded by mu until done
	settled []bool      // guarded by mu
	pending int         // guarded by mu
	left    atomic.Bool // written under mu
}

func newGroup(n int, done func([]work)) *group {
	return &group{done: done, results: make([]work, n), settled: make([]bool, n), pending: n}
}

func (g *group) settle(i int, w work) {
	g.mu.Lock()
	if g.left.Load() {
		g.mu.Unlock()
		arena.Wipe(w.out)
		return
	}
	g.results[i], g.settled[i] = w, true
	g.pending--
	last := g.pending == 0
	g.mu.Unlock()
	if last {
		g.done(g.results)
	}
}

// leave gives what has no result yet this error. Nothing happens when all have one.
func (g *group) leave(err error) {
	g.mu.Lock()
	if g.pending == 0 {
		g.mu.Unlock()
		return
	}
	g.pending = 0
	g.left.Store(true)
	for i := range g.results {
		if !g.settled[i] {
			g.results[i].err = err
		}
	}
	g.mu.Unlock()
	g.done(g.results)
}

type scheduler struct {
	// immutable
	pool *pool
	run  func(w *worker, all []work) // in a session

	mu      sync.Mutex
	queue   []task        // guarded by mu
	runners int           // guarded by mu
	gov     governor      // guarded by mu
	each    time.Duration // guarded by mu: what a call took lately; 0 when not known
}

// newScheduler makes the scheduler of a token that takes alone for one task while it has
// no other.
func newScheduler(p *pool, alone time.Duration, run func(*worker, []work)) *scheduler {
	return &scheduler{pool: p, run: run, gov: newGovernor(p.size, alone)}
}

// begin queues the tasks of a group, one or more, and takes their inputs over.
func (s *scheduler) begin(g *group, all []work) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range all {
		all[i].left = &g.left
		s.queue = append(s.queue, task{all[i], g, i})
	}
	s.start()
}

// do has all of it done and returns the results, which are the caller's to wipe. It takes
// the inputs over. What has no result when the context ends fails with its error.
func (s *scheduler) do(ctx context.Context, all []work) (results []work) {
	if len(all) == 0 {
		return nil
	}
	done := make(chan struct{})
	g := newGroup(len(all), func(r []work) {
		results = r
		close(done)
	})
	s.begin(g, all)
	select {
	case <-done:
	case <-ctx.Done():
		g.leave(contextError(ctx))
		<-done
	}
	return results
}

// start starts runners for what is queued. Called with mu held.
func (s *scheduler) start() {
	for n := len(s.queue); n > 0 && s.runners < s.gov.width; n-- {
		s.runners++
		go s.runner()
	}
}

// A chunk is what a runner has taken and not settled. Who moves owner away from 0 settles
// it: the worker, when it has done everything, or the runner, when the job was given up.
type chunk struct {
	tasks []task
	all   []work // the worker's, until it owns the chunk
	owner atomic.Int32
}

const (
	chunkDone int32 = iota + 1
	chunkLost
)

// A runner's job ends the runner (hasEnded, under mu, with the queue empty) unless the
// runner has given the job up before (goesOn): it is counted out once.
const (
	hasEnded int32 = iota + 1
	goesOn
)

// runner keeps one session at work until nothing is queued or fewer runners are wanted.
// One job of the pool does chunk after chunk, so that a session does not wait for
// goroutines to take turns in between; it gives its session back when somebody else
// waits for one.
func (s *scheduler) runner() {
	for {
		var at atomic.Pointer[chunk] // what the job is at
		var end atomic.Int32         // who decides whether this runner has ended
		j := newJob(nil, func() {})
		j.run = func(w *worker) {
			for j.state.Load() == jobRunning {
				c := s.take(&end)
				if c == nil {
					return
				}
				at.Store(c)
				if j.state.Load() != jobRunning { // given up since; the runner may not have seen c
					s.lose(c, ErrTimeout)
					return
				}
				s.work(w, c)
				if s.pool.waiting.Load() > 0 {
					return
				}
			}
		}
		err := s.pool.do(context.Background(), j)
		if !end.CompareAndSwap(0, goesOn) {
			return
		}
		if err == nil {
			continue
		}
		c := at.Load()
		if c == nil { // no session was to be had
			end.Store(0)
			if c = s.take(&end); c == nil {
				return
			}
		}
		s.lose(c, err)
		s.finished(len(c.tasks), 0, err)
	}
}

// lose fails a chunk that nobody will do, unless it has been done.
func (s *scheduler) lose(c *chunk, err error) {
	if !c.owner.CompareAndSwap(0, chunkLost) {
		return
	}
	for i := range c.tasks {
		c.tasks[i].g.settle(c.tasks[i].i, work{err: err})
	}
}

// work does a chunk on a worker's goroutine.
func (s *scheduler) work(w *worker, c *chunk) {
	began := time.Now()
	s.run(w, c.all)
	if !c.owner.CompareAndSwap(0, chunkDone) {
		for i := range c.all {
			arena.Wipe(c.all[i].out)
		}
		return
	}
	took := time.Since(began)
	var failed error
	calls := 0
	for i := range c.tasks {
		if err := c.all[i].err; err != nil && Classify(err) != Fatal && !c.all[i].left.Load() {
			failed = err
		}
		calls += c.all[i].calls()
		c.tasks[i].g.settle(c.tasks[i].i, c.all[i])
	}
	s.finished(calls, took, failed)
}

// take removes the tasks of the next chunk. It returns nil, and the runner ends, when there
// are none or fewer runners are wanted.
func (s *scheduler) take(end *atomic.Int32) *chunk {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 1
	if s.each > 0 {
		n = max(1, min(int(chunkTime/s.each), maxChunk, len(s.queue)/(2*s.gov.width)))
	}
	c := &chunk{}
	for s.runners <= s.gov.width && len(c.tasks) < n && len(s.queue) > 0 {
		t := s.queue[0]
		s.queue[0] = task{}
		s.queue = s.queue[1:]
		if t.left.Load() {
			arena.Wipe(t.in)
			continue
		}
		c.tasks = append(c.tasks, t)
	}
	if len(c.tasks) == 0 {
		if end.CompareAndSwap(0, hasEnded) {
			s.runners--
		}
		if len(s.queue) == 0 {
			s.queue = nil
		}
		return nil
	}
	c.all = make([]work, len(c.tasks))
	for i := range c.tasks {
		c.all[i], c.tasks[i].work = c.tasks[i].work, work{}
	}
	return c
}

// finished tells the governor of n calls, and starts runners if it wants more.
func (s *scheduler) finished(n int, took time.Duration, failed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if failed != nil {
		s.gov.failed(time.Now())
	} else {
		per := took / time.Duration(n)
		if s.each == 0 {
			s.each = max(per, 1)
		}
		s.each = max(s.each+(per-s.each)/8, 1)
		s.gov.finished(n, per, len(s.queue) > 0 && s.runners >= s.gov.width, time.Now())
	}
	s.start()
}

func (s *scheduler) width() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gov.width
}

// A governor chooses how many sessions are used at once, by trying. It compares what comes
// out of the token with more and with fewer sessions, over stretches (epochs) in which
// there was always something queued. What comes out is not counted but worked out, as
// sessions divided by the time an answer takes (Little's law), and of those times the
// lower quartile is taken: when the machine is busy with something else, fewer answers
// are counted, in an epoch here and there, and that must not look like the token's doing.
//
// One answer time alone tells nothing: a token that works on many things at once and one
// that lets them queue differ only in how it changes with the number of sessions. What
// it is with one session the self test at the start has measured. While all sessions
// together get their answers nearly as quickly as that one did (scales), fewer could
// only be slower, and nothing is probed: a probe costs a quarter of the rate.
//
//	steady   measure; now and then probe with a quarter fewer sessions, or a quarter more,
//	         but not with fewer than all while the token scales
//	probing  fewer were as quick (within keep): they stay, and the next probe follows
//	         more were quicker (by gain): the same
//	         otherwise go back and wait twice as long before the next probe
//	failure  the token failed or did not answer: half as many, at once
//
// It begins with all sessions: the operator's maximum is a statement about the token,
// and a probe downwards finds out soon whether it needs them. A wrong guess of keep
// costs a few percent, until the next probe upwards.
type governor struct {
	max, width int
	alone      time.Duration // answer time of one session by itself; 0 when not known

	from  time.Time       // start of the epoch; zero when there is none
	count int             // finished in this epoch
	times []time.Duration // what a task took, of the epoch's first jobs
	skip  int             // so many jobs began before the width changed

	rate     float64 // of the last epoch at the width that is kept; 0 when not known
	before   int     // the width to go back to; 0 when steady
	down     bool    // direction of the next probe
	wait     int     // epochs to the next probe
	patience int     // wait after the next probe that is turned down

	failure time.Time // the last one that counted
}

const (
	epochTime   = 100 * time.Millisecond
	epochRounds = 12 // an epoch has at least so many tasks per session
	epochTimes  = 256

	probeKeep = 0.97
	probeGain = 1.05
	scales    = 1.4

	minPatience = 4
	maxPatience = 128
)

func newGovernor(sessions int, alone time.Duration) governor {
	return governor{max: sessions, width: sessions, alone: alone, down: true, wait: 1, patience: minPatience}
}

// finished counts n tasks that took each; busy says that there was work for everybody all
// the time.
func (g *governor) finished(n int, each time.Duration, busy bool, now time.Time) {
	switch {
	case !busy:
		g.from = time.Time{}
		return
	case g.skip > 0:
		g.skip--
		g.from = time.Time{}
		return
	case g.from.IsZero():
		g.from, g.count, g.times = now, 0, g.times[:0]
		return
	}
	g.count += n
	if len(g.times) < epochTimes {
		g.times = append(g.times, max(each, 1))
	}
	took := now.Sub(g.from)
	if took < epochTime || g.count < epochRounds*g.width {
		return
	}
	slices.Sort(g.times)
	typical := g.times[len(g.times)/4]
	rate := float64(g.width) / typical.Seconds()
	g.from, g.count, g.times = now, 0, g.times[:0]
	switch {
	case g.before == 0: // steady
		if g.rate == 0 {
			g.rate = rate
		}
		g.rate += (rate - g.rate) / 2
		switch g.wait--; {
		case g.width == g.max && typical < time.Duration(scales*float64(g.alone)):
			g.wait = 1
		case g.wait <= 0:
			g.probe()
		}
	case g.width < g.before && rate >= g.rate*probeKeep, g.width > g.before && rate >= g.rate*probeGain:
		g.rate, g.before, g.patience = rate, 0, minPatience
		g.probe()
	default:
		g.set(g.before)
		g.before, g.wait = 0, g.patience
		g.patience = min(2*g.patience, maxPatience)
		g.down = !g.down
	}
}

// probe tries another width, if there is one in its direction or in the other.
func (g *governor) probe() {
	if g.max == 1 {
		g.wait = g.patience
		return
	}
	if g.down && g.width == 1 || !g.down && g.width == g.max {
		g.down = !g.down
	}
	g.before = g.width
	step := max(1, g.width/4)
	if g.down {
		g.set(max(1, g.width-step))
	} else {
		g.set(min(g.max, g.width+step))
	}
}

func (g *governor) set(width int) {
	g.skip = max(g.width, width) // what is under way
	g.width, g.from = width, time.Time{}
}

// failed halves the width, once for what failed together. The first epochs after that
// probe upwards again.
func (g *governor) failed(now time.Time) {
	if now.Sub(g.failure) < epochTime {
		return
	}
	g.failure = now
	g.set(max(1, g.width/2))
	g.before, g.rate, g.down, g.wait, g.patience = 0, 0, false, 1, minPatience
}
