package keystore

import (
	"path/filepath"
	"testing"

	"keymill/hsm"
)

// BenchmarkListKeys is a page of ListKeys in a store of 20,000 keys.
func BenchmarkListKeys(b *testing.B) {
	s, err := Open(b.Context(), Options{Dir: filepath.Join(b.TempDir(), "store"), Root: hsm.OpenEphemeral(), noSync: true})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	bulkKeys(b, s, 20_000)
	if err := s.compactAll(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if keys, _, err := s.ListKeys(account, region, bulkID(i*7919), true, 1000); err != nil || len(keys) == 0 {
			b.Fatal(err, len(keys))
		}
	}
}
