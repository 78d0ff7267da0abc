package keystore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

func value(n int) func() (*int, error) { return func() (*int, error) { return &n, nil } }

func TestCacheKeepsFillsAndInvalidates(t *testing.T) {
	var left []string
	c := NewCache(8, func(k string, v *int) { left = append(left, fmt.Sprint(k, *v)) })
	if _, ok := c.Get("a"); ok {
		t.Error("found in an empty cache")
	}
	for range 3 {
		if v, err := c.Load("a", value(1)); err != nil || *v != 1 {
			t.Fatal(v, err)
		}
	}
	if v, err := c.Load("a", value(2)); err != nil || *v != 1 {
		t.Errorf("a second fill: %d, %v", *v, err)
	}
	c.Invalidate("a")
	c.Invalidate("a")
	if v, err := c.Load("a", value(3)); err != nil || *v != 3 {
		t.Errorf("after invalidation: %d, %v", *v, err)
	}
	broken := errors.New("broken")
	if _, err := c.Load("b", func() (*int, error) { return nil, broken }); err != broken {
		t.Errorf("error: %v", err)
	}
	if v, err := c.Load("n", func() (*int, error) { return nil, nil }); v != nil || err != nil {
		t.Errorf("nothing: %v, %v", v, err)
	}
	if c.Len() != 1 {
		t.Errorf("%d entries", c.Len())
	}
	if fmt.Sprint(left) != "[a1]" {
		t.Errorf("left: %v", left)
	}
}

func TestCacheEvictsWhatIsNotUsed(t *testing.T) {
	const size = 16
	evicted := 0
	c := NewCache(size, func(int, *int) { evicted++ })
	for i := range size {
		c.Load(i, value(i))
	}
	for i := 100; i < 1000; i++ {
		for hot := range size / 2 {
			if _, ok := c.Get(hot); !ok {
				t.Fatalf("%d was evicted though it is in use", hot)
			}
		}
		c.Load(i, value(i))
		if c.Len() != size {
			t.Fatalf("%d entries", c.Len())
		}
	}
	if evicted != 900 {
		t.Errorf("%d evictions", evicted)
	}
	for i := range size { // slots of invalidated entries are used again
		c.Invalidate(i)
	}
	for i := range size {
		c.Load(i, value(i))
	}
	if c.Len() != size {
		t.Errorf("%d entries after reuse", c.Len())
	}
}

// TestCacheStaleFill: the fill reads, then the record changes and is
// invalidated, then the fill ends. Those who waited may have the old value;
// whoever comes later must not.
func TestCacheStaleFill(t *testing.T) {
	c := NewCache[string, int](8, nil)
	reading, proceed := make(chan struct{}), make(chan struct{})
	first := make(chan int)
	go func() {
		v, _ := c.Load("k", func() (*int, error) {
			close(reading)
			<-proceed
			return value(1)()
		})
		first <- *v
	}()
	<-reading
	c.Invalidate("k")
	if v, _ := c.Load("k", value(2)); *v != 2 { // does not join the stale fill
		t.Errorf("a later load got %d", *v)
	}
	close(proceed)
	if v := <-first; v != 1 {
		t.Errorf("the fill answered %d", v)
	}
	if v, ok := c.Get("k"); !ok || *v != 2 {
		t.Errorf("kept %v, %v", v, ok)
	}
}

func TestCacheFillsOnce(t *testing.T) {
	c := NewCache[string, int](8, nil)
	var fills atomic.Int32
	proceed := make(chan struct{})
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			v, err := c.Load("k", func() (*int, error) {
				fills.Add(1)
				<-proceed
				return value(7)()
			})
			if err != nil || *v != 7 {
				t.Error(v, err)
			}
		})
	}
	eventually(t, "fill", func() bool { return fills.Load() == 1 })
	close(proceed)
	wg.Wait()
	if n := fills.Load(); n != 1 {
		t.Errorf("%d fills", n)
	}
}

func TestCacheFillPanics(t *testing.T) {
	c := NewCache[string, int](8, nil)
	inside, proceed := make(chan struct{}), make(chan struct{})
	go func() {
		defer func() { recover() }()
		c.Load("k", func() (*int, error) { close(inside); <-proceed; panic("fill") })
	}()
	<-inside
	joined := make(chan error)
	go func() {
		_, err := c.Load("k", func() (*int, error) { return nil, errFillPanicked })
		joined <- err
	}()
	close(proceed)
	if err := <-joined; err != errFillPanicked {
		t.Errorf("a waiter got %v", err)
	}
	if v, err := c.Load("k", value(1)); err != nil || *v != 1 {
		t.Errorf("afterwards: %v, %v", v, err)
	}
}

// TestCacheReadYourWrites is the promise that callers rely on, raced: a writer
// changes the source, invalidates, and from then on nobody reads less.
func TestCacheReadYourWrites(t *testing.T) {
	const names = 8
	var source, published [names]atomic.Int64
	c := NewCache(names/2, func(int, *int64) {})
	var wg sync.WaitGroup
	var done atomic.Bool
	for w := range names {
		wg.Go(func() {
			for i := int64(1); i <= 3000; i++ {
				source[w].Store(i)
				c.Invalidate(w)
				published[w].Store(i)
			}
		})
	}
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(r)))
			for !done.Load() {
				k := rng.IntN(names)
				atLeast := published[k].Load()
				v, err := c.Load(k, func() (*int64, error) { n := source[k].Load(); return &n, nil })
				if err != nil || *v < atLeast {
					t.Errorf("read %d after %d was published (%v)", *v, atLeast, err)
					return
				}
				if n := c.Len(); n > names/2 {
					t.Errorf("%d entries", n)
					return
				}
			}
		})
	}
	wg.Wait()
	done.Store(true)
	readers.Wait()
	held := 0
	c.entries.Range(func(k int, e *cacheEntry[int, int64]) bool {
		held++
		if c.slots[e.slot] != e {
			t.Errorf("entry %d is not in its slot", k)
		}
		return true
	})
	if held != c.Len() {
		t.Errorf("%d entries in the map, %d in slots", held, c.Len())
	}
}

func TestCacheHitAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	c := NewCache[Ref, int](8, nil)
	ref := Ref{region, KeyID{1}}
	c.Load(ref, value(1))
	fill := value(2)
	if n := testing.AllocsPerRun(1000, func() { c.Get(ref); c.Load(ref, fill) }); n != 0 {
		t.Errorf("%v allocations per hit", n)
	}
}
