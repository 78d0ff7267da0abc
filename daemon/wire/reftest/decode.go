// Package reftest is the plain, slow twin of package wire, for tests and fuzz
// targets. It interprets the service model at run time, decodes with
// encoding/json's tokens into maps, matches names exactly and validates with
// regular expressions. It shares no code with what it checks.
package reftest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"regexp"
	"strconv"
	"unicode/utf8"

	"keymill/daemon/wire/model"
)

// Model is what the oracle reads of the service model.
type Model struct {
	Operations map[string]struct {
		Input  ref
		Output *ref
	}
	Shapes map[string]*Shape

	own map[string]bool // inputs of operations of the extension
}

type ref struct{ Shape string }

// Shape is one shape of the model.
type Shape struct {
	Type      string
	Members   ordered
	Required  []string
	Member    ref
	Enum      []string
	told      []string // what refusals name as Enum, if that differs
	Min, Max  *int
	Pattern   string
	Sensitive bool
}

type ordered struct {
	names []string
	shape map[string]string
}

func (o *ordered) UnmarshalJSON(b []byte) error {
	o.shape = map[string]string{}
	byName := map[string]ref{}
	if err := json.Unmarshal(b, &byName); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	for depth := 0; ; {
		t, err := dec.Token()
		if err == io.EOF {
			break
		}
		if d, ok := t.(json.Delim); ok {
			if d == '{' {
				depth++
			} else {
				depth--
			}
			continue
		}
		if name, ok := t.(string); ok && depth == 1 {
			o.names = append(o.names, name)
		}
	}
	for _, n := range o.names {
		o.shape[n] = byName[n].Shape
	}
	return nil
}

// Load reads the model and its extension.
func Load() (*Model, error) {
	m, own := new(Model), new(Model)
	if err := json.Unmarshal(model.JSON, m); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(model.Extension, own); err != nil {
		return nil, err
	}
	m.own = map[string]bool{}
	for name, op := range own.Operations {
		m.Operations[name] = op
		m.own[op.Input.Shape] = true
	}
	maps.Copy(m.Shapes, own.Shapes)
	var overlay struct {
		EnumTold map[string][]string
		Patterns map[string]string
	}
	if err := json.Unmarshal(model.Overlay, &overlay); err != nil {
		return nil, err
	}
	for name, told := range overlay.EnumTold {
		m.Shapes[name].told = told
	}
	for name, pattern := range overlay.Patterns {
		m.Shapes[name].Pattern = pattern
	}
	return m, nil
}

// Pairs is a decoded map in order of appearance.
type Pairs [][2]string

// Object is a decoded structure. Strings are string, blobs []byte, integers
// int64, timestamps float64, lists []any.
type Object map[string]any

const (
	maxDepth = 16
	maxBody  = 1 << 20
	maxBulk  = 8 << 20 // of the extension
)

var errRefused = errors.New("refused")

// Decode decodes the body of the named operation's request.
func (m *Model) Decode(op string, body []byte) (Object, error) {
	return m.DecodeShape(m.Operations[op].Input.Shape, body)
}

