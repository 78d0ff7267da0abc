package perf

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/perf/benchmath"
)

// A Change is how a number differs between two runs.
type Change struct {
	Measurement, Name string
	Old, New          float64 // medians
	Delta             string  // in percent, "~" when the rounds do not tell
	Test              string  // its p-value and the numbers of rounds
}

// compared are the metrics whose change is shown, with their labels; ratios are
// compared too, and mean more on a machine that is shared.
var compared = []string{metricRate, metricItems, metricCPU, metricP50, metricP99, "p999_us", "rss_mb"}

// Changes compares the measurements that both reports have, with the statistics
// of benchstat: medians, and the Mann-Whitney U-test. It also returns the
// benchstat's warnings, each once.
func Changes(old, now *Report) (changes []Change, warnings []string, err error) {
	for i := range now.Measurements {
		m := &now.Measurements[i]
		j := slices.IndexFunc(old.Measurements, func(o Measurement) bool { return o.key() == m.key() })
		if j < 0 {
			warnings = append(warnings, fmt.Sprintf("%s is not in the earlier report, or was measured otherwise there", m.Title()))
			continue
		}
		o := &old.Measurements[j]
		add := func(name string, before, after []float64) {
			if len(before) == 0 || len(after) == 0 {
				return
			}
			c, warned := compareValues(before, after)
			c.Measurement, c.Name = m.Title(), name
			changes = append(changes, c)
			for _, w := range warned {
				if !slices.Contains(warnings, w.Error()) {
					warnings = append(warnings, w.Error())
				}
			}
		}
		for k := range m.Series {
			s := &m.Series[k]
			before := slices.IndexFunc(o.Series, func(x Series) bool { return x.Name == s.Name })
			if before < 0 || s.Bare {
				continue
			}
			for _, name := range compared {
				label := metrics[slices.IndexFunc(metrics, func(x metric) bool { return x.name == name })].label
				add(s.Name+" "+label, o.Series[before].Figures[name], s.Figures[name])
			}
		}
		earlier := o.Ratios()
		for _, r := range m.Ratios() {
			for _, e := range earlier {
				if e.Name == r.Name && e.To == r.To {
					add(r.Name+" / "+r.To, e.Values, r.Values)
				}
			}
		}
	}
	if len(changes) == 0 {
		return nil, warnings, errors.New("the earlier report has none of these measurements")
	}
	return changes, warnings, nil
}

// confidence is that of the intervals benchstat prints.
const confidence = 0.95

func compareValues(before, after []float64) (Change, []error) {
	thresholds := benchmath.DefaultThresholds
	a := benchmath.NewSample(slices.Clone(before), &thresholds)
	b := benchmath.NewSample(slices.Clone(after), &thresholds)
	assume := benchmath.AssumeNothing
	old, now, test := assume.Summary(a, confidence), assume.Summary(b, confidence), assume.Compare(a, b)
	return Change{Old: old.Center, New: now.Center, Delta: test.FormatDelta(old.Center, now.Center), Test: test.String()}, test.Warnings
}

// WriteChanges prints changes as a table.
func WriteChanges(w io.Writer, changes []Change, warnings []string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "measurement\tnumber\told\tnew\tchange\t\t")
	for _, c := range changes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t(%s)\t\n", c.Measurement, c.Name, number(c.Old), number(c.New), c.Delta, strings.TrimSpace(c.Test))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, text := range warnings {
		if _, err := fmt.Fprintln(w, "note:", text); err != nil {
			return err
		}
	}
	return nil
}

// number prints three digits or more.
func number(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
