package hsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// # Several roots as one
//
// While a store moves from one root of trust to another, part of its KEKs is wrapped by
// the old one and part by the new one. A Composite holds both open and sends each call to
// the root that has the domain key it names. Before and after a move it has one member
// and passes calls on.
//
// A domain key belongs to the first member whose CheckDomainKey accepts it; who that was
// is remembered until the member leaves. A member that cannot be asked does not count
// as one that lacks the key: the call then fails with that member's error, so that a token
// out of order is not taken for the loss of a key.
//
// Members join and leave while calls are under way. A call is inside a member between
// enter and leave; Remove waits until nobody is inside, and only then closes it. Who
// arrives later finds the member gone and looks for another, so that no root is called
// after its Close.

// A Composite is a [Root] made of several. New domain keys, random bytes and Info are the
// first member's.
type Composite struct {
	mu      sync.Mutex                // serialises changes of members
	members atomic.Pointer[[]*member] // never empty but after Close; the slice is immutable
	owners  sync.Map                  // DomainKeyID to *member, while there are several
}

type member struct {
	root Root // immutable
	// in is held for reading during calls. gone is set under it.
	in   sync.RWMutex
	gone bool
}

func (m *member) enter() bool {
	m.in.RLock()
	if m.gone {
		m.in.RUnlock()
		return false
	}
	return true
}

func (m *member) leave() { m.in.RUnlock() }

// close waits for the calls under way and closes the root.
func (m *member) close() error {
	m.in.Lock()
	m.gone = true
	m.in.Unlock()
	return m.root.Close()
}

// NewComposite returns a Composite with one member, which it takes over.
func NewComposite(root Root) *Composite {
	c := &Composite{}
	c.members.Store(&[]*member{{root: root}})
	return c
}

// Add takes a further root over.
func (c *Composite) Add(root Root) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := *c.members.Load()
	if len(old) == 0 {
		return ErrClosed
	}
	all := append(slices.Clone(old), &member{root: root})
	c.members.Store(&all)
	return nil
}

// First returns the root that makes new domain keys.
func (c *Composite) First() Root {
	if all := *c.members.Load(); len(all) > 0 {
		return all[0].root
	}
	return nil
}

// Keep makes root the only member: it removes and closes all others once the calls under
// way in them have returned. Calls that come while it waits wait with it.
func (c *Composite) Keep(root Root) error {
	return c.remove(func(m *member) bool { return m.root == root })
}

// Remove closes one member, which must not be the last, as Keep does.
func (c *Composite) Remove(root Root) error {
	return c.remove(func(m *member) bool { return m.root != root })
}

func (c *Composite) remove(keep func(*member) bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var kept, gone []*member
	for _, m := range *c.members.Load() {
		if keep(m) {
			kept = append(kept, m)
		} else {
			gone = append(gone, m)
		}
	}
	if len(kept) == 0 {
		return errors.New("a root of trust that is to stay is not open")
	}
	c.members.Store(&kept)
	return c.bury(gone)
}

// bury closes members that have left.
func (c *Composite) bury(gone []*member) error {
	var errs []error
	for _, m := range gone {
		errs = append(errs, m.close())
	}
	// What looked for an owner before the members changed may have noted one since.
	c.owners.Range(func(id, m any) bool {
		if slices.Contains(gone, m.(*member)) {
			c.owners.Delete(id)
		}
		return true
	})
	return errors.Join(errs...)
}

// Close implements Root: it closes all members.
func (c *Composite) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bury(*c.members.Swap(&[]*member{}))
}

// with calls f with the member that has the domain key.
func (c *Composite) with(ctx context.Context, id DomainKeyID, f func(Root)) error {
	for {
		m, err := c.owner(ctx, id)
		if err != nil {
			return err
		}
		if m.enter() {
			defer m.leave()
			f(m.root)
			return nil
		}
		c.owners.CompareAndDelete(id, m)
	}
}

// owner finds the member that has the domain key. The only member is not asked.
func (c *Composite) owner(ctx context.Context, id DomainKeyID) (*member, error) {
	all := *c.members.Load()
	switch len(all) {
	case 0:
		return nil, ErrClosed
	case 1:
		return all[0], nil
	}
	if m, ok := c.owners.Load(id); ok {
		return m.(*member), nil
	}
	var unsure error
	for _, m := range all {
		if !m.enter() {
			continue
		}
		err := m.root.CheckDomainKey(ctx, id)
		m.leave()
		if err == nil {
			c.owners.Store(id, m)
			return m, nil
		}
		if unsure == nil && !errors.Is(err, ErrNoDomainKey) {
			unsure = err
		}
	}
	if unsure != nil {
		return nil, unsure
	}
	return nil, fmt.Errorf("%w: %s in %d roots of trust", ErrNoDomainKey, id, len(all))
}

// first calls f with the member that leads.
func (c *Composite) first(f func(Root)) error {
	for {
		all := *c.members.Load()
		if len(all) == 0 {
			return ErrClosed
		}
		if m := all[0]; m.enter() {
			defer m.leave()
			f(m.root)
			return nil
		}
	}
}

// CreateDomainKey implements Root.
func (c *Composite) CreateDomainKey(ctx context.Context) (id DomainKeyID, err error) {
	if gone := c.first(func(r Root) { id, err = r.CreateDomainKey(ctx) }); gone != nil {
		return DomainKeyID{}, gone
	}
	return id, err
}

// CheckDomainKey implements Root.
func (c *Composite) CheckDomainKey(ctx context.Context, id DomainKeyID) (err error) {
	if gone := c.with(ctx, id, func(r Root) { err = r.CheckDomainKey(ctx, id) }); gone != nil {
		return gone
	}
	return err
}

// DestroyDomainKey implements Root.
func (c *Composite) DestroyDomainKey(ctx context.Context, id DomainKeyID) (err error) {
	gone := c.with(ctx, id, func(r Root) { err = r.DestroyDomainKey(ctx, id) })
	c.owners.Delete(id)
	if gone != nil {
		return gone
	}
	return err
}

// Encrypt implements Root.
func (c *Composite) Encrypt(ctx context.Context, id DomainKeyID, items []Item) {
	if err := c.with(ctx, id, func(r Root) { r.Encrypt(ctx, id, items) }); err != nil {
		failAll(items, err)
	}
}

// Decrypt implements Root.
func (c *Composite) Decrypt(ctx context.Context, id DomainKeyID, items []Item) {
	if err := c.with(ctx, id, func(r Root) { r.Decrypt(ctx, id, items) }); err != nil {
		failAll(items, err)
	}
}

// Random implements Root.
func (c *Composite) Random(ctx context.Context, bufs [][]byte) (err error) {
	if gone := c.first(func(r Root) { err = r.Random(ctx, bufs) }); gone != nil {
		for _, b := range bufs {
			clear(b)
		}
		return gone
	}
	return err
}

// Info implements Root. What the other members have to say is among the notices.
func (c *Composite) Info() (info Info) {
	if c.first(func(r Root) { info = r.Info() }) != nil {
		return Info{}
	}
	for i, m := range *c.members.Load() {
		if i == 0 || !m.enter() {
			continue
		}
		other := m.root.Info()
		m.leave()
		info.Notices = append(info.Notices, fmt.Sprintf("a second root of trust is open: %s %s", other.Location, other.Token))
	}
	return info
}
