package quota

import (
	"testing"
	"time"
)

// BenchmarkTake compares a bucket with the token bucket under a mutex that it
// replaces, from all cores at once, and one core alone. The rate is high enough
// for nearly everything to be admitted: an admission writes, a refusal does not.
func BenchmarkTake(b *testing.B) {
	l := NewLimit(MaxRate, int64(MaxRate))
	start := time.Now()
	since := func() int64 { return int64(time.Since(start)) }
	gcra, plain := bucket{Limit: l}, newPlainBucket(l)
	for _, tt := range []struct {
		name string
		take func(now, n int64) bool
	}{{"gcra", gcra.take}, {"mutex", plain.take}} {
		b.Run(tt.name+"/one", func(b *testing.B) {
			for i := range b.N {
				tt.take(int64(i)*100, 1)
			}
		})
		b.Run(tt.name+"/parallel", func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				now := since()
				for pb.Next() {
					tt.take(now, 1)
					now += 200
				}
			})
		})
	}
}

// BenchmarkAccount is what a request pays: find the account, take from it.
func BenchmarkAccount(b *testing.B) {
	now := time.Now()
	for _, tt := range []struct {
		name string
		p    *Profile
	}{{"aws", AWS()}, {"none", None()}} {
		l := New(tt.p, now)
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					l.Account("111122223333", "us-east-1").Take(Symmetric, 1, now)
				}
			})
		})
	}
}
