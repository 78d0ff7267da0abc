package perf

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"keymill/daemon/wire"
)

// A handClock is a clock that goes only when somebody waits or works.
type handClock struct{ at time.Time }

func (c *handClock) now() time.Time { return c.at }
func (c *handClock) close()         {}

func (c *handClock) sleepUntil(_ context.Context, t time.Time) error {
	c.at = t
	return nil
}

// A slowServer answers after what takes says of request n.
type slowServer struct {
	clock *handClock
	n     int
	takes func(n int) time.Duration
}

func (s *slowServer) close() {}

func (s *slowServer) roundTrip([]byte) (Response, error) {
	s.clock.at = s.clock.at.Add(s.takes(s.n))
	s.n++
	return Response{Status: 200, Len: 1}, nil
}

// openRound runs one connection in an open loop of the given rate on a clock
// that no machine's load can disturb.
func openRound(rate float64, warmup, duration time.Duration, takes func(n int) time.Duration) *Round {
	clock := &handClock{at: time.Unix(1_000_000, 0)}
	began := clock.at
	l := &Load{Workload: plain(), Conns: 1, Rate: rate}
	w := &worker{via: &slowServer{clock: clock, takes: takes}, clock: clock, next: l.Workload.Requests(0), parts: l.Workload.Parts,
		counts: newCounts(1, true), pacer: l.pacer(began), start: began.Add(warmup), end: began.Add(warmup + duration)}
	w.run(context.Background())
	return workers{w}.round(l, w.start, w.end)
}

func near(got, want time.Duration) bool { return (got - want).Abs() <= want/500+time.Microsecond }

func TestOpenLoopOfAFastServer(t *testing.T) {
	r := openRound(100, time.Second, 2*time.Second, func(int) time.Duration { return time.Millisecond })
	if r.Due != 200 || r.Requests != 200 || r.Unsent != 0 || r.OfferedRate() != 100 || r.Rate() != 100 {
		t.Errorf("%d due, %d answered, %d not sent", r.Due, r.Requests, r.Unsent)
	}
	if n := r.Latency.TotalCount(); n != 200 || !near(r.Quantile(1), time.Millisecond) || !near(r.Quantile(0.01), time.Millisecond) {
		t.Errorf("%d latencies from %v to %v, want 200 of 1ms", n, r.Quantile(0.01), r.Quantile(1))
	}
}

// A stall of a second, once, delays all requests that were due during it: at 100
// a second, a hundred of them, by 1 s, 0.99 s, 0.98 s ... A closed loop would show
// one slow request.
func TestStallShows(t *testing.T) {
	r := openRound(100, 0, 10*time.Second, func(n int) time.Duration {
		if n == 300 {
			return time.Second
		}
		return 0
	})
	if r.Due != 1000 || r.Requests != 1000 || r.Unsent != 0 || r.Latency.TotalCount() != 1000 {
		t.Fatalf("%d due, %d answered, %d not sent, %d latencies", r.Due, r.Requests, r.Unsent, r.Latency.TotalCount())
	}
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{1, time.Second}, {0.99, 900 * time.Millisecond}, {0.95, 500 * time.Millisecond}} {
		if got := r.Quantile(c.q); (got - c.want).Abs() > 12*time.Millisecond {
			t.Errorf("quantile %v is %v, want %v", c.q, got, c.want)
		}
	}
	if got := r.Quantile(0.89); got > time.Millisecond {
		t.Errorf("quantile 0.89 is %v, though nine tenths met no stall", got)
	}
}

// A server that does half of what is offered: the rest is not sent, and counts
// with the time it had waited.
func TestOverload(t *testing.T) {
	r := openRound(100, time.Second, 10*time.Second, func(int) time.Duration { return 20 * time.Millisecond })
	if r.Due != 1000 || r.Rate() < 49 || r.Rate() > 51 {
		t.Errorf("%d due, %v answered a second", r.Due, r.Rate())
	}
	// 11 s of requests were offered and half of them sent.
	if r.Unsent < 540 || r.Unsent > 560 || r.Latency.TotalCount() != 1000 {
		t.Errorf("%d not sent, %d latencies", r.Unsent, r.Latency.TotalCount())
	}
	// The last to be sent, due at 5.5 s, waited until 11 s; it is the slowest.
	if got := r.Quantile(1); (got - 5500*time.Millisecond).Abs() > 60*time.Millisecond {
		t.Errorf("the slowest took %v", got)
	}
}

