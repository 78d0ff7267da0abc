package perf

import (
	"bytes"
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
		ServeBare(ln, 417)
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

func TestCompareWithBare(t *testing.T) {
	bare, err := StartBare(t.Context(), child("bare"))
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Stop()

	f := newFake(t)
	server := &Server{Target: f.target, Process: &Process{os.Getpid()}}
	op, _ := OperationByName("GenerateDataKey")
	bodies := f.load(t, op, 1).Bodies
	if size, err := AnswerSize(t.Context(), bare.Target, op, bodies); err != nil || size != 417 {
		t.Fatalf("bare server's answer has %d bytes, %v; want 417", size, err)
	}
	if size, err := AnswerSize(t.Context(), f.target, op, bodies); err != nil || size < 250 {
		t.Fatalf("the fake's answer has %d bytes, %v", size, err)
	}
	var order []string
	c, err := Compare(t.Context(), server, bare, op, bodies, 2, Settings{Rounds: 2, Duration: time.Second,
		Progress: func(s string) { order = append(order, s[strings.LastIndex(s, ": ")+2:]) }})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(order, ", "), "bare server, server, server, bare server"; got != want {
		t.Errorf("order of rounds is %s; want %s", got, want)
	}
	var table bytes.Buffer
	if err := WriteTable(&table, []*Comparison{c}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(table.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], "bare") || !strings.Contains(lines[2], "keymill") {
		t.Errorf("table is\n%s", &table)
	}

	// A failure of either server says which.
	f.fail = nil
	bare.Stop()
	if _, ended := bare.Ended(); !ended {
		t.Error("bare server has not ended")
	}
	if _, err := Compare(t.Context(), server, bare, op, bodies, 2, Settings{Rounds: 1, Duration: time.Millisecond}); err == nil || !strings.Contains(err.Error(), "bare server: connection 1 of 2") {
		t.Errorf("comparison with a server that is gone: %v", err)
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
	c, err := Dial(t.Context(), s.Target)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	op, _ := OperationByName("Decrypt")
	if _, err := op.Prepare(t.Context(), c); err != nil {
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
	if _, err := StartBare(t.Context(), child("broken")); err == nil || !strings.Contains(err.Error(), "no store here") {
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
	round := func(n uint64) *Round {
		return &Round{Requests: n, Elapsed: time.Second, Latency: newHistogram()}
	}
	// The machine slowed down by half after the first pair.
	c := &Comparison{Bare: []*Round{round(1000), round(500), round(500)}, Rounds: []*Round{round(500), round(250), round(250)}}
	if got, want := c.Ratio(rate), (Figure{0.5, 0.5, 0.5}); got != want {
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
