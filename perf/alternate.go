package perf

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A Subject is one of the loads that are measured in alternation.
type Subject struct {
	Name string // of the server, and of what is special about the load
	Load Load

	// Ended tells, after an error, whether the server's process has ended, see
	// [Server.Ended]; nil when it is not ours.
	Ended func() (output string, ended bool)
}

// Settings are what the rounds of a measurement share.
type Settings struct {
	Rounds           int
	Warmup, Duration time.Duration

	// Progress is told before every round; nil is nobody.
	Progress func(text string)

	// Between is called after each round of all subjects, to measure what is no
	// load; nil is nothing.
	Between func(context.Context) error
}

// Alternate runs the settings' number of rounds of every subject and returns
// them by subject. Rounds of the same index are neighbours in time; every second
// time the subjects come in reverse, so that none always comes first. An error in
// any round ends it.
func Alternate(ctx context.Context, title string, subjects []Subject, s Settings) ([][]*Round, error) {
	all := make([][]*Round, len(subjects))
	for i := range s.Rounds {
		order := make([]int, len(subjects))
		for j := range order {
			order[j] = j
		}
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, j := range order {
			if s.Progress != nil {
				s.Progress(fmt.Sprintf("%s: %s, round %d of %d", title, subjects[j].Name, i+1, s.Rounds))
			}
			l := subjects[j].Load
			l.Warmup, l.Duration = s.Warmup, s.Duration
			r, err := l.Run(ctx)
			if err == nil {
				err = r.Err()
			}
			if err != nil {
				err = fmt.Errorf("%s: %s: %w", title, subjects[j].Name, err)
				if subjects[j].Ended != nil {
					if output, ended := subjects[j].Ended(); ended {
						err = fmt.Errorf("%w; the server has ended%s", err, output)
					}
				}
				return nil, err
			}
			all[j] = append(all[j], r)
		}
		if s.Between != nil {
			if err := s.Between(ctx); err != nil {
				return nil, fmt.Errorf("%s: %w", title, err)
			}
		}
	}
	return all, nil
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

// ratios divides values by those of the same index; 0 where there is nothing to
// divide by. What disturbs the machine disturbs neighbouring rounds alike, so
// these are steadier than the numbers themselves.
func ratios(values, by []float64) []float64 {
	out := make([]float64, len(values))
	for i, v := range values {
		if i < len(by) && by[i] != 0 {
			out[i] = v / by[i]
		}
	}
	return out
}
