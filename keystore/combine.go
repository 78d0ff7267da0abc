package keystore

import (
	"context"
	"sync"

	"keymill/hsm"
	"keymill/hsm/arena"
)

// # Combining calls of the root
//
// A call of a token costs much however few items it has, and a token works on
// the items of one call over several sessions. So callers that come while a call
// is under way are put together for the next one. There is no timer: who comes
// to an idle combiner goes at once, alone.
//
// The state is a queue and whether somebody runs. Who queues an item and finds
// nobody running starts a runner; the runner takes what is queued, calls, hands
// out, and repeats until it finds the queue empty under the same lock that
// clears the flag. So an item is never left without a runner, and there is never
// more than one.
//
// A caller may leave when its context ends. The call goes on for the others;
// what came out for the one who left is wiped by the runner. Which of the two
// comes first is decided under the lock.

// maxCombined bounds one call, so that a burst does not make everybody wait for
// the last of it.
const maxCombined = 256

type combiner struct {
	call func(context.Context, hsm.DomainKeyID, []hsm.Item)

	mu      sync.Mutex
	queue   []*combined
	running bool
}

type combined struct {
	id   hsm.DomainKeyID
	item hsm.Item
	done chan struct{}
	// guarded by combiner.mu
	settled, left bool
}

func newCombiner(call func(context.Context, hsm.DomainKeyID, []hsm.Item)) *combiner {
	return &combiner{call: call}
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
	if !c.running {
		c.running = true
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
		c.call(context.Background(), group[0].id, items)
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
		c.mu.Unlock()
	}
}

// take removes the items at the head of the queue that go under one domain key.
// It returns nil, and ends the run, when there are none.
func (c *combiner) take() []*combined {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for n < len(c.queue) && n < maxCombined && c.queue[n].id == c.queue[0].id {
		n++
	}
	if n == 0 {
		c.running, c.queue = false, nil
		return nil
	}
	group := c.queue[:n:n]
	c.queue = c.queue[n:]
	return group
}
