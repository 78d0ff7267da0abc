package batch

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"
)

func TestSlotsSize(t *testing.T) {
	for _, c := range []struct{ n, want int }{{1, 1}, {2, 2}, {3, 4}, {8, 8}, {9, 16}} {
		if got := NewSlots[int](c.n).Len(); got != c.want {
			t.Errorf("NewSlots(%d) has %d slots, want %d", c.n, got, c.want)
		}
	}
	if got := NewSlots[int](0).Len(); got < runtime.GOMAXPROCS(0) {
		t.Errorf("NewSlots(0) has %d slots, want one for each processor", got)
	}
}

// TestSlotsPadding holds the promise that two slots' words are never on one
// pair of cache lines.
func TestSlotsPadding(t *testing.T) {
	s := NewSlots[uint64](2)
	a, b := uintptr(unsafe.Pointer(&s.slots[0].busy)), uintptr(unsafe.Pointer(&s.slots[1].busy))
	if b-a < 128 {
		t.Fatalf("slots are %d bytes apart", b-a)
	}
}

func TestSlotsExhaustion(t *testing.T) {
	s := NewSlots[int](4)
	var owned []*Slot[int]
	seen := map[*Slot[int]]bool{}
	for range 4 {
		slot := s.Acquire()
		if slot == nil || seen[slot] {
			t.Fatal("a free slot was not handed out, or one was handed out twice")
		}
		seen[slot] = true
		owned = append(owned, slot)
	}
	if s.Acquire() != nil {
		t.Fatal("a fifth owner of four slots")
	}
	owned[2].V = 7
	s.Release(owned[2])
	if slot := s.Acquire(); slot != owned[2] || slot.V != 7 {
		t.Fatal("the one free slot was not found, or lost its value")
	}
}

func TestSlotsDoubleRelease(t *testing.T) {
	s := NewSlots[int](1)
	slot := s.Acquire()
	s.Release(slot)
	defer func() {
		if recover() == nil {
			t.Fatal("a second release went unnoticed")
		}
	}()
	s.Release(slot)
}

// TestSlotsExclusive is the raced test: plain, unsynchronised memory inside the
// slots is written by every owner, so the race detector sees a second owner,
// and a lost update shows without it.
func TestSlotsExclusive(t *testing.T) {
	type lane struct{ a, b int }
	s := NewSlots[lane](3)
	const workers, rounds = 8, 4000
	var done, missed atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				slot := s.Acquire()
				if slot == nil {
					missed.Add(1)
					runtime.Gosched()
					continue
				}
				if slot.V.a != slot.V.b {
					t.Error("an owner saw half of another's work")
				}
				slot.V.a++
				if slot.V.a%16 == 0 {
					runtime.Gosched()
				}
				slot.V.b++
				done.Add(1)
				s.Release(slot)
			}
		})
	}
	wg.Wait()
	var sum int
	for i := range s.slots {
		if s.slots[i].busy.Load() != 0 {
			t.Error("a slot stayed owned")
		}
		sum += s.slots[i].V.a
	}
	if int64(sum) != done.Load() || done.Load()+missed.Load() != workers*rounds {
		t.Fatalf("%d updates kept, %d made, %d missed", sum, done.Load(), missed.Load())
	}
}

func BenchmarkSlots(b *testing.B) {
	s := NewSlots[uint64](0)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if slot := s.Acquire(); slot != nil {
				slot.V++
				s.Release(slot)
			}
		}
	})
}
