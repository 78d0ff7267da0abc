package kms

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"keymill/daemon/wire"
)

// counters counts answers by operation and error code. Successes, the hot path,
// are one atomic addition; errors go through a map that grows to the few codes
// there are.
type counters struct {
	ok     [wire.NumOps + 1]atomic.Uint64
	errors sync.Map // counterName -> *atomic.Uint64
}

type counterName struct {
	op   wire.Op
	code string
}

func newCounters() *counters { return &counters{} }

// add counts one answer; row is nil when no operation was named.
func (c *counters) add(row *operation, code string) {
	op := wire.OpInvalid
	if row != nil {
		op = row.op
	}
	if code == "" {
		c.ok[op].Add(1)
		return
	}
	n, ok := c.errors.Load(counterName{op, code})
	if !ok {
		n, _ = c.errors.LoadOrStore(counterName{op, code}, new(atomic.Uint64))
	}
	n.(*atomic.Uint64).Add(1)
}

// WriteMetrics writes the counters in Prometheus text form.
func (s *Service) WriteMetrics(w io.Writer) {
	for op := range s.counts.ok {
		if n := s.counts.ok[op].Load(); n > 0 {
			fmt.Fprintf(w, "keymill_requests_total{operation=%q,code=\"OK\"} %d\n", wire.Op(op), n)
		}
	}
	s.counts.errors.Range(func(k, v any) bool {
		name := k.(counterName)
		op := name.op.String()
		if name.op == wire.OpInvalid {
			op = "unknown"
		}
		fmt.Fprintf(w, "keymill_requests_total{operation=%q,code=%q} %d\n", op, name.code, v.(*atomic.Uint64).Load())
		return true
	})
	fmt.Fprintf(w, "keymill_operation_panics_total %d\n", s.panics.Load())
	fmt.Fprintf(w, "keymill_cached_keys %d\n", s.views.Len())
	fmt.Fprintf(w, "keymill_shelved_keys %d\n", s.shelf.len())
	s.writeScheduleMetrics(w)
	s.usage.writeMetrics(w)
	s.stores.writeMetrics(w)
}
