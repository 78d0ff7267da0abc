package batch

import (
	"fmt"
	"strings"
	"testing"
)

// The exhaustive test runs the real code of Lanes, one atomic operation at a
// time: before each, the goroutine stops and a scheduler decides who goes on. The
// scheduler walks through every order of the small cases by running them again
// and again, each time with another choice at the last place where there is one
// left (depth first). Larger cases are walked with a bound on preemptions, that
// is on switches away from a goroutine that could have gone on; faults of such
// protocols show with two or three.

// A world is one run of a case under one order.
type world struct {
	events   chan event // from whoever runs, to the scheduler
	resume   []chan struct{}
	current  int
	finished []bool
	blocked  []chan struct{} // the wake channel a goroutine sleeps on
}

type event struct {
	done bool
	wake chan struct{}
}

// step is Lanes.step: the goroutine that runs stops here.
func (w *world) step(wake chan struct{}) {
	me := w.current
	w.events <- event{wake: wake}
	<-w.resume[me]
}

// explore runs bodies under every order that has at most preemptions of them;
// check is called after each run. It returns the number of orders.
func explore(t *testing.T, preemptions int, setup func(w *world) (bodies []func(), check func())) int {
	t.Helper()
	type choice struct{ options, taken int }
	var path []choice
	for runs := 1; ; runs++ {
		w := &world{events: make(chan event)}
		bodies, check := setup(w)
		n := len(bodies)
		w.finished, w.blocked = make([]bool, n), make([]chan struct{}, n)
		for range n {
			w.resume = append(w.resume, make(chan struct{}))
		}
		for i, body := range bodies {
			go func() {
				<-w.resume[i]
				body()
				w.events <- event{done: true}
			}()
		}
		depth, left := 0, preemptions
		var trace []string
		for last := -1; ; {
			var ready []int
			alive := false
			for i := range n {
				alive = alive || !w.finished[i]
				if !w.finished[i] && (w.blocked[i] == nil || len(w.blocked[i]) > 0) {
					ready = append(ready, i)
				}
			}
			if !alive {
				break
			}
			if len(ready) == 0 {
				t.Fatalf("a wake-up was lost: nobody can go on after %v", trace)
			}
			// The one that ran last comes first, so choice 0 is to go on.
			options := len(ready)
			for k, i := range ready {
				if i == last {
					ready[0], ready[k] = ready[k], ready[0]
					if left == 0 {
						options = 1
					}
				}
			}
			stays := ready[0] == last
			if depth == len(path) {
				path = append(path, choice{options: options})
			}
			c := path[depth]
			depth++
			if c.options != options {
				t.Fatalf("run %d is not repeatable at step %d", runs, depth)
			}
			if stays && c.taken > 0 {
				left--
			}
			last = ready[c.taken]
			if len(trace) < 200 {
				trace = append(trace, fmt.Sprint(last))
			} else if len(trace) > 10000 {
				t.Fatal("does not end")
			}
			w.current = last
			w.blocked[last] = nil
			w.resume[last] <- struct{}{}
			e := <-w.events
			w.finished[last], w.blocked[last] = e.done, e.wake
		}
		check()
		if t.Failed() {
			t.Fatalf("in the order %s", strings.Join(trace, ""))
		}
		for len(path) > 0 && path[len(path)-1].taken+1 == path[len(path)-1].options {
			path = path[:len(path)-1]
		}
		if len(path) == 0 {
			return runs
		}
		path[len(path)-1].taken++
	}
}

const everyOrder = 1 << 30

