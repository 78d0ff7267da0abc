package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
)

// A serviceModel is what the coverage needs of a service model.
type serviceModel struct {
	Operations map[string]struct {
		Input, Output *shapeRef
		Errors        []shapeRef
	}
	Shapes map[string]shape
}

type shapeRef struct{ Shape string }

type shape struct {
	Type       string
	Members    map[string]shapeRef
	Member     *shapeRef // of a list
	Value      *shapeRef // of a map
	Exception  bool
	Deprecated bool
}

func readModel(file string) (*serviceModel, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m := new(serviceModel)
	return m, json.Unmarshal(b, m)
}

// Coverage is what SDK clients have sent and received: the members of the service
// model, as "Operation.Member.Member", inputs before "<" and outputs before ">".
// Only successful answers count. Safe for concurrent use.
type Coverage struct {
	model *serviceModel
	mu    sync.Mutex
	seen  map[string]int
}

// NewCoverage returns an empty Coverage of a model.
func NewCoverage(modelFile string) (*Coverage, error) {
	m, err := readModel(modelFile)
	if err != nil {
		return nil, err
	}
	return &Coverage{model: m, seen: make(map[string]int)}, nil
}

// note takes in one exchange.
func (c *Coverage) note(target string, request, answer []byte, ok bool) {
	_, name, _ := strings.Cut(target, ".")
	op, known := c.model.Operations[name]
	if !known {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		var e struct {
			Type string `json:"__type"`
		}
		if json.Unmarshal(answer, &e) == nil {
			c.seen[name+" !"+e.Type[strings.LastIndexByte(e.Type, '#')+1:]]++
		}
		// A refused request has exercised its members when the refusal is about them,
		// which nobody can tell here; DryRun's only answer is one.
		if !strings.Contains(string(answer), "DryRunOperationException") {
			return
		}
	}
	c.seen[name]++
	c.members(name+" <", op.Input, request)
	if ok {
		c.members(name+" >", op.Output, answer)
	}
}

func (c *Coverage) members(path string, ref *shapeRef, body []byte) {
	var v any
	if ref == nil || json.Unmarshal(body, &v) != nil {
		return
	}
	c.walk(path, ref.Shape, v)
}

func (c *Coverage) walk(path, name string, v any) {
	s := c.model.Shapes[name]
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if value == nil || s.Type == "map" {
				continue
			}
			if ref, ok := s.Members[key]; ok {
				c.seen[path+key]++
				c.walk(path+key+".", ref.Shape, value)
			}
		}
	case []any:
		for _, value := range v {
			if s.Member != nil {
				c.walk(path, s.Member.Shape, value)
			}
		}
	}
}

// wanted lists every operation and member that there is.
func (c *Coverage) wanted() map[string]bool {
	all := make(map[string]bool)
	var add func(path string, ref *shapeRef)
	add = func(path string, ref *shapeRef) {
		if ref == nil {
			return
		}
		s := c.model.Shapes[ref.Shape]
		switch s.Type {
		case "structure":
			for name, member := range s.Members {
				all[path+name] = true
				add(path+name+".", &member)
			}
		case "list":
			add(path, s.Member)
		}
	}
	for name, op := range c.model.Operations {
		all[name] = true
		add(name+" <", op.Input)
		add(name+" >", op.Output)
		for _, e := range op.Errors {
			all[name+" !"+e.Shape] = true
		}
	}
	return all
}

// Missing lists what no exchange has shown, but for what except explains. An
// exception ends in "*" when it stands for all that begins with it. An exception
// that something did show is reported too: it is outdated.
func (c *Coverage) Missing(except map[string]string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	used := make(map[string]bool)
	excepted := func(name string) bool {
		for e := range except {
			if start, open := strings.CutSuffix(e, "*"); e == name || open && strings.HasPrefix(name, start) {
				used[e] = true
				return true
			}
			// "* >Member": of every operation
			if rest, open := strings.CutPrefix(e, "* "); open {
				if _, member, ok := strings.Cut(name, " "); ok && member == rest {
					used[e] = true
					return true
				}
			}
		}
		return false
	}
	wanted := c.wanted()
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		if c.seen[name] == 0 && !excepted(name) {
			out = append(out, name)
		}
	}
	for _, e := range slices.Sorted(maps.Keys(except)) {
		if c.seen[e] > 0 {
			out = append(out, fmt.Sprintf("%s is seen: take it out of the exceptions (%s)", e, except[e]))
		} else if !used[e] {
			out = append(out, fmt.Sprintf("the exception %s stands for nothing that is missing", e))
		}
	}
	return out
}
