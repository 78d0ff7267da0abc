//go:build cgo && linux

package keystore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// BenchmarkColdStart is a daemon that comes up with 10,000 keys in use: all their
// material is opened through a token, asked for by so many requests at a time.
// The token is SoftHSM2 as it is, and behind a network that takes 5 ms for each
// call, with 16 sessions: then 3.125 seconds are ideal.
//
//	go test ./keystore -run '^$' -bench ColdStart -benchtime 1x
func BenchmarkColdStart(b *testing.B) {
	const keys, sessions = 10_000, 16
	for _, trip := range []time.Duration{0, 5 * time.Millisecond} {
		token := hsmtest.Shim(b)
		config := token.Config
		if trip == 0 {
			config = hsmtest.SoftHSM(b)
		}
		config.Child, config.Sessions = hsmtest.Child, sessions
		root, err := hsm.OpenPKCS11(config)
		if err != nil {
			b.Fatal(err)
		}
		s, err := Open(context.Background(), Options{Dir: b.TempDir() + "/store", Root: root, noSync: true})
		if err != nil {
			b.Fatal(err)
		}
		ids := make([]Identity, keys)
		each(256, keys, func(i int) {
			k := testKey(0)
			k.ID = bulkID(i)
			ids[i] = Identity{account, region, k.Spec, k.ID, 1}
			m, err := s.SealMaterial(context.Background(), ids[i], make([]byte, 32))
			if err != nil {
				b.Error(err)
				return
			}
			txn := s.NewTxn()
			txn.PutKey(k, 0)
			txn.PutMaterial(m, 0)
			if _, err := txn.Commit(context.Background()); err != nil {
				b.Error(err)
			}
		})
		token.RoundTrip(trip)
		for _, callers := range []int{16, 64, 256, keys} {
			b.Run(fmt.Sprintf("%v/requests=%d", trip, callers), func(b *testing.B) {
				_, before := token.RoundTrips()
				for b.Loop() {
					each(callers, keys, func(i int) {
						secret, err := s.OpenMaterial(context.Background(), ids[i])
						if err != nil || len(secret) != 32 {
							b.Error(err)
						}
					})
				}
				per := b.Elapsed().Seconds() / float64(b.N)
				b.ReportMetric(per, "s/start")
				b.ReportMetric(keys/per, "keys/s")
				if trip > 0 {
					_, after := token.RoundTrips()
					b.ReportMetric(100*keys*trip.Seconds()/sessions/per, "%ideal")
					b.ReportMetric(100*(after-before).Seconds()/(sessions*b.Elapsed().Seconds()), "%used")
				}
				b.ReportMetric(0, "ns/op")
			})
		}
		if err := s.Close(); err != nil {
			b.Error(err)
		}
		if err := root.Close(); err != nil {
			b.Error(err)
		}
	}
}

// each calls f with every number below n, on so many goroutines.
func each(goroutines, n int, f func(int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range goroutines {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}
