package perf

import (
	_ "embed"
	"html/template"
	"io"
	"time"
)

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Parse(page))

// A section is one measurement on the page.
type section struct {
	Title, What string
	Columns     []string
	Rows        [][]string
	Notes       []string
	Parts       []PartSeries
	Latency     template.HTML
}

// WriteHTML writes the report as one page that needs nothing else: no network,
// no script. changes, of a comparison with an earlier report, may be empty.
func (r *Report) WriteHTML(w io.Writer, changes []Change, warnings []string) error {
	rates, err := barPlot(r, metricRate, "requests/s")
	if err != nil {
		return err
	}
	items, err := barPlot(r, metricItems, "items/s")
	if err != nil {
		return err
	}
	cpu, err := barPlot(r, metricCPU, "server CPU, us/request")
	if err != nil {
		return err
	}
	var sections []section
	for i := range r.Measurements {
		s, err := r.section(&r.Measurements[i])
		if err != nil {
			return err
		}
		sections = append(sections, s)
	}
	return pageTemplate.Execute(w, map[string]any{
		"Report": r, "Machine": r.Machine.String(), "How": r.describe(), "Began": r.Began.Format(time.RFC1123Z),
		"Rates": rates, "Items": items, "CPU": cpu, "Sections": sections,
		"Changes": changes, "Warnings": warnings, "Number": number,
	})
}

func (r *Report) section(m *Measurement) (section, error) {
	out := section{Title: m.Title(), What: m.What, Columns: []string{"server"}}
	var used []metric
	for _, x := range r.usedMetrics() {
		for _, s := range m.Series {
			if len(s.Figures[x.name]) > 0 {
				used = append(used, x)
				out.Columns = append(out.Columns, x.label)
				break
			}
		}
	}
	for i := range m.Series {
		s := &m.Series[i]
		row := []string{s.Name}
		for _, x := range used {
			row = append(row, s.cell(x))
		}
		out.Rows = append(out.Rows, row)
		if note := s.warning(); note != "" && !s.Bare {
			out.Notes = append(out.Notes, s.Name+": "+note)
		}
		if !s.Bare {
			for _, p := range s.Parts {
				p.Name = s.Name + ": " + p.Name
				out.Parts = append(out.Parts, p)
			}
		}
	}
	if len(m.Primitives) > 0 {
		out.Notes = append(out.Notes, m.primitive())
	}
	for _, ratio := range m.Ratios() {
		out.Notes = append(out.Notes, ratio.String())
	}
	var err error
	out.Latency, err = latencyPlot(m)
	return out, err
}
