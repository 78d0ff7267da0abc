//go:build linux

package batch

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/puzpuzpuz/xsync/v4"
	"golang.org/x/sys/unix"
)

// The hand-over comparison: one job of 1 or 25 us from 1, 8, 64 and 512
// submitters, each of which waits for its job.
//
//	go test ./batch -run '^$' -bench HandOver -benchtime 50000x
//
// It reports jobs a second and the process's processor time for each job. In the
// shared cases every batch, of any size, costs 1 us besides 0.1 us for each job,
// like a random draw, or 20 us besides 1 us, like a write to a file or a call to
// a token.

var designs = []struct {
	name  string
	start func(b *testing.B, one, shared int) (submit func() func(), stop func())
}{
	{"call", func(b *testing.B, one, shared int) (func() func(), func()) {
		return func() func() { return func() { work(shared + one) } }, func() {}
	}},
	{"channel", func(b *testing.B, one, shared int) (func() func(), func()) {
		queue := make(chan chan struct{}, 1024)
		var workers sync.WaitGroup
		for range Plan(0).Workers {
			workers.Go(func() {
				for done := range queue {
					work(shared + one)
					done <- struct{}{}
				}
			})
		}
		return func() func() {
				done := make(chan struct{}, 1)
				return func() { queue <- done; <-done }
			}, func() {
				close(queue)
				workers.Wait()
			}
	}},
	{"pinned", func(b *testing.B, one, shared int) (func() func(), func()) {
		h, err := NewHeavy(HeavyOptions{CPUs: Plan(0).Pin, Queue: 1024})
		if err != nil {
			b.Fatal(err)
		}
		return func() func() {
			job := func() { work(shared + one) }
			return func() { must(b, h.Run(job)) }
		}, h.Close
	}},
	{"pinned-ring", func(b *testing.B, one, shared int) (func() func(), func()) {
		// The same workers on a lock-free ring; whoever pushes leaves a token
		// for one that sleeps.
		ring := xsync.NewMPMCQueue[chan struct{}](1024)
		tokens := make(chan struct{}, 1024)
		var workers sync.WaitGroup
		for range Plan(0).Workers {
			workers.Go(func() {
				runtime.LockOSThread()
				for range tokens {
					done, ok := ring.TryDequeue()
					for ; !ok; done, ok = ring.TryDequeue() {
						runtime.Gosched()
					}
					work(shared + one)
					done <- struct{}{}
				}
			})
		}
		return func() func() {
				done := make(chan struct{}, 1)
				return func() {
					for !ring.TryEnqueue(done) {
						runtime.Gosched()
					}
					tokens <- struct{}{}
					<-done
				}
			}, func() {
				close(tokens)
				workers.Wait()
			}
	}},
	{"gate", func(b *testing.B, one, shared int) (func() func(), func()) {
		g := NewGate(0, 1024)
		return func() func() {
			job := func() { work(shared + one) }
			return func() { must(b, g.Run(job)) }
		}, g.Close
	}},
	{"combining", func(b *testing.B, one, shared int) (func() func(), func()) {
		l := NewLanes(LaneOptions{Lanes: Plan(0).Workers}, func(batch *Batch[struct{}]) {
			work(shared)
			for batch.Next() != nil {
				work(one)
			}
		})
		return func() func() {
			j := new(Job[struct{}])
			return func() { must(b, l.Do(j)) }
		}, l.Close
	}},
}

func must(b *testing.B, err error) {
	if err != nil {
		b.Error(err)
	}
}

func BenchmarkHandOver(b *testing.B) {
	for _, c := range []struct {
		name        string
		one, shared time.Duration
	}{
		{"1us", time.Microsecond, 0},
		{"25us", 25 * time.Microsecond, 0},
		{"shared1us", 100 * time.Nanosecond, time.Microsecond},
		{"shared20us", time.Microsecond, 20 * time.Microsecond},
	} {
		one, shared := roundsPer(c.one), 0
		if c.shared > 0 {
			shared = roundsPer(c.shared)
		}
		for _, submitters := range []int{1, 8, 64, 512} {
			for _, d := range designs {
				b.Run(fmt.Sprintf("%s/%d/%s", c.name, submitters, d.name), func(b *testing.B) {
					cores := Plan(0).Workers
					procs := cores
					if d.name == "pinned" || d.name == "pinned-ring" {
						procs = Plan(0).GOMAXPROCS
					}
					defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
					submit, stop := d.start(b, one, shared)
					var left atomic.Int64
					left.Store(int64(b.N))
					var all sync.WaitGroup
					b.ReportAllocs()
					b.ResetTimer()
					before, start := cpuTime(), time.Now()
					for range submitters {
						all.Go(func() {
							do := submit()
							for left.Add(-1) >= 0 {
								do()
							}
						})
					}
					all.Wait()
					took, used := time.Since(start), cpuTime()-before
					b.StopTimer()
					stop()
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(float64(b.N)/took.Seconds(), "jobs/s")
					b.ReportMetric(float64(used.Nanoseconds())/float64(b.N)/1e3, "cpu-us/job")
				})
			}
		}
	}
}

// cpuTime returns the processor time this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
