//go:build linux

package batch

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The light and heavy experiment: what heavy work does to the latency of light
// work, and its workers' priority to the garbage collector.
//
//	go test ./batch -run '^$' -bench LightHeavy -benchtime 1x
//
// Light requests come from a process of its own at 2,000 a second, as those of
// clients do: it writes the time into one of 16 pipes and waits for nothing (open
// loop), and a goroutine for each pipe reads it, works for 1 us and takes the
// time. Meanwhile 64 goroutines submit pure Go jobs of 5 ms, as fast as they are
// done (and of 25 us, in some cases). In the gc cases GOGC is 20 and every light request leaves 16 KiB of
// garbage, so that the collector runs 75 times a second.

const (
	tickerEnv   = "KEYMILL_BATCH_TICKER" // rate, in the process that makes requests
	tickerRate  = 2000
	tickerPipes = 16
	heavyUsers  = 64
	settle      = 300 * time.Millisecond
	measured    = 2500 * time.Millisecond
)

func TestMain(m *testing.M) {
	if rate, err := strconv.Atoi(os.Getenv(tickerEnv)); err == nil {
		tick(rate)
		return
	}
	os.Exit(m.Run())
}

// monotonic is a clock that two processes share.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// tick writes the time into its inherited pipes until they break.
func tick(rate int) {
	runtime.LockOSThread()
	next := monotonic()
	for i := 0; ; i++ {
		next += int64(time.Second) / int64(rate)
		if wait := next - monotonic(); wait > 0 {
			ts := unix.NsecToTimespec(wait)
			_ = unix.Nanosleep(&ts, nil)
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(monotonic()))
		if _, err := unix.Write(3+i%tickerPipes, b[:]); err != nil {
			return
		}
	}
}

var spinSink atomic.Uint64

// work keeps a processor busy for n rounds.
func work(n int) {
	x := uint64(n) | 1
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	spinSink.Store(x)
}

// roundsPer returns how many rounds of work take d: the fastest of some tries,
// since others use the machine too.
var roundsPer = func() func(d time.Duration) int {
	perNano := sync.OnceValue(func() float64 {
		best := 0.0
		for range 50 {
			start := time.Now()
			work(100_000)
			best = max(best, 100_000/float64(time.Since(start)))
		}
		return best
	})
	return func(d time.Duration) int { return max(1, int(perNano()*float64(d))) }
}()

type lightHeavyCase struct {
	name  string
	procs int // GOMAXPROCS
	start func(b *testing.B) runner
	heavy time.Duration // 0: 5 ms
}

// unbounded runs jobs at once on the goroutine that brings them.
type unbounded struct{}

func (unbounded) Run(job func()) error { job(); return nil }
func (unbounded) Pending() int         { return 0 }
func (unbounded) Close()               {}

func BenchmarkLightHeavy(b *testing.B) {
	cores := Plan(0).Workers
	heavy := func(o HeavyOptions) func(b *testing.B) runner {
		return func(b *testing.B) runner {
			h, err := NewHeavy(o)
			if err != nil {
				b.Fatal(err)
			}
			return h
		}
	}
	pin := Plan(0).Pin
	goroutines := func(*testing.B) runner { return unbounded{} }
	gate := func(n int) func(*testing.B) runner { return func(*testing.B) runner { return NewGate(n, 0) } }
	cases := []lightHeavyCase{
		{"none", cores, nil, 0},
		{"none,procs=2x", 2 * cores, nil, 0},
		{"goroutines", cores, goroutines, 0},
		{"goroutines,procs=2x", 2 * cores, goroutines, 0},
		{"gate=cores,procs=cores", cores, gate(cores), 0},
		{"gate=cores", 2 * cores, gate(cores), 0},
		{"25us,goroutines", cores, goroutines, 25 * time.Microsecond},
		{"25us,goroutines,procs=2x", 2 * cores, goroutines, 25 * time.Microsecond},
		{"25us,gate=cores", 2 * cores, gate(cores), 25 * time.Microsecond},
		{"25us,workers=cores", 2 * cores, heavy(HeavyOptions{Workers: cores}), 25 * time.Microsecond},
	}
	for _, n := range slices.Compact([]int{1, max(1, cores-1), cores}) {
		procs := cores + n
		cases = append(cases,
			lightHeavyCase{fmt.Sprintf("workers=%d", n), procs, heavy(HeavyOptions{Workers: n}), 0},
			lightHeavyCase{fmt.Sprintf("workers=%d,pinned", n), procs, heavy(HeavyOptions{Workers: n, CPUs: pin}), 0},
			lightHeavyCase{fmt.Sprintf("workers=%d,nice=10", n), procs, heavy(HeavyOptions{Workers: n, Nice: 10}), 0},
			lightHeavyCase{fmt.Sprintf("workers=%d,pinned,nice=10", n), procs, heavy(HeavyOptions{Workers: n, CPUs: pin, Nice: 10}), 0},
			lightHeavyCase{fmt.Sprintf("workers=%d,nice=19", n), procs, heavy(HeavyOptions{Workers: n, Nice: 19}), 0},
			lightHeavyCase{fmt.Sprintf("workers=%d,batch", n), procs, heavy(HeavyOptions{Workers: n, Policy: PolicyBatch}), 0},
			lightHeavyCase{fmt.Sprintf("workers=%d,idle", n), procs, heavy(HeavyOptions{Workers: n, Policy: PolicyIdle}), 0},
		)
	}
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			b.Run("calm", func(b *testing.B) { c.run(b, false) })
			b.Run("gc", func(b *testing.B) { c.run(b, true) })
		})
	}
}

