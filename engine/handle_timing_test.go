package engine

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"testing"
)

// These benchmarks put a warm handle beside the bare primitive it wraps:
//
//	go test -run '^$' -bench Handle -benchtime 200ms ./engine

func BenchmarkHandleCipher(b *testing.B) {
	material := testMaterial(b, SymmetricDefault)
	k := keyOf(b, testID, SymmetricDefault, EncryptDecrypt, material)
	aad := AppendContext(nil, []ContextPair{{"purpose", "benchmark"}})
	aead, nonce := newGCM(material), make([]byte, halfNonce)
	for _, n := range []int{32, 4096} {
		size := map[int]string{32: "32B", 4096: "4KiB"}[n]
		in, out := make([]byte, n), make([]byte, 0, n+Overhead)
		blob := must(b, k, symOp(Encrypt, in, aad))
		bench(b, size+"/seal/bare", func() bool {
			_, _ = rand.Read(nonce)
			return aead.Seal(out, nonce, in, aad) != nil
		})
		bench(b, size+"/seal/derive-each", func() bool { // XAES-256-GCM without lanes
			_, _ = rand.Read(nonce)
			c := k.states[0].Load().cipher
			return c.derive(nonce).Seal(out, nonce, in, aad) != nil
		})
		enc, dec := make([]Op, 1), make([]Op, 1)
		bench(b, size+"/Encrypt", func() bool {
			enc[0] = Op{Verb: Encrypt, Alg: AlgSymmetric, In: in, AAD: aad, Out: out}
			k.Do(enc)
			return enc[0].Err == nil
		})
		bench(b, size+"/Decrypt", func() bool {
			dec[0] = Op{Verb: Decrypt, Alg: AlgSymmetric, In: blob, AAD: aad, Out: out}
			k.Do(dec)
			return dec[0].Err == nil
		})
		batch := make([]Op, 64)
		outs := make([][]byte, len(batch))
		for i := range outs {
			outs[i] = make([]byte, 0, n+Overhead)
		}
		b.Run(size+"/Encrypt/64-a-call", func(b *testing.B) {
			b.ReportAllocs()
			for done := 0; done < b.N; done += len(batch) { // ns/op is for each item
				for i := range batch {
					batch[i] = Op{Verb: Encrypt, Alg: AlgSymmetric, In: in, AAD: aad, Out: outs[i]}
				}
				k.Do(batch)
			}
		})
		b.Run(size+"/Encrypt/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				ops, out := make([]Op, 1), make([]byte, 0, n+Overhead)
				for pb.Next() {
					ops[0] = Op{Verb: Encrypt, Alg: AlgSymmetric, In: in, AAD: aad, Out: out}
					k.Do(ops)
				}
			})
		})
	}
}

func BenchmarkHandleMAC(b *testing.B) {
	material := testMaterial(b, HMAC256)
	k := keyOf(b, testID, HMAC256, GenerateVerifyMAC, material)
	in, out := make([]byte, 64), make([]byte, 0, 64)
	must(b, k, Op{Verb: GenerateMAC, Alg: AlgHMACSHA256, In: in})
	bench(b, "bare/new", func() bool {
		h := hmac.New(sha256.New, material)
		h.Write(in)
		return h.Sum(out) != nil
	})
	h := hmac.New(sha256.New, material)
	bench(b, "bare/reset", func() bool {
		h.Reset()
		h.Write(in)
		return h.Sum(out) != nil
	})
	ops := make([]Op, 1)
	bench(b, "GenerateMAC", func() bool {
		ops[0] = Op{Verb: GenerateMAC, Alg: AlgHMACSHA256, In: in, Out: out}
		k.Do(ops)
		return ops[0].Err == nil
	})
}
