package batch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// ErrFull: as much is waiting as may wait. Nothing was done.
var ErrFull = errors.New("batch: full")

// ErrStopped: Close was called before. Nothing was done.
var ErrStopped = errors.New("batch: stopped")

// A Panic is what a job panicked with, brought to the goroutine that submitted
// it and raised there again.
type Panic struct {
	Value any
	Stack []byte // of the goroutine that ran the job
}

func (p *Panic) Error() string { return fmt.Sprintf("batch: a job panicked: %v\n%s", p.Value, p.Stack) }

// Unwrap returns the value when it is an error.
func (p *Panic) Unwrap() error { err, _ := p.Value.(error); return err }

// Lanes run jobs in batches without a worker: whoever submits to an idle lane
// runs its own job there, and then what has queued behind it in the meantime
// (flat combining). A batch is what is queued when somebody looks; nothing ever
// waits for a batch to fill.
//
// # The lane's word
//
// A lane is one word, head, that says who owns the lane and what is queued:
//
//	nil        idle: no owner, nothing queued
//	owned      one owner, nothing queued (a sentinel's address)
//	a job      one owner, and a stack of jobs that ends in owned
//	closed     for good: no owner, nothing queued (a sentinel's address)
//
// and these are all its changes:
//
//	enter   nil    -> owned    by a submitter, who is the owner then
//	push    x      -> job      by a submitter, job.next = x; x is owned or a job
//	take    job    -> owned    by the owner, who gets the whole stack
//	leave   owned  -> nil      by the owner
//	shut    nil or owned -> closed   by Close, in the second case as the owner
//
// Owner and queue share the word, so no job is ever lost between a submitter
// that finds an owner and an owner that leaves: leave is a compare-and-swap
// that fails when a push came first, and a push fails when the leave did. That
// is the whole argument for "nothing is lost", and there is no second flag to
// be read in the wrong order.
//
// The stack is only ever pushed to and taken whole, so a head that was taken,
// done, submitted again and pushed again between the load and the swap of
// another push (ABA) does no harm: what matters is that it is the head, and it
// is. The owner turns the stack it took around; within a lane, jobs run in the
// order of their pushes.
//
// # Who owns a job
//
//	fresh, done   the submitter. Outside Do it may do with the job what it likes.
//	waiting       from the push on: the lane's owner alone reads and writes V,
//	              next and fault; the submitter goes to sleep.
//	parked        the same, and the submitter sleeps on wake.
//	mine          the submitter, which is the lane's owner now and runs the
//	              list that begins with this job.
//
//	waiting -> parked      by the submitter (compare-and-swap), then it receives
//	waiting -> done, mine  by the owner (swap): the submitter sees it
//	parked  -> done, mine  by the owner (swap), which then sends on wake
//
// The owner learns from its swap whether the submitter sleeps, and the
// submitter learns from its compare-and-swap whether it is too late to go to
// sleep: one of the two comes first, so a wake-up is neither lost nor sent to
// nobody. wake has room for one, so the owner never blocks. After a swap from
// waiting, the owner does not touch the job again (it may be in its next
// round already); after one from parked it does once, to send, and until that
// the submitter is asleep. A job is completed exactly once because it is in
// exactly one place: the stack, the owner's list, or its submitter's hands.
//
// Go's atomic operations are sequentially consistent and order all other memory
// around them; every hand-over above is one atomic operation that the receiver
// observes. No field needs more.
//
// # Bounds
//
// waiting counts jobs that were pushed and have not run; a push that would make
// it more than the limit is refused before it touches the word. The refused
// count for a moment too, so that in a crowd the limit may hold a little early
// but never late. A submitter
// tries every lane, idle ones first, before it reports [ErrFull]. An owner runs
// at most turns batches for others and then hands the lane, with what is left
// of its list, to the submitter of the first job in it, so that nobody works
// for others for long. Nobody gives way to a later job of the same lane.
//
// # Panics
//
// A panic belongs to the job that [Batch.Next] returned last: it is raised again
// in that job's submitter, the jobs before it stand, and the function is called
// anew for those after it. No job runs twice. A panic before the first Next or
// after the last (the costs that the batch shares) belongs to all jobs of that
// call.
//
// # Rejected
//
//   - A ring with a sequence number for each cell: bounded by itself, but it
//     needs a second word for the owner, and with it the proof about the order
//     in which the two are read.
//   - A worker that sleeps until there is work: it pays a wake-up on an idle
//     lane (300 ns and more) where combining pays one compare-and-swap.
//   - Waiting a moment for company: latency for everybody, and a batch that
//     forms by itself under load anyway.
//   - Looking at state some times, with a yield between, before going to sleep: 1
//     to 32 looks made no difference beyond the noise at 8 to 512 submitters.
type Lanes[T any] struct {
	// Immutable after NewLanes.
	lanes []lane[T]
	run   func(*Batch[T])
	limit int32 // of waiting, for each lane
	max   int   // jobs in a batch
	turns int   // batches for others
	pick  func() uint32
	step  func(wake chan struct{}) // before each atomic operation; nil outside tests

	// Sentinels: only their addresses count.
	owned, closed Job[T]

	closing sync.Mutex // held by Close: one closer at a time
}

