package perf

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"keymill/engine"
)

// A Primitive is the computation that a kind of request cannot do without, in
// this process: the engine's, with a warm key, no identity, no encoding and no
// socket. It returns a function for one goroutine that computes one item.
type Primitive func() (func() error, error)

// enginePrimitive is a verb of a key.
func enginePrimitive(verb engine.Verb) func(Operation, Shape) (Primitive, error) {
	return func(o Operation, s Shape) (Primitive, error) {
		key, spki, err := localKey(o.Spec, o.kind.usage)
		if err != nil {
			return nil, err
		}
		return func() (func() error, error) {
			ops := make([]engine.Op, 1)
			op := &ops[0]
			*op = engine.Op{Verb: verb, Alg: o.Alg, In: newVaried(s.Payload)}
			if o.kind.usage == engine.SignVerify {
				var size int
				size, op.Type = messageOf(o.Alg)
				op.In = newVaried(size)
			}
			// What undoes another verb begins with its result.
			switch verb {
			case engine.Decrypt, engine.Verify, engine.VerifyMAC:
				op.Verb = map[engine.Verb]engine.Verb{engine.Decrypt: engine.Encrypt, engine.Verify: engine.Sign, engine.VerifyMAC: engine.GenerateMAC}[verb]
				if err := compute(key, ops); err != nil {
					return nil, err
				}
				op.Verb = verb
				if verb == engine.Decrypt {
					op.In, op.Out = op.Out, nil
				} else {
					op.Sig, op.Out = op.Out, nil
				}
			case engine.DeriveSecret:
				op.In = spki
			}
			return func() error {
				if verb == engine.Encrypt || verb == engine.Sign || verb == engine.GenerateMAC {
					varied(op.In).next()
				}
				return compute(key, ops)
			}, nil
		}, nil
	}
}

// compute carries ops[0] out, on a cold key too.
func compute(key engine.Key, ops []engine.Op) error {
	key.Do(ops)
	for errors.Is(ops[0].Err, engine.ErrPending) {
		if err := key.Warm(context.Background(), ops); err != nil {
			return err
		}
		key.Do(ops)
	}
	return ops[0].Err
}

// localKey makes a key of spec.
func localKey(spec engine.Spec, usage engine.Usage) (engine.Key, []byte, error) {
	var id engine.KeyID
	engine.Random(id.ID[:])
	material, err := engine.GenerateMaterial(spec)
	if err != nil {
		return nil, nil, err
	}
	var spki []byte
	if spec.Asymmetric() {
		if spki, err = engine.PublicKey(spec, material); err != nil {
			return nil, nil, err
		}
	}
	versions := []engine.KeyVersion{{Number: 1, MaterialID: engine.ComputeMaterialID(id, material)}}
	source := func(context.Context, uint32) ([]byte, error) { return append([]byte(nil), material...), nil }
	return engine.NewLocalKey(id, spec, usage, versions, 0, spki, source), spki, nil
}

// dataKeyPrimitive draws a data key and encrypts it.
func dataKeyPrimitive(o Operation, s Shape) (Primitive, error) {
	s.Payload = 32
	o.Alg = engine.AlgSymmetric
	encrypt, err := enginePrimitive(engine.Encrypt)(o, s)
	if err != nil {
		return nil, err
	}
	return func() (func() error, error) {
		one, err := encrypt()
		key := make([]byte, 32)
		return func() error {
			engine.Random(key)
			return one()
		}, err
	}, nil
}

func randomPrimitive(_ Operation, s Shape) (Primitive, error) {
	return func() (func() error, error) {
		b := make([]byte, s.Payload)
		return func() error {
			engine.Random(b)
			return nil
		}, nil
	}, nil
}

// MeasurePrimitives returns how many items of the workload's mixture the raw
// computations do in a second on all processors; 0 when one of its parts has
// none.
func MeasurePrimitives(ctx context.Context, w *Workload, d time.Duration) (float64, error) {
	if w.Primitives == nil {
		return 0, nil
	}
	for _, p := range w.Primitives {
		if p == nil {
			return 0, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var (
		group sync.WaitGroup
		items atomic.Uint64
		mu    sync.Mutex
		first error
	)
	began := time.Now()
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			n, err := compute1(ctx, w)
			items.Add(n)
			mu.Lock()
			first = errors.Join(first, err)
			mu.Unlock()
		})
	}
	group.Wait()
	elapsed := time.Since(began)
	if first != nil {
		return 0, fmt.Errorf("primitives of %s: %w", w.Name, first)
	}
	return float64(items.Load()) / elapsed.Seconds(), nil
}

// compute1 computes on one processor until ctx ends.
func compute1(ctx context.Context, w *Workload) (items uint64, err error) {
	steps := make([]func() error, len(w.Primitives))
	for i, p := range w.Primitives {
		if steps[i], err = p(); err != nil {
			return 0, err
		}
	}
	const each = 16 // before ctx is asked again
	for ctx.Err() == nil {
		for i, step := range steps {
			for range w.Parts[i].Weight * w.Parts[i].Items {
				if err := step(); err != nil {
					return items, err
				}
				if items++; items%each == 0 && ctx.Err() != nil {
					return items, nil
				}
			}
		}
	}
	return items, nil
}
