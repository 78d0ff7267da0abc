package perf

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// Numbers of a round that reports show.
func rate(r *Round) float64         { return r.Rate() }
func cpu(r *Round) float64          { return micros(r.CPUPerRequest()) }
func generatorCPU(r *Round) float64 { return micros(r.GeneratorCPUPerRequest()) }
func rss(r *Round) float64          { return float64(r.RSS) / 1e6 }

func latency(q float64) func(*Round) float64 {
	return func(r *Round) float64 { return micros(r.Quantile(q)) }
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// WriteTable prints comparisons, two lines each: the bare server's and the
// server's. Figures are medians of the rounds with half the distance between
// the outermost; ratios are medians of the ratios of neighbouring rounds.
func WriteTable(w io.Writer, comparisons []*Comparison) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "operation\tconns\tserver\trequests/s\tratio\tCPU us/request\tratio\tp50 us\tp99 us\tp99.9 us\tRSS MB\tgenerator us\t")
	for _, c := range comparisons {
		writeRow(t, c, "bare", c.Bare, "1", "1")
		writeRow(t, c, "keymill", c.Rounds, withSpread(c.Ratio(rate), 2), withSpread(c.Ratio(cpu), 2))
	}
	return t.Flush()
}

func writeRow(w io.Writer, c *Comparison, name string, rounds []*Round, rateRatio, cpuRatio string) {
	fmt.Fprintf(w, "%v\t%d\t%s\t%s\t%s\t%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.1f\t\n",
		c.Op.Op, c.Conns, name,
		withSpread(figure(rounds, rate), 0), rateRatio,
		withSpread(figure(rounds, cpu), 1), cpuRatio,
		figure(rounds, latency(0.5)).Median,
		figure(rounds, latency(0.99)).Median,
		figure(rounds, latency(0.999)).Median,
		figure(rounds, rss).Median,
		figure(rounds, generatorCPU).Median)
}

// withSpread prints a figure as "12.3 ±4%".
func withSpread(f Figure, decimals int) string {
	return fmt.Sprintf("%.*f ±%.0f%%", decimals, f.Median, 100*f.Spread())
}
