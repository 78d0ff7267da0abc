package perf

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// A Mix is operations with the weights they have among the requests.
type Mix struct {
	Name  string
	Parts []MixPart

	// InTurn makes every connection go through the parts one after the other,
	// on a key of its own.
	InTurn bool
}

// A MixPart is one operation of a mix.
type MixPart struct {
	Operation Operation
	Weight    int
}

// Mixes are the mixes with names of their own.
func Mixes() []Mix {
	part := func(text string, weight int) MixPart {
		name, spec, _ := strings.Cut(text, ":")
		for i := range kinds {
			if kinds[i].name == name {
				o, err := kinds[i].operation(spec, "")
				if err != nil {
					panic(err)
				}
				return MixPart{o, weight}
			}
		}
		panic(name)
	}
	return []Mix{
		// A storage system that reads three objects for one it writes.
		{Name: "storage", Parts: []MixPart{part("GenerateDataKey", 1), part("Decrypt", 3)}},
		{Name: "signing", Parts: []MixPart{part("Sign:ECC_NIST_P256", 4), part("Sign:ECC_NIST_EDWARDS25519", 2), part("Sign:RSA_2048", 1), part("Verify:ECC_NIST_P256", 1)}},
		{Name: "mixed", Parts: []MixPart{part("GenerateDataKey", 4), part("Encrypt", 4), part("Decrypt", 8), part("GenerateMac", 2), part("GenerateRandom", 1), part("Sign:ECC_NIST_P256", 1)}},
		{Name: "bulk", Parts: []MixPart{part("GenerateDataKeys", 1)}},
		// What the root of trust has to do with: a new key's KEK is wrapped, and
		// disabling a key drops its material, so that its next use unwraps it.
		{Name: "hsm", InTurn: true, Parts: []MixPart{part("CreateKey", 1), part("DisableKey", 1), part("EnableKey", 1), part("FirstUse", 1)}},
	}
}

// MixByName finds a mix, and otherwise says which there are.
func MixByName(name string) (Mix, error) {
	var names []string
	for _, m := range Mixes() {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	return Mix{}, fmt.Errorf("there is no mix %q; there are %s", name, strings.Join(names, ", "))
}

// Single is the mix of one operation.
func Single(o Operation) Mix {
	return Mix{Name: o.String(), Parts: []MixPart{{o, 1}}}
}

// An API is the dialect in which a server is asked.
type API interface {
	// Name is the dialect's name on the command line.
	Name() string

	// Prepare makes the keys and ciphertexts that the mix needs on the server,
	// and returns the requests. conns is the largest number of connections that
	// will ask for them.
	Prepare(ctx context.Context, t Target, m Mix, s Shape, conns int) (*Workload, error)
}

// newWorkload fills in what all dialects have in common.
func newWorkload(m Mix, s Shape) *Workload {
	w := &Workload{Name: m.Name}
	for _, p := range m.Parts {
		part := Part{Name: p.Operation.String(), Weight: p.Weight, Items: 1}
		var texts []string
		if p.Operation.Alg != 0 && !p.Operation.Spec.Symmetric() {
			texts = append(texts, p.Operation.Alg.String())
		}
		if p.Operation.kind.what != nil {
			texts = append(texts, p.Operation.kind.what(s))
		}
		part.What = strings.Join(texts, ", ")
		if p.Operation.kind.bulk {
			part.Items = s.Batch
		}
		if check := p.Operation.kind.check; check != nil {
			part.Check = check(s)
		}
		w.Parts = append(w.Parts, part)
	}
	return w
}

// place is where connection i begins in the mix's order.
func (m *Mix) place(i int) int {
	if m.InTurn {
		return 0
	}
	return 7 * i
}

// AWS is the API of AWS KMS, which Keymill speaks too.
type AWS struct{}

// Name implements [API].
func (AWS) Name() string { return "aws" }

// Prepare implements [API].
func (AWS) Prepare(ctx context.Context, t Target, m Mix, s Shape, conns int) (*Workload, error) {
	c, err := Dial(ctx, t)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if m.InTurn {
		s.Keys = max(s.Keys, conns)
	}
	w := newWorkload(m, s)
	bodies := make([]Bodies, len(m.Parts))
	set := &setup{ctx: ctx, client: c, shape: s}
	for i, p := range m.Parts {
		if bodies[i], err = p.Operation.kind.prepare(set, p.Operation); err != nil {
			return nil, fmt.Errorf("preparing %v: %w", p.Operation, err)
		}
		var primitive Primitive
		if p.Operation.kind.primitive != nil {
			if primitive, err = p.Operation.kind.primitive(p.Operation, s); err != nil {
				return nil, fmt.Errorf("primitive of %v: %w", p.Operation, err)
			}
		}
		w.Primitives = append(w.Primitives, primitive)
	}
	o := newOrder(w.Parts, m.InTurn)
	w.Requests = func(i int) Request {
		next := make([]func([]byte, time.Time) []byte, len(m.Parts))
		for j, p := range m.Parts {
			build, fill := newBuilder(t.Addr, t.Region, targetOf(p.Operation.kind.op), t.Credentials), bodies[j](i)
			var body []byte
			next[j] = func(dst []byte, now time.Time) []byte {
				body = fill(body[:0])
				return build.append(dst, now, body)
			}
		}
		return mixed(o, m.place(i), next)
	}
	return w, probe(ctx, c, w)
}

// probe asks for every part once, so that what the server cannot do is said by
// name and before anything is measured. It puts down how long the answers are.
func probe(ctx context.Context, c *Client, w *Workload) error {
	sizes := make([]int, len(w.Parts))
	next := w.Requests(0)
	for range w.Weights() {
		request, part := next(nil, time.Now())
		body, err := c.send(ctx, request)
		if err == nil && w.Parts[part].Check != nil {
			err = w.Parts[part].Check(body)
		}
		if err != nil {
			return fmt.Errorf("the server cannot be asked for %s: %w", w.Parts[part].Name, err)
		}
		sizes[part] = len(body)
	}
	sum := 0
	for i, p := range w.Parts {
		sum += sizes[i] * p.Weight
	}
	w.AnswerSize = sum / w.Weights()
	return nil
}
