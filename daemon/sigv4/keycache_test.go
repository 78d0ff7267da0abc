package sigv4_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keymill/daemon/sigv4"
	"keymill/daemon/sigv4/sigv4test"
	"keymill/daemon/wire"
)

func TestCache(t *testing.T) {
	c := sigv4.NewCache(8)
	cred := func(i int) *sigv4.Credential { return &sigv4.Credential{AccessKeyID: fmt.Sprint("A", i)} }
	for i := range 8 {
		c.Fill(uint64(i), cred(i), "r", 1, int64(100+i), c.Epoch())
	}
	for i := range 8 {
		if w, ok, torn := c.Find(cred(i), "r", 1); !ok || torn || w != uint64(i) {
			t.Errorf("key %d: %d, %v, torn %v", i, w, ok, torn)
		}
	}
	for name, find := range map[string]func() (uint64, bool, bool){
		"another access key": func() (uint64, bool, bool) { return c.Find(cred(8), "r", 1) },
		"another region":     func() (uint64, bool, bool) { return c.Find(cred(0), "s", 1) },
		"another date":       func() (uint64, bool, bool) { return c.Find(cred(0), "r", 2) },
		"another revision": func() (uint64, bool, bool) {
			return c.Find(&sigv4.Credential{AccessKeyID: "A0", Revision: 1}, "r", 1)
		},
	} {
		if _, ok, _ := find(); ok {
			t.Errorf("found for %s", name)
		}
	}

	// A twin is not kept twice, and the first stays.
	c.Fill(99, cred(3), "r", 1, 500, c.Epoch())
	if w, _, _ := c.Find(cred(3), "r", 1); w != 3 || c.Len() != 8 {
		t.Errorf("twin: %d, %d keys", w, c.Len())
	}
	// The bound holds; the key signed longest ago goes, and is wiped.
	words := c.Words()
	c.Fill(50, cred(50), "r", 1, 200, c.Epoch())
	if _, ok, _ := c.Find(cred(0), "r", 1); ok || c.Len() != 8 {
		t.Errorf("%d keys, the oldest still there: %v", c.Len(), ok)
	}
	for i := 1; i < 8; i++ {
		if _, ok, _ := c.Find(cred(i), "r", 1); !ok {
			t.Errorf("key %d evicted", i)
		}
	}
	wiped := 0
	for _, w := range words() {
		if w == 0 {
			wiped++
		}
	}
	if wiped != 4 {
		t.Errorf("%d words wiped by an eviction, want 4", wiped)
	}
	// An empty slot is taken before anything is evicted.
	c.Purge("A5")
	c.Fill(51, cred(51), "r", 1, 300, c.Epoch())
	for _, i := range []int{1, 2, 3, 4, 6, 7, 50, 51} {
		if _, ok, _ := c.Find(cred(i), "r", 1); !ok {
			t.Errorf("key %d is gone", i)
		}
	}
	// A key derived before a purge is not kept, whosever it is.
	before := c.Epoch()
	c.Purge("nobody")
	c.Fill(60, cred(60), "r", 1, 400, before)
	if _, ok, _ := c.Find(cred(60), "r", 1); ok {
		t.Error("a key derived before a purge was kept")
	}
	// Purging wipes.
	words = c.Words()
	for _, i := range []int{1, 2, 3, 4, 6, 7, 50, 51} {
		c.Purge(fmt.Sprint("A", i))
	}
	for _, w := range words() {
		if w != 0 {
			t.Fatalf("a purged key still holds %x", w)
		}
	}
	if c.Len() != 0 {
		t.Errorf("%d keys after purging all", c.Len())
	}
}

func TestCacheBound(t *testing.T) {
	for _, c := range []struct{ size, slots int }{{1, 8}, {8, 8}, {9, 16}, {4096, 4096}, {4097, 8192}} {
		cache := sigv4.NewCache(c.size)
		if cache.Slots() != c.slots {
			t.Errorf("size %d: %d slots, want %d", c.size, cache.Slots(), c.slots)
		}
	}
	c := sigv4.NewCache(64)
	for i := range 10000 {
		c.Fill(1, &sigv4.Credential{AccessKeyID: fmt.Sprint(i)}, "us-east-1", uint64(i%3), int64(i), c.Epoch())
	}
	if n := c.Len(); n != 64 {
		t.Errorf("%d keys of 10,000 kept, want 64", n)
	}
}

