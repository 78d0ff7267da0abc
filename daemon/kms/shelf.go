package kms

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"keymill/hsm/arena"
	"keymill/keystore"
)

// # The shelf
//
// The caches of views and handles hold keys in use, at some 3 KiB each: as many as a
// busy store uses at the same time. Behind them is the shelf, which holds what makes
// such a key from nothing in a few microseconds, without the store and the root of
// trust: its record in compact form and the material of its current version, some
// 230 bytes for a key with what the memory for them costs. So a million keys stay warm
// in 230 MB, whatever the root. They are on the Go heap, as the cipher states of
// package engine are: locked as a whole where the system lets us (arena.Harden).
//
// A key comes onto the shelf when its material was opened, if both are small and the
// material was made here: what is imported may go at any time. It goes when it
// changes, and when others need its place. Its bytes are wiped then.
//
// What is on the shelf must be what the store has, but for changes that are not
// acknowledged yet. A change is committed, then taken off the shelf (dropView,
// dropHandle), then dropped from the caches, then acknowledged. Who puts a key there
// has read it before, perhaps before the commit: so it asks for a ticket before it
// reads, and put does nothing if anything was taken off since in that part of the
// shelf. In the same way a handle knows whether the record that it was made from is
// still good when its material is to be opened. And who fills a cache from the shelf
// has registered there before it looks, so what it found before the change is not kept
// (keystore.Cache), and a handle that looks does so under the lock that its Purge takes
// (engine.Memory).
type shelf struct {
	seed  maphash.Seed
	parts [shelfParts]shelfPart
}

// shelfParts is enough for requests on several processors to seldom meet.
const shelfParts = 64

type shelfPart struct {
	mu   sync.Mutex
	keys map[keystore.Ref][]byte // guarded by mu
	size int                     // guarded by mu; of the keys
	most int                     // immutable

	dropped atomic.Uint64 // counts drops; written under mu
}

const (
	// maxShelved bounds a key on the shelf: one with many versions or a long
	// description is not kept.
	maxShelved = 1024
	// maxShelvedSecret admits symmetric and HMAC keys, which cost less to make from
	// their material than to keep.
	maxShelvedSecret = 64
	// shelvedHead is the version and length of the material, in front of it and of
	// the record.
	shelvedHead = 4 + 1
	// shelfOverhead is what a key costs beside its bytes: its place in the map, and
	// what the allocator rounds up.
	shelfOverhead = 96
)

func newShelf(size int) *shelf {
	s := &shelf{seed: maphash.MakeSeed()}
	for i := range s.parts {
		s.parts[i].keys = make(map[keystore.Ref][]byte)
		s.parts[i].most = size / shelfParts
	}
	return s
}

func (s *shelf) part(ref *keystore.Ref) *shelfPart {
	return &s.parts[maphash.Bytes(s.seed, ref.ID[:])%shelfParts]
}

// A ticket says when somebody began to read a key.
type ticket uint64

// noTicket is the ticket of who has none.
const noTicket = ^ticket(0)

// ticket is taken before a key is read that is to be put on the shelf.
func (s *shelf) ticket(ref keystore.Ref) ticket { return ticket(s.part(&ref).dropped.Load()) }

// put puts a key and the material of its current version on the shelf, unless it may
// have changed since the ticket was taken. The secret remains the caller's.
func (s *shelf) put(t ticket, rec *keystore.Key, secret []byte) {
	ref := rec.Ref()
	if len(secret) > maxShelvedSecret {
		return
	}
	compact := rec.AppendCompact(nil)
	size := shelvedHead + len(secret) + len(compact)
	if size > maxShelved {
		return
	}
	entry := make([]byte, 0, size)
	entry = append(binary.LittleEndian.AppendUint32(entry, rec.CurrentVersion), byte(len(secret)))
	entry = append(append(entry, secret...), compact...)
	p := s.part(&ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped.Load() != uint64(t) {
		arena.Wipe(entry)
		return
	}
	p.remove(ref)
	p.keys[ref] = entry
	p.size += len(entry) + shelfOverhead
	// Any other will do: a key that is used much is in the caches.
	for other := range p.keys {
		if p.size <= p.most {
			break
		}
		p.remove(other)
	}
}

// remove takes a key off. mu is held.
func (p *shelfPart) remove(ref keystore.Ref) {
	if b, ok := p.keys[ref]; ok {
		delete(p.keys, ref)
		p.size -= len(b) + shelfOverhead
		arena.Wipe(b)
	}
}

// drop takes a key off the shelf because it changed.
func (s *shelf) drop(ref keystore.Ref) {
	p := s.part(&ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropped.Add(1)
	p.remove(ref)
}

// key returns the record of a key on the shelf, else nil.
func (s *shelf) key(ref keystore.Ref) *keystore.Key {
	p := s.part(&ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	if b, ok := p.keys[ref]; ok {
		return keystore.ParseCompact(ref, b[shelvedHead+int(b[4]):])
	}
	return nil
}

// has tells whether a key is on the shelf.
func (s *shelf) has(ref keystore.Ref) bool {
	p := s.part(&ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.keys[ref]
	return ok
}

// secret returns a copy of the current material of a key on the shelf, if that is of
// the given version, else nil.
func (s *shelf) secret(ref keystore.Ref, version uint32) []byte {
	p := s.part(&ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.keys[ref]
	if !ok || binary.LittleEndian.Uint32(b) != version {
		return nil
	}
	return append([]byte(nil), b[shelvedHead:][:b[4]]...)
}

// len returns how many keys are on the shelf.
func (s *shelf) len() (n int) {
	for i := range s.parts {
		p := &s.parts[i]
		p.mu.Lock()
		n += len(p.keys)
		p.mu.Unlock()
	}
	return n
}
