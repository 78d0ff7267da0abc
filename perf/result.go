package perf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A Report is the outcome of a run: what the table, the HTML page and the JSON
// file show. The JSON form is stable: a later version reads what an earlier one
// wrote, or refuses its format number.
type Report struct {
	Format       int           `json:"format"`
	Command      string        `json:"command"`
	Began        time.Time     `json:"began"`
	Machine      Machine       `json:"machine"`
	Server       Description   `json:"server"`
	Rounds       int           `json:"rounds"`
	WarmupS      float64       `json:"warmup_s"`
	DurationS    float64       `json:"duration_s"`
	Measurements []Measurement `json:"measurements"`
}

// reportFormat is the number of the JSON form.
const reportFormat = 1

// A Description says what was measured.
type Description struct {
	API      string `json:"api"`
	Endpoint string `json:"endpoint"` // "" when the run started the server itself
	Version  string `json:"version"`  // of the keymill that measured, and was measured when it started it
	Root     string `json:"root"`     // "software" or "pkcs11"; "" when the server is not ours
	TLS      bool   `json:"tls"`
}

// A Measurement is one workload at one load.
type Measurement struct {
	Workload    string  `json:"workload"`
	What        string  `json:"what"`
	Connections int     `json:"connections"`
	Rate        float64 `json:"rate_per_s,omitempty"` // of an open loop
	Background  string  `json:"background,omitempty"`
	Keys        int     `json:"keys"`
	Payload     int     `json:"payload_bytes"`
	TLS         bool    `json:"tls"`

	// Series has the bare server first, when there is one, and then the server:
	// alone, and with the background load when there is one.
	Series []Series `json:"series"`

	// Primitives is the rate of the raw computations on all processors, in items
	// a second, one figure for each round; empty when not measured. PrimitiveCPU
	// is the processor time of an item.
	Primitives   []float64 `json:"primitive_items_per_s,omitempty"`
	PrimitiveCPU []float64 `json:"primitive_cpu_us_per_item,omitempty"`
}

// A Series is the rounds of one subject.
type Series struct {
	Name   string `json:"name"`
	Bare   bool   `json:"bare,omitempty"`
	Loaded bool   `json:"loaded,omitempty"` // with the background load

	// Figures are the metrics' values by name, one for each round.
	Figures map[string][]float64 `json:"figures"`

	// Latency is of all rounds together.
	Latency []Point      `json:"latency"`
	Parts   []PartSeries `json:"parts,omitempty"`
}

// A Point is a latency that a fraction of the requests did not exceed.
type Point struct {
	Quantile float64 `json:"q"`
	Micros   float64 `json:"us"`
}

