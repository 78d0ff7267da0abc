package perf

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"
)

// sample is a report as a run makes it, of rounds with the given rates.
func sample(t *testing.T, rates ...float64) *Report {
	t.Helper()
	f := newFake(t)
	m, err := MixByName("storage")
	if err != nil {
		t.Fatal(err)
	}
	w := f.mixLoad(t, m, 1).Workload
	rounds := func(factor float64) (all []*Round) {
		for _, rate := range rates {
			r := &Round{Workload: w, Conns: 16, Elapsed: time.Second, Latency: newHistogram(), Lag: newHistogram(),
				Requests: uint64(rate * factor), Due: uint64(2 * rate), Unsent: 3, ServerCPU: time.Second, RSS: 50e6}
			for i := range w.Parts {
				p := PartRound{Requests: r.Requests / 2, Latency: newHistogram()}
				for j := range 500 {
					record(p.Latency, time.Duration(float64(j*(i+1))*1e9/rate/factor))
				}
				r.Latency.Merge(p.Latency)
				r.Parts = append(r.Parts, p)
			}
			all = append(all, r)
		}
		return all
	}
	x := Measurement{Workload: w.Name, What: w.What(), Connections: 16, Rate: 2000, Background: "Sign:RSA_4096:64", Keys: 1, Payload: 32,
		Series: []Series{NewSeries("bare fasthttp", rounds(2)), NewSeries("keymill", rounds(1)), NewSeries("keymill with background", rounds(0.25))}}
	x.Series[0].Bare, x.Series[2].Loaded = true, true
	for _, r := range rates {
		x.Primitives = append(x.Primitives, 100*r)
	}
	return &Report{Command: "keymill bench --serve-flag='<script>'", Began: time.Unix(1_700_000_000, 0).UTC(), Machine: ThisMachine(),
		Server: Description{API: "aws", Version: "v1"}, Rounds: len(rates), DurationS: 1, Measurements: []Measurement{x}}
}

func TestRatios(t *testing.T) {
	r := sample(t, 1000, 2000, 1500)
	got := map[string]float64{}
	for _, ratio := range r.Measurements[0].Ratios() {
		got[ratio.Name+"/"+ratio.To] = FigureOf(ratio.Values).Median
	}
	for name, want := range map[string]float64{
		"requests/s/bare server's":                                  0.5,
		"CPU us/request/bare server's":                              2,
		"items/s/primitive's on all processors":                     0, // no items in this mix
		"requests/s/primitive's on all processors":                  0.01,
		"p99 with Sign:RSA_4096:64 in the background,/same without": 4,
		"p50 with Sign:RSA_4096:64 in the background,/same without": 4,
	} {
		if math.Abs(got[name]-want) > want*0.01 {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

func TestJSON(t *testing.T) {
	r := sample(t, 1000, 2000, 1500)
	var out bytes.Buffer
	if err := r.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	again, err := ReadReport(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	var second bytes.Buffer
	if err := again.WriteJSON(&second); err != nil || !bytes.Equal(out.Bytes(), second.Bytes()) {
		t.Errorf("a report that was read is written differently, %v", err)
	}
	for in, want := range map[string]string{
		"":             "no report",
		"[]":           "no report",
		`{}`:           "format 0",
		`{"format":2}`: "reads 1",
		`{"format":1}`: "without measurements",
		`{"format":1,"measurements":[{"series":[{"figures":{"p50_us":[]}}]}]}`: "no values",
	} {
		if _, err := ReadReport(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error about %q", in, err, want)
		}
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	if err := sample(t, 1000, 2000, 1500).WriteTable(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"keymill bench --serve-flag", "1500 ±33%", "offered/s", "it did not keep up: 1500 of the 3000", "never sent",
		"p99 with Sign:RSA_4096:64 in the background, divided by the same without: 4",
		"requests/s divided by the bare server's: 0.5", "keymill: Decrypt: ", "3 Decrypt (32 B)",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

var svgs = regexp.MustCompile(`(?s)<svg.*?</svg>`)

func TestHTML(t *testing.T) {
	r := sample(t, 1000, 2000, 1500)
	changes, warnings, err := Changes(sample(t, 10, 20, 15), r)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := r.WriteHTML(&out, changes, warnings); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{"&lt;script&gt;", r.Machine.CPU, "storage, 16 connections, 2000/s", "Change since", "keymill with background", "it did not keep up"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the page", want)
		}
	}
	for _, bad := range []string{"<script", "http-equiv", "src=", "@import", "url(", "<link"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q in the page, which must need nothing else", bad)
		}
	}
	plots := svgs.FindAllString(text, -1)
	if len(plots) != 3 { // requests/s, processor time, latency
		t.Errorf("%d plots", len(plots))
	}
	for i, plot := range plots {
		d := xml.NewDecoder(strings.NewReader(plot))
		paths := 0
		for {
			token, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("plot %d: %v", i, err)
			}
			if e, ok := token.(xml.StartElement); ok && e.Name.Local == "path" {
				paths++
			}
		}
		if paths < 10 {
			t.Errorf("plot %d has %d paths", i, paths)
		}
	}
}

func TestChanges(t *testing.T) {
	old := sample(t, 1000, 1010, 1020, 1030, 1040)
	now := sample(t, 2000, 2010, 2020, 2030, 2040)
	changes, _, err := Changes(old, now)
	if err != nil {
		t.Fatal(err)
	}
	find := func(name string) Change {
		for _, c := range changes {
			if c.Name == name {
				return c
			}
		}
		t.Fatalf("no change of %q in %v", name, changes)
		return Change{}
	}
	if c := find("keymill requests/s"); c.Delta != "+98.04%" || !strings.Contains(c.Test, "p=0.008") {
		t.Errorf("twice as fast is %+v", c)
	}
	// The bare server became faster by as much: the ratio tells that the machine
	// changed and not we.
	if c := find("requests/s / bare server's"); c.Delta != "~" {
		t.Errorf("the ratio is %+v", c)
	}
	same, warnings, err := Changes(sample(t, 100, 200), sample(t, 100, 200))
	if err != nil || len(warnings) == 0 || !strings.Contains(warnings[0], "samples") {
		t.Errorf("two rounds: %v, %v; want a warning", warnings, err)
	}
	for _, c := range same {
		if c.Delta != "~" {
			t.Errorf("no change is %+v", c)
		}
	}
	other := sample(t, 100, 200)
	other.Measurements[0].Payload = 4096
	if _, warnings, err := Changes(other, now); err == nil || len(warnings) != 1 || !strings.Contains(warnings[0], "measured otherwise") {
		t.Errorf("other payload: %v, %v", warnings, err)
	}
	var out bytes.Buffer
	if err := WriteChanges(&out, changes, []string{"careful"}); err != nil || !strings.Contains(out.String(), "note: careful") || !strings.Contains(out.String(), "+98.04%") {
		t.Errorf("%v\n%s", err, &out)
	}
}
