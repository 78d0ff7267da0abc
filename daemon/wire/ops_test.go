package wire_test

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"keymill/daemon/wire"
	"keymill/daemon/wire/model"
	"keymill/daemon/wire/reftest"
)

func TestTargets(t *testing.T) {
	m, err := reftest.Load()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Operations) != wire.NumOps {
		t.Errorf("%d operations, the model has %d", wire.NumOps, len(m.Operations))
	}
	for op := wire.Op(1); op <= wire.NumOps; op++ {
		name := op.String()
		o, ok := m.Operations[name]
		if !ok {
			t.Errorf("operation %q is not in the model", name)
			continue
		}
		if got, ok := wire.OpByTarget([]byte(op.Target())); !ok || got != op {
			t.Errorf("target of %s finds %v", name, got)
		}
		if got := reflect.TypeOf(wire.NewInput(op)).Elem().Name(); got != o.Input.Shape {
			t.Errorf("NewInput(%s) is a %s", name, got)
		}
		if op.HasBody() != (o.Output != nil) {
			t.Errorf("%s: HasBody %v", name, op.HasBody())
		}
		prefix, other := "TrentService.", "Keymill."
		if op > wire.OpVerifyMac {
			prefix, other = other, prefix
		}
		if op.Target() != prefix+name {
			t.Errorf("target of %s is %s", name, op.Target())
		}
		if want := map[string]int{"TrentService.": 1 << 20, "Keymill.": 8 << 20}[prefix]; op.MaxBody() != want {
			t.Errorf("%s takes bodies of %d bytes", name, op.MaxBody())
		}
		for _, bad := range []string{other + name, "Keymill.", "TrentService.", "trentservice." + name, "TrentService." + strings.ToLower(name), "TrentService." + name + " ",
			"TrentService " + name, name, "", "TrentService"} {
			if got, ok := wire.OpByTarget([]byte(bad)); ok || got != wire.OpInvalid {
				t.Errorf("target %q finds %v", bad, got)
			}
		}
	}
	if wire.OpInvalid.String() != "" || wire.Op(200).String() != "" || wire.NewInput(wire.OpInvalid) != nil {
		t.Error("an invalid operation must have neither name nor input")
	}
}

// TestErrorTables compares errors of operations and statuses with the model.
func TestErrorTables(t *testing.T) {
	var m, own struct {
		Operations map[string]struct{ Errors []struct{ Shape string } }
		Shapes     map[string]struct{ Exception, Fault bool }
	}
	if err := errors.Join(json.Unmarshal(model.JSON, &m), json.Unmarshal(model.Extension, &own)); err != nil {
		t.Fatal(err)
	}
	maps.Copy(m.Operations, own.Operations)
	seen := map[string]bool{}
	for op := wire.Op(1); op <= wire.NumOps; op++ {
		var want, got []string
		for _, e := range m.Operations[op.String()].Errors {
			want = append(want, e.Shape)
		}
		for _, c := range op.Errors() {
			got = append(got, c.String())
			seen[c.String()] = true
			status := 400
			if m.Shapes[c.String()].Fault {
				status = 500
			}
			if c.Status() != status {
				t.Errorf("%v has status %d", c, c.Status())
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%v: errors %v, want %v", op, got, want)
		}
	}
	if len(seen) < 40 {
		t.Errorf("only %d errors seen", len(seen))
	}
}
