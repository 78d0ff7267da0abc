package batch

import (
	"math/rand/v2"
	"runtime"
	"sync/atomic"
)

// Slots is a fixed set of values of which each has at most one owner at a
// time. A goroutine that wants one tries to own any of them and never waits: it
// gets a free slot, or learns that none was found and does its work without.
// The engine keeps the state of a key's encryption lanes in one, so that a lane
// needs no lock although its counter and its scratch space are plain memory.
//
// The protocol of one slot is a single word:
//
//		free --- CompareAndSwap(0, 1) by Acquire ---> owned
//		owned --- Store(0) by Release --------------> free
//
//	  - Only the goroutine whose swap succeeded touches the value, and only until
//	    its Release. Both are sequentially consistent atomic operations, so all
//	    that an owner wrote is seen by the next one; no other synchronisation is
//	    needed, and the race detector agrees.
//	  - Acquire reads the word before it swaps, so that a busy slot costs its
//	    visitors a shared read and not an exclusive cache line.
//	  - Acquire looks at every slot once, beginning at a random one, and gives up
//	    after a full round. It can miss a slot freed behind its back; the caller
//	    has a fallback anyway. Nobody waits, so nobody can be starved or deadlock.
//	  - Slots have a cache line each (two where the processor fetches pairs), so
//	    that owners on different cores do not slow each other.
//
// Rejected: a sync.Pool, because the garbage collector empties it and a lane
// must count what it has sealed; a mutex for each slot, because there is no use
// in waiting for a slot while others are free; a slot for each processor,
// because Go tells nobody which one it runs on.
//
// Make one with [NewSlots]; it must not be copied.
type Slots[T any] struct {
	slots []Slot[T] // immutable; a power of two of them
}

// A Slot is one value and the word that says whether it is owned. V belongs to
// the goroutine between the Acquire that returned it and its Release.
type Slot[T any] struct {
	busy atomic.Uint32
	V    T
	_    [128]byte // keeps the next slot's word off this one's cache lines
}

// NewSlots returns n free slots holding zero values. n is rounded up to a power
// of two; n < 1 means one slot for each processor that Go uses.
func NewSlots[T any](n int) *Slots[T] {
	if n < 1 {
		n = runtime.GOMAXPROCS(0)
	}
	size := 1
	for size < n {
		size *= 2
	}
	return &Slots[T]{slots: make([]Slot[T], size)}
}

// Len returns the number of slots.
func (s *Slots[T]) Len() int { return len(s.slots) }

// Acquire makes the caller the owner of a free slot, or returns nil when it
// found none. It never waits and never allocates.
func (s *Slots[T]) Acquire() *Slot[T] {
	mask := uint32(len(s.slots) - 1)
	at := rand.Uint32()
	for range s.slots {
		slot := &s.slots[at&mask]
		if slot.busy.Load() == 0 && slot.busy.CompareAndSwap(0, 1) {
			return slot
		}
		at++
	}
	return nil
}

// Release ends the caller's ownership. Releasing a slot that nobody owns means
// that two goroutines believed they owned it, and panics.
func (s *Slots[T]) Release(slot *Slot[T]) {
	if slot.busy.Swap(0) != 1 {
		panic("batch: release of a slot that is not owned")
	}
}
