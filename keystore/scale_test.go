package keystore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// bulkKeys creates n keys with material, policy and, for every tenth, an alias,
// many to a commit and without waiting for the disk.
func bulkKeys(t testing.TB, s *Store, n int) {
	t.Helper()
	ctx := context.Background()
	proto := testKey(0)
	m, err := s.SealMaterial(ctx, Identity{account, region, proto.Spec, proto.ID, 1}, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	policy := strings.Repeat("p", 400)
	for i := 0; i < n; {
		txn := s.NewTxn()
		for range 25 {
			k := *proto
			k.ID = bulkID(i)
			m.Ref = k.Ref()
			txn.PutKey(&k, 0)
			txn.PutMaterial(m, 0)
			txn.PutPolicy(k.Ref(), policy, 0)
			if i%10 == 0 {
				txn.PutAlias(&Alias{Account: account, Region: region, Name: fmt.Sprint("alias/", i), Target: k.ID, Created: now, Updated: now}, 0)
			}
			i++
		}
		if _, err := txn.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func bulkID(i int) (id KeyID) {
	binary.BigEndian.PutUint64(id[:], uint64(i)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(id[8:], uint64(i))
	return id
}

const scaleEnv = "KEYMILL_TEST_SCALE_DIR"

// TestManyKeys: a store of 100,000 keys opens in far less than a second, in a
// process that stays under 200 MB while it reads them. A child process is
// measured, so that making the keys does not count.
func TestManyKeys(t *testing.T) {
	const keys = 100_000
	if dir := os.Getenv(scaleEnv); dir != "" {
		measureMany(t, dir, keys)
		return
	}
	if raceEnabled {
		t.Skip("measures time and memory")
	}
	dir := t.TempDir()
	root, err := hsm.OpenSoftware(filepath.Join(dir, "root.key"), hsm.SoftwareOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	s, err := Open(context.Background(), Options{Dir: filepath.Join(dir, "store"), Root: root, noSync: true})
	if err != nil {
		t.Fatal(err)
	}
	bulkKeys(t, s, keys)
	if err := errors.Join(s.Close(), root.Close()); err != nil {
		t.Fatal(err)
	}
	t.Logf("made %d keys in %v", keys, time.Since(begin).Round(time.Millisecond))

	child := exec.Command(os.Args[0], "-test.run=^TestManyKeys$", "-test.v")
	child.Env = append(os.Environ(), scaleEnv+"="+dir)
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if _, text, ok := strings.Cut(line, "measured: "); ok {
			t.Log(strings.TrimSpace(text))
		}
	}
}

func measureMany(t *testing.T, dir string, keys int) {
	root, err := hsm.OpenSoftware(filepath.Join(dir, "root.key"), hsm.SoftwareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	begin := time.Now()
	s, err := Open(context.Background(), Options{Dir: filepath.Join(dir, "store"), Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	opened := time.Since(begin)
	t.Logf("measured: opened in %v, resident %d MB", opened.Round(100*time.Microsecond), residentMB(t))
	if n, err := s.CountKeys(account, region); n != keys || err != nil {
		t.Errorf("%d keys, %v", n, err)
	}
	begin = time.Now()
	const reads = 50_000
	for range reads {
		if _, err := s.Key(Ref{region, bulkID(rand.IntN(keys))}); err != nil {
			t.Fatal(err)
		}
	}
	each := time.Since(begin) / reads
	mb := residentMB(t)
	t.Logf("measured: %d random reads, %v each; resident %d MB after", reads, each, mb)
	if mb > 200 {
		t.Errorf("resident: %d MB", mb)
	}
}

func residentMB(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("no /proc here")
	}
	var size, resident int
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize() >> 20
}

// BenchmarkCommit measures durable commits on a real disk, by one committer and
// by many: the second shows what sharing an fsync gives.
func BenchmarkCommit(b *testing.B) {
	for _, committers := range []int{1, 64} {
		b.Run(fmt.Sprint("committers=", committers), func(b *testing.B) {
			s, err := Open(context.Background(), Options{Dir: b.TempDir(), Root: hsmtest.NewMemory()})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			b.ReportAllocs()
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range committers {
				wg.Go(func() {
					for {
						i := int(next.Add(1))
						if i > b.N {
							return
						}
						k := *testKey(0)
						k.ID = bulkID(i)
						txn := s.NewTxn()
						txn.PutKey(&k, 0)
						txn.PutPolicy(k.Ref(), "{}", 0)
						if _, err := txn.Commit(context.Background()); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
	}
}

func BenchmarkReadKey(b *testing.B) {
	h := newHarness(b)
	k := testKey(1)
	h.commit(func(txn *Txn) { txn.PutKey(k, 0) })
	ref := k.Ref()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Key(ref); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCacheHit(b *testing.B) {
	const names = 4096
	c := NewCache[Ref, int](names, nil)
	refs := make([]Ref, names)
	for i := range refs {
		refs[i] = Ref{region, bulkID(i)}
		c.Load(refs[i], value(i))
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := rand.IntN(names); pb.Next(); i++ {
			if _, ok := c.Get(refs[i%names]); !ok {
				b.Error("missed")
				return
			}
		}
	})
}

func BenchmarkOpenMaterial(b *testing.B) {
	h := newHarness(b)
	id := Identity{account, region, "SYMMETRIC_DEFAULT", testKey(1).ID, 1}
	m, err := h.SealMaterial(context.Background(), id, make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	h.commit(func(txn *Txn) { txn.PutKey(testKey(1), 0); txn.PutMaterial(m, 0) })
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.OpenMaterial(context.Background(), id); err != nil {
			b.Fatal(err)
		}
	}
}
