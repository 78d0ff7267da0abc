package perf

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"keymill/daemon/wire"
)

// load is a short load of an operation on f.
func (f *fake) load(t *testing.T, op string, conns int) *Load {
	t.Helper()
	o, err := ParseOperation(op)
	if err != nil {
		t.Fatal(err)
	}
	return f.mixLoad(t, Single(o), conns)
}

func (f *fake) mixLoad(t *testing.T, m Mix, conns int) *Load {
	t.Helper()
	w, err := AWS{}.Prepare(t.Context(), f.target, m, DefaultShape, conns)
	if err != nil {
		t.Fatal(err)
	}
	return &Load{Target: f.target, Workload: w, Conns: conns,
		Duration: 100 * time.Millisecond, Process: &Process{os.Getpid()}}
}

// run runs l, and again for twice as long while enough says no: how much is
// answered in a given time depends on who else uses the machine.
func run(t *testing.T, l *Load, enough func(*Round) bool) *Round {
	t.Helper()
	for {
		r, err := l.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if enough(r) || l.Duration > 5*time.Second {
			return r
		}
		l.Duration *= 2
	}
}

func TestLoadOfEveryOperation(t *testing.T) {
	for _, name := range OperationNames() {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			l := f.load(t, name, 4)
			l.Duration /= 4
			o, _ := ParseOperation(name)
			op := o.kind.op
			var prepared, served uint64
			served = f.calls[op].Load()
			r := run(t, l, func(r *Round) bool {
				prepared, served = served, f.calls[op].Load()
				return r.Requests >= 10
			})
			if err := r.Err(); err != nil {
				t.Fatal(err)
			}
			// The server has seen what was counted, and perhaps one more on
			// each connection, whose answer came after the end.
			served -= prepared
			if r.Requests > served || r.Requests+uint64(l.Conns) < served {
				t.Errorf("%d requests counted, %d served on %d connections", r.Requests, served, l.Conns)
			}
			if n := r.Latency.TotalCount(); uint64(n) != r.Requests {
				t.Errorf("%d latencies of %d requests", n, r.Requests)
			}
			if p50, p99 := r.Quantile(0.5), r.Quantile(0.99); p50 <= 0 || p50 > p99 || p99 > l.Duration {
				t.Errorf("p50 %v, p99 %v in %v", p50, p99, l.Duration)
			}
			if r.ServerCPU <= 0 || r.RSS <= 0 || r.CPUPerRequest() <= 0 || r.GeneratorCPUPerRequest() <= 0 {
				t.Errorf("meters stand still: %+v", r)
			}
			if want := l.Workload.Items() * r.Rate(); r.ItemRate() < 0.999*want || r.ItemRate() > 1.001*want {
				t.Errorf("%v items a second in %v requests a second", r.ItemRate(), r.Rate())
			}
			if name == "Encrypt" || name == "Sign" || name == "GenerateMac" || name == "BatchSign" {
				for body, n := range f.seen {
					if n > 1 {
						t.Fatalf("%d requests with the body %.300s", n, body)
					}
				}
			}
		})
	}
}

func TestWarmupIsNotCounted(t *testing.T) {
	f := newFake(t)
	l := f.load(t, "GenerateDataKey", 2)
	l.Warmup = l.Duration
	var before, served uint64
	r := run(t, l, func(r *Round) bool {
		before, served = served, f.calls[wire.OpGenerateDataKey].Load()
		return r.Requests > 0 && r.Requests+uint64(l.Conns) < served-before
	})
	// More were served than the warm-up's and the last of each connection.
	if r.Requests == 0 || r.Requests+uint64(l.Conns) >= served-before {
		t.Errorf("%d counted of %d served", r.Requests, served-before)
	}
	if r.Elapsed != l.Duration {
		t.Errorf("elapsed %v, want %v", r.Elapsed, l.Duration)
	}
}

func TestErrorsFailTheRound(t *testing.T) {
	f := newFake(t)
	l := f.load(t, "Sign", 2)
	const body = `{"__type":"ThrottlingException","message":"Rate exceeded"}`
	f.fail = func(wire.Op) (int, string) {
		if f.calls[wire.OpSign].Load()%10 == 5 {
			return 400, body
		}
		return 0, ""
	}
	r := run(t, l, func(r *Round) bool { return r.Errors > 0 && r.Requests > 0 })
	var answer *AnswerError
	if err := r.Err(); !errors.As(err, &answer) || answer.Status != 400 || answer.Body != body {
		t.Errorf("error is %v, want the first bad answer", err)
	}
	if r.Errors == 0 || r.Requests == 0 {
		t.Errorf("%d errors, %d requests; want both", r.Errors, r.Requests)
	}
}

func TestPrepareFails(t *testing.T) {
	f := newFake(t)
	f.fail = func(wire.Op) (int, string) { return 400, `{"__type":"LimitExceededException"}` }
	for _, name := range OperationNames() {
		o, _ := ParseOperation(name)
		want := "CreateKey: status 400: {\"__type\":\"LimitExceeded"
		if o.Spec == 0 || name == "CreateKey" {
			want = "the server cannot be asked for " + name + ": status 400"
		}
		if _, err := (AWS{}).Prepare(t.Context(), f.target, Single(o), DefaultShape, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %s", name, err, want)
		}
	}
}

// An operation that the server lacks is named, and nothing is measured.
func TestServerLacksOperation(t *testing.T) {
	f := newFake(t)
	f.fail = func(op wire.Op) (int, string) {
		if op == wire.OpGenerateDataKeys {
			return 400, `{"__type":"UnknownOperationException"}`
		}
		return 0, ""
	}
	m, err := MixByName("bulk")
	if err != nil {
		t.Fatal(err)
	}
	_, err = AWS{}.Prepare(t.Context(), f.target, m, DefaultShape, 1)
	if err == nil || !strings.Contains(err.Error(), "cannot be asked for GenerateDataKeys") || !strings.Contains(err.Error(), "UnknownOperation") {
		t.Errorf("error is %v", err)
	}
}

