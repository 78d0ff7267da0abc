package perf

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteTable prints a report for people. Figures are medians of the rounds with
// half the distance between the outermost; ratios are medians of the ratios of
// neighbouring rounds.
func (r *Report) WriteTable(w io.Writer) error {
	fmt.Fprintln(w, r.Command)
	fmt.Fprintln(w, r.Machine.String())
	fmt.Fprintln(w, r.describe())
	fmt.Fprintln(w)

	used := r.usedMetrics()
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "workload\tconns\tserver\t")
	for _, m := range used {
		fmt.Fprint(t, m.label, "\t")
	}
	fmt.Fprintln(t)
	for i := range r.Measurements {
		m := &r.Measurements[i]
		for j := range m.Series {
			s := &m.Series[j]
			fmt.Fprintf(t, "%s\t%d\t%s\t", m.Workload, m.Connections, s.Name)
			for _, metric := range used {
				fmt.Fprint(t, s.cell(metric), "\t")
			}
			fmt.Fprintln(t)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return r.writeDetails(w)
}

// describe says how it was measured.
func (r *Report) describe() string {
	what := "keymill " + r.Server.Version + " started for the run, " + r.Server.Root + " root"
	if r.Server.Endpoint != "" {
		what = r.Server.Endpoint + " (" + r.Server.API + ")"
	}
	if r.Server.TLS {
		what += ", TLS"
	}
	return fmt.Sprintf("%s; %d rounds of %gs after %gs of warm-up; load generator on the same machine", what, r.Rounds, r.DurationS, r.WarmupS)
}

// usedMetrics are the metrics that any series has.
func (r *Report) usedMetrics() []metric {
	var used []metric
	for _, m := range metrics {
		found := false
		for _, x := range r.Measurements {
			for _, s := range x.Series {
				found = found || len(s.Figures[m.name]) > 0
			}
		}
		if found {
			used = append(used, m)
		}
	}
	return used
}

// cell prints a metric with its spread where that is of interest.
func (s *Series) cell(m metric) string {
	f, ok := s.figure(m.name)
	if !ok {
		return "-"
	}
	switch m.name {
	case metricRate, metricItems, metricCPU, metricP99:
		return withSpread(f, m.decimals)
	}
	return fmt.Sprintf("%.*f", m.decimals, f.Median)
}

// withSpread prints a figure as "12.3 ±4%".
func withSpread(f Figure, decimals int) string {
	return fmt.Sprintf("%.*f ±%.0f%%", decimals, f.Median, 100*f.Spread())
}

// writeDetails prints what has no column: parts, ratios, and what should make
// a reader careful.
func (r *Report) writeDetails(w io.Writer) error {
	for i := range r.Measurements {
		m := &r.Measurements[i]
		var lines []string
		if len(m.Primitives) > 0 {
			lines = append(lines, m.primitive())
		}
		for _, ratio := range m.Ratios() {
			lines = append(lines, ratio.String())
		}
		for _, s := range m.Series {
			if s.Bare {
				continue
			}
			for _, p := range s.Parts {
				lines = append(lines, fmt.Sprintf("%s: %s: %d requests, p50 %.0f us, p99 %.0f us", s.Name, p.Name, p.Requests, p.P50, p.P99))
			}
			if note := s.warning(); note != "" {
				lines = append(lines, s.Name+": "+note)
			}
		}
		if _, err := fmt.Fprintf(w, "\n%s: %s\n", m.Title(), m.What); err != nil {
			return err
		}
		if len(lines) > 0 {
			if _, err := fmt.Fprintln(w, "  "+strings.Join(lines, "\n  ")); err != nil {
				return err
			}
		}
	}
	return nil
}

// primitive says what the raw computations cost.
func (m *Measurement) primitive() string {
	text := fmt.Sprintf("primitive on all processors: %s items/s", withSpread(FigureOf(m.Primitives), 0))
	if len(m.PrimitiveCPU) > 0 {
		text += fmt.Sprintf(", CPU %s us each", withSpread(FigureOf(m.PrimitiveCPU), 2))
	}
	return text
}

// behind is the share of the offered rate below which a server did not keep up.
const behind = 0.98

// warning says what should make a reader careful.
func (s *Series) warning() string {
	var notes []string
	offered, open := s.figure("offered_per_s")
	rate, _ := s.figure(metricRate)
	if open && rate.Median < behind*offered.Median {
		notes = append(notes, fmt.Sprintf("it did not keep up: %.0f of the %.0f requests a second that were offered", rate.Median, offered.Median))
	}
	if f, ok := s.figure("unsent"); ok {
		notes = append(notes, fmt.Sprintf("up to %.0f requests of a round were not sent since every connection was waiting; they count with the time they had waited at the end", f.Max))
	}
	if f, ok := s.figure("reconnects"); ok {
		notes = append(notes, fmt.Sprintf("the server closed connections after answers, up to %.0f times in a round; connecting again counts", f.Max))
	}
	return strings.Join(notes, "; ")
}
