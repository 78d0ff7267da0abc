package batch

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestHeavyBusy: whoever asked is told once that jobs come, again and again that
// they rest and come, and never that they rest while one runs.
func TestHeavyBusy(t *testing.T) {
	raisePs(t, 2)
	var running atomic.Int64
	var told atomic.Bool
	changes := make(chan bool, 1000)
	h, err := NewHeavy(HeavyOptions{Workers: 2, Rest: time.Millisecond, Busy: func(busy bool) {
		if busy == told.Load() {
			t.Errorf("told %v twice", busy)
		}
		told.Store(busy)
		changes <- busy
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for range 20 {
		gate := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := h.Run(func() { running.Add(1); <-gate; running.Add(-1) }); err != nil {
					t.Error(err)
				}
			})
		}
		if !<-changes {
			t.Fatal("rest before jobs")
		}
		select {
		case <-changes:
			t.Fatalf("rest while %d jobs run", running.Load())
		case <-time.After(5 * time.Millisecond):
		}
		close(gate)
		wg.Wait()
		if <-changes {
			t.Fatal("busy twice")
		}
	}
}

// TestHeavyBusyUnderWay: jobs that come while the pool goes to rest are noticed,
// whatever the order.
func TestHeavyBusyUnderWay(t *testing.T) {
	raisePs(t, 2)
	var busy atomic.Bool
	h, err := NewHeavy(HeavyOptions{Workers: 1, Rest: time.Microsecond, Busy: busy.Store})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for range 2000 {
		err := h.Run(func() {
			for !busy.Load() { // a lost wake-up hangs here
				time.Sleep(time.Microsecond)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
