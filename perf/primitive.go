package perf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"keymill/engine"
)

// A Primitive is the computation that a kind of request cannot do without, in
// this process: the engine's, with a warm key, no identity, no encoding and no
// socket. It returns a function for one goroutine that computes a few items,
// and how many: one, or a batch for requests that come in bulk.
type Primitive func() (step func() error, items int, err error)

// primitiveBatch is how many items of a bulk request are computed at once.
const primitiveBatch = 64

// batch is how many items a primitive of o computes at once.
func (o Operation) batch(s Shape) int {
	if o.kind.bulk {
		return min(s.Batch, primitiveBatch)
	}
	return 1
}

// enginePrimitive is a verb of a key.
func enginePrimitive(verb engine.Verb) func(Operation, Shape) (Primitive, error) {
	return func(o Operation, s Shape) (Primitive, error) {
		key, spki, err := localKey(o.Spec, o.kind.usage)
		if err != nil {
			return nil, err
		}
		return func() (func() error, int, error) {
			ops := make([]engine.Op, o.batch(s))
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
				if err := compute(key, ops[:1]); err != nil {
					return nil, 0, err
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
			for i := 1; i < len(ops); i++ {
				ops[i] = ops[0]
				ops[i].In, ops[i].Out = slices.Clone(op.In), nil
			}
			vary := verb == engine.Encrypt || verb == engine.Sign || verb == engine.GenerateMAC
			return func() error {
				for i := range ops {
					if vary {
						varied(ops[i].In).next()
					}
				}
				return compute(key, ops)
			}, len(ops), nil
		}, nil
	}
}

// compute carries ops out, on a cold key too.
func compute(key engine.Key, ops []engine.Op) error {
	key.Do(ops)
	for errors.Is(ops[0].Err, engine.ErrPending) {
		if err := key.Warm(context.Background(), ops); err != nil {
			return err
		}
		key.Do(ops)
	}
	for i := range ops {
		if ops[i].Err != nil {
			return ops[i].Err
		}
	}
	return nil
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

// dataKeyPrimitive draws data keys, of a batch at once, and encrypts them.
func dataKeyPrimitive(o Operation, s Shape) (Primitive, error) {
	s.Payload = 32
	o.Alg = engine.AlgSymmetric
	encrypt, err := enginePrimitive(engine.Encrypt)(o, s)
	if err != nil {
		return nil, err
	}
	return func() (func() error, int, error) {
		step, n, err := encrypt()
		keys := make([]byte, 32*n)
		return func() error {
			engine.Random(keys)
			return step()
		}, n, err
	}, nil
}

func randomPrimitive(_ Operation, s Shape) (Primitive, error) {
	return func() (func() error, int, error) {
		b := make([]byte, s.Payload)
		return func() error {
			engine.Random(b)
			return nil
		}, 1, nil
	}, nil
}

// MeasurePrimitives returns how many items of the workload's mixture the raw
// computations do in a second on all processors, and the processor time of one;
// 0 when one of its parts has none. Of the two, the time is the steadier number
// on a machine that others use too.
func MeasurePrimitives(ctx context.Context, w *Workload, d time.Duration) (rate float64, each time.Duration, err error) {
	if w.Primitives == nil {
		return 0, 0, nil
	}
	for _, p := range w.Primitives {
		if p == nil {
			return 0, 0, nil
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
	before, err := (Process{os.Getpid()}).CPU()
	if err != nil {
		return 0, 0, err
	}
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
		return 0, 0, fmt.Errorf("primitives of %s: %w", w.Name, first)
	}
	after, err := (Process{os.Getpid()}).CPU()
	return float64(items.Load()) / elapsed.Seconds(), perRequest(after-before, items.Load()), err
}

// compute1 computes on one processor until ctx ends.
func compute1(ctx context.Context, w *Workload) (items uint64, err error) {
	steps, batches := make([]func() error, len(w.Primitives)), make([]int, len(w.Primitives))
	for i, p := range w.Primitives {
		if steps[i], batches[i], err = p(); err != nil {
			return 0, err
		}
	}
	const each = 16 // steps before ctx is asked again
	for n := 0; ; {
		for i, step := range steps {
			for done := 0; done < w.Parts[i].Weight*w.Parts[i].Items; done += batches[i] {
				if err := step(); err != nil {
					return items, err
				}
				items += uint64(batches[i])
				if n++; n%each == 0 && ctx.Err() != nil {
					return items, nil
				}
			}
		}
	}
}
