package batch

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"
)

// number is a job that doubles its number and sees who runs it twice.
type number struct {
	n    int
	ran  int
	fail bool
}

func doubling(b *Batch[number]) {
	for v := b.Next(); v != nil; v = b.Next() {
		v.n *= 2
		v.ran++
		if v.fail {
			panic(errFailed)
		}
	}
}

var errFailed = errors.New("as asked")

func TestLanePadding(t *testing.T) {
	l := NewLanes(LaneOptions{Lanes: 2}, doubling)
	if d := unsafe.Offsetof(l.lanes[0].batch) - unsafe.Offsetof(l.lanes[0].head); d < 128 {
		t.Errorf("owner and submitters write %d bytes apart", d)
	}
	if d := uintptr(unsafe.Pointer(&l.lanes[1].head)) - uintptr(unsafe.Pointer(&l.lanes[0].batch)); d < 128 {
		t.Errorf("lanes are %d bytes apart", d)
	}
}

// TestLanesStress is the raced test: many submitters on few lanes, whose jobs
// are plain memory.
func TestLanesStress(t *testing.T) {
	for _, o := range []LaneOptions{{Lanes: 1}, {Lanes: 2, Batch: 3, Turns: 1}, {Lanes: 4, Queue: 2, Batch: 1}} {
		var ran atomic.Int64
		l := NewLanes(o, func(b *Batch[number]) {
			for v := b.Next(); v != nil; v = b.Next() {
				v.n *= 2
				v.ran++
				ran.Add(1)
				if v.n%64 == 0 {
					runtime.Gosched()
				}
				if v.fail {
					panic(errFailed)
				}
			}
		})
		const submitters, rounds = 16, 2000
		var refused atomic.Int64
		var wg sync.WaitGroup
		for s := range submitters {
			wg.Go(func() {
				j := &Job[number]{}
				for i := range rounds {
					j.V = number{n: i, fail: (i+s)%97 == 0}
					p, err := try(func() error { return l.Do(j) })
					if err == ErrFull {
						refused.Add(1)
						if j.V.ran != 0 {
							t.Error("refused, but ran")
						}
						runtime.Gosched()
						continue
					}
					if err != nil || j.V.ran != 1 || j.V.n != 2*i || (p != nil) != j.V.fail {
						t.Errorf("%+v: ran %d times (error %v, panic %v)", o, j.V.ran, err, p)
					}
				}
			})
		}
		wg.Wait()
		l.Close()
		if got := ran.Load() + refused.Load(); got != submitters*rounds {
			t.Errorf("%+v: %d ran and %d were refused of %d", o, ran.Load(), refused.Load(), submitters*rounds)
		}
		t.Logf("%+v: %d refused", o, refused.Load())
	}
}

// TestLanesCloseStress closes lanes under load: what was accepted ran, what
// comes later is refused.
func TestLanesCloseStress(t *testing.T) {
	for range 50 {
		l := NewLanes(LaneOptions{Lanes: 2}, doubling)
		var closed atomic.Bool
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				j := &Job[number]{}
				for {
					j.V = number{n: 1}
					before := closed.Load()
					if err := l.Do(j); err == ErrStopped {
						if j.V.ran != 0 {
							t.Error("refused, but ran")
						}
						return
					} else if err != nil || j.V.ran != 1 || before {
						t.Errorf("%v, ran %d times; after Close: %v", err, j.V.ran, before)
						return
					}
				}
			})
		}
		wg.Go(func() {
			l.Close()
			closed.Store(true)
			l.Close() // harmless
		})
		wg.Wait()
	}
}

// held fills one lane while its owner stands still: it returns a function that
// submits n jobs which queue behind it, in order, and one that lets go and
// returns when all are done.
func held(t *testing.T, o LaneOptions, run func(*Batch[number])) (l *Lanes[number], submit func(jobs ...*Job[number]) []*outcome, release func()) {
	t.Helper()
	o.Lanes = 1
	gate, entered := make(chan struct{}), make(chan struct{})
	first := true
	l = NewLanes(o, func(b *Batch[number]) {
		if first {
			first = false
			close(entered)
			<-gate
			for b.Next() != nil {
			}
			return
		}
		run(b)
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Do(&Job[number]{}); err != nil {
			t.Error(err)
		}
	})
	<-entered
	submit = func(jobs ...*Job[number]) (outs []*outcome) {
		for _, j := range jobs {
			out := &outcome{}
			outs = append(outs, out)
			before := l.lanes[0].head.Load()
			wg.Go(func() { out.panic, out.err = try(func() error { return l.Do(j) }) })
			for l.lanes[0].head.Load() == before {
				runtime.Gosched()
			}
		}
		return outs
	}
	return l, submit, func() { close(gate); wg.Wait() }
}

