package kms

import (
	"runtime"
	"sync"
	"testing"

	mill "keymill/batch"
	"keymill/engine"
)

// TestHeavyOverload: when as much heavy work waits as may wait, more of it is
// refused with the throttling error, and light work goes on.
func TestHeavyOverload(t *testing.T) {
	h := newHarness(t)
	light, _ := h.newKey(nil)
	heavy, _ := h.newKey(args{"KeySpec": "ECC_NIST_P384", "KeyUsage": "SIGN_VERIFY"})
	quick, _ := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})

	h.svc.heavy.Close()
	var err error
	if h.svc.heavy, err = mill.NewHeavy(mill.HeavyOptions{Workers: 1, Queue: 1}); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := h.svc.heavy.Run(func() { <-gate }); err != nil {
				t.Error(err)
			}
		})
	}
	for h.svc.heavy.Pending() < 2 {
		runtime.Gosched()
	}
	sign := func(id, alg string) args {
		return args{"KeyId": id, "Message": "aGVsbG8=", "SigningAlgorithm": alg}
	}
	if a := h.call("Sign", sign(heavy, "ECDSA_SHA_384")); a.code() != "ThrottlingException" {
		t.Errorf("heavy work beyond the bound: %v", a)
	}
	if a := h.call("CreateKey", args{"KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"}); a.code() != "ThrottlingException" {
		t.Errorf("key generation beyond the bound: %v", a)
	}
	if a := h.call("GenerateDataKeyPair", args{"KeyId": light, "KeyPairSpec": "ECC_NIST_P256"}); a.code() != "ThrottlingException" {
		t.Errorf("key pair generation beyond the bound: %v", a)
	}
	h.must("GenerateDataKey", args{"KeyId": light, "KeySpec": "AES_256"})
	h.must("Sign", sign(quick, "ECDSA_SHA_256"))
	close(gate)
	wg.Wait()
	h.must("Sign", sign(heavy, "ECDSA_SHA_384"))
	h.must("GenerateDataKeyPair", args{"KeyId": light, "KeyPairSpec": "ECC_NIST_P256"})
}

func TestSlow(t *testing.T) {
	for _, c := range []struct {
		spec engine.Spec
		verb engine.Verb
		want bool
	}{
		{engine.RSA4096, engine.Sign, true},
		{engine.RSA2048, engine.Decrypt, true},
		{engine.RSA4096, engine.Verify, false},
		{engine.RSA4096, engine.Encrypt, false},
		{engine.P521, engine.Verify, true},
		{engine.P384, engine.DeriveSecret, true},
		{engine.MLDSA65, engine.Sign, true},
		{engine.MLDSA65, engine.Verify, false},
		{engine.P256, engine.Sign, false},
	} {
		if got := slow(c.spec, c.verb); got != c.want {
			t.Errorf("%v, verb %d: %v", c.spec, c.verb, got)
		}
	}
}
