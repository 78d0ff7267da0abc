package batch

import (
	"sync/atomic"
)

// A door counts who is inside, refuses who would be too many, and can be shut.
//
//	word = 2 * inside + shut
//
//	enter   +2 by compare-and-swap, unless shut or full
//	leave   -2
//	shut    sets the low bit, once
//
// Nobody enters after shut, so the count only falls then and exactly one step
// brings it to zero: the leave that leaves the word at 1, or shut itself when
// nobody is inside. That step closes empty.
type door struct {
	word  atomic.Int64
	limit int64         // immutable
	empty chan struct{} // closed when shut and nobody is inside
}

func (d *door) init(limit int) {
	d.limit = int64(limit)
	d.empty = make(chan struct{})
}

func (d *door) enter() error {
	for {
		w := d.word.Load()
		if w&1 != 0 {
			return ErrStopped
		}
		if w>>1 >= d.limit {
			return ErrFull
		}
		if d.word.CompareAndSwap(w, w+2) {
			return nil
		}
	}
}

func (d *door) leave() {
	if d.word.Add(-2) == 1 {
		close(d.empty)
	}
}

// shut lets nobody in any more and returns when nobody is inside. It reports
// whether this call was the first.
func (d *door) shut() (first bool) {
	w := d.word.Or(1)
	if w == 0 {
		close(d.empty)
	}
	<-d.empty
	return w&1 == 0
}

// inside returns how many are.
func (d *door) inside() int { return int(d.word.Load() >> 1) }
