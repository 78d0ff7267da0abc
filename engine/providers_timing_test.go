package engine

import (
	"fmt"
	"testing"

	voied "github.com/oasisprotocol/curve25519-voi/primitives/ed25519"
)

// BenchmarkProvider times every candidate of every row of the table that has a
// public or a private key; its figures are the table's.
func BenchmarkProvider(b *testing.B) {
	for _, row := range providerTable {
		if !row.spec.Asymmetric() || row.task == TaskGenerate {
			continue
		}
		material := testMaterial(b, row.spec)
		spki, err := PublicKey(row.spec, material)
		if err != nil {
			b.Fatal(err)
		}
		usage := SignVerify
		switch row.task {
		case TaskEncrypt, TaskDecrypt:
			usage = EncryptDecrypt
		case TaskDerive:
			usage = KeyAgreement
		}
		op := Op{Alg: row.spec.Algorithms(usage)[0], In: benchMessage[:32]}
		switch {
		case row.task == TaskSignMu || row.task == TaskVerifyMu:
			op.In, op.Type = benchMessage[:muSize], ExternalMu
		case row.task == TaskDerive:
			op.In = spki
		case row.spec.RSA() && usage == EncryptDecrypt:
			op.Alg = AlgOAEPSHA256
		}
		// The inverse first, by whoever is chosen.
		k := keyOf(b, testID, row.spec, usage, material)
		switch row.task {
		case TaskVerify, TaskVerifyMu:
			op.Verb = Sign
			op.Sig = must(b, k, op)
			op.Verb = Verify
		case TaskSign, TaskSignMu:
			op.Verb = Sign
		case TaskEncrypt:
			op.Verb = Encrypt
		case TaskDecrypt:
			op.Verb = Encrypt
			op.In = must(b, k, op)
			op.Verb = Decrypt
		default:
			op.Verb = DeriveSecret
		}
		for _, o := range row.candidates {
			if theProviders().why[o.Provider] != "" {
				continue
			}
			pick := func(s Spec, task Task) Provider {
				if task == row.task {
					return o.Provider
				}
				return served(s, task)
			}
			run := func(op *Op) error { return nil }
			if row.task == TaskVerify || row.task == TaskVerifyMu || row.task == TaskEncrypt {
				pub, err := newPublicKey(row.spec, usage, spki, pick)
				if err != nil {
					b.Fatal(err)
				}
				run = pub.public
			} else {
				priv, err := newPrivateKey(row.spec, usage, material, pick)
				if err != nil {
					b.Fatal(err)
				}
				run = priv.private
			}
			bench(b, fmt.Sprintf("%v/%v/%v", row.spec, row.task, o.Provider), func() bool {
				op.Out = op.Out[:0]
				return run(&op) == nil
			})
		}
	}
}

// BenchmarkEd25519Batch compares the ways of verifying n signatures of one key;
// the figures are for all n.
func BenchmarkEd25519Batch(b *testing.B) {
	k := keyOf(b, testID, Ed25519, SignVerify, testMaterial(b, Ed25519))
	for _, n := range []int{1, 2, 3, 4, 8, 32, 64, 128} {
		ops := make([]Op, n)
		refs := make([]*Op, n)
		for i := range ops {
			msg := []byte{byte(i)}
			ops[i] = Op{Verb: Verify, Alg: AlgEd25519, In: msg, Sig: must(b, k, Op{Verb: Sign, Alg: AlgEd25519, In: msg})}
			refs[i] = &ops[i]
		}
		pub, err := k.publicKey()
		if err != nil {
			b.Fatal(err)
		}
		key := pub.(*ed25519Public)
		bench(b, fmt.Sprintf("%d/single", n), func() bool {
			for i := range ops {
				if key.public(&ops[i]) != nil {
					return false
				}
			}
			return true
		})
		bench(b, fmt.Sprintf("%d/voi", n), func() bool {
			v := voied.NewBatchVerifierWithCapacity(n)
			for i := range ops {
				v.AddExpandedWithOptions(key.key, ops[i].In, ops[i].Sig, &edPure)
			}
			return v.VerifyBatchOnly(nil)
		})
		bench(b, fmt.Sprintf("%d/sum", n), func() bool { return key.batch.verify(refs) })
		bench(b, fmt.Sprintf("%d/Do", n), func() bool { k.Do(ops); return ops[n-1].Err == nil })
	}
}
