package keystore

import (
	"context"
	"path/filepath"
	"testing"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// rewrapKeys is how many keys BenchmarkRewrap moves.
const rewrapKeys = 20_000

// BenchmarkRewrap moves a store on the machine's disk to a new domain key of its root, with
// nothing else going on:
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
			b.ReportMetric(0, "ns/op")
		})
	}
}