type outcome struct {
	err   error
	panic *Panic
}

func jobs(n int) (js []*Job[number]) {
	for i := range n {
		js = append(js, &Job[number]{V: number{n: i + 1}})
	}
	return js
}

// TestLanesOrder: jobs of a lane run in the order of their pushes, in batches of
// at most the bound.
func TestLanesOrder(t *testing.T) {
	var order, sizes []int
	_, submit, release := held(t, LaneOptions{Batch: 4, Turns: 1}, func(b *Batch[number]) {
		sizes = append(sizes, b.Len())
		for v := b.Next(); v != nil; v = b.Next() {
			order = append(order, v.n)
		}
	})
	submit(jobs(10)...)
	release()
	if !slices.Equal(order, []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}) || !slices.Equal(sizes, []int{4, 4, 2}) {
		t.Errorf("order %v in batches of %v", order, sizes)
	}
}

func TestLanesFull(t *testing.T) {
	l, submit, release := held(t, LaneOptions{Queue: 3}, doubling)
	submit(jobs(3)...)
	late := jobs(1)[0]
	if err := l.Do(late); err != ErrFull || late.V.ran != 0 {
		t.Errorf("a fourth waiter: %v, ran %d times", err, late.V.ran)
	}
	release()
	if err := l.Do(late); err != nil || late.V.ran != 1 {
		t.Errorf("after the crowd: %v, ran %d times", err, late.V.ran)
	}
}

// TestLanesPanics: a panic fails its own job, and everything runs once.
func TestLanesPanics(t *testing.T) {
	const prologue, epilogue, forgets = "prologue", "epilogue", "forgets"
	for _, c := range []struct {
		name string
		fail []bool // per job
		how  string
		runs string // per job: how often it ran
		bad  string // per job: whether its submitter saw a panic
	}{
		{"none", []bool{false, false, false}, "", "111", "..."},
		{"first", []bool{true, false, false}, "", "111", "x.."},
		{"middle", []bool{false, true, false}, "", "111", ".x."},
		{"last", []bool{false, false, true}, "", "111", "..x"},
		{"two in a row", []bool{true, true, false}, "", "111", "xx."},
		{"all", []bool{true, true, true}, "", "111", "xxx"},
		{"before the first", []bool{false, false, false}, prologue, "000", "xxx"},
		{"after the last", []bool{false, false, false}, epilogue, "111", "xxx"},
		{"middle, then after the last", []bool{false, true, false}, epilogue, "111", ".xx"},
		{"returns early", []bool{false, false, false}, forgets, "100", ".xx"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, submit, release := held(t, LaneOptions{}, func(b *Batch[number]) {
				if c.how == prologue {
					panic(c.how)
				}
				if c.how == forgets {
					b.Next().ran++
					return
				}
				doubling(b)
				if c.how == epilogue {
					panic(c.how)
				}
			})
			js := jobs(len(c.fail))
			for i, fail := range c.fail {
				js[i].V.fail = fail
			}
			outs := submit(js...)
			release()
			var runs, bad strings.Builder
			for i, out := range outs {
				runs.WriteByte(byte('0' + js[i].V.ran))
				if out.panic == nil {
					bad.WriteByte('.')
					continue
				}
				bad.WriteByte('x')
				if len(out.panic.Stack) == 0 || c.how == "" && !errors.Is(out.panic, errFailed) {
					t.Errorf("panic of job %d: %v", i, out.panic)
				}
			}
			if runs.String() != c.runs || bad.String() != c.bad {
				t.Errorf("runs %s, panics %s; want %s and %s", &runs, &bad, c.runs, c.bad)
			}
			l.Close()
			if err := l.Do(js[0]); err != ErrStopped {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

// TestLanesAllocations: a submitter that keeps its job allocates nothing.
func TestLanesAllocations(t *testing.T) {
	l := NewLanes(LaneOptions{}, doubling)
	j := &Job[number]{}
	if n := testing.AllocsPerRun(100, func() { _ = l.Do(j) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
