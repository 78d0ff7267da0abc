package reftest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"

	"keymill/daemon/wire"
)

var shared = sync.OnceValues(Load)

// Check decodes and validates body as op's request both ways and returns how
// they differ, nil when they agree. What decodes must also survive encoding.
func Check(op wire.Op, d *wire.Decoder, body []byte) error {
	m, err := shared()
	if err != nil {
		return err
	}
	before := bytes.Clone(body)
	in := wire.NewInput(op)
	gotErr := d.Decode(in, body)
	if !bytes.Equal(before, body) {
		return fmt.Errorf("the body was changed")
	}
	want, wantErr := m.Decode(op.String(), body)
	if (gotErr == nil) != (wantErr == nil) {
		return fmt.Errorf("decoder says %v, oracle says %v", gotErr, wantErr)
	}
	got := ObjectOf(in)
	if gotErr != nil {
		if len(got) != 0 {
			return fmt.Errorf("a refused body left %v", got)
		}
		return CheckError(gotErr, "SerializationException")
	}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("decoded %v, oracle %v", got, want)
	}
	if err := checkViolations(m, op, in, want); err != nil {
		return err
	}
	return checkEncode(m, op, in, want)
}

func checkViolations(m *Model, op wire.Op, in wire.Input, o Object) error {
	var v wire.Violations
	in.Validate(&v)
	shape := m.InputShape(op.String())
	if n := m.Count(shape, o); n != v.Len() {
		return fmt.Errorf("%d violations (%v), oracle %d: %s", v.Len(), v.Err(), n, m.Validate(shape, o))
	}
	e := v.Err()
	if e == nil {
		return nil
	}
	if err := CheckError(e, "ValidationException"); err != nil {
		return err
	}
	// The oracle does not cut long values and long lists of violations.
	want := m.Validate(shape, o)
	if v.Len() <= 20 && len(want) < 4096 && e.Message != want {
		return fmt.Errorf("message\n%s\noracle\n%s", e.Message, want)
	}
	return nil
}

// CheckError reads an error's body back.
func CheckError(e *wire.Error, code string) error {
	body := e.AppendJSON(nil)
	var got struct {
		Type    string  `json:"__type"`
		Message *string `json:"message"`
	}
	if err := json.Unmarshal(body, &got); err != nil {
		return fmt.Errorf("error body %q: %w", body, err)
	}
	switch {
	case got.Type != code:
		return fmt.Errorf("error code %s, want %s", got.Type, code)
	case e.NoMessage != (got.Message == nil):
		return fmt.Errorf("error body %s", body)
	case !e.NoMessage && *got.Message != plain(e.Message):
		return fmt.Errorf("message %q became %q", e.Message, *got.Message)
	}
	return nil
}

// plain returns s as encoding/json would hand it on.
func plain(s string) string {
	text, err := json.Marshal(s)
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		panic(err)
	}
	return s
}

// checkEncode encodes a request and reads it back with the oracle. Timestamps
// are rounded to the millisecond, and the strings that a structure of answers
// requires are written even when they are absent.
func checkEncode(m *Model, op wire.Op, in wire.Input, want Object) error {
	text := in.AppendJSON([]byte("prefix"))
	text, ok := bytes.CutPrefix(text, []byte("prefix"))
	if !ok || !json.Valid(text) {
		return fmt.Errorf("encoded %q", text)
	}
	if len(text) > op.MaxBody() {
		return nil
	}
	got, err := m.Decode(op.String(), text)
	if err != nil {
		return fmt.Errorf("the oracle refuses what was encoded, %s: %w", text, err)
	}
	round(want)
	round(got)
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("encoded %s, want %v", text, want)
	}
	return nil
}

// round brings both sides of a comparison to what the encoder promises.
func round(o Object) {
	for k, v := range o {
		switch v := v.(type) {
		case float64:
			o[k] = wire.Timestamp(wire.Time(wire.Some(v))).V
		case []any:
			for _, e := range v {
				tag, ok := e.(Object)
				if !ok {
					continue
				}
				for _, name := range []string{"TagKey", "TagValue"} {
					if _, ok := tag[name]; !ok {
						tag[name] = ""
					}
				}
			}
		}
	}
}
