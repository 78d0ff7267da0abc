package engine

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"runtime"
	"testing"

	"filippo.io/mldsa"
	circled "github.com/cloudflare/circl/sign/ed25519"
	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
	decred "github.com/decred/dcrd/dcrec/secp256k1/v4"
	decredecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
	voied "github.com/oasisprotocol/curve25519-voi/primitives/ed25519"
	"gitlab.com/yawning/secp256k1-voi/secec"
)

// These benchmarks time implementations that are not candidates in the table of
// providers, beside those that are. Run them as
//
//	go test -run '^$' -bench Choice -benchtime 200ms ./engine

var benchMessage = make([]byte, 64)

func BenchmarkChoiceEd25519(b *testing.B) {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	pub, sig := key.Public().(ed25519.PublicKey), ed25519.Sign(key, benchMessage)
	circlKey, voiKey := circled.PrivateKey(key), voied.PrivateKey(key)
	expanded, err := voied.NewExpandedPublicKey(voied.PublicKey(pub))
	if err != nil {
		b.Fatal(err)
	}
	bench(b, "sign/std", func() bool { return ed25519.Sign(key, benchMessage) != nil })
	bench(b, "sign/circl", func() bool { return circled.Sign(circlKey, benchMessage) != nil })
	bench(b, "sign/voi", func() bool { return voied.Sign(voiKey, benchMessage) != nil })
	bench(b, "verify/std", func() bool { return ed25519.Verify(pub, benchMessage, sig) })
	bench(b, "verify/circl", func() bool { return circled.Verify(circled.PublicKey(pub), benchMessage, sig) })
	bench(b, "verify/voi", func() bool { return voied.VerifyWithOptions(voied.PublicKey(pub), benchMessage, sig, &edPure) })
	bench(b, "verify/voi-expanded", func() bool { return voied.VerifyExpandedWithOptions(expanded, benchMessage, sig, &edPure) })
}

func BenchmarkChoiceSecp256k1(b *testing.B) {
	key, _ := secec.GenerateKey()
	digest := sha256.Sum256(benchMessage)
	sig, _ := key.Sign(rand.Reader, digest[:], &secp256k1Options)
	pub := key.PublicKey()
	dpub, err := decred.ParsePubKey(pub.Bytes())
	if err != nil {
		b.Fatal(err)
	}
	bench(b, "sign/voi", func() bool { s, _ := key.Sign(rand.Reader, digest[:], &secp256k1Options); return s != nil })
	bench(b, "verify/voi", func() bool { return pub.Verify(digest[:], sig, &secp256k1Options) })
	bench(b, "verify/decred", func() bool {
		s, err := decredecdsa.ParseDERSignature(sig)
		return err == nil && s.Verify(digest[:], dpub)
	})
}

func BenchmarkChoiceMLDSA(b *testing.B) {
	var seed [32]byte
	mu := make([]byte, muSize)
	type circl struct {
		spec   Spec
		sign   func() bool
		verify func() bool
	}
	pk44, sk44 := mldsa44.NewKeyFromSeed(&seed)
	pk65, sk65 := mldsa65.NewKeyFromSeed(&seed)
	pk87, sk87 := mldsa87.NewKeyFromSeed(&seed)
	sig44, sig65, sig87 := make([]byte, 2420), make([]byte, 3309), make([]byte, 4627)
	for _, c := range []circl{
		{MLDSA44, func() bool { return mldsa44.SignTo(sk44, benchMessage, nil, true, sig44) == nil }, func() bool { return mldsa44.Verify(pk44, benchMessage, nil, sig44) }},
		{MLDSA65, func() bool { return mldsa65.SignTo(sk65, benchMessage, nil, true, sig65) == nil }, func() bool { return mldsa65.Verify(pk65, benchMessage, nil, sig65) }},
		{MLDSA87, func() bool { return mldsa87.SignTo(sk87, benchMessage, nil, true, sig87) == nil }, func() bool { return mldsa87.Verify(pk87, benchMessage, nil, sig87) }},
	} {
		name := c.spec.String()
		key, _ := mldsa.NewPrivateKey(mldsaParams(c.spec), seed[:])
		sig, _ := key.Sign(nil, benchMessage, nil)
		p, _ := parseMLDSA(c.spec, marshalMLDSAPrivate(c.spec, seed[:]))
		op := Op{Verb: Sign, Alg: AlgMLDSA, Type: ExternalMu, In: mu}
		if err := p.private(&op); err != nil {
			b.Fatal(err)
		}
		bench(b, name+"/sign/circl", c.sign)
		bench(b, name+"/sign/filippo", func() bool { _, err := key.Sign(nil, benchMessage, nil); return err == nil })
		c.sign()
		bench(b, name+"/verify/circl", c.verify)
		bench(b, name+"/verify/filippo", func() bool { return mldsa.Verify(key.PublicKey(), benchMessage, sig, nil) == nil })
		bench(b, name+"/verify-mu/own", func() bool { return verifyMu(c.spec, p.(*mldsaPrivate).public, [muSize]byte(mu), op.Out) })
	}
}

// bench runs f, which must return true, and reports the thread's processor
// time beside the wall clock.
func bench(b *testing.B, name string, f func() bool) {
	b.Run(name, func(b *testing.B) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		b.ReportAllocs()
		start := threadCPU()
		for b.Loop() {
			if !f() {
				b.Fatal("failed")
			}
		}
		b.ReportMetric(float64(threadCPU()-start)/float64(b.N), "cpu-ns/op")
	})
}
