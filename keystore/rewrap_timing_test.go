package keystore

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// rewrapKeys is how many keys BenchmarkRewrap moves.
const rewrapKeys = 20_000

// BenchmarkRewrap moves a store on the machine's disk to a new domain key of its root, with
// nothing else going on. root-keys/s is what the root alone does in the same run: as
// many KEKs decrypted and encrypted, in calls of the largest size that a move makes, as
// many at once as it makes.
//
//	go test ./keystore -run '^$' -bench Rewrap -benchtime 3x
func BenchmarkRewrap(b *testing.B) {
	for name, open := range map[string]func(*testing.B) (hsm.Root, error){
		"software": func(b *testing.B) (hsm.Root, error) {
			return hsm.OpenSoftware(filepath.Join(b.TempDir(), "root.key"), hsm.SoftwareOptions{Create: true})
		},
		"SoftHSM": func(b *testing.B) (hsm.Root, error) {
			c := hsmtest.SoftHSM(b)
			c.Child = hsmtest.Child
			return hsm.OpenPKCS11(c)
		},
	} {
		b.Run(name, func(b *testing.B) {
			root, err := open(b)
			if err != nil {
				b.Fatal(err)
			}
			defer root.Close()
			dir := b.TempDir()
			s, err := Open(context.Background(), Options{Dir: dir, Root: root, noSync: true})
			if err != nil {
				b.Fatal(err)
			}
			bulkKeys(b, s, rewrapKeys)
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			if s, err = Open(context.Background(), Options{Dir: dir, Root: root}); err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			for b.Loop() {
				target, err := root.CreateDomainKey(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				if err := s.BeginRewrap(context.Background(), Rewrap{Target: target, From: placeA, To: placeA}); err != nil {
					b.Fatal(err)
				}
				if p, err := s.Rewrap(context.Background(), nil); err != nil || p.Moved != rewrapKeys {
					b.Fatalf("%+v, %v", p, err)
				}
			}
			b.ReportMetric(float64(b.N)*rewrapKeys/b.Elapsed().Seconds(), "keys/s")
			b.ReportMetric(rewrapKeys/rootAlone(b, root).Seconds(), "root-keys/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// rootAlone returns how long the root takes for the KEKs of a move.
func rootAlone(b *testing.B, root hsm.Root) time.Duration {
	ctx := context.Background()
	id, err := root.CreateDomainKey(ctx)
	if err != nil {
		b.Fatal(err)
	}
	wrapped := []hsm.Item{{In: make([]byte, hsm.KEKSize)}}
	root.Encrypt(ctx, id, wrapped)
	began := time.Now()
	var wg sync.WaitGroup
	for range movers {
		wg.Go(func() {
			for left := rewrapKeys / movers; left > 0; left -= maxBatch {
				items := make([]hsm.Item, min(left, maxBatch))
				for i := range items {
					items[i].In = wrapped[0].Out
				}
				root.Decrypt(ctx, id, items)
				for i := range items {
					if items[i].Err != nil {
						b.Error(items[i].Err)
						return
					}
					items[i].In = items[i].Out
				}
				root.Encrypt(ctx, id, items)
			}
		})
	}
	wg.Wait()
	return time.Since(began)
}