// A Job is one piece of work. It belongs to one goroutine at a time and can be
// used again and again; it must not be copied once it was used.
type Job[T any] struct {
	V T

	next   *Job[T]
	fault  *Panic
	state  atomic.Uint32
	closer bool
	wake   chan struct{} // made when its submitter first parks
}

// The states of a job.
const (
	jobDone = iota
	jobWaiting
	jobParked
	jobMine
)

// A Batch is what one call of the function that was given to [NewLanes] works
// on. It is valid during the call only.
type Batch[T any] struct {
	jobs []*Job[T]
	at   int // index of the job to return next
}

// Len returns the number of jobs that Next has yet to return.
func (b *Batch[T]) Len() int { return len(b.jobs) - b.at }

// Next returns the next job's value, nil when there is none. It says that the
// work on the one before is done.
func (b *Batch[T]) Next() *T {
	if b.at >= len(b.jobs) {
		b.at = len(b.jobs) + 1
		return nil
	}
	j := b.jobs[b.at]
	b.at++
	return &j.V
}

type lane[T any] struct {
	// Atomic: the protocol.
	head    atomic.Pointer[Job[T]]
	waiting atomic.Int32

	_ [112]byte // submitters write above, the owner below

	// Owned by the lane's owner.
	batch Batch[T]

	_ [96]byte // keeps the next lane off these cache lines
}

// LaneOptions are the bounds of [Lanes]; zero values are the defaults.
type LaneOptions struct {
	Lanes int // rounded up to a power of two; 0: one for each processor that Go uses
	Queue int // jobs that may wait in each lane; 0: DefaultQueue
	Batch int // jobs in one batch; 0: DefaultBatch
	Turns int // batches that a submitter runs for others; 0: DefaultTurns
}

// Defaults of [LaneOptions], each with the reason for its value.
const (
	// DefaultQueue is some ten times what 64 connections can have in flight.
	DefaultQueue = 1024

	// DefaultBatch keeps a batch of 1 us jobs under 50 us; what jobs can share
	// is shared by then.
	DefaultBatch = 32

	// DefaultTurns bounds what a submitter does for others to some 100 us.
	DefaultTurns = 2
)

// NewLanes returns lanes on which run carries out jobs. run must call Next
// until it returns nil and keeps nothing of the batch; it must not call
// runtime.Goexit, which would end somebody else's goroutine.
func NewLanes[T any](o LaneOptions, run func(*Batch[T])) *Lanes[T] {
	if o.Lanes < 1 {
		o.Lanes = runtime.GOMAXPROCS(0)
	}
	size := 1
	for size < o.Lanes {
		size *= 2
	}
	l := &Lanes[T]{
		lanes: make([]lane[T], size),
		run:   run,
		limit: int32(orDefault(o.Queue, DefaultQueue)),
		max:   orDefault(o.Batch, DefaultBatch),
		turns: orDefault(o.Turns, DefaultTurns),
		pick:  rand.Uint32,
	}
	for i := range l.lanes {
		l.lanes[i].batch.jobs = make([]*Job[T], 0, l.max)
	}
	return l
}

func orDefault(n, byDefault int) int {
	if n < 1 {
		return byDefault
	}
	return n
}

// Do runs j and returns when it was run, or refuses at once with [ErrFull] or
// [ErrStopped]. A panic of the job is raised here, as a *[Panic]. It allocates
// nothing but, once in a job's life, the channel it sleeps on.
func (l *Lanes[T]) Do(j *Job[T]) error {
	mask, at := uint32(len(l.lanes)-1), l.pick()
	for i := range uint32(len(l.lanes)) {
		ln := &l.lanes[(at+i)&mask]
		l.atomic()
		if ln.head.Load() != nil {
			continue
		}
		l.atomic()
		if ln.head.CompareAndSwap(nil, &l.owned) {
			l.enter(ln, j)
			return j.finish()
		}
	}
	for i := range uint32(len(l.lanes)) {
		ln := &l.lanes[(at+i)&mask]
		l.atomic()
		if ln.waiting.Add(1) > l.limit {
			l.atomic()
			ln.waiting.Add(-1)
			continue
		}
		prev := l.push(ln, j)
		if prev == nil || prev == &l.closed {
			l.atomic()
			ln.waiting.Add(-1)
			if prev == &l.closed {
				return ErrStopped
			}
			l.enter(ln, j)
		} else if l.await(j) {
			l.combine(ln, j, l.turns+1, nil)
		}
		return j.finish()
	}
	return ErrFull
}

// finish raises the job's panic, if it had one.
func (j *Job[T]) finish() error {
	if p := j.fault; p != nil {
		j.fault = nil
		panic(p)
	}
	return nil
}