// DecodeShape decodes a body as the named structure.
func (m *Model) DecodeShape(name string, body []byte) (Object, error) {
	if len(body) == 0 {
		return Object{}, nil
	}
	bound := maxBody
	if m.own[name] {
		bound = maxBulk
	}
	if len(body) > bound || !json.Valid(body) || !utf8.Valid(body) || !surrogatesPaired(body) {
		return nil, errRefused
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	v, err := tree(dec, 0)
	if err != nil {
		return nil, err
	}
	r, err := m.convert(name, v)
	if err != nil {
		return nil, err
	}
	return r.(Object), nil
}

// surrogatesPaired looks at every escape of a body that is valid JSON.
func surrogatesPaired(b []byte) bool {
	high := false // the escape just before was a high surrogate
	for i := 0; i < len(b); {
		if b[i] != '\\' {
			if high {
				return false
			}
			i++
			continue
		}
		if b[i+1] != 'u' {
			if high {
				return false
			}
			i += 2
			continue
		}
		n, _ := strconv.ParseUint(string(b[i+2:i+6]), 16, 16)
		low := n >= 0xDC00 && n < 0xE000
		if low != high {
			return false
		}
		high = n >= 0xD800 && n < 0xDC00
		i += 6
	}
	return !high
}

// entries is a JSON object with its order and repetitions.
type entries []entry

type entry struct {
	name  string
	value any
}

func tree(dec *json.Decoder, depth int) (any, error) {
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	d, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if depth++; depth > maxDepth {
		return nil, errRefused
	}
	if d == '[' {
		list := []any{}
		for dec.More() {
			v, err := tree(dec, depth)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = dec.Token()
		return list, err
	}
	obj := entries{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		v, err := tree(dec, depth)
		if err != nil {
			return nil, err
		}
		obj = append(obj, entry{name.(string), v})
	}
	_, err = dec.Token()
	return obj, err
}

var (
	integerForm = regexp.MustCompile(`\A-?(0|[1-9][0-9]*)\z`)
	base64Form  = regexp.MustCompile(`\A([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\z`)
)

// convert turns a tree into the form the shape asks for. null never gets here
// for members; everywhere else it is refused.
func (m *Model) convert(name string, v any) (any, error) {
	s := m.Shapes[name]
	switch s.Type {
	case "string":
		if t, ok := v.(string); ok {
			return t, nil
		}
	case "blob":
		t, ok := v.(string)
		if !ok || !base64Form.MatchString(t) {
			return nil, errRefused
		}
		b, err := base64.StdEncoding.DecodeString(t)
		if err != nil || base64.StdEncoding.EncodeToString(b) != t {
			return nil, errRefused
		}
		return b, nil
	case "boolean":
		if t, ok := v.(bool); ok {
			return t, nil
		}
	case "integer":
		n, ok := v.(json.Number)
		if !ok || !integerForm.MatchString(n.String()) {
			return nil, errRefused
		}
		i, _ := new(big.Int).SetString(n.String(), 10)
		if !i.IsInt64() || i.Int64() != int64(int32(i.Int64())) {
			return nil, errRefused
		}
		return i.Int64(), nil
	case "timestamp":
		n, ok := v.(json.Number)
		if !ok {
			return nil, errRefused
		}
		f, err := n.Float64()
		if err != nil || f < -62135596800 || f > 253402300799.999 {
			return nil, errRefused
		}
		return f, nil
	case "list":
		l, ok := v.([]any)
		if !ok {
			return nil, errRefused
		}
		out := []any{}
		for _, e := range l {
			c, err := m.convert(s.Member.Shape, e)
			if err != nil {
				return nil, err
			}
			out = append(out, c)
		}
		return out, nil
	case "map":
		return convertMap(v)
	case "structure":
		return m.convertStructure(s, v)
	default:
		return nil, fmt.Errorf("shape %s has type %s", name, s.Type)
	}
	return nil, errRefused
}

func convertMap(v any) (any, error) {
	o, ok := v.(entries)
	if !ok {
		return nil, errRefused
	}
	out, seen := Pairs{}, map[string]bool{}
	for _, e := range o {
		t, ok := e.value.(string)
		if !ok || seen[e.name] {
			return nil, errRefused
		}
		seen[e.name] = true
		out = append(out, [2]string{e.name, t})
	}
	return out, nil
}

func (m *Model) convertStructure(s *Shape, v any) (any, error) {
	o, ok := v.(entries)
	if !ok {
		return nil, errRefused
	}
	out, seen := Object{}, map[string]bool{}
	for _, e := range o {
		shape, known := s.Members.shape[e.name]
		if !known {
			continue
		}
		if seen[e.name] {
			return nil, errRefused
		}
		seen[e.name] = true
		if e.value == nil {
			continue
		}
		c, err := m.convert(shape, e.value)
		if err != nil {
			return nil, err
		}
		out[e.name] = c
	}
	return out, nil
}
