package kms

import (
	"testing"
	"time"
)

// BenchmarkUse is what counting adds to a request: on a key of its own, and on
// one that every processor uses.
func BenchmarkUse(b *testing.B) {
	u := newHarness(b).svc.usage
	now := time.Now()
	b.Run("own", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(p *testing.PB) {
			k, id := &keyUse{}, [2]uint64{1, 2}
			for p.Next() {
				u.mark(k, useGenerateDataKey, 1, now, &id)
			}
		})
	})
	b.Run("shared", func(b *testing.B) {
		k := &keyUse{}
		b.ReportAllocs()
		b.RunParallel(func(p *testing.PB) {
			id := [2]uint64{1, 2}
			for p.Next() {
				u.mark(k, useGenerateDataKey, 1, now, &id)
			}
		})
	})
}

// BenchmarkUsageFlush is what writing costs for each key that was used, beside
// requests.
func BenchmarkUsageFlush(b *testing.B) {
	h := newHarness(b)
	uses := make([]*keyUse, 10*usageBatch)
	for i := range uses {
		id, _ := h.newKey(nil)
		uses[i] = &keyUse{ref: h.ref(id)}
	}
	id := [2]uint64{}
	b.ResetTimer()
	for n := 0; n < b.N; n += len(uses) {
		for _, k := range uses {
			h.svc.usage.mark(k, useGenerateDataKey, 1, h.now, &id)
		}
		if err := h.svc.usage.flush(); err != nil {
			b.Fatal(err)
		}
	}
}
