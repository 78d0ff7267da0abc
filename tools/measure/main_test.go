package main

import (
	"strings"
	"testing"
	"time"

	"keymill/perf"
)

func TestParse(t *testing.T) {
	o, err := parse([]string{"--conns", "1, 64", "--ops", "Sign,Encrypt", "--rounds", "5", "--seconds", "0.5"})
	if err != nil {
		t.Fatal(err)
	}
	if len(o.conns) != 2 || o.conns[1] != 64 || len(o.ops) != 2 || o.ops[0].Op.String() != "Sign" ||
		o.settings.Rounds != 5 || o.settings.Duration != 500*time.Millisecond {
		t.Errorf("parsed %+v", o)
	}
	if o, err := parse(nil); err != nil || len(o.ops) != len(perf.Operations) {
		t.Errorf("without arguments: %+v, %v", o, err)
	}
	for args, want := range map[string]string{
		"--conns 0":     "no number of connections",
		"--conns 16,":   "no number of connections",
		"--ops ListKey": "there are GenerateDataKey, Encrypt",
		"--rounds 0":    "--rounds",
		"--seconds 0":   "--seconds",
		"--seconds NaN": "--seconds",
		"--warmup -1":   "--warmup",
		"extra":         "unexpected argument",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want one about %q", args, err, want)
		}
	}
}
