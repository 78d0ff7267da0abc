//go:build cgo && linux

package engine_test

import (
	"bytes"
	"context"
	"testing"

	"keymill/engine"
	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// TestTokenKeysOnSoftHSM: the handle and a real token agree, for each spec that the
// token holds.
func TestTokenKeysOnSoftHSM(t *testing.T) {
	dir := hsmtest.NewSoftHSMDir(t)
	token, err := hsm.OpenToken(dir.Config, []byte(dir.PIN()))
	if err != nil {
		t.Fatal(err)
	}
	defer token.Close()
	info := token.Info()
	keyID := engine.KeyID{ID: [16]byte{7}}
	for _, c := range []struct {
		spec  engine.Spec
		usage engine.Usage
		alg   engine.Algorithm
		do    [2]engine.Verb
	}{
		{engine.SymmetricDefault, engine.EncryptDecrypt, engine.AlgSymmetric, [2]engine.Verb{engine.Encrypt, engine.Decrypt}},
		{engine.HMAC224, engine.GenerateVerifyMAC, engine.AlgHMACSHA224, [2]engine.Verb{engine.GenerateMAC, engine.VerifyMAC}},
		{engine.HMAC512, engine.GenerateVerifyMAC, engine.AlgHMACSHA512, [2]engine.Verb{engine.GenerateMAC, engine.VerifyMAC}},
		{engine.P256, engine.SignVerify, engine.AlgECDSASHA256, [2]engine.Verb{engine.Sign, engine.Verify}},
		{engine.P384, engine.SignVerify, engine.AlgECDSASHA384, [2]engine.Verb{engine.Sign, engine.Verify}},
		{engine.P521, engine.SignVerify, engine.AlgECDSASHA512, [2]engine.Verb{engine.Sign, engine.Verify}},
		{engine.RSA2048, engine.SignVerify, engine.AlgPKCS1SHA512, [2]engine.Verb{engine.Sign, engine.Verify}},
		{engine.RSA2048, engine.SignVerify, engine.AlgPSSSHA384, [2]engine.Verb{engine.Sign, engine.Verify}},
	} {
		kind, ok := engine.TokenSpec(c.spec, c.usage)
		if !ok || !info.Holds(kind) {
			t.Errorf("%v: SoftHSM2 does not hold it", c.spec)
			continue
		}
		id := hsm.NewTokenKeyID()
		public, err := token.GenerateKey(context.Background(), id, kind, "test")
		if err != nil {
			t.Error(err)
			continue
		}
		k := engine.NewTokenKey(keyID, c.spec, c.usage, engine.TokenKey{
			ID: id, Public: public, Token: token, Lease: func(context.Context, uint64) error { return nil },
		})
		run := func(ops []engine.Op) {
			k.Do(ops)
			if err := k.Warm(context.Background(), ops); err != nil {
				t.Fatal(err)
			}
		}
		ops := make([]engine.Op, 20)
		for i := range ops {
			ops[i] = engine.Op{Verb: c.do[0], Alg: c.alg, In: bytes.Repeat([]byte{byte(i)}, 1+200*i)}
			if c.spec.Symmetric() {
				ops[i].AAD = []byte{byte(i)}
			}
		}
		run(ops)
		back := make([]engine.Op, len(ops))
		for i := range ops {
			if ops[i].Err != nil {
				t.Fatalf("%v: op %d: %v", c.spec, i, ops[i].Err)
			}
			back[i] = engine.Op{Verb: c.do[1], Alg: c.alg, In: ops[i].In, Sig: ops[i].Out, AAD: ops[i].AAD}
			if c.spec.Symmetric() {
				back[i].In = ops[i].Out
			}
		}
		back[3].AAD, back[3].Sig = nil, back[4].Sig
		run(back)
		want := map[engine.Verb]error{
			engine.Decrypt: engine.ErrInvalidCiphertext, engine.Verify: engine.ErrInvalidSignature, engine.VerifyMAC: engine.ErrInvalidMAC,
		}[c.do[1]]
		for i := range back {
			switch {
			case i == 3 && back[i].Err != want:
				t.Errorf("%v: a wrong one: %v, want %v", c.spec, back[i].Err, want)
			case i != 3 && back[i].Err != nil:
				t.Errorf("%v: op %d: %v", c.spec, i, back[i].Err)
			case i != 3 && c.spec.Symmetric() && !bytes.Equal(back[i].Out, ops[i].In):
				t.Errorf("%v: op %d decrypts to something else", c.spec, i)
			}
		}
	}
}