// The same through a socket: all connections stall together, for at least the
// given time, and no sleep is in the way of the requests that are due meanwhile.
func TestStallShowsThroughTheSocket(t *testing.T) {
	const stall = 200 * time.Millisecond
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var served atomic.Int64
	var until atomic.Pointer[time.Time]
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := make([]byte, 4096)
				for {
					if _, err := c.Read(in); err != nil {
						return
					}
					if served.Add(1) == 50 {
						end := time.Now().Add(stall)
						until.Store(&end)
					}
					if end := until.Load(); end != nil {
						<-time.After(time.Until(*end))
					}
					if _, err := c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")); err != nil {
						return
					}
				}
			}()
		}
	}()
	l := Load{Target: Target{Addr: ln.Addr().String()}, Workload: plain(), Conns: 4, Rate: 500, Duration: time.Second}
	r, err := l.Run(t.Context())
	if err != nil || r.Err() != nil {
		t.Fatal(err, r.Err())
	}
	if r.Due != 500 || uint64(r.Latency.TotalCount()) != r.Due {
		t.Errorf("%d due, %d latencies", r.Due, r.Latency.TotalCount())
	}
	// Of the 100 requests due during the stall, half waited half of it.
	if got := r.Latency.Max(); got < int64(stall)*9/10 {
		t.Errorf("the slowest took %v, the stall %v", time.Duration(got), stall)
	}
	if got := r.Quantile(0.92); got < stall/3 {
		t.Errorf("quantile 0.92 is %v: a stall of %v of 1s does not show", got, stall)
	}
}

func TestPacerCounts(t *testing.T) {
	began := time.Unix(5, 0)
	for _, rate := range []float64{0.3, 1, 3, 7, 1000, 123456.7} {
		p := &pacer{begin: began, rate: rate}
		start, end := began.Add(1500*time.Millisecond), began.Add(4*time.Second)
		var want uint64
		for {
			due := p.take()
			if !due.Before(end) {
				break
			}
			if !due.Before(start) {
				want++
			}
		}
		if got := p.between(start, end); got != want {
			t.Errorf("at %v/s: %d between, %d taken", rate, got, want)
		}
	}
}

func TestAlarm(t *testing.T) {
	a, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	for _, wait := range []time.Duration{-time.Second, 0, time.Nanosecond, 3 * time.Millisecond, time.Millisecond} {
		until := a.now().Add(wait)
		if err := a.sleepUntil(t.Context(), until); err != nil {
			t.Fatal(err)
		}
		if now := a.now(); now.Before(until) {
			t.Errorf("woke %v early", until.Sub(now))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.sleepUntil(ctx, a.now().Add(time.Hour)); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled wait: %v", err)
	}
}

func TestBackground(t *testing.T) {
	f := newFake(t)
	l := f.load(t, "GenerateDataKey", 2)
	l.Rate = 200
	l.Background = f.load(t, "Sign:RSA_4096", 3)
	r := run(t, l, func(r *Round) bool { return r.Requests > 0 && r.Background.Requests > 0 })
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if b := r.Background; b.Conns != 3 || b.Rate() <= 0 || b.Workload.Name != "Sign:RSA_4096" {
		t.Errorf("the background is %+v", b)
	}
	f.fail = func(op wire.Op) (int, string) {
		if op == wire.OpSign {
			return 400, "{}"
		}
		return 0, ""
	}
	if r, err := l.Run(t.Context()); err != nil || r.Err() == nil {
		t.Errorf("errors in the background: %v, %v", r.Err(), err)
	}
}
