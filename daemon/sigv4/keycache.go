package sigv4

import (
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"
)

// The cache of derived signing keys.
//
// Deriving a key is four HMACs, about two microseconds: twice the rest of a
// verification. A key serves all requests of one access key on one day in one
// region (and for one service, the Verifier's), so nearly every request finds
// its key here.
//
// # Structure
//
// A fixed table of sets with eight slots each, one cache line; a slot is an
// atomic pointer to a signingKey. What names a key (access key id, date, region,
// and the revision of the credential) is immutable in the signingKey; its four
// words of key material are atomics, because they are wiped while somebody may
// be reading them.
//
// A reader takes no lock and writes nothing: it hashes the name, looks through
// the eight slots of one set, copies the four words out and then looks at dead.
// A writer (insert, purge) holds mu. It unlinks a key, sets dead, and only then
// zeroes the words. Go's atomics have one total order, so a reader that saw any
// word zeroed sees dead set afterwards, and takes the key as absent; without
// that, a request could be verified under a key half zeroes, which anybody can
// compute. The copy belongs to the reader, who wipes it.
//
// # Purging
//
// When an access key goes, its owner first makes the look-up answer so, then
// calls purge. A verification may have looked up the old credential before and
// finish after; what it derived must not be inserted behind purge's back. So
// every verification reads epoch before its look-up, and insert keeps a key only
// if epoch is still the same under mu, which purge changes it under. A purge of
// one access key therefore costs the verifications in flight of all others a
// derivation each, the next time; purges are rare. Rejected: a tombstone per
// access key, which has to be bounded and expired itself.
//
// The revision guards against the other half of the mistake: should the owner
// replace a credential under the same id and not call purge, the old key is
// still not found for the new credential.
//
// # Bounds
//
// The number of slots is the bound. An insert into a full set replaces the key
// whose first request was signed longest ago, and among equals each in turn. Only keys that verified a
// signature are inserted, so only holders of a valid access key can cause
// evictions, and an eviction costs one derivation.

const ways = 8

type keyCache struct {
	// Immutable after newKeyCache.
	seed maphash.Seed
	sets []keySet // a power of two

	mu    sync.Mutex    // taken by writers only
	epoch atomic.Uint64 // written under mu
	turn  uint32        // guarded by mu: the next victim among equals
}

type keySet [ways]atomic.Pointer[signingKey] // slots are written under mu

type signingKey struct {
	// Immutable after insert.
	accessKeyID string
	region      string
	date        uint64 // the eight digits, as bytes
	signed      int64  // when the request it verified was signed
	revision    uint64

	words [4]atomic.Uint64 // zeroed after dead is set
	dead  atomic.Bool
}

func newKeyCache(size int) *keyCache {
	sets := max((size+ways-1)/ways, 1)
	return &keyCache{seed: maphash.MakeSeed(), sets: make([]keySet, 1<<bits.Len(uint(sets-1)))}
}

func (c *keyCache) set(accessKeyID, region string, date uint64) *keySet {
	return &c.sets[hashKey(c.seed, accessKeyID, date, region)&uint64(len(c.sets)-1)]
}

// hashKey mixes what names a signing key.
func hashKey(seed maphash.Seed, accessKeyID string, date uint64, region string) uint64 {
	h := maphash.String(seed, accessKeyID) ^ (date * 0x9e3779b97f4a7c15)
	return (h<<31 | h>>33) ^ maphash.String(seed, region)
}

// get copies a key into dst; it reports whether it was there.
func (c *keyCache) get(dst *keyWords, cred *Credential, region string, date uint64) bool {
	set := c.set(cred.AccessKeyID, region, date)
	for i := range set {
		k := set[i].Load()
		if k != nil && k.matches(cred, region, date) && k.read(dst) {
			return true
		}
	}
	return false
}

func (k *signingKey) matches(cred *Credential, region string, date uint64) bool {
	return k.date == date && k.revision == cred.Revision && k.accessKeyID == cred.AccessKeyID && k.region == region
}

func (k *signingKey) read(dst *keyWords) bool {
	for i := range dst {
		dst[i] = k.words[i].Load()
	}
	if k.dead.Load() {
		clear(dst[:])
		return false
	}
	return true
}

// insert keeps a key that verified a signature, unless a purge came since epoch
// was read.
func (c *keyCache) insert(key *keyWords, cred *Credential, region string, date uint64, signed int64, epoch uint64) {
	k := &signingKey{accessKeyID: cred.AccessKeyID, region: region, date: date, signed: signed, revision: cred.Revision}
	for i, w := range key {
		k.words[i].Store(w)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch.Load() != epoch {
		k.wipe()
		return
	}
	set := c.set(cred.AccessKeyID, region, date)
	victim, free := -1, false
	for n := range ways {
		i := (n + int(c.turn)) % ways
		old := set[i].Load()
		switch {
		case old == nil:
			victim, free = i, true
		case old.matches(cred, region, date):
			k.wipe() // another request was first
			return
		case free:
		case victim < 0 || old.signed < set[victim].Load().signed:
			victim = i
		}
	}
	c.turn++
	if old := set[victim].Swap(k); old != nil {
		old.wipe()
	}
}

// purge wipes every key of an access key.
func (c *keyCache) purge(accessKeyID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch.Add(1)
	for s := range c.sets {
		for i := range c.sets[s] {
			if k := c.sets[s][i].Load(); k != nil && k.accessKeyID == accessKeyID {
				c.sets[s][i].Store(nil)
				k.wipe()
			}
		}
	}
}

// purgeAll wipes every key.
func (c *keyCache) purgeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch.Add(1)
	for s := range c.sets {
		for i := range c.sets[s] {
			if k := c.sets[s][i].Swap(nil); k != nil {
				k.wipe()
			}
		}
	}
}

func (k *signingKey) wipe() {
	k.dead.Store(true)
	for i := range k.words {
		k.words[i].Store(0)
	}
}

func (c *keyCache) len() (n int) {
	for s := range c.sets {
		for i := range c.sets[s] {
			if c.sets[s][i].Load() != nil {
				n++
			}
		}
	}
	return n
}
