package main

import (
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	data "keymill/daemon/wire/model"
)

const wireDir = "../../daemon/wire"

// TestCommitted fails when the generated code in daemon/wire is not what the
// generator makes: run go generate ./daemon/wire.
func TestCommitted(t *testing.T) {
	files, err := generate(data.JSON, data.Extension, data.Overlay)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, f := range files {
		want[f.name] = true
		got, err := os.ReadFile(filepath.Join(wireDir, f.name))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, f.text) {
			t.Errorf("%s differs from what the generator makes; run go generate ./daemon/wire", f.name)
		}
		if n := bytes.Count(f.text, []byte("\n")); n > 900 {
			t.Errorf("%s has %d lines; split it further", f.name, n)
		}
	}
	found, err := filepath.Glob(filepath.Join(wireDir, "*_gen.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if !want[filepath.Base(f)] {
			t.Errorf("%s is no longer generated; remove it", f)
		}
	}
}

// TestRefused holds what the generator must not pass over.
func TestRefused(t *testing.T) {
	op := func(shapes string) string {
		return `{"operations":{"A":{"name":"A","input":{"shape":"I"}}},"shapes":{` + shapes + `}}`
	}
	for _, c := range []struct{ name, model, overlay, want, extension string }{
		{"broken extension", `{}`, `{}`, "couldn't read the extension", `{`},
		{"extension repeats a shape", `{"shapes":{"S":{"type":"string"}}}`, `{}`, "shape S is in the service model", `{"shapes":{"S":{"type":"string"}}}`},
		{"extension repeats an operation", op(`"I":{"type":"structure"}`), `{}`, "operation A is in the service model", `{"operations":{"A":{"name":"A"}}}`},
		{"broken model", `{`, `{}`, "couldn't read the model", ""},
		{"unknown overlay key", `{}`, `{"x":1}`, "couldn't read the overlay", ""},
		{"overlay names no enumeration", `{}`, `{"enumTold":{"A":["B"]}}`, "no enumeration A", ""},
		{"overlay names no string", `{}`, `{"patterns":{"A":"."}}`, "no string A without a pattern", ""},
		{"overlay names no member", `{}`, `{"alwaysEmit":{"A":["B"]}}`, "no member A.B", ""},
		{"overlay refuses what there is", op(`"I":{"type":"structure","members":{"X":{"shape":"S"}}},"S":{"type":"string"}`), `{"unsupported":{"I":["X"]}}`, "without a member X", ""},
		{"no input", `{"operations":{"A":{"name":"A"}}}`, `{}`, "has no input", ""},
		{"missing shape", op(`"I":{"type":"structure","members":{"X":{"shape":"S"}}}`), `{}`, "no shape S", ""},
		{"unsupported type", op(`"I":{"type":"structure","members":{"X":{"shape":"S"}}},"S":{"type":"double"}`), `{}`, "type double is not supported", ""},
		{"sensitive enum", op(`"I":{"type":"structure","members":{"X":{"shape":"S"}}},"S":{"type":"string","sensitive":true,"enum":["A"]}`), `{}`, "sensitive enum", ""},
		{"unknown escape", op(`"I":{"type":"structure","members":{"X":{"shape":"S"}}},"S":{"type":"string","pattern":"\\u1234"}`), `{}`, "unknown escape", ""},
		{"one bound", op(`"I":{"type":"structure","members":{"X":{"shape":"S"}}},"S":{"type":"integer","min":1}`), `{}`, "one bound", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := generate([]byte(c.model), []byte(cmp.Or(c.extension, "{}")), []byte(c.overlay))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
