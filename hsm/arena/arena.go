// Package arena keeps root secrets out of the Go heap.
//
// The garbage collector may copy a heap object, leave the old bytes behind and
// never says when. A [Secret] lives in its own mapping instead: it does not move,
// it is locked into memory (never swapped), left out of core dumps, and zeroed by
// [Secret.Wipe]. It is meant for what lives long and matters most: domain keys of
// the software root, key-encryption keys, cold key material.
//
// # What it does not do
//
// A cipher made from a secret (crypto/aes and friends) holds its own expanded copy
// on the Go heap, and so does any library the bytes are handed to. Package arena
// bounds the number of copies; [Harden] takes care of the rest of the process: no
// core dump, no ptrace by others of the same user, and, when the operator permits
// it, all of its memory locked.
//
// # When locking is refused
//
// RLIMIT_MEMLOCK is often 8 MiB. A secret that does not fit is still served, from
// memory that may be swapped; [Notice] then says so in words for the operator.
//
// # Who owns what
//
// Small secrets share 64 KiB regions cut into slots of one size class. A slot is
// owned by exactly one Secret from New until Wipe; a free slot is all zeroes (Wipe
// zeroes before it gives the slot back, new mappings are zero), so New never needs
// to clear. The free lists and the list of regions are guarded by one mutex: New and
// Wipe are rare beside what is done with the bytes. Regions are never unmapped: a
// stale slice can then read zeroes or another secret's slot, but cannot crash the
// process; a use after Wipe is a bug all the same.
package arena

import (
	"fmt"
	"runtime"
	"sync"
)

const (
	minSlot    = 64       // one cache line: neighbours do not share lines
	maxSlot    = 4096     // above it a secret gets a mapping of its own
	regionSize = 64 << 10 // the granule in which the operating system is asked
	// MaxSize bounds one secret. Nothing that is a secret of ours is larger; a
	// length read from a damaged file must not become a gigabyte of locked memory.
	MaxSize = 1 << 20
)

// A Secret is n bytes of locked memory. Its methods may not be called
// concurrently with Wipe.
type Secret struct {
	b    []byte // nil after Wipe
	slot []byte // the whole slot b is the beginning of
	own  bool   // slot is a mapping of its own
}

// poolType is the process's locked memory.
type poolType struct {
	mu   sync.Mutex
	free [7][][]byte // guarded by mu; class i holds slots of minSlot<<i bytes
	held int         // guarded by mu; bytes mapped
	err  error       // guarded by mu; the first refusal of mlock
}

var pool poolType

// New returns n zeroed bytes. It fails only when n is not in 1..MaxSize or the
// operating system has no memory; a refused lock is not a failure, see [Notice].
func New(n int) (*Secret, error) {
	if n <= 0 || n > MaxSize {
		return nil, fmt.Errorf("arena: a secret of %d bytes (want 1 to %d)", n, MaxSize)
	}
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if n > maxSlot {
		m, err := pool.grow(n)
		if err != nil {
			return nil, err
		}
		return &Secret{b: m[:n:n], slot: m, own: true}, nil
	}
	class, size := classOf(n)
	if len(pool.free[class]) == 0 {
		region, err := pool.grow(regionSize)
		if err != nil {
			return nil, err
		}
		for i := len(region) - size; i >= 0; i -= size {
			pool.free[class] = append(pool.free[class], region[i:i+size:i+size])
		}
	}
	last := len(pool.free[class]) - 1
	slot := pool.free[class][last]
	pool.free[class] = pool.free[class][:last]
	return &Secret{b: slot[:n:n], slot: slot}, nil
}

// From moves b into a new Secret: b is copied and wiped, also on error.
func From(b []byte) (*Secret, error) {
	defer Wipe(b)
	s, err := New(len(b))
	if err != nil {
		return nil, err
	}
	copy(s.b, b)
	return s, nil
}

// Bytes returns the secret's memory, valid until Wipe; after Wipe it is nil.
func (s *Secret) Bytes() []byte { return s.b }

// Wipe zeroes the secret and gives its memory back. A second call does nothing;
// a nil Secret is allowed.
func (s *Secret) Wipe() {
	if s == nil || s.b == nil {
		return
	}
	Wipe(s.slot)
	slot := s.slot
	s.b, s.slot = nil, nil
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if s.own {
		pool.held -= len(slot)
		unmap(slot)
		return
	}
	class, _ := classOf(len(slot))
	pool.free[class] = append(pool.free[class], slot)
}

// Wipe zeroes b. The call is not inlined and b is kept alive past the stores, so
// that the compiler cannot find them dead.
//
//go:noinline
func Wipe(b []byte) {
	clear(b)
	runtime.KeepAlive(b)
}

// Notice returns a sentence for the operator when some secret could not be locked
// into memory, and "" otherwise.
func Notice() string {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if pool.err == nil {
		return ""
	}
	return fmt.Sprintf("secrets may be swapped to disk: locking memory was refused (%v); raise RLIMIT_MEMLOCK "+
		"(systemd: LimitMEMLOCK=infinity, Docker: --ulimit memlock=-1) or switch swap off", pool.err)
}

// grow maps at least n bytes, locks them and excludes them from core dumps.
// Called with mu held.
func (p *poolType) grow(n int) ([]byte, error) {
	m, lockErr, err := mapLocked(n)
	if err != nil {
		return nil, fmt.Errorf("arena: couldn't map %d bytes: %w", n, err)
	}
	if lockErr != nil && p.err == nil {
		p.err = lockErr
	}
	p.held += len(m)
	return m, nil
}

// classOf returns the size class for n bytes and its slot size.
func classOf(n int) (class, size int) {
	for size = minSlot; size < n; size <<= 1 {
		class++
	}
	return class, size
}
