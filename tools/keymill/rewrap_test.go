package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keymill/keystore"
)

// progressOf is a move of 40 materials as the daemon tells of it.
func progressOf() (all []keystore.RewrapProgress) {
	all = append(all, keystore.RewrapProgress{Phase: keystore.PhaseCounting}, keystore.RewrapProgress{Phase: keystore.PhaseCounting, Materials: 50})
	for moved := range uint64(41) {
		all = append(all, keystore.RewrapProgress{Phase: keystore.PhaseMoving, Total: 40, Moved: moved})
	}
	return append(all, keystore.RewrapProgress{Phase: keystore.PhaseChecking, Total: 40, Moved: 40}, keystore.RewrapProgress{Phase: keystore.PhaseDone, Total: 40, Moved: 40})
}

// Away from a terminal progress is a line for each phase and each tenth, or JSON.
func TestRewrapProgress(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := os.Stderr
	os.Stderr = write
	p := newRewrapProgress(io.Discard, false)
	for _, now := range progressOf() {
		p.update(now)
	}
	p.finish()
	os.Stderr = stderr
	write.Close()
	b, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != 13 || lines[0] != "counting" || lines[1] != "moving: 0 of 40" || lines[2] != "moving: 4 of 40" || lines[11] != "moving: 40 of 40" || lines[12] != "checking" {
		t.Errorf("%d lines:\n%s", len(lines), b)
	}

	var out bytes.Buffer
	p = newRewrapProgress(&out, true)
	for _, now := range progressOf() {
		p.update(now)
	}
	p.finish()
	lines = strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 14 {
		t.Errorf("%d lines:\n%s", len(lines), &out)
	}
	var last struct{ Progress keystore.RewrapProgress }
	want := keystore.RewrapProgress{Phase: keystore.PhaseDone, Total: 40, Moved: 40}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Progress != want {
		t.Errorf("%v %s", err, cmp.Diff(want, last.Progress))
	}
}

// On a terminal it is a bar for each phase.
func TestRewrapBar(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := os.Stderr
	os.Stderr = write
	done := make(chan string)
	go func() {
		b, _ := io.ReadAll(read)
		done <- string(b)
	}()
	p := newRewrapProgress(io.Discard, false)
	p.terminal = true
	for _, now := range progressOf() {
		p.update(now)
	}
	p.finish()
	os.Stderr = stderr
	write.Close()
	if text := <-done; !strings.Contains(text, "counting") || !strings.Contains(text, "moving") || !strings.Contains(text, "checking") {
		t.Errorf("%q", text)
	}
}
