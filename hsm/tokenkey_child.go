package hsm

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
)

// GenerateKey implements TokenKeys. It is sent once: when the child ends before it has
// answered, it is not known whether there is a key, and the ID is not used again.
func (r *childRoot) GenerateKey(ctx context.Context, id TokenKeyID, spec TokenKeySpec, label string) (public []byte, err error) {
	if len(label) > maxTokenLabel {
		return nil, fmt.Errorf("%w: a label of %d bytes (at most %d)", ErrTokenInput, len(label), maxTokenLabel)
	}
	var answer error
	err = r.do(ctx, false, func(n uint64) []byte {
		b := append(beginFrame(nil, kindGenerate, n), id[:]...)
		return endFrame(appendString(append(b, byte(spec)), []byte(label)))
	}, func(c *cursor) {
		if answer = c.error(); answer == nil {
			public = append([]byte(nil), c.string()...)
		}
	})
	if err == nil {
		err = answer
	}
	r.note(err)
	if err != nil {
		return nil, err
	}
	return public, nil
}

// Check implements TokenKeys.
func (r *childRoot) Check(ctx context.Context, id TokenKeyID) error {
	return r.onDomainKey(ctx, kindFind, true, DomainKeyID(id))
}

// Destroy implements TokenKeys. Doing it twice does no harm.
func (r *childRoot) Destroy(ctx context.Context, id TokenKeyID) error {
	return r.onDomainKey(ctx, kindRemove, true, DomainKeyID(id))
}

// maxUse bounds the inputs of one request, so that it and its answer fit into a frame:
// no output is longer than its input by more than roomRSA or so.
const maxUse = maxFrame / 4

// Do implements TokenKeys.
func (r *childRoot) Do(ctx context.Context, ops []TokenOp) {
	good := make([]*TokenOp, 0, len(ops))
	for i := range ops {
		op := &ops[i]
		op.Out = nil
		if op.Err = op.check(); op.Err == nil {
			good = append(good, op)
		}
	}
	if len(good) == 0 && ctx.Err() != nil {
		failOps(ops, contextError(ctx))
	}
	var wg sync.WaitGroup
	for len(good) > 0 {
		n, size := 0, 0
		for n < len(good) && n < maxItems && size < maxUse {
			size += 32 + len(good[n].In) + len(good[n].AAD)
			n++
		}
		part := good[:n]
		if good = good[n:]; len(good) == 0 {
			r.useAll(ctx, part, size) // the last one on our own goroutine
			break
		}
		wg.Go(func() { r.useAll(ctx, part, size) })
	}
	wg.Wait()
}

// useAll sends one request. An encryption or a signature that is made twice, because the
// child ended before it answered, is used once.
func (r *childRoot) useAll(ctx context.Context, ops []*TokenOp, size int) {
	got := make([]Item, len(ops))
	err := r.do(ctx, true, func(n uint64) []byte {
		b := binary.BigEndian.AppendUint16(beginFrame(make([]byte, 0, frameHead+2+size), kindUse, n), uint16(len(ops)))
		for _, op := range ops {
			b = append(append(b, op.Key[:]...), byte(op.Mech))
			b = appendString(appendString(b, op.In), op.AAD)
		}
		return endFrame(b)
	}, func(c *cursor) { c.items(got) })
	for i, op := range ops {
		if err != nil {
			op.Err = err
			continue
		}
		if op.Out, op.Err = got[i].Out, got[i].Err; op.Err != nil {
			op.Out = nil
		}
		r.note(op.Err)
	}
}
