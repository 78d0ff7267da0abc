package batch

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// HeavyOptions says what a [Heavy] pool is made of. The zero value is the
// default that [Plan] recommends, but for GOMAXPROCS, which only the process's
// owner should change, and may with Busy.
type HeavyOptions struct {
	Workers int    // 0: Plan(0).Workers
	Queue   int    // jobs that may wait for a worker; 0: DefaultHeavyQueue
	CPUs    []int  // worker i is bound to CPUs[i%len(CPUs)]; empty: to none
	Nice    int    // added to the workers' nice value, 0 to 19
	Policy  Policy // scheduling policy of the workers

	// Busy, unless nil, is told when jobs come after a rest, and when none has come
	// for Rest (0: DefaultRest). Calls do not overlap, and no job waits for them.
	Busy func(bool)
	Rest time.Duration
}

// DefaultRest is so long that a signature now and then does not begin anything
// anew each time.
const DefaultRest = 5 * time.Second

// DefaultHeavyQueue bounds the wait for a worker to some seconds of RSA_4096 on
// two cores, about what a client waits before it gives up.
const DefaultHeavyQueue = 512

// A Policy is a scheduling policy of the operating system.
type Policy uint8

// The policies. PolicyBatch never preempts others when it wakes up; PolicyIdle
// runs only what nobody else wants, which lets it hold the garbage collector up.
const (
	PolicyNormal Policy = iota
	PolicyBatch
	PolicyIdle
)

// Heavy runs jobs of tens of microseconds and more on few threads of their own,
// so that they take processors from other work only as far as the operating
// system gives them any. A job costs a hand-over there and back.
//
// # Protocol
//
// A door admits at most workers + queue jobs and refuses the others at once.
// The channel has room for all that the door admits, so no send blocks, and
// what is admitted is run: workers end only when the channel is closed, and it
// is closed only when the door is shut and empty. The job belongs to the worker
// from the send until it sends on done, which has room for one; so a submitter
// sleeps on its own channel, is woken once, and no worker ever waits for it.
//
// A channel and not a lock-free ring: measured beside one, the ring was no faster
// (see the package documentation). Both have to wake a thread, which is the cost.
//
// A worker's goroutine is locked to its thread, and ends without unlocking it:
// Go then ends the thread too, so no other goroutine ever finds itself bound to
// one processor or at a low priority. Threads made by Go later do not inherit
// either (it clones them from a clean one once a thread was locked).
type Heavy struct {
	door  door
	queue chan *task
	tasks sync.Pool // of *task
	ended sync.WaitGroup
	rouse *rouser // nil when nobody asked
}

// A task is one job on its way to a worker and back.
type task struct {
	job   func()
	fault *Panic
	done  chan struct{}
}

// NewHeavy starts the workers. An error means that the operating system refused
// to bind them or to lower their priority; none are running then.
func NewHeavy(o HeavyOptions) (*Heavy, error) {
	if o.Workers < 1 {
		o.Workers = Plan(0).Workers
	}
	if o.Nice < 0 || o.Nice > 19 {
		return nil, fmt.Errorf("batch: nice value %d is not in 0 to 19", o.Nice)
	}
	room := o.Workers + orDefault(o.Queue, DefaultHeavyQueue)
	h := &Heavy{queue: make(chan *task, room)}
	h.door.init(room)
	h.tasks.New = func() any { return &task{done: make(chan struct{}, 1)} }
	started := make(chan error, o.Workers)
	for i := range o.Workers {
		cpu := -1
		if len(o.CPUs) > 0 {
			cpu = o.CPUs[i%len(o.CPUs)]
		}
		h.ended.Go(func() { h.worker(cpu, o, started) })
	}
	var err error
	for range o.Workers {
		if e := <-started; e != nil {
			err = e
		}
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	if o.Busy != nil {
		if o.Rest <= 0 {
			o.Rest = DefaultRest
		}
		h.rouse = startRouser(o.Busy, o.Rest, h.door.inside)
	}
	return h, nil
}

func (h *Heavy) worker(cpu int, o HeavyOptions, started chan<- error) {
	runtime.LockOSThread() // for good, see above
	err := prepareThread(cpu, o)
	started <- err
	if err != nil {
		return
	}
	for t := range h.queue {
		t.fault = protect(t.job)
		t.done <- struct{}{}
	}
}

// Run runs job on a worker and returns when it is done, or refuses at once with
// [ErrFull] or [ErrStopped]. A panic of the job is raised here, as a *[Panic].
// job must not call runtime.Goexit. Run itself allocates nothing.
func (h *Heavy) Run(job func()) error {
	if err := h.door.enter(); err != nil {
		return err
	}
	if h.rouse != nil {
		h.rouse.job()
	}
	t := h.tasks.Get().(*task)
	t.job = job
	h.queue <- t
	<-t.done
	fault := t.fault
	t.job, t.fault = nil, nil
	h.tasks.Put(t)
	h.door.leave()
	if fault != nil {
		panic(fault)
	}
	return nil
}

// Pending returns the number of jobs that run or wait.
func (h *Heavy) Pending() int { return h.door.inside() }

// Close refuses what comes from now on, and returns when everything accepted
// before was run and the workers have ended.
func (h *Heavy) Close() {
	if h.door.shut() {
		close(h.queue)
		if h.rouse != nil {
			h.rouse.close()
		}
	}
	h.ended.Wait()
}

// protect runs job and returns its panic.
func protect(job func()) (fault *Panic) {
	returned := false
	defer func() {
		if returned {
			return
		}
		v := recover()
		if v == nil {
			panic("batch: a job called runtime.Goexit")
		}
		fault = &Panic{v, debug.Stack()}
	}()
	job()
	returned = true
	return nil
}