func TestLanesEveryOrder(t *testing.T) {
	for _, c := range []struct {
		name        string
		o           LaneOptions
		submitters  int
		jobs        int // of each submitter
		closer      bool
		panics      bool // each submitter's first job does
		preemptions int
	}{
		{"two", LaneOptions{Lanes: 1, Queue: 2, Batch: 2, Turns: 1}, 2, 1, false, false, everyOrder},
		{"two, twice each", LaneOptions{Lanes: 1, Queue: 2, Batch: 2, Turns: 1}, 2, 2, false, false, 5},
		{"two and close", LaneOptions{Lanes: 1, Queue: 2, Batch: 2, Turns: 1}, 2, 1, true, false, 3},
		{"one and close", LaneOptions{Lanes: 1, Queue: 2, Batch: 2, Turns: 1}, 1, 2, true, false, 5},
		{"two lanes", LaneOptions{Lanes: 2, Queue: 1, Batch: 2, Turns: 1}, 2, 2, false, false, 4},
		{"three", LaneOptions{Lanes: 1, Queue: 3, Batch: 3, Turns: 1}, 3, 1, false, false, 3},
		{"three, batches of one", LaneOptions{Lanes: 1, Queue: 3, Batch: 1, Turns: 1}, 3, 1, false, false, 3},
		{"three, room for one", LaneOptions{Lanes: 1, Queue: 1, Batch: 2, Turns: 1}, 3, 1, false, false, 3},
		{"three, twice each", LaneOptions{Lanes: 1, Queue: 3, Batch: 2, Turns: 1}, 3, 2, false, false, 2},
		{"three, panics", LaneOptions{Lanes: 1, Queue: 3, Batch: 3, Turns: 1}, 3, 1, false, true, 2},
		{"three and close", LaneOptions{Lanes: 1, Queue: 3, Batch: 2, Turns: 1}, 3, 1, true, false, 2},
		{"four", LaneOptions{Lanes: 1, Queue: 4, Batch: 2, Turns: 1}, 4, 1, false, false, 2},
		{"three on two lanes and close", LaneOptions{Lanes: 2, Queue: 2, Batch: 2, Turns: 1}, 3, 1, true, false, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			full, stopped, together, handed := 0, 0, 0, 0
			preemptions := c.preemptions
			if raceEnabled {
				// The stops between the steps order everything, so the detector has
				// little to find here and costs tenfold: it sees the shorter orders.
				preemptions = min(preemptions, 1)
			}
			orders := explore(t, preemptions, func(w *world) ([]func(), func()) {
				type job struct {
					ran    int
					by     int
					panics bool
				}
				inside := 0 // owners in the one lane, when there is one
				l := NewLanes(c.o, func(b *Batch[job]) {
					if inside++; inside > c.o.Lanes {
						t.Error("two owners")
					}
					defer func() { inside-- }()
					if b.Len() > 1 {
						together++
					}
					w.step(nil) // others may come while jobs run
					for j := b.Next(); j != nil; j = b.Next() {
						j.ran++
						j.by = w.current
						if j.panics {
							panic("as asked")
						}
					}
				})
				l.step = w.step
				l.pick = func() uint32 { return uint32(w.current) }
				closed := false
				var bodies []func()
				for i := range c.submitters {
					bodies = append(bodies, func() {
						j := &Job[job]{}
						for k := range c.jobs {
							j.V = job{panics: c.panics && k == 0}
							wasClosed := closed
							p, err := try(func() error { return l.Do(j) })
							want := 1
							switch {
							case err == ErrFull:
								want = 0
								full++
							case err == ErrStopped:
								want = 0
								stopped++
								if !c.closer {
									t.Error("stopped without Close")
								}
							case err != nil:
								t.Error(err)
							case wasClosed:
								t.Error("accepted after Close had returned")
							}
							if j.V.ran != want {
								t.Errorf("job of %d ran %d times, want %d (%v)", i, j.V.ran, want, err)
							}
							if want == 1 && j.V.panics != (p != nil) {
								t.Errorf("panics %v, got %v", j.V.panics, p)
							}
							if want == 1 && j.V.by != i {
								handed++
							}
						}
					})
				}
				if c.closer {
					bodies = append(bodies, func() { l.Close(); closed = true })
				}
				return bodies, func() {
					for i := range l.lanes {
						h, want := l.lanes[i].head.Load(), (*Job[job])(nil)
						if c.closer {
							want = &l.closed
						}
						if h != want {
							t.Error("the lane was left in a wrong state")
						}
						if n := l.lanes[i].waiting.Load(); n != 0 {
							t.Errorf("%d counted as waiting at the end", n)
						}
					}
				}
			})
			t.Logf("%d orders: %d refused as full, %d as stopped, %d batches of several, %d jobs run by others", orders, full, stopped, together, handed)
			if handed == 0 && c.submitters > 1 && c.o.Lanes == 1 {
				t.Error("no job was ever run by another submitter")
			}
			if c.o.Queue < c.submitters-1 && full == 0 && c.o.Lanes == 1 {
				t.Error("never full")
			}
			if c.closer && stopped == 0 {
				t.Error("never stopped")
			}
		})
	}
}

// try calls f and catches its panic.
func try(f func() error) (p *Panic, err error) {
	defer func() {
		if v := recover(); v != nil {
			p = v.(*Panic)
		}
	}()
	return nil, f()
}