// push puts j on the lane's stack and returns what was there before. When that
// is nil the lane was entered instead, and when it is closed nothing was done.
func (l *Lanes[T]) push(ln *lane[T], j *Job[T]) (prev *Job[T]) {
	j.state.Store(jobWaiting) // nobody else sees j yet
	for {
		l.atomic()
		prev = ln.head.Load()
		next := j
		switch prev {
		case nil:
			next = &l.owned
		case &l.closed:
			return prev
		default:
			j.next = prev
		}
		l.atomic()
		if ln.head.CompareAndSwap(prev, next) {
			return prev
		}
	}
}

// await returns when j is done, or was handed the lane it waited in.
func (l *Lanes[T]) await(j *Job[T]) (mine bool) {
	if j.wake == nil {
		j.wake = make(chan struct{}, 1)
	}
	l.atomic()
	if j.state.CompareAndSwap(jobWaiting, jobParked) {
		if l.step != nil {
			l.step(j.wake)
		}
		<-j.wake
	}
	return j.state.Load() == jobMine
}

// tell moves j out of its owner's hands, waking its submitter if it sleeps.
func (l *Lanes[T]) tell(j *Job[T], state uint32) {
	l.atomic()
	if j.state.Swap(state) == jobParked {
		l.atomic()
		j.wake <- struct{}{}
	}
}

// enter runs j, whose submitter has just entered the lane, and then what others
// have pushed.
func (l *Lanes[T]) enter(ln *lane[T], j *Job[T]) {
	j.next = nil
	l.runBatch(ln, j, false)
	l.combine(ln, nil, l.turns, nil)
}

// combine runs the lane for its owner: the list todo, then what was pushed, for
// at most turns batches. It ends with the lane handed on, or with leave in its
// word.
func (l *Lanes[T]) combine(ln *lane[T], todo *Job[T], turns int, leave *Job[T]) {
	for ; ; turns-- {
		if todo == nil {
			l.atomic()
			if ln.head.CompareAndSwap(&l.owned, leave) {
				return
			}
			l.atomic()
			todo = l.turnAround(ln.head.Swap(&l.owned))
		}
		if turns == 0 || todo.closer {
			l.tell(todo, jobMine)
			return
		}
		todo = l.runBatch(ln, todo, true)
	}
}

// turnAround makes a list in the order of pushes out of a stack.
func (l *Lanes[T]) turnAround(stack *Job[T]) (list *Job[T]) {
	for stack != &l.owned {
		stack.next, list, stack = list, stack, stack.next
	}
	return list
}

// runBatch runs the first jobs of the list as one batch and returns the others.
// queued says that they were counted in waiting.
func (l *Lanes[T]) runBatch(ln *lane[T], list *Job[T], queued bool) (rest *Job[T]) {
	jobs := ln.batch.jobs[:0]
	for list != nil && !list.closer && len(jobs) < l.max {
		j := list
		jobs = append(jobs, j)
		list, j.next = j.next, nil
	}
	for ln.batch.jobs, ln.batch.at = jobs, 0; !l.call(&ln.batch); {
	}
	if queued { // before they are told: who comes back at once finds room
		l.atomic()
		ln.waiting.Add(int32(-len(jobs)))
	}
	for i, j := range jobs {
		jobs[i] = nil
		l.tell(j, jobDone)
	}
	ln.batch.jobs = jobs[:0]
	return list
}

// call calls run on b and reports whether that is all. After a panic, b is what
// is left to do.
func (l *Lanes[T]) call(b *Batch[T]) (done bool) {
	returned := false
	defer func() {
		if returned {
			return
		}
		v := recover()
		if v == nil {
			panic("batch: a job called runtime.Goexit")
		}
		done = b.blame(&Panic{v, debug.Stack()})
	}()
	l.run(b)
	returned = true
	if b.at < len(b.jobs) {
		b.jobs = b.jobs[b.at:]
		b.at = 0
		return b.blame(&Panic{"batch: the function returned before its last job", debug.Stack()})
	}
	return true
}

// blame gives p to the job it belongs to, or to all, and reports whether there
// are none left.
func (b *Batch[T]) blame(p *Panic) (done bool) {
	if at := b.at - 1; 0 <= at && at < len(b.jobs) {
		b.jobs[at].fault = p
		b.jobs, b.at = b.jobs[b.at:], 0
		return len(b.jobs) == 0
	}
	for _, j := range b.jobs {
		j.fault = p
	}
	return true
}

// Close refuses what comes from now on, and returns when everything accepted
// before was run.
func (l *Lanes[T]) Close() {
	l.closing.Lock()
	defer l.closing.Unlock()
	for i := range l.lanes {
		ln := &l.lanes[i]
		l.atomic()
		if h := ln.head.Load(); h == &l.closed {
			continue
		}
		// The closer waits like a job, is handed the lane in its turn, runs what
		// came behind it, and leaves the word closed instead of nil.
		c := &Job[T]{closer: true}
		if l.push(ln, c) == nil {
			l.combine(ln, nil, -1, &l.closed)
		} else if l.await(c) {
			l.combine(ln, c.next, -1, &l.closed)
		}
	}
}

// atomic marks the place of an atomic operation for the exhaustive test.
func (l *Lanes[T]) atomic() {
	if l.step != nil {
		l.step(nil)
	}
}
