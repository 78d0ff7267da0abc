package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"
)

// model is the part of a service model that wiregen uses. The extension is
// merged into the service's: it may use the service's shapes and adds its own
// shapes and operations, under names that are not taken.
type model struct {
	Metadata struct {
		TargetPrefix string `json:"targetPrefix"`
		MaxBody      int    `json:"maxBody"` // 0: wire.MaxBody
	} `json:"metadata"`
	Operations map[string]*operation `json:"operations"`
	Shapes     map[string]*shape     `json:"shapes"`

	extensionPrefix string
}

type operation struct {
	Name   string `json:"name"`
	Input  *ref   `json:"input"`
	Output *ref   `json:"output"`
	Errors []ref  `json:"errors"`

	extension bool
	maxBody   int
}

type ref struct {
	Shape string `json:"shape"`
}

type shape struct {
	name string

	Type      string   `json:"type"`
	Members   members  `json:"members"`
	Required  []string `json:"required"`
	Member    *ref     `json:"member"`
	Key       *ref     `json:"key"`
	Value     *ref     `json:"value"`
	Enum      []string `json:"enum"`
	Min       *int     `json:"min"`
	Max       *int     `json:"max"`
	Pattern   string   `json:"pattern"`
	Sensitive bool     `json:"sensitive"`
	Exception bool     `json:"exception"`
	Fault     bool     `json:"fault"`

	extension bool

	in, out bool // reachable from an operation's input, output
}

// members keeps the order of the file, which is the order in which violations
// are reported.
type members []member

type member struct {
	name  string
	shape string
}

func (m *members) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if _, err := dec.Token(); err != nil {
		return err
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		var r ref
		if err := dec.Decode(&r); err != nil {
			return err
		}
		*m = append(*m, member{name: t.(string), shape: r.Shape})
	}
	return nil
}

// overlay holds what the model does not say.
type overlay struct {
	AlwaysEmit map[string][]string `json:"alwaysEmit"` // strings written even when empty
	// Unsupported are members that AWS KMS has and the model lacks, where a request
	// would get more than it asked for if they were skipped.
	Unsupported map[string][]string `json:"unsupported"`
	// EnumTold is what refusals name as an enumeration's values, where AWS KMS names
	// others than the model does or in another order.
	EnumTold map[string][]string `json:"enumTold"`
	// Patterns are those of strings for which the model has none.
	Patterns  map[string]string `json:"patterns"`
	NoMessage []string          `json:"noMessage"` // errors whose body is only __type
	FrontEnd  map[string]int    `json:"frontEnd"`  // errors outside the model, with their status
}

func (s *shape) required(name string) bool {
	for _, r := range s.Required {
		if r == name {
			return true
		}
	}
	return false
}

// extend merges the extension's model into m.
func (m *model) extend(text []byte) error {
	var e model
	if err := json.Unmarshal(text, &e); err != nil {
		return fmt.Errorf("couldn't read the extension: %w", err)
	}
	m.extensionPrefix = e.Metadata.TargetPrefix
	for n, s := range e.Shapes {
		if m.Shapes[n] != nil {
			return fmt.Errorf("extension: shape %s is in the service model", n)
		}
		s.extension = true
		m.Shapes[n] = s
	}
	for n, op := range e.Operations {
		if m.Operations[n] != nil {
			return fmt.Errorf("extension: operation %s is in the service model", n)
		}
		op.extension, op.maxBody = true, e.Metadata.MaxBody
		m.Operations[n] = op
	}
	return nil
}

