package perf

import (
	"strings"
	"testing"
	"time"

	"keymill/engine"
)

func TestParseOperation(t *testing.T) {
	for in, want := range map[string]string{
		"Encrypt":                          "Encrypt",
		"Encrypt:SYMMETRIC_DEFAULT":        "Encrypt",
		"Encrypt:RSA_2048":                 "Encrypt:RSA_2048",
		"Sign":                             "Sign:ECC_NIST_P256",
		"Sign:RSA_4096":                    "Sign:RSA_4096",
		"Sign:RSA_4096:RSASSA_PSS_SHA_256": "Sign:RSA_4096",
		"Sign:RSA_2048:RSASSA_PKCS1_V1_5_SHA_512": "Sign:RSA_2048:RSASSA_PKCS1_V1_5_SHA_512",
		"Verify:ECC_NIST_EDWARDS25519":            "Verify:ECC_NIST_EDWARDS25519",
		"CreateKey:SM2":                           "CreateKey:SM2",
		"GenerateRandom":                          "GenerateRandom",
	} {
		o, err := ParseOperation(in)
		if err != nil || o.String() != want {
			t.Errorf("%s is %v, %v; want %s", in, o, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                               "there are GenerateDataKey",
		"sign":                           "cannot be measured",
		"FirstUse":                       "cannot be measured",
		"Sign:":                          "",
		"Sign:P256":                      "no key spec",
		"Sign:SYMMETRIC_DEFAULT":         "cannot be used for SIGN_VERIFY",
		"Sign:RSA_2048:ECDSA_SHA_256":    "RSA_2048 has no algorithm",
		"GenerateDataKey:RSA_2048":       "needs a symmetric key",
		"GenerateDataKeyPair:HMAC_256":   "no data key pairs",
		"GetPublicKey:SYMMETRIC_DEFAULT": "needs an asymmetric key",
		"GenerateRandom:RSA_2048":        "has no key spec",
		"DescribeKey:RSA_2048:X":         "has no algorithm",
	} {
		if want == "" {
			continue
		}
		if o, err := ParseOperation(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want an error about %q", in, o, err, want)
		}
	}
	if _, err := MixByName("none"); err == nil || !strings.Contains(err.Error(), "storage, signing, mixed, bulk, hsm") {
		t.Errorf("an unknown mix: %v", err)
	}
}

// Every operation's primitive computes, on every spec that it can have.
func TestPrimitives(t *testing.T) {
	for _, name := range OperationNames() {
		o, _ := ParseOperation(name)
		if o.kind.primitive == nil {
			continue
		}
		for spec := engine.SymmetricDefault; spec <= engine.SM2; spec++ {
			o, err := ParseOperation(name + ":" + spec.String())
			if o.Spec == engine.RSA3072 || o.Spec == engine.RSA4096 || err != nil {
				continue // slow to make, or none
			}
			p, err := o.kind.primitive(o, DefaultShape)
			if err != nil {
				t.Fatalf("%v: %v", o, err)
			}
			step, n, err := p()
			if err != nil || n != o.batch(DefaultShape) {
				t.Fatalf("%v: %d items, %v", o, n, err)
			}
			for range 3 {
				if err := step(); err != nil {
					t.Errorf("%v: %v", o, err)
				}
			}
		}
	}
}

func TestMeasurePrimitives(t *testing.T) {
	f := newFake(t)
	m, _ := MixByName("storage")
	w := f.mixLoad(t, m, 1).Workload
	rate, each, err := MeasurePrimitives(t.Context(), w, 20*time.Millisecond)
	if err != nil || rate <= 0 || each <= 0 {
		t.Errorf("%v items a second, %v each, %v", rate, each, err)
	}
	w = f.load(t, "DescribeKey", 1).Workload
	if rate, _, err := MeasurePrimitives(t.Context(), w, time.Hour); err != nil || rate != 0 {
		t.Errorf("of what computes nothing: %v, %v", rate, err)
	}
}

func TestOrder(t *testing.T) {
	parts := []Part{{Weight: 3}, {Weight: 1}, {Weight: 2}}
	count := func(o order) (n [3]int) {
		for _, p := range o {
			n[p]++
		}
		return n
	}
	if o := newOrder(parts, false); count(o) != [3]int{3, 1, 2} {
		t.Errorf("order %v", o)
	}
	if o := newOrder(parts, true); o[0] != 0 || o[3] != 1 || o[5] != 2 || count(o) != [3]int{3, 1, 2} {
		t.Errorf("order in turn %v", o)
	}
}

func TestParseEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"http://127.0.0.1:4599":   "127.0.0.1:4599",
		"http://localhost":        "localhost:80",
		"https://kms.example.org": "kms.example.org:443",
		"https://[::1]:7373/":     "[::1]:7373",
	} {
		target, err := ParseEndpoint(in, nil)
		if err != nil || target.Addr != want || (target.TLS != nil) != strings.HasPrefix(in, "https") {
			t.Errorf("%s is %v, %v; want %s", in, target.Addr, err, want)
		}
	}
	for _, in := range []string{"", "127.0.0.1:4599", "ftp://x", "http://", "http://u:p@x", "http://x/path", "http://x?y", "http://x#y", "http://x:\x00"} {
		if target, err := ParseEndpoint(in, nil); err == nil {
			t.Errorf("%q is %v", in, target)
		}
	}
}
