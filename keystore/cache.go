package keystore

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/puzpuzpuz/xsync/v4"
)

// # The cache
//
// A Cache maps a name to a pointer to an immutable value. Three things must
// hold at once: a hit costs no lock and no allocation; the number of entries is
// bounded; and after Invalidate(k) has returned, nobody who comes later gets a
// value that was read before.
//
// Hits go to a concurrent hash map whose reads take no lock. An entry never
// changes, but for a bit that says it was used since the clock hand last came
// by; it is written only when it is not set, so a hot entry's cache line stays
// shared between cores.
//
// Everything else (fill, eviction, invalidation) is under one mutex, none of
// which holds it while a value is being read. It guards the ring of slots that
// the clock hand walks, the free slots, and the fills under way. The map holds
// an entry exactly when a slot does, once the mutex is released.
//
// A fill is registered under the mutex before it begins to read. Whoever misses
// while it is under way waits for it. Invalidate removes the entry, marks a fill
// under way as stale and unregisters it: a stale fill answers those who were
// waiting for it (they came before the invalidation returned, so the older value
// is a correct answer), but is not kept, and whoever comes later starts
// another. So with "commit, Invalidate, answer" on one side and "register, read,
// keep unless stale" on the other, a value read before the commit can only be
// kept in front of the Invalidate that removes it.
//
// Eviction is CLOCK: the hand clears the bit of what was used and takes the
// first that was not. New entries start without the bit, so one pass over many
// names does not flush what is used.

// A Cache is a bounded map of immutable values. All methods may be called
// concurrently.
type Cache[K comparable, V any] struct {
	entries *xsync.Map[K, *cacheEntry[K, V]]
	max     int
	onEvict func(K, *V)

	mu    sync.Mutex
	slots []*cacheEntry[K, V] // guarded by mu; nil when free
	free  []int               // guarded by mu
	hand  int                 // guarded by mu
	fills map[K]*cacheFill[V] // guarded by mu
}

type cacheEntry[K comparable, V any] struct {
	key   K
	value *V
	slot  int
	used  atomic.Bool
}

type cacheFill[V any] struct {
	done  chan struct{}
	value *V    // written before done
	err   error // written before done
	stale bool  // guarded by Cache.mu
}

// errFillPanicked is what those who waited for a fill get when it panicked; the
// panic itself goes to the one who filled.
var errFillPanicked = errors.New("keystore: a concurrent read of the same record failed")

// NewCache returns a cache of at most limit entries (at least one). onEvict may
// be nil; otherwise it is called, outside all locks and once, for every value
// that leaves the cache. Others may still be using the value then.
func NewCache[K comparable, V any](limit int, onEvict func(K, *V)) *Cache[K, V] {
	return &Cache[K, V]{
		entries: xsync.NewMap[K, *cacheEntry[K, V]](),
		max:     max(limit, 1),
		onEvict: onEvict,
		fills:   make(map[K]*cacheFill[V]),
	}
}

// Get returns the value of k if it is there. It takes no lock and allocates
// nothing.
func (c *Cache[K, V]) Get(k K) (*V, bool) {
	e, ok := c.entries.Load(k)
	if !ok {
		return nil, false
	}
	if !e.used.Load() {
		e.used.Store(true)
	}
	return e.value, true
}

// Load returns the value of k, calling fill when it is not there. Concurrent
// fills of one k are one call; its error goes to all who waited and is not
// kept. So fill must not depend on one caller's context. A nil value is handed
// out, but not kept.
func (c *Cache[K, V]) Load(k K, fill func() (*V, error)) (*V, error) {
	if v, ok := c.Get(k); ok {
		return v, nil
	}
	c.mu.Lock()
	if v, ok := c.Get(k); ok {
		c.mu.Unlock()
		return v, nil
	}
	if f := c.fills[k]; f != nil {
		c.mu.Unlock()
		<-f.done
		return f.value, f.err
	}
	f := &cacheFill[V]{done: make(chan struct{}), err: errFillPanicked}
	c.fills[k] = f
	c.mu.Unlock()
	defer c.finish(k, f)
	f.value, f.err = fill()
	return f.value, f.err
}

// finish ends a fill: keeps its value unless it is stale, and wakes those who
// wait.
func (c *Cache[K, V]) finish(k K, f *cacheFill[V]) {
	var evicted *cacheEntry[K, V]
	c.mu.Lock()
	if !f.stale {
		delete(c.fills, k)
		if f.err == nil && f.value != nil {
			evicted = c.insert(k, f.value)
		}
	}
	c.mu.Unlock()
	close(f.done)
	c.evict(evicted)
}

// insert puts a new entry into a slot and returns the one it displaced. mu is
// held, and k is not in the cache.
func (c *Cache[K, V]) insert(k K, v *V) (evicted *cacheEntry[K, V]) {
	e := &cacheEntry[K, V]{key: k, value: v}
	switch {
	case len(c.free) > 0:
		last := len(c.free) - 1
		e.slot, c.free = c.free[last], c.free[:last]
	case len(c.slots) < c.max:
		e.slot = len(c.slots)
		c.slots = append(c.slots, nil)
	default: // every slot is taken
		// Readers may set bits as fast as the hand clears them: after two rounds
		// it takes whatever it is at.
		for range 2 * len(c.slots) {
			if at := c.slots[c.hand]; !at.used.Swap(false) {
				break
			}
			c.hand = (c.hand + 1) % len(c.slots)
		}
		evicted = c.slots[c.hand]
		e.slot = c.hand
		c.hand = (c.hand + 1) % len(c.slots)
		c.entries.Delete(evicted.key)
	}
	c.slots[e.slot] = e
	c.entries.Store(k, e)
	return evicted
}

// Invalidate removes k. Whoever calls Get or Load after it has returned gets a
// value whose fill began after it was called.
func (c *Cache[K, V]) Invalidate(k K) {
	c.mu.Lock()
	if f := c.fills[k]; f != nil {
		f.stale = true
		delete(c.fills, k)
	}
	e, ok := c.entries.LoadAndDelete(k)
	if ok {
		c.slots[e.slot] = nil
		c.free = append(c.free, e.slot)
	}
	c.mu.Unlock()
	if ok {
		c.evict(e)
	}
}

func (c *Cache[K, V]) evict(e *cacheEntry[K, V]) {
	if e != nil && c.onEvict != nil {
		c.onEvict(e.key, e.value)
	}
}

// Len returns the number of entries, at most max.
func (c *Cache[K, V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.slots) - len(c.free)
}
