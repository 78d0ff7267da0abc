package batch

import (
	"sync"
	"sync/atomic"
	"time"
)

// A rouser tells whoever gave it busy when jobs come after a rest, and when none
// has come for some time.
//
// # Protocol
//
// used says that a job came since the watcher last looked. A submitter that finds
// it clear sets it and puts a token into stir, which has room for one; a job in
// between costs one load. The watcher sleeps on stir. Awake, it takes a left-over
// token and clears used once per rest, and goes to sleep only when used was clear
// and nobody is inside the door. No job is slept through: a submitter enters the
// door before it looks at used, so either the watcher sees it inside, or it comes
// later, finds used clear, and its token is new.
//
// The watcher alone calls busy, so that no submitter waits for it.
type rouser struct {
	busy func(bool)
	rest time.Duration
	used atomic.Bool
	stir chan struct{}
	end  chan struct{}
	done sync.WaitGroup
}

// startRouser returns a rouser for the jobs inside a door.
func startRouser(busy func(bool), rest time.Duration, inside func() int) *rouser {
	r := &rouser{busy: busy, rest: rest, stir: make(chan struct{}, 1), end: make(chan struct{})}
	r.done.Go(func() { r.watch(inside) })
	return r
}

// job is called by a submitter inside the door.
func (r *rouser) job() {
	if !r.used.Load() && r.used.CompareAndSwap(false, true) {
		select {
		case r.stir <- struct{}{}:
		default:
		}
	}
}

func (r *rouser) watch(inside func() int) {
	tick := time.NewTicker(r.rest)
	defer tick.Stop()
	for {
		select {
		case <-r.stir:
		case <-r.end:
			return
		}
		r.busy(true)
		for tick.Reset(r.rest); r.stirred() || inside() > 0; {
			select {
			case <-tick.C:
			case <-r.end:
				return
			}
		}
		r.busy(false)
	}
}

// stirred tells whether a job came since the last call.
func (r *rouser) stirred() bool {
	select {
	case <-r.stir:
	default:
	}
	return r.used.Swap(false)
}

func (r *rouser) close() {
	close(r.end)
	r.done.Wait()
}
