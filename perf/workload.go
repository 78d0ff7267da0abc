package perf

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// A Request appends a connection's next request to dst, whole and signed for
// the time now, and tells which part of the workload it belongs to. It belongs
// to one goroutine.
type Request func(dst []byte, now time.Time) (request []byte, part int)

// A Part is a kind of request of a workload.
type Part struct {
	Name   string // "Sign:ECC_NIST_P256"
	What   string // what exactly is asked for, for the report
	Weight int    // so many of every [Workload.Weights] requests
	Items  int    // what one request asks for: 1, or the keys of a bulk request

	// Check looks into an answer with status 200; nil trusts it. It is called
	// by many goroutines at once.
	Check func(body []byte) error
}

// A Workload is what connections ask for.
type Workload struct {
	Name  string
	Parts []Part

	// Requests makes the Request of connection i; it is called once for each,
	// before a load starts.
	Requests func(i int) Request

	// AnswerSize is the mean length of the answers' bodies.
	AnswerSize int

	// Primitives are what the parts compute, of the same indexes; nil when that
	// is not known.
	Primitives []Primitive
}

// Weights is the sum of the parts' weights.
func (w *Workload) Weights() int {
	sum := 0
	for _, p := range w.Parts {
		sum += p.Weight
	}
	return sum
}

// Items is the mean number of items of a request.
func (w *Workload) Items() float64 {
	sum := 0
	for _, p := range w.Parts {
		sum += p.Weight * p.Items
	}
	return float64(sum) / float64(w.Weights())
}

// What describes the parts in a line.
func (w *Workload) What() string {
	texts := make([]string, len(w.Parts))
	for i, p := range w.Parts {
		texts[i] = p.Name
		if p.What != "" {
			texts[i] += " (" + p.What + ")"
		}
		if len(w.Parts) > 1 {
			texts[i] = fmt.Sprintf("%d %s", p.Weight, texts[i])
		}
	}
	return strings.Join(texts, ", ")
}

// An order is the sequence of parts that a connection goes through again and
// again: each as often as its weight says.
type order []int

// newOrder returns the order of parts. It is mixed well, and the same in every
// run, unless inTurn asks for the parts one after the other.
func newOrder(parts []Part, inTurn bool) order {
	var o order
	for i, p := range parts {
		for range p.Weight {
			o = append(o, i)
		}
	}
	if !inTurn {
		rand.New(rand.NewPCG(1, uint64(len(o)))).Shuffle(len(o), func(i, j int) { o[i], o[j] = o[j], o[i] })
	}
	return o
}

// mixed is the Request of a connection that goes through o from its place i on;
// next has one function for each part.
func mixed(o order, i int, next []func(dst []byte, now time.Time) []byte) Request {
	return func(dst []byte, now time.Time) ([]byte, int) {
		part := o[i%len(o)]
		i++
		return next[part](dst, now), part
	}
}