func load(modelJSON, extensionJSON, overlayJSON []byte) (*model, *overlay, error) {
	m, o := new(model), new(overlay)
	if err := json.Unmarshal(modelJSON, m); err != nil {
		return nil, nil, fmt.Errorf("couldn't read the model: %w", err)
	}
	if err := m.extend(extensionJSON); err != nil {
		return nil, nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(overlayJSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(o); err != nil {
		return nil, nil, fmt.Errorf("couldn't read the overlay: %w", err)
	}
	for n, s := range m.Shapes {
		s.name = n
	}
	for n, fields := range o.AlwaysEmit {
		for _, f := range fields {
			if s := m.Shapes[n]; s == nil || !s.has(f) {
				return nil, nil, fmt.Errorf("overlay: no member %s.%s in the model", n, f)
			}
		}
	}
	for n, fields := range o.Unsupported {
		for _, f := range fields {
			if s := m.Shapes[n]; s == nil || s.has(f) {
				return nil, nil, fmt.Errorf("overlay: no structure %s in the model without a member %s", n, f)
			}
		}
	}
	for n, p := range o.Patterns {
		s := m.Shapes[n]
		if s == nil || s.Type != "string" || s.Pattern != "" {
			return nil, nil, fmt.Errorf("overlay: no string %s without a pattern in the model", n)
		}
		s.Pattern = p
	}
	for n := range o.EnumTold {
		if s := m.Shapes[n]; s == nil || len(s.Enum) == 0 {
			return nil, nil, fmt.Errorf("overlay: no enumeration %s in the model", n)
		}
	}
	for _, op := range m.Operations {
		if op.Input == nil {
			return nil, nil, fmt.Errorf("operation %s has no input structure", op.Name)
		}
		m.reach(op.Input.Shape, func(s *shape) *bool { return &s.in })
		if op.Output != nil {
			m.reach(op.Output.Shape, func(s *shape) *bool { return &s.out })
		}
	}
	for _, s := range m.structures() {
		for _, f := range s.Members {
			if _, err := m.goType(f.shape); err != nil {
				return nil, nil, fmt.Errorf("%s.%s: %w", s.name, f.name, err)
			}
		}
	}
	return m, o, nil
}

func (s *shape) has(name string) bool {
	for _, m := range s.Members {
		if m.name == name {
			return true
		}
	}
	return false
}

func (m *model) reach(name string, mark func(*shape) *bool) {
	s := m.Shapes[name]
	if s == nil || *mark(s) {
		return
	}
	*mark(s) = true
	for _, f := range s.Members {
		m.reach(f.shape, mark)
	}
	for _, r := range []*ref{s.Member, s.Key, s.Value} {
		if r != nil {
			m.reach(r.Shape, mark)
		}
	}
}

// structures returns the structures of requests and responses by name.
func (m *model) structures() []*shape {
	var out []*shape
	for _, s := range m.Shapes {
		if s.Type == "structure" && (s.in || s.out) {
			out = append(out, s)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out
}

// ops returns the operations by name, those of the extension last.
func (m *model) ops() []*operation {
	var out []*operation
	for _, o := range m.Operations {
		out = append(out, o)
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].extension != out[j].extension {
			return out[j].extension
		}
		return out[i].Name < out[j].Name
	})
	return out
}

// goType returns the Go type of a member.
func (m *model) goType(name string) (string, error) {
	s := m.Shapes[name]
	if s == nil {
		return "", fmt.Errorf("no shape %s", name)
	}
	switch s.Type {
	case "string":
		return "string", nil
	case "blob":
		return "[]byte", nil
	case "boolean":
		return "Opt[bool]", nil
	case "integer":
		return "Opt[int64]", nil
	case "timestamp":
		return "Opt[float64]", nil
	case "structure":
		return "*" + name, nil
	case "map":
		if m.Shapes[s.Key.Shape].Type != "string" || m.Shapes[s.Value.Shape].Type != "string" {
			return "", fmt.Errorf("map %s is not one of strings", name)
		}
		return "[]Pair", nil
	case "list":
		switch e := m.Shapes[s.Member.Shape]; e.Type {
		case "string":
			return "[]string", nil
		case "structure":
			return "[]" + e.name, nil
		case "map":
			if _, err := m.goType(e.name); err != nil {
				return "", err
			}
			return "[][]Pair", nil
		}
	}
	return "", fmt.Errorf("shape %s: type %s is not supported", name, s.Type)
}