// Readers against writers that evict and purge without pause: whoever finds a
// key finds the whole of it, never words that are being wiped.
func TestCacheConcurrently(t *testing.T) {
	c := sigv4.NewCache(8)
	var stop atomic.Bool
	var hits atomic.Int64
	var readers, writers sync.WaitGroup
	creds := make([]*sigv4.Credential, 12)
	for i := range creds {
		creds[i] = &sigv4.Credential{AccessKeyID: fmt.Sprint("A", i)}
	}
	for range 3 {
		readers.Go(func() {
			for !stop.Load() {
				for i, cred := range creds {
					if w, ok, torn := c.Find(cred, "r", 1); ok && (torn || w != uint64(i+1)) {
						t.Errorf("key %d read as %d, torn %v", i, w, torn)
						return
					} else if ok {
						hits.Add(1)
					}
				}
			}
		})
	}
	for g := range 2 {
		writers.Go(func() {
			for n := range 20000 {
				i := (n*7 + g) % len(creds)
				if n%5 == 0 {
					c.Purge(creds[i].AccessKeyID)
				} else {
					c.Fill(uint64(i+1), creds[i], "r", 1, int64(n), c.Epoch())
				}
			}
		})
	}
	writers.Wait()
	stop.Store(true)
	readers.Wait()
	if hits.Load() == 0 {
		t.Error("no reader ever found a key")
	}
}

// An access key's secret is replaced and the old signing key purged while a
// verification is under way that has looked the old credential up already: it
// may succeed, but must not leave the old key behind.
func TestPurgeDuringVerification(t *testing.T) {
	old := &sigv4.Credential{AccessKeyID: testKey.ID, Secret: []byte(testKey.Secret), Active: true}
	var v *sigv4.Verifier
	var current atomic.Pointer[sigv4.Credential]
	current.Store(old)
	var during func()
	v = sigv4.New(sigv4.Options{
		Lookup: func([]byte) *sigv4.Credential {
			c := current.Load()
			if during != nil {
				during()
			}
			return c
		},
		Region: func([]byte) (string, bool) { return "us-east-1", true },
		Clock:  func() time.Time { return testTime },
	})
	newKey := testKey
	newKey.Secret = "another secret"
	replacement := &sigv4.Credential{AccessKeyID: testKey.ID, Secret: []byte(newKey.Secret), Active: true}
	during = func() {
		current.Store(replacement)
		v.Purge(testKey.ID)
	}
	if err := v.Verify(convert(signedRequest()), new(sigv4.Result)); err != nil {
		t.Fatalf("the verification that was under way: %v", err)
	}
	if n := v.CachedKeys(); n != 0 {
		t.Errorf("%d keys kept behind the purge", n)
	}
	during = nil
	if err := v.Verify(convert(signedRequest()), new(sigv4.Result)); err == nil || err.Code != wire.InvalidSignatureException.String() {
		t.Errorf("signed with the old secret: %v", err)
	}
	r := request()
	r.Sign(newKey, testTime, strings.Split(usual, ";")...)
	for range 2 {
		if err := v.Verify(convert(r), new(sigv4.Result)); err != nil {
			t.Errorf("signed with the new secret: %v", err)
		}
	}

	// A replacement without a purge is told apart by its revision.
	current.Store(&sigv4.Credential{AccessKeyID: testKey.ID, Secret: []byte(testKey.Secret), Active: true, Revision: 7})
	if err := v.Verify(convert(r), new(sigv4.Result)); err == nil {
		t.Error("the cached key of an earlier revision was used")
	}
	if err := v.Verify(convert(signedRequest()), new(sigv4.Result)); err != nil {
		t.Error(err)
	}
	current.Store(nil)
	if err := v.Verify(convert(signedRequest()), new(sigv4.Result)); err == nil || err.Code != wire.UnrecognizedClientException.String() {
		t.Errorf("after the access key went: %v", err)
	}
	v.PurgeAll()
	if n := v.CachedKeys(); n != 0 {
		t.Errorf("%d keys after PurgeAll", n)
	}
}

// Many clients at once, some of them wrong, while access keys are purged: every
// verdict is right.
func TestVerifyConcurrently(t *testing.T) {
	b := newBench(8)
	b.Verifier = sigv4.New(sigv4.Options{
		Lookup:    func(id []byte) *sigv4.Credential { return b.creds[string(id)] },
		Region:    func(r []byte) (string, bool) { return "us-east-1", string(r) == "us-east-1" },
		Clock:     func() time.Time { return testTime },
		CacheSize: 8,
	})
	var good, bad []*sigv4test.Request
	for i := range 12 {
		k := testKey
		k.ID, k.Secret = fmt.Sprint("AKIDC", i), fmt.Sprint("secret", i)
		b.add(k)
		r := request()
		r.Sign(k, testTime)
		good = append(good, r)
		k.Secret = "wrong"
		r = request()
		r.Sign(k, testTime)
		bad = append(bad, r)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := range 1500 {
				i := (n + 5*g) % len(good)
				if err := b.Verify(convert(good[i]), new(sigv4.Result)); err != nil {
					t.Errorf("good request: %v", err)
				}
				if err := b.Verify(convert(bad[i]), new(sigv4.Result)); err == nil {
					t.Error("bad request accepted")
				}
				if n%50 == g {
					b.Purge(fmt.Sprint("AKIDC", i))
				}
			}
		})
	}
	wg.Wait()
}
