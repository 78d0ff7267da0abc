package kms

import (
	"fmt"
	"runtime"
	"runtime/debug"

	mill "keymill/batch"
	"keymill/daemon/wire"
	"keymill/hsm/arena"
)

// survive ends an exchange whose operation panicked, which only a defect can
// make it do, as if it had failed: nothing of the request stays in memory, what
// a bulk answer holds is given back, the caller is told, and the log has the
// place. The exchange is in nobody knows what state, and does not go back to the
// pool.
//
// It must be deferred itself, to recover. Locks and leases of an operation are
// its own affair: it defers their end.
func (x *exchange) survive() {
	v := recover()
	if v == nil {
		return
	}
	for i := range x.ops {
		arena.Wipe(x.ops[i].Out[:cap(x.ops[i].Out)])
	}
	arena.Wipe(x.secret[:cap(x.secret)])
	x.wipeOut()
	if b := x.bulk; b != nil {
		x.bulk = nil
		_ = b.Close()
	}
	if resp := &x.ctx.Response; resp.IsBodyStream() {
		_ = resp.CloseBodyStream()
	} else {
		body := resp.SwapBody(nil)
		arena.Wipe(body[:cap(body)])
	}

	what, stack := describePanic(v)
	x.svc.panics.Add(1)
	x.svc.log.Error("an operation panicked", "request_id", string(x.id[:]), "operation", x.opName(), "panic", what, "stack", stack)
	x.answer(wire.NewError(wire.KMSInternalException, "The request was rejected because an internal exception occurred."))
	x.end()
}

// describePanic says what went wrong and where, without what the program was
// working on: the runtime's own errors hold numbers and names of types, and
// stacks addresses; of any other value only the type is told.
func describePanic(v any) (what, stack string) {
	switch v := v.(type) {
	case *mill.Panic: // on a heavy worker, whose stack it is
		what, _ = describePanic(v.Value)
		return what, string(v.Stack)
	case runtime.Error:
		what = v.Error()
	default:
		what = fmt.Sprintf("a value of type %T", v)
	}
	return what, string(debug.Stack())
}
