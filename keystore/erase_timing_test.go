package keystore

import (
	"context"
	"fmt"
	"testing"

	"keymill/hsm/hsmtest"
)

// BenchmarkErase measures how long it takes to erase some keys, spread over a
// store of many, from the disk.
func BenchmarkErase(b *testing.B) {
	const keys = 200_000
	s, err := Open(context.Background(), Options{Dir: b.TempDir(), Root: hsmtest.NewMemory(), noSync: true})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	fill(b, s, 0, keys, 60)
	if err := s.compactAll(); err != nil {
		b.Fatal(err)
	}
	next := 0
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint("keys=", n), func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				refs := make([]Ref, n)
				for i := range refs {
					next = (next + 7919) % keys
					refs[i] = Ref{region, bulkID(next)}
					drop(b, s, refs[i])
				}
				b.StartTimer()
				if err := s.Erase(context.Background(), refs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
