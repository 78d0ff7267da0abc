package sigv4_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"strings"
	"testing"

	"keymill/daemon/sigv4"
	"keymill/daemon/sigv4/sigv4test"
)

// The lean verification beside what it cannot do without (three hashes over the
// same bytes) and beside the plain implementation, in one run:
//
//	go test -run '^$' -bench Verify -benchmem ./daemon/sigv4
//
// The body has 324 bytes, as in the comparison with a bare HTTP server.
func BenchmarkVerify(b *testing.B) {
	plain := request()
	plain.Body = strings.Repeat("x", 324)
	plain.Sign(testKey, testTime, strings.Split(usual, ";")...)
	r := convert(plain)
	bench := newBench(0)
	verify := func(b *testing.B) {
		var res sigv4.Result
		if err := bench.Verify(r, &res); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("lean", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			verify(b)
		}
	})
	b.Run("cold", func(b *testing.B) {
		b.ReportAllocs()
		cold := newBench(1) // a purge looks through every slot
		var res sigv4.Result
		for b.Loop() {
			cold.Purge(testKey.ID)
			if err := cold.Verify(r, &res); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("hashes", func(b *testing.B) {
		b.ReportAllocs()
		creq := []byte(plain.Canonical(usual))
		sts, outer := make([]byte, 64+145), make([]byte, 96)
		for b.Loop() {
			sha256.Sum256(r.Body)
			sha256.Sum256(creq)
			sha256.Sum256(sts)
			sha256.Sum256(outer)
		}
	})
	b.Run("plain", func(b *testing.B) {
		b.ReportAllocs()
		scope := "20260228/us-east-1/kms/aws4_request"
		_, want, _ := strings.Cut(plain.Get("Authorization"), "Signature=")
		for b.Loop() {
			if got := plain.Signature(testKey, plain.Get("X-Amz-Date"), scope, usual); !hmac.Equal([]byte(got), []byte(want)) {
				b.Fatal(got)
			}
		}
	})
	b.Run("lean in parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			var res sigv4.Result
			for pb.Next() {
				if err := bench.Verify(r, &res); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

func BenchmarkDerive(b *testing.B) {
	date := []byte("20260228")
	b.Run("lean", func(b *testing.B) {
		secret := []byte(testKey.Secret)
		for b.Loop() {
			sigv4.Derive(secret, date, "us-east-1", "kms")
		}
	})
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			sigv4test.SigningKey(testKey, "20260228")
		}
	})
}