// A PartSeries is what concerns one part of a mix, over all rounds.
type PartSeries struct {
	Name     string  `json:"name"`
	Requests uint64  `json:"requests"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
}

// A metric is a number of a round.
type metric struct {
	name     string // in JSON
	label    string
	decimals int
	of       func(*Round) float64
	optional bool // left out of tables when it is 0 in every row
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func quantile(q float64) func(*Round) float64 {
	return func(r *Round) float64 { return micros(r.Quantile(q)) }
}

const (
	metricRate  = "requests_per_s"
	metricItems = "items_per_s"
	metricCPU   = "server_cpu_us_per_request"
	metricP50   = "p50_us"
	metricP99   = "p99_us"
)

var metrics = []metric{
	{metricRate, "requests/s", 0, (*Round).Rate, false},
	{metricItems, "items/s", 0, func(r *Round) float64 {
		if r.Workload.Items() == 1 {
			return 0
		}
		return r.ItemRate()
	}, true},
	{"offered_per_s", "offered/s", 0, (*Round).OfferedRate, true},
	{metricCPU, "CPU us/request", 1, func(r *Round) float64 {
		if r.Background != nil {
			return 0 // most of it is the background's
		}
		return micros(r.CPUPerRequest())
	}, true},
	{metricP50, "p50 us", 0, quantile(0.5), false},
	{metricP99, "p99 us", 0, quantile(0.99), false},
	{"p999_us", "p99.9 us", 0, quantile(0.999), false},
	{"max_us", "max us", 0, func(r *Round) float64 { return micros(time.Duration(r.Latency.Max())) }, false},
	{"rss_mb", "RSS MB", 0, func(r *Round) float64 { return float64(r.RSS) / 1e6 }, true},
	{"generator_cpu_us_per_request", "generator us", 1, func(r *Round) float64 { return micros(r.GeneratorCPUPerRequest()) }, false},
	{"lag_p99_us", "sent late p99 us", 0, func(r *Round) float64 {
		if r.Lag == nil {
			return 0
		}
		return micros(time.Duration(r.Lag.ValueAtQuantile(99)))
	}, true},
	{"unsent", "never sent", 0, func(r *Round) float64 { return float64(r.Unsent) }, true},
	{"reconnects", "reconnects", 0, func(r *Round) float64 { return float64(r.Redials) }, true},
	{"background_requests_per_s", "background/s", 0, func(r *Round) float64 {
		if r.Background == nil {
			return 0
		}
		return r.Background.Rate()
	}, true},
}

// curve is the quantiles of a latency curve: ten for each factor of ten between
// the median and one in a hundred thousand.
func curve(h *hdrhistogram.Histogram) []Point {
	var points []Point
	n := h.TotalCount()
	for i := range 53 {
		tail := 0.5 * math.Pow(10, -float64(i)/10)
		if tail*float64(n) < 1 {
			break
		}
		q := 1 - tail
		points = append(points, Point{q, micros(time.Duration(h.ValueAtQuantile(100 * q)))})
	}
	return append(points, Point{1, micros(time.Duration(h.Max()))})
}

// NewSeries summarises rounds, of which there is at least one.
func NewSeries(name string, rounds []*Round) Series {
	s := Series{Name: name, Figures: make(map[string][]float64)}
	for _, m := range metrics {
		values := make([]float64, len(rounds))
		used := !m.optional
		for i, r := range rounds {
			values[i] = m.of(r)
			used = used || values[i] != 0
		}
		if used {
			s.Figures[m.name] = values
		}
	}
	all := newHistogram()
	parts := make([]PartRound, len(rounds[0].Parts))
	for _, r := range rounds {
		all.Merge(r.Latency)
		for i, p := range r.Parts {
			if parts[i].Latency == nil {
				parts[i].Latency = newHistogram()
			}
			parts[i].Requests += p.Requests
			parts[i].Latency.Merge(p.Latency)
		}
	}
	s.Latency = curve(all)
	if len(parts) > 1 {
		for i, p := range parts {
			s.Parts = append(s.Parts, PartSeries{rounds[0].Workload.Parts[i].Name, p.Requests,
				micros(time.Duration(p.Latency.ValueAtQuantile(50))), micros(time.Duration(p.Latency.ValueAtQuantile(99)))})
		}
	}
	return s
}

// figure summarises a metric; ok is false when the series has none.
func (s *Series) figure(name string) (f Figure, ok bool) {
	values := s.Figures[name]
	if len(values) == 0 {
		return f, false
	}
	return FigureOf(values), true
}

// bare is the bare server's series, nil when there is none.
func (m *Measurement) bare() *Series {
	if len(m.Series) > 0 && m.Series[0].Bare {
		return &m.Series[0]
	}
	return nil
}

// alone is the server's series without the background load.
func (m *Measurement) alone() *Series {
	for i := range m.Series {
		if !m.Series[i].Bare && !m.Series[i].Loaded {
			return &m.Series[i]
		}
	}
	return nil
}

// Title names the measurement in a line.
func (m *Measurement) Title() string {
	t := fmt.Sprintf("%s, %d connections", m.Workload, m.Connections)
	if m.Connections == 1 {
		t = fmt.Sprintf("%s, 1 connection", m.Workload)
	}
	if m.Rate > 0 {
		t += fmt.Sprintf(", %g/s", m.Rate)
	}
	return t
}

// A Ratio is how the server's numbers stand to others of the same run.
type Ratio struct {
	Name   string // of the number
	To     string // what it is divided by
	Values []float64
}

// String is the ratio in a line: the median, the spread and the range.
func (r Ratio) String() string {
	f := FigureOf(r.Values)
	return fmt.Sprintf("%s divided by the %s: %s (%s to %s)", r.Name, r.To, number(f.Median)+fmt.Sprintf(" ±%.0f%%", 100*f.Spread()), number(f.Min), number(f.Max))
}

// Ratios returns all that can be formed: to the bare server, to the primitives,
// and with the background load to without.
func (m *Measurement) Ratios() []Ratio {
	var out []Ratio
	alone := m.alone()
	if alone == nil {
		return nil
	}
	add := func(name, to string, values, by []float64) {
		if len(values) == 0 || len(by) == 0 {
			return
		}
		if r := ratios(values, by); FigureOf(r).Median > 0 {
			out = append(out, Ratio{name, to, r})
		}
	}
	if bare := m.bare(); bare != nil {
		add("requests/s", "bare server's", alone.Figures[metricRate], bare.Figures[metricRate])
		add("CPU us/request", "bare server's", alone.Figures[metricCPU], bare.Figures[metricCPU])
	}
	items, name := alone.Figures[metricItems], "items/s"
	if items == nil {
		items, name = alone.Figures[metricRate], "requests/s"
	}
	add(name, "primitive's on all processors", items, m.Primitives)
	if perItem := ratios(alone.Figures[metricCPU], ratios(alone.Figures[metricItems], alone.Figures[metricRate])); alone.Figures[metricItems] == nil {
		add("CPU us/request", "primitive's", alone.Figures[metricCPU], m.PrimitiveCPU)
	} else {
		add("CPU us/item", "primitive's", perItem, m.PrimitiveCPU)
	}
	for i := range m.Series {
		if loaded := &m.Series[i]; loaded.Loaded {
			for _, q := range []string{metricP50, metricP99} {
				label := map[string]string{metricP50: "p50", metricP99: "p99"}[q]
				add(label+" with "+m.Background+" in the background,", "same without", loaded.Figures[q], alone.Figures[q])
			}
		}
	}
	return out
}

// WriteJSON writes the report.
func (r *Report) WriteJSON(w io.Writer) error {
	r.Format = reportFormat
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(r)
}

// maxReport bounds a JSON report that is read.
const maxReport = 64 << 20

// ReadReport reads what [Report.WriteJSON] wrote.
func ReadReport(r io.Reader) (*Report, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxReport+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxReport {
		return nil, fmt.Errorf("a report of more than %d bytes", maxReport)
	}
	var out Report
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, fmt.Errorf("no report of keymill bench: %w", err)
	}
	if out.Format != reportFormat {
		return nil, fmt.Errorf("a report of format %d; this keymill reads %d", out.Format, reportFormat)
	}
	for _, m := range out.Measurements {
		for _, s := range m.Series {
			for name, values := range s.Figures {
				if len(values) == 0 {
					return nil, fmt.Errorf("no values of %q in the report", name)
				}
			}
		}
	}
	if len(out.Measurements) == 0 {
		return nil, errors.New("a report without measurements")
	}
	return &out, nil
}

// key names what must be equal for two measurements to be compared.
func (m *Measurement) key() string {
	return strings.Join([]string{m.Workload, m.What, fmt.Sprint(m.Connections, m.Rate, m.Keys, m.Payload, m.TLS), m.Background}, "|")
}