func (c lightHeavyCase) run(b *testing.B, garbage bool) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(c.procs))
	if garbage {
		defer debug.SetGCPercent(debug.SetGCPercent(20))
	}
	if c.heavy == 0 {
		c.heavy = 5 * time.Millisecond
	}
	heavyRounds, lightRounds := roundsPer(c.heavy), roundsPer(time.Microsecond)

	var stop atomic.Bool
	var jobs atomic.Int64
	var users sync.WaitGroup
	var r runner
	if c.start != nil {
		r = c.start(b)
		for range heavyUsers {
			users.Go(func() {
				job := func() { work(heavyRounds) }
				for !stop.Load() {
					if err := r.Run(job); err != nil {
						b.Error(err)
						return
					}
					jobs.Add(1)
					runtime.Gosched() // as reading the next request would
				}
			})
		}
	}

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), tickerEnv+"="+strconv.Itoa(tickerRate))
	var readers sync.WaitGroup
	latencies, kept := make([][]int64, tickerPipes), make([][]byte, tickerPipes)
	var recording atomic.Bool
	for i := range tickerPipes {
		in, out, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, out)
		readers.Go(func() {
			defer in.Close()
			var buf [8]byte
			for {
				if n, err := in.Read(buf[:]); n != len(buf) || err != nil {
					return
				}
				work(lightRounds)
				if garbage {
					kept[i] = make([]byte, 16<<10)
				}
				if recording.Load() {
					latencies[i] = append(latencies[i], monotonic()-int64(binary.LittleEndian.Uint64(buf[:])))
				}
			}
		})
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	time.Sleep(settle)
	before, pausesBefore, start := jobs.Load(), pauses(), time.Now()
	recording.Store(true)
	time.Sleep(measured)
	recording.Store(false)
	took, done, pausesAfter := time.Since(start), jobs.Load()-before, pauses()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	readers.Wait()
	stop.Store(true)
	users.Wait()
	if r != nil {
		r.Close()
	}

	all := slices.Concat(latencies...)
	slices.Sort(all)
	at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))]) / 1e3 }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(at(0.5), "p50-us")
	b.ReportMetric(at(0.99), "p99-us")
	b.ReportMetric(at(1), "max-us")
	b.ReportMetric(float64(len(all))/took.Seconds(), "light/s")
	b.ReportMetric(float64(done)/took.Seconds(), "heavy/s")
	p50, worst, n := pauseStats(pausesBefore, pausesAfter)
	b.ReportMetric(p50, "gc-p50-us")
	b.ReportMetric(worst, "gc-max-us")
	b.ReportMetric(float64(n), "gc-pauses")
}

// pauses returns how long the world was stopped for the collector so far: from
// the request to stop it to its going on.
func pauses() *metrics.Float64Histogram {
	s := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(s)
	h := s[0].Value.Float64Histogram()
	return &metrics.Float64Histogram{Counts: slices.Clone(h.Counts), Buckets: h.Buckets}
}

func pauseStats(before, after *metrics.Float64Histogram) (p50, worst float64, n uint64) {
	for i := range after.Counts {
		n += after.Counts[i] - before.Counts[i]
	}
	var seen uint64
	for i := range after.Counts {
		c := after.Counts[i] - before.Counts[i]
		if c == 0 {
			continue
		}
		top := after.Buckets[i+1]
		if math.IsInf(top, 1) {
			top = after.Buckets[i]
		}
		if seen < n/2+1 && seen+c >= n/2+1 {
			p50 = top * 1e6
		}
		seen += c
		worst = top * 1e6
	}
	return p50, worst, n
}
