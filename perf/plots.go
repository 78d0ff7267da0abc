package perf

import (
	"bytes"
	"fmt"
	"html/template"
	"image/color"
	"math"
	"regexp"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Colours that people with colour blindness can tell apart (Okabe and Ito).
var palette = []color.Color{
	color.RGBA{0x00, 0x72, 0xb2, 0xff}, color.RGBA{0xd5, 0x5e, 0x00, 0xff}, color.RGBA{0x00, 0x9e, 0x73, 0xff},
	color.RGBA{0xcc, 0x79, 0xa7, 0xff}, color.RGBA{0xe6, 0x9f, 0x00, 0xff}, color.RGBA{0x56, 0xb4, 0xe9, 0xff},
}

// colorOf is the colour of the i-th thing in a plot.
func colorOf(i int) color.Color { return palette[i%len(palette)] }

const plotWidth, plotHeight = 7.2 * vg.Inch, 3.6 * vg.Inch

// newPlot returns an empty plot in the page's style.
func newPlot(y string) *plot.Plot {
	p := plot.New()
	p.Y.Label.Text = y
	p.BackgroundColor = color.Transparent
	p.Legend.Top = true
	p.Legend.Padding = 2
	// Its widths are those of the plain fonts that browsers have.
	for _, style := range []*text.Style{&p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle} {
		style.Font.Variant, style.Font.Size = "Sans", 10
	}
	p.X.Label.Padding, p.Y.Label.Padding = 4, 4
	grid := plotter.NewGrid()
	grid.Vertical.Color = color.Gray{0xe0}
	grid.Horizontal.Color = color.Gray{0xe0}
	p.Add(grid)
	return p
}

// percentileTicks label the axis of a latency curve, which counts nines.
var percentileTicks = plot.ConstantTicks{
	{Value: math.Log10(2), Label: "50 %"}, {Value: 1, Label: "90 %"}, {Value: 2, Label: "99 %"},
	{Value: 3, Label: "99.9 %"}, {Value: 4, Label: "99.99 %"}, {Value: 5, Label: "99.999 %"},
}

// latencyPlot draws the latency that the given share of requests did not
// exceed, one line for each series.
func latencyPlot(m *Measurement) (template.HTML, error) {
	p := newPlot("latency, us")
	p.X.Label.Text = "share of the requests"
	p.X.Tick.Marker = percentileTicks
	p.Y.Scale = plot.LogScale{}
	p.Y.Tick.Marker = plot.LogTicks{Prec: -1}
	p.Legend.Left = true
	low, high := math.Inf(1), 0.0
	for i, s := range m.Series {
		var line plotter.XYs
		for _, point := range s.Latency {
			if point.Quantile < 1 && point.Micros > 0 {
				line = append(line, plotter.XY{X: -math.Log10(1 - point.Quantile), Y: point.Micros})
				low, high = min(low, point.Micros), max(high, point.Micros)
			}
		}
		if len(line) == 0 {
			continue
		}
		l, err := plotter.NewLine(line)
		if err != nil {
			return "", err
		}
		l.Color, l.Width = colorOf(i), vg.Points(1.8)
		p.Add(l)
		p.Legend.Add(s.Name, l)
	}
	if high > 0 {
		// Whole decades, or the axis may have no label at all.
		p.Y.Min, p.Y.Max = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high*1.01)))
	}
	p.X.Min = math.Log10(2)
	return svg(p)
}

// whiskers are the medians and ranges of a metric, at x = 0, 1, 2 ...
type whiskers []Figure

func (w whiskers) Len() int                { return len(w) }
func (w whiskers) XY(i int) (x, y float64) { return float64(i), w[i].Median }
func (w whiskers) YError(i int) (low, up float64) {
	return w[i].Median - w[i].Min, w[i].Max - w[i].Median
}

// barPlot draws a metric of all measurements: a bar for each series with the
// range of its rounds.
func barPlot(r *Report, name, label string) (template.HTML, error) {
	p := newPlot(label)
	p.X.Tick.Width = 0
	var (
		ticks   plot.ConstantTicks
		figures = map[string]whiskers{}
		places  = map[string][]float64{}
		order   []string
		x       float64
	)
	for i := range r.Measurements {
		m := &r.Measurements[i]
		first := x
		for _, s := range m.Series {
			f, ok := s.figure(name)
			if !ok {
				continue
			}
			if figures[s.Name] == nil {
				order = append(order, s.Name)
			}
			figures[s.Name] = append(figures[s.Name], f)
			places[s.Name] = append(places[s.Name], x)
			x++
		}
		if x > first {
			ticks = append(ticks, plot.Tick{Value: (first + x - 1) / 2, Label: fmt.Sprintf("%s\n%d conns", m.Workload, m.Connections)})
			x++
		}
	}
	if len(order) == 0 {
		return "", nil
	}
	width := plotWidth * 0.7 / vg.Length(x+1)
	for i, series := range order {
		for j, f := range figures[series] {
			bar, err := plotter.NewBarChart(plotter.Values{f.Median}, min(width, vg.Points(48)))
			if err != nil {
				return "", err
			}
			bar.XMin, bar.Color, bar.LineStyle.Width = places[series][j], colorOf(i), 0
			p.Add(bar)
			if j == 0 {
				p.Legend.Add(series, bar)
			}
			bars, err := plotter.NewYErrorBars(at{whiskers{f}, places[series][j]})
			if err != nil {
				return "", err
			}
			p.Add(bars)
		}
	}
	p.X.Tick.Marker = ticks
	p.X.Min, p.X.Max = -1, x
	p.Y.Min = 0
	p.Y.Max *= 1.25 // room for the legend
	return svg(p)
}

// at moves whiskers along the axis.
type at struct {
	whiskers
	x float64
}

func (a at) XY(i int) (x, y float64) {
	_, y = a.whiskers.XY(i)
	return a.x, y
}

// fonts finds the font families in what gonum writes. The fonts of its library
// are nowhere installed and would make a page a megabyte longer; every browser
// has a plain one.
var fonts = regexp.MustCompile(`font-family:[^;"]*`)

// svg renders a plot as an element of an HTML page.
func svg(p *plot.Plot) (template.HTML, error) {
	w, err := p.WriterTo(plotWidth, plotHeight, "svg")
	if err != nil {
		return "", err
	}
	canvas, ok := w.(*vgsvg.Canvas)
	if !ok {
		return "", fmt.Errorf("a plot rendered as %T", w)
	}
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return "", err
	}
	element := out.Bytes()
	if i := bytes.Index(element, []byte("<svg")); i >= 0 {
		element = element[i:] // without the declaration of an XML file
	}
	return template.HTML(fonts.ReplaceAll(element, []byte("font-family:Arial,Helvetica,sans-serif"))), nil
}