// One bad item fails the request that holds it.
func TestBadItemIsAnError(t *testing.T) {
	f := newFake(t)
	l := f.load(t, "BatchSign", 1)
	f.results = `{"ErrorCode":"KMSInternalException"}`
	r, err := l.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), `"ErrorCode":"KMSInternalException"`) || r.Requests > 0 {
		t.Errorf("%d requests, %v", r.Requests, err)
	}
}

func TestMix(t *testing.T) {
	f := newFake(t)
	for _, m := range Mixes() {
		t.Run(m.Name, func(t *testing.T) {
			l := f.mixLoad(t, m, 3)
			r := run(t, l, func(r *Round) bool { return r.Requests >= 100 })
			if err := r.Err(); err != nil {
				t.Fatal(err)
			}
			// Each connection has gone through the order a number of times and
			// is at most one order away from the others' shares.
			for i, p := range r.Parts {
				want := float64(r.Requests) * float64(l.Workload.Parts[i].Weight) / float64(l.Workload.Weights())
				if d := float64(p.Requests) - want; d > float64(l.Conns*l.Workload.Weights()) || -d > float64(l.Conns*l.Workload.Weights()) {
					t.Errorf("%s: %d of %d requests, want about %.0f", l.Workload.Parts[i].Name, p.Requests, r.Requests, want)
				}
			}
		})
	}
}

// serveRaw answers each connection's first bytes with text and closes it.
func serveRaw(t *testing.T, text string) Target {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			io.WriteString(c, text)
			c.Close()
		}
	}()
	return Target{Addr: ln.Addr().String(), Region: "r", Credentials: Credentials{"AKIA", []byte("s")}}
}

// plain is a workload of empty objects.
func plain() *Workload {
	w := &Workload{Name: "plain", Parts: []Part{{Name: "plain", Weight: 1, Items: 1}}}
	w.Requests = func(int) Request {
		return func(dst []byte, _ time.Time) ([]byte, int) {
			return append(dst, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"...), 0
		}
	}
	return w
}

func TestBrokenServers(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"closes", "", "EOF"},
		{"closes in the head", "HTTP/1.1 200 OK\r\n", "unexpected EOF"},
		{"closes in the body", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "unexpected EOF"},
		{"says more", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc", "2 bytes after"},
		{"is something else", "220 mail ESMTP\r\n\r\n", "not HTTP/1.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := Load{Target: serveRaw(t, c.text), Workload: plain(), Conns: 3, Duration: 50 * time.Millisecond}
			r, err := l.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Err(); r.Errors != 3 || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d errors, %v; want 3 about %q", r.Errors, err, c.want)
			}
		})
	}
}

func TestLargeAnswer(t *testing.T) {
	body := strings.Repeat("0123456789", 10_000)
	target := serveRaw(t, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"+body)
	c, err := Dial(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := c.Call(t.Context(), wire.OpListKeys, &wire.ListKeysRequest{})
	if err != nil || string(got) != body {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(body))
	}
}

// A silent server must not hold a load, or a call, beyond its context.
func TestCancel(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // accepted by the kernel only
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	target := Target{Addr: ln.Addr().String(), Region: "r", Credentials: Credentials{"AKIA", []byte("s")}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	l := Load{Target: target, Workload: plain(), Conns: 2, Duration: time.Hour}
	if _, err := l.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("load: %v", err)
	}
	c, err := Dial(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Call(ctx, wire.OpListKeys, &wire.ListKeysRequest{}); err == nil {
		t.Error("call was answered by nobody")
	}
}

// A server that closes after each answer is connected to again and again.
func TestReconnects(t *testing.T) {
	l := Load{Target: serveRaw(t, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na"), Workload: plain(), Conns: 2, Duration: 50 * time.Millisecond}
	r := run(t, &l, func(r *Round) bool { return r.Requests >= 10 })
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if r.Redials+uint64(l.Conns) < r.Requests {
		t.Errorf("%d requests with %d reconnects", r.Requests, r.Redials)
	}
	client, err := Dial(t.Context(), l.Target)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 3 {
		if body, err := client.Call(t.Context(), wire.OpListKeys, &wire.ListKeysRequest{}); err != nil || string(body) != "a" {
			t.Errorf("call: %q, %v", body, err)
		}
	}
}

func TestHistogramsMerge(t *testing.T) {
	r := &Round{Workload: plain(), Latency: newHistogram(), Elapsed: 2 * time.Second, Parts: []PartRound{{Latency: newHistogram()}}}
	for i := range 10 { // 1..1000 us, dealt out to ten connections
		c := newCounts(1, false)
		for us := i + 1; us <= 1000; us += 10 {
			c.answered(0, time.Duration(us)*time.Microsecond)
		}
		c.addTo(r)
	}
	if r.Requests != 1000 || r.Rate() != 500 {
		t.Errorf("%d requests, %v/s", r.Requests, r.Rate())
	}
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
		if got := r.Quantile(q); got < want-want/500 || got > want+want/500 {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
}

func TestRoundWithoutRequests(t *testing.T) {
	r := &Round{Latency: newHistogram(), Elapsed: time.Second, ServerCPU: time.Second}
	if r.Err() == nil || r.CPUPerRequest() != 0 || r.Rate() != 0 {
		t.Errorf("an empty round is %v, %v, %v", r.Err(), r.CPUPerRequest(), r.Rate())
	}
}
