package perf

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets this binary be the bare server and a few bad ones.
func TestMain(m *testing.M) {
	switch os.Getenv("PERF_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "bare":
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		fmt.Println(ln.Addr())
		var pair *Pair
		if dir := os.Getenv("PERF_TEST_PAIR"); dir != "" {
			pair = &Pair{CertFile: filepath.Join(dir, "tls-cert.pem"), KeyFile: filepath.Join(dir, "tls-key.pem")}
		}
		ServeBare(ln, 417, pair)
	case "keymill":
		fmt.Fprintln(os.Stderr, serveAsKeymill(os.Args[1:]))
	case "broken":
		fmt.Fprintln(os.Stderr, "no store here")
	}
	os.Exit(3)
}

func child(kind string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PERF_TEST_CHILD="+kind)
	return cmd
}

func TestAlternateWithBare(t *testing.T) {
	bare, err := StartBare(t.Context(), child("bare"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Stop()

	f := newFake(t)
	l := f.load(t, "GenerateDataKey", 2)
	if l.Workload.AnswerSize < 250 {
		t.Fatalf("the fake's answer has %d bytes", l.Workload.AnswerSize)
	}
	plain := *l
	plain.Target, plain.Process = bare.Target, bare.Process
	subjects := []Subject{{Name: "bare", Load: plain, Ended: bare.Ended}, {Name: "fake", Load: *l}}
	var order []string
	s := Settings{Rounds: 2, Duration: time.Second, Progress: func(s string) { order = append(order, s) }}
	rounds, err := Alternate(t.Context(), "title", subjects, s)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(order, "; "), "title: bare, round 1 of 2; title: fake, round 1 of 2; title: fake, round 2 of 2; title: bare, round 2 of 2"; got != want {
		t.Errorf("order of rounds is %s; want %s", got, want)
	}
	m := Measurement{Workload: "GenerateDataKey", Connections: 2}
	for i := range subjects {
		m.Series = append(m.Series, NewSeries(subjects[i].Name, rounds[i]))
	}
	m.Series[0].Bare = true
	if r := m.Ratios(); len(r) != 2 || len(r[0].Values) != 2 || r[0].Values[0] <= 0 {
		t.Errorf("ratios are %v", r)
	}

	// A failure of either server says which.
	bare.Stop()
	if _, ended := bare.Ended(); !ended {
		t.Error("bare server has not ended")
	}
	s.Duration = time.Millisecond
	if _, err := Alternate(t.Context(), "title", subjects, s); err == nil || !strings.Contains(err.Error(), "bare: connection 1 of 2") || !strings.Contains(err.Error(), "the server has ended") {
		t.Errorf("a server that is gone: %v", err)
	}
}

func TestBareOverTLS(t *testing.T) {
	dir := t.TempDir()
	pair, err := NewPair(dir)
	if err != nil {
		t.Fatal(err)
	}
	cmd := child("bare")
	cmd.Env = append(cmd.Env, "PERF_TEST_PAIR="+dir)
	bare, err := StartBare(t.Context(), cmd, pair.Client)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Stop()
	r := run(t, &Load{Target: bare.Target, Workload: plain(), Conns: 2, Duration: 50 * time.Millisecond}, func(r *Round) bool { return r.Requests >= 10 })
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	// Nobody else's certificate will do.
	bare.Target.TLS = &tls.Config{ServerName: "127.0.0.1"}
	if _, err := (&Load{Target: bare.Target, Workload: plain(), Conns: 1, Duration: time.Millisecond}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "TLS with 127.0.0.1") {
		t.Errorf("a certificate from an unknown authority: %v", err)
	}
}

func TestStartKeymill(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "keymill")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nPERF_TEST_CHILD=keymill exec \"$TEST_BINARY\" \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TEST_BINARY", os.Args[0])
	s, err := StartKeymill(t.Context(), KeymillOptions{Binary: script, Dir: filepath.Join(dir, "data"), Region: "eu-west-1", Flags: []string{"--log-level", "warn"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	op, _ := ParseOperation("Decrypt")
	if _, err := (AWS{}).Prepare(t.Context(), s.Target, Single(op), DefaultShape, 1); err != nil {
		t.Error(err)
	}
	if cpu, err := s.Process.CPU(); err != nil || cpu <= 0 {
		t.Errorf("CPU time %v, %v", cpu, err)
	}
	if output, ended := s.Ended(); ended {
		t.Errorf("ended%s", output)
	}
	s.Stop()
	if _, ended := s.Ended(); !ended {
		t.Error("not ended after Stop")
	}
}

func TestStartFailures(t *testing.T) {
	if _, err := StartBare(t.Context(), child("broken"), nil); err == nil || !strings.Contains(err.Error(), "no store here") {
		t.Errorf("a bare server that says nothing: %v", err)
	}
	script := filepath.Join(t.TempDir(), "keymill")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho no such token >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := StartKeymill(t.Context(), KeymillOptions{Binary: script, Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "ended before it was ready; it wrote:\nno such token") {
		t.Errorf("a keymill that ends: %v", err)
	}
	if _, err := StartKeymill(t.Context(), KeymillOptions{Binary: script + "-not", Dir: t.TempDir()}); !os.IsNotExist(err) {
		t.Errorf("a keymill that is not there: %v", err)
	}
}

func TestFigures(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Figure
		spread float64
	}{
		{[]float64{5}, Figure{5, 5, 5}, 0},
		{[]float64{3, 1, 2}, Figure{2, 1, 3}, 0.5},
		{[]float64{4, 1, 2, 3}, Figure{2.5, 1, 4}, 0.6},
		{[]float64{0, 0}, Figure{}, 0},
	} {
		if got := FigureOf(c.values); got != c.want || got.Spread() != c.spread {
			t.Errorf("%v is %v with spread %v, want %v with %v", c.values, got, got.Spread(), c.want, c.spread)
		}
	}
}

func TestRatioIsOfNeighbours(t *testing.T) {
	// The machine slowed down by half after the first pair.
	got := FigureOf(ratios([]float64{500, 250, 250}, []float64{1000, 500, 500}))
	if want := (Figure{0.5, 0.5, 0.5}); got != want {
		t.Errorf("ratio is %v, want %v", got, want)
	}
}

func TestParseCredentials(t *testing.T) {
	const good = "# comment\n[other]\naws_access_key_id = no\n[default]\r\naws_access_key_id = AKIA1\naws_secret_access_key=a=b/c+d==\n[x]\naws_access_key_id = no\n"
	c, err := ParseCredentials([]byte(good))
	if err != nil || c.AccessKeyID != "AKIA1" || string(c.Secret) != "a=b/c+d==" {
		t.Errorf("got %s with %q, %v", c.AccessKeyID, c.Secret, err)
	}
	for _, bad := range []string{"", "[default]\naws_access_key_id = A\n", "[default]\n#aws_access_key_id = A\naws_secret_access_key = b\n", "[x]\naws_access_key_id = A\naws_secret_access_key = b\n"} {
		if c, err := ParseCredentials([]byte(bad)); err == nil {
			t.Errorf("%q gives %v", bad, c)
		}
	}
}

func TestTail(t *testing.T) {
	var all tail
	for i := range 3000 {
		fmt.Fprintf(&all, "line %d\n", i)
	}
	all.Write(bytes.Repeat([]byte("x"), 10))
	if s := all.String(); len(s) > tailSize+20 || !strings.HasSuffix(s, "line 2999\nxxxxxxxxxx") {
		t.Errorf("%d bytes kept, ending in %.40q", len(s), s[max(0, len(s)-40):])
	}
	all.Write(bytes.Repeat([]byte("y"), 3*tailSize))
	if s := all.String(); strings.Contains(s, "x") || !strings.HasSuffix(s, "yyy") {
		t.Error("old text kept after a long line")
	}
}
