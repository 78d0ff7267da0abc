// Package hsmtest supplies roots of trust for tests: an in-memory fake with faults
// ([NewMemory]), a real token in SoftHSM2 ([SoftHSM]) and a misbehaving PKCS#11 module
// around it ([Shim]).
//
// # SoftHSM2 and parallel tests
//
// SoftHSM2 finds its tokens through the environment variable SOFTHSM2_CONF, which
// belongs to the whole process and is read when the module is initialised. A test
// that uses SoftHSM or Shim must therefore not be parallel (the helper uses t.Setenv,
// which enforces that), and must close every root before it ends. Child processes
// inherit the variable through os.Environ.
package hsmtest

import (
	"context"
	"errors"
	"sync"

	"keymill/hsm"
)

// An Op names one method of a root.
type Op uint8

// The methods that can fail and are counted.
const (
	CreateDomainKey Op = iota
	CheckDomainKey
	Encrypt
	Decrypt
	Random
	DestroyDomainKey
	numOps
)

// A Fault says how a call breaks.
type Fault struct {
	Skip       int             // this many calls succeed first
	Count      int             // then this many break; 0 means one, -1 every one
	Err        error           // what they return
	TookEffect bool            // the call is carried out before it fails
	Items      []int           // Encrypt, Decrypt: only these items fail; nil means all
	Block      <-chan struct{} // the call waits until this closes, or its context ends
}

// Memory is a root that is quick, correct and breaks on demand. All methods may be
// called concurrently.
type Memory struct {
	inner  hsm.Root
	shared bool // another Memory has the same inner root

	mu     sync.Mutex
	calls  [numOps]int
	items  [numOps]int
	faults [numOps][]Fault
	closed bool
}

// NewMemory returns a root whose domain keys live in memory.
func NewMemory() *Memory { return Wrap(hsm.OpenEphemeral()) }

// Wrap adds counting and faults to another root, which Close closes.
func Wrap(root hsm.Root) *Memory { return &Memory{inner: root} }

// Reopen returns a second root with the same domain keys and neither faults nor
// counts: what a restarted process would open. It works after Close, too, when m came
// from NewMemory.
func (m *Memory) Reopen() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shared = true
	return &Memory{inner: m.inner, shared: true}
}

// Inject makes calls of op break. Faults of one op are used one after the other.
func (m *Memory) Inject(op Op, f Fault) {
	if f.Count == 0 {
		f.Count = 1
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults[op] = append(m.faults[op], f)
}

// Heal removes all faults.
func (m *Memory) Heal() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = [numOps][]Fault{}
}

// Calls returns how often op was called.
func (m *Memory) Calls(op Op) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[op]
}

// Items returns how many items (for Random: buffers) op was called with in all.
func (m *Memory) Items(op Op) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.items[op]
}

// begin counts a call and returns the fault that hits it, if any.
func (m *Memory) begin(ctx context.Context, op Op, items int) (*Fault, error) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, hsm.ErrClosed
	}
	m.calls[op]++
	m.items[op] += items
	var hit *Fault
	if q := m.faults[op]; len(q) > 0 {
		switch f := &q[0]; {
		case f.Skip > 0:
			f.Skip--
		default:
			broken := *f
			hit = &broken
			if f.Count > 0 {
				if f.Count--; f.Count == 0 {
					m.faults[op] = q[1:]
				}
			}
		}
	}
	m.mu.Unlock()
	if hit != nil && hit.Block != nil {
		select {
		case <-hit.Block:
		case <-ctx.Done():
			return nil, errors.Join(hsm.ErrTimeout, ctx.Err())
		}
	}
	if hit != nil && hit.Err == nil {
		hit = nil // it only blocked
	}
	return hit, nil
}

// CreateDomainKey implements hsm.Root.
func (m *Memory) CreateDomainKey(ctx context.Context) (hsm.DomainKeyID, error) {
	f, err := m.begin(ctx, CreateDomainKey, 1)
	if err != nil {
		return hsm.DomainKeyID{}, err
	}
	if f != nil && !f.TookEffect {
		return hsm.DomainKeyID{}, f.Err
	}
	id, err := m.inner.CreateDomainKey(ctx)
	if f != nil {
		return hsm.DomainKeyID{}, f.Err
	}
	return id, err
}

// CheckDomainKey implements hsm.Root.
func (m *Memory) CheckDomainKey(ctx context.Context, id hsm.DomainKeyID) error {
	f, err := m.begin(ctx, CheckDomainKey, 1)
	if err != nil {
		return err
	}
	if f != nil {
		return f.Err
	}
	return m.inner.CheckDomainKey(ctx, id)
}

// DestroyDomainKey implements hsm.Root.
func (m *Memory) DestroyDomainKey(ctx context.Context, id hsm.DomainKeyID) error {
	f, err := m.begin(ctx, DestroyDomainKey, 1)
	if err != nil {
		return err
	}
	if f != nil && !f.TookEffect {
		return f.Err
	}
	err = m.inner.DestroyDomainKey(ctx, id)
	if f != nil {
		return f.Err
	}
	return err
}

// Encrypt implements hsm.Root.
func (m *Memory) Encrypt(ctx context.Context, id hsm.DomainKeyID, items []hsm.Item) {
	f, err := m.begin(ctx, Encrypt, len(items))
	m.batch(f, err, items, func() { m.inner.Encrypt(ctx, id, items) })
}

// Decrypt implements hsm.Root.
func (m *Memory) Decrypt(ctx context.Context, id hsm.DomainKeyID, items []hsm.Item) {
	f, err := m.begin(ctx, Decrypt, len(items))
	m.batch(f, err, items, func() { m.inner.Decrypt(ctx, id, items) })
}

func (m *Memory) batch(f *Fault, err error, items []hsm.Item, do func()) {
	if err != nil {
		f = &Fault{Err: err}
	}
	if f == nil || f.TookEffect || f.Items != nil {
		do()
	}
	if f == nil {
		return
	}
	fail := func(it *hsm.Item) { it.Out, it.Err = nil, f.Err }
	if f.Items == nil {
		for i := range items {
			fail(&items[i])
		}
	}
	for _, i := range f.Items {
		if i < len(items) {
			fail(&items[i])
		}
	}
}

// Random implements hsm.Root.
func (m *Memory) Random(ctx context.Context, bufs [][]byte) error {
	f, err := m.begin(ctx, Random, len(bufs))
	if err == nil && f != nil {
		err = f.Err
	}
	if err != nil {
		for _, b := range bufs {
			clear(b)
		}
		return err
	}
	return m.inner.Random(ctx, bufs)
}

// Info implements hsm.Root.
func (m *Memory) Info() hsm.Info { return m.inner.Info() }

// Close implements hsm.Root. Calls after it fail with hsm.ErrClosed.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	if m.shared || m.inner.Info().Location == "" {
		return nil // in memory: kept for Reopen
	}
	return m.inner.Close()
}
