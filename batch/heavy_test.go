package batch

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// runner is what Heavy and Gate have in common.
type runner interface {
	Run(job func()) error
	Pending() int
	Close()
}

// runners calls f with each kind of runner: width jobs at a time, queue waiting.
func runners(t *testing.T, width, queue int, f func(t *testing.T, r runner)) {
	t.Run("heavy", func(t *testing.T) {
		h, err := NewHeavy(HeavyOptions{Workers: width, Queue: queue})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		f(t, h)
	})
	t.Run("gate", func(t *testing.T) {
		g := NewGate(width, queue)
		defer g.Close()
		f(t, g)
	})
}

// raisePs makes room for locked workers, as the daemon does at start.
func raisePs(t *testing.T, workers int) {
	before := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(before + workers)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// TestHeavyWidth: never more than width jobs run at once, all run once.
func TestHeavyWidth(t *testing.T) {
	raisePs(t, 3)
	runners(t, 3, 64, func(t *testing.T, r runner) {
		const submitters, rounds = 16, 300
		var running, most, ran atomic.Int64
		var wg sync.WaitGroup
		for range submitters {
			wg.Go(func() {
				for range rounds {
					mine := 0
					err := r.Run(func() {
						n := running.Add(1)
						for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
						}
						mine++
						runtime.Gosched()
						ran.Add(1)
						running.Add(-1)
					})
					if err != nil || mine != 1 {
						t.Errorf("%v, ran %d times", err, mine)
					}
				}
			})
		}
		wg.Wait()
		if most.Load() > 3 || ran.Load() != submitters*rounds {
			t.Errorf("%d at once, %d in all", most.Load(), ran.Load())
		}
		if n := r.Pending(); n != 0 {
			t.Errorf("%d pending at the end", n)
		}
	})
}

// TestHeavyFull: exactly width + queue are admitted, the next is refused at
// once, and is admitted when there is room again.
func TestHeavyFull(t *testing.T) {
	raisePs(t, 2)
	runners(t, 2, 3, func(t *testing.T, r runner) {
		gate := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				if err := r.Run(func() { <-gate }); err != nil {
					t.Error(err)
				}
			})
			for r.Pending() <= i {
				runtime.Gosched()
			}
		}
		if err := r.Run(func() { t.Error("a refused job ran") }); err != ErrFull {
			t.Errorf("the sixth: %v", err)
		}
		close(gate)
		wg.Wait()
		ran := false
		if err := r.Run(func() { ran = true }); err != nil || !ran {
			t.Errorf("after the crowd: %v", err)
		}
	})
}

// TestHeavyClose: what was accepted runs, what comes later is refused, and Close
// waits.
func TestHeavyClose(t *testing.T) {
	raisePs(t, 2)
	for range 20 {
		runners(t, 2, 100, func(t *testing.T, r runner) {
			var accepted, ran atomic.Int64
			var closed atomic.Bool
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for {
						late := closed.Load()
						err := r.Run(func() { ran.Add(1) })
						if err == ErrStopped {
							return
						}
						if err != nil || late {
							t.Errorf("%v, after Close: %v", err, late)
							return
						}
						accepted.Add(1)
					}
				})
			}
			for ran.Load() < 50 {
				runtime.Gosched()
			}
			for range 2 {
				wg.Go(func() {
					r.Close()
					closed.Store(true)
					if n := r.Pending(); n != 0 {
						t.Errorf("Close returned with %d pending", n)
					}
				})
			}
			wg.Wait()
			if accepted.Load() != ran.Load() {
				t.Errorf("%d accepted, %d ran", accepted.Load(), ran.Load())
			}
		})
	}
}

// TestHeavyPanic: a panic is its submitter's, and the runner goes on.
func TestHeavyPanic(t *testing.T) {
	raisePs(t, 1)
	runners(t, 1, 1, func(t *testing.T, r runner) {
		for range 3 {
			func() {
				defer func() {
					v := recover()
					if p, ok := v.(*Panic); ok {
						if !errors.Is(p, errFailed) || !strings.Contains(p.Error(), "TestHeavyPanic") {
							t.Errorf("panic %v", p)
						}
						v = p.Value
					}
					if v != errFailed {
						t.Errorf("panic %v", v)
					}
				}()
				_ = r.Run(func() { panic(errFailed) })
			}()
			ran := false
			if err := r.Run(func() { ran = true }); err != nil || !ran {
				t.Errorf("the next job: %v", err)
			}
		}
	})
}

func TestHeavyAllocations(t *testing.T) {
	raisePs(t, 1)
	runners(t, 1, 1, func(t *testing.T, r runner) {
		job := func() {}
		// A collection may empty the pool of tasks, so not exactly zero.
		if n := testing.AllocsPerRun(500, func() { _ = r.Run(job) }); n > 0.1 {
			t.Errorf("%v allocations a job", n)
		}
	})
}

func TestHeavyRefusedOptions(t *testing.T) {
	for _, o := range []HeavyOptions{
		{Workers: 2, Nice: 20}, {Workers: 2, Nice: -1},
		{Workers: 2, CPUs: []int{1023}}, // no such processor here, or not ours
	} {
		if h, err := NewHeavy(o); err == nil {
			h.Close()
			if len(o.CPUs) > 0 && runtime.GOOS == "linux" && runtime.NumCPU() > 1000 {
				continue
			}
			t.Errorf("%+v was accepted", o)
		}
	}
}
