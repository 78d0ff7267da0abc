package perf

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A Comparison is one operation at one number of connections, measured in
// alternation on a server and on the bare one.
type Comparison struct {
	Op           *Operation
	Conns        int
	Bare, Rounds []*Round // of the same index: neighbours in time
}

// Settings are what the rounds of a comparison share.
type Settings struct {
	Rounds           int
	Warmup, Duration time.Duration

	// Progress is told before every round; nil is nobody.
	Progress func(text string)
}

// Compare measures op on both servers. Every second pair of rounds is run in
// reverse order, so that neither server always comes first. An error in any
// round ends it.
func Compare(ctx context.Context, server, bare *Server, op *Operation, bodies Bodies, conns int, s Settings) (*Comparison, error) {
	c := &Comparison{Op: op, Conns: conns}
	one := func(target *Server, name string, to *[]*Round) error {
		if s.Progress != nil {
			s.Progress(fmt.Sprintf("%v, %d connections, round %d of %d: %s", op.Op, conns, len(*to)+1, s.Rounds, name))
		}
		l := Load{Target: target.Target, Op: op.Op, Bodies: bodies, Conns: conns,
			Warmup: s.Warmup, Duration: s.Duration, Process: target.Process}
		r, err := l.Run(ctx)
		if err == nil {
			err = r.Err()
		}
		if err != nil {
			return fmt.Errorf("%v, %d connections, %s: %w", op.Op, conns, name, err)
		}
		*to = append(*to, r)
		return nil
	}
	for i := range s.Rounds {
		steps := []func() error{
			func() error { return one(bare, "bare server", &c.Bare) },
			func() error { return one(server, "server", &c.Rounds) },
		}
		if i%2 == 1 {
			slices.Reverse(steps)
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return nil, err
			}
		}
	}
	return c, nil
}

// AnswerSize asks op once and returns the length of the answer's body, the size
// for [ServeBare].
func AnswerSize(ctx context.Context, target Target, op *Operation, bodies Bodies) (int, error) {
	c, err := dial(ctx, target.Addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	c.c.SetDeadline(time.Now().Add(callTimeout))
	c.out = newBuilder(target.Addr, target.Region, targetOf(op.Op), target.Credentials).
		append(nil, time.Now(), bodies(0)(nil))
	r, err := c.roundTrip()
	if err == nil && r.Status != 200 {
		err = newAnswerError(r)
	}
	if err != nil {
		return 0, fmt.Errorf("%v: %w", op.Op, err)
	}
	return len(r.Body), nil
}

// A Figure is one number of several rounds: the median, and how far the rounds
// lie apart.
type Figure struct{ Median, Min, Max float64 }

// Spread is half the distance between the outermost rounds, as a fraction of
// the median.
func (f Figure) Spread() float64 {
	if f.Median == 0 {
		return 0
	}
	return (f.Max - f.Min) / 2 / f.Median
}

// FigureOf summarises values, of which there is at least one.
func FigureOf(values []float64) Figure {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Figure{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1]}
}

// figure summarises one number of rounds.
func figure(rounds []*Round, f func(*Round) float64) Figure {
	values := make([]float64, len(rounds))
	for i, r := range rounds {
		values[i] = f(r)
	}
	return FigureOf(values)
}

// Ratio summarises the ratios of f between neighbouring rounds, the server's to
// the bare one's. What disturbs the machine disturbs both, so they are steadier
// than the numbers themselves.
func (c *Comparison) Ratio(f func(*Round) float64) Figure {
	values := make([]float64, len(c.Rounds))
	for i, r := range c.Rounds {
		if b := f(c.Bare[i]); b != 0 {
			values[i] = f(r) / b
		}
	}
	return FigureOf(values)
}
