package keystore

import (
	"context"
	"sync"
	"time"

	"keymill/hsm"
	"keymill/hsm/arena"
)

// # Combining calls of the root
//
// A call of a root costs much however few items it has. So callers that come
// while a call is under way are put together for the next one. There is no timer:
// who comes to an idle combiner goes at once, alone.
//
// How many calls may be under way depends on how long the root takes for one
// round, which is as many items as it has sessions. Below slowRound there is one
// call at a time: others would only be smaller. Above it, as a network HSM is,
// waiting for a call to end leaves sessions idle, so there are as many calls as
// the root has sessions, up to maxRuns, of few items each: enough for every session
// to find the next item waiting, and nobody waits for the last of a large batch.
//
// The state is a queue and the number of runners. Who queues an item starts a
// runner if one more is allowed; a runner takes what is queued, calls, hands out,
// and repeats until it finds the queue empty, or more runners than are allowed,
// under the same lock under which it is counted out. One is always allowed, so an
// item is never left without a runner.
//
// A caller may leave when its context ends. The call goes on for the others;
// what came out for the one who left is wiped by the runner. Which of the two
// comes first is decided under the lock.

const (
	// maxCombined bounds one call, so that a burst does not make everybody wait
	// for the last of it; slowCombined does when several are under way.
	maxCombined  = 256
	slowCombined = 4

	maxRuns   = 16
	slowRound = time.Millisecond
)

type combiner struct {
	// Immutable.
	call     func(context.Context, hsm.DomainKeyID, []hsm.Item)
	sessions int // of the root
	now      func() time.Time

	mu    sync.Mutex
	queue []*combined
	runs  int
	slow  bool // the last call took longer than slowRound for each round
}

type combined struct {
	id   hsm.DomainKeyID
	item hsm.Item
	done chan struct{}
	// guarded by combiner.mu
	settled, left bool
}

// newCombiner returns a combiner for a root with so many sessions; 0 is one that does
// not say, as the software root, and may yet be replaced by a token (rewrap.go).
func newCombiner(sessions int, call func(context.Context, hsm.DomainKeyID, []hsm.Item)) *combiner {
	if sessions < 1 {
		sessions = hsm.DefaultSessions
	}
	return &combiner{call: call, sessions: sessions, now: time.Now}
}

// allowed is how many runners there may be, and how much each takes. Called with
// mu held.
func (c *combiner) allowed() (runs, items int) {
	if c.slow {
		return min(c.sessions, maxRuns), slowCombined
	}
	return 1, maxCombined
}

// do gives in to the root in good company. It takes in over and wipes it; the
// caller owns, and wipes, the result.
func (c *combiner) do(ctx context.Context, id hsm.DomainKeyID, in []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		arena.Wipe(in)
		return nil, err
	}
	j := &combined{id: id, item: hsm.Item{In: in}, done: make(chan struct{})}
	c.mu.Lock()
	c.queue = append(c.queue, j)
	if runs, _ := c.allowed(); c.runs < runs {
		c.runs++
		go c.run()
	}
	c.mu.Unlock()
	select {
	case <-j.done:
	case <-ctx.Done():
		c.mu.Lock()
		j.left = !j.settled
		c.mu.Unlock()
		if j.left {
			return nil, ctx.Err()
		}
	}
	return j.item.Out, j.item.Err
}

func (c *combiner) run() {
	for {
		group := c.take()
		if group == nil {
			return
		}
		items := make([]hsm.Item, len(group))
		for i, j := range group {
			items[i].In = j.item.In
		}
		began := c.now()
		c.call(context.Background(), group[0].id, items)
		took := c.now().Sub(began)
		c.mu.Lock()
		for i, j := range group {
			arena.Wipe(j.item.In)
			j.item = items[i]
			if j.item.Err == nil && j.item.Out == nil {
				j.item.Err = errNoItem
			}
			j.settled = true
			if j.left {
				arena.Wipe(j.item.Out)
			}
			close(j.done)
		}
		rounds := 1 + (len(group)-1)/c.sessions
		c.slow = took > time.Duration(rounds)*slowRound
		// What had to wait for one runner need not wait any longer.
		runs, each := c.allowed()
		for n := len(c.queue); n > each && c.runs < runs; n -= each {
			c.runs++
			go c.run()
		}
		c.mu.Unlock()
	}
}

// take removes the items at the head of the queue that go under one domain key.
// It returns nil, and ends the run, when there are none or this runner is one too
// many.
func (c *combiner) take() []*combined {
	c.mu.Lock()
	defer c.mu.Unlock()
	runs, most := c.allowed()
	n := 0
	for n < len(c.queue) && n < most && c.runs <= runs && c.queue[n].id == c.queue[0].id {
		n++
	}
	if n == 0 {
		if c.runs--; len(c.queue) == 0 {
			c.queue = nil
		}
		return nil
	}
	group := c.queue[:n:n]
	c.queue = c.queue[n:]
	return group
}
