package kms

import (
	"io"
	"testing"
)

// BenchmarkKeys is a request on keys in turn: on one, on more than the caches hold
// but the shelf does, and on more than either.
func BenchmarkKeys(b *testing.B) {
	const keys = 2048
	for _, c := range []struct {
		name         string
		cache, shelf int
	}{{"hot", 2 * keys, 0}, {"shelf", 16, 0}, {"store", 16, 1}} {
		b.Run(c.name, func(b *testing.B) {
			h := newHarnessConfig(b, func(o *Config) { o.KeyCache, o.ShelfBytes = c.cache, c.shelf })
			var all []byte
			for range keys {
				id, _ := h.newKey(nil)
				all = append(all, h.request("GenerateDataKey", `{"KeyId":"`+id+`","KeySpec":"AES_256"}`)...)
			}
			run := func(n int) {
				conn := &replay{request: all, left: n, forget: true}
				if err := h.server().ServeConn(conn); err != nil && err != io.EOF {
					b.Fatal(err)
				}
			}
			for range 5 { // the last makes hot keys busy
				run(1)
			}
			b.ReportAllocs()
			b.ResetTimer()
			run(max(1, b.N/keys)) // ns/op is right for many turns
		})
	}
}
