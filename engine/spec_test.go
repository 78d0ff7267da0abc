package engine

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSpecTable is the table of key specs in AWS's Developer Guide, written out
// a second time.
func TestSpecTable(t *testing.T) {
	const table = `
SYMMETRIC_DEFAULT ENCRYPT_DECRYPT SYMMETRIC_DEFAULT
HMAC_224 GENERATE_VERIFY_MAC HMAC_SHA_224
HMAC_256 GENERATE_VERIFY_MAC HMAC_SHA_256
HMAC_384 GENERATE_VERIFY_MAC HMAC_SHA_384
HMAC_512 GENERATE_VERIFY_MAC HMAC_SHA_512
RSA_2048 ENCRYPT_DECRYPT RSAES_OAEP_SHA_1,RSAES_OAEP_SHA_256 pair
RSA_2048 SIGN_VERIFY RSASSA_PSS_SHA_256,RSASSA_PSS_SHA_384,RSASSA_PSS_SHA_512,RSASSA_PKCS1_V1_5_SHA_256,RSASSA_PKCS1_V1_5_SHA_384,RSASSA_PKCS1_V1_5_SHA_512 pair
RSA_3072 ENCRYPT_DECRYPT RSAES_OAEP_SHA_1,RSAES_OAEP_SHA_256 pair
RSA_3072 SIGN_VERIFY RSASSA_PSS_SHA_256,RSASSA_PSS_SHA_384,RSASSA_PSS_SHA_512,RSASSA_PKCS1_V1_5_SHA_256,RSASSA_PKCS1_V1_5_SHA_384,RSASSA_PKCS1_V1_5_SHA_512 pair
RSA_4096 ENCRYPT_DECRYPT RSAES_OAEP_SHA_1,RSAES_OAEP_SHA_256 pair
RSA_4096 SIGN_VERIFY RSASSA_PSS_SHA_256,RSASSA_PSS_SHA_384,RSASSA_PSS_SHA_512,RSASSA_PKCS1_V1_5_SHA_256,RSASSA_PKCS1_V1_5_SHA_384,RSASSA_PKCS1_V1_5_SHA_512 pair
ECC_NIST_P256 SIGN_VERIFY ECDSA_SHA_256 pair
ECC_NIST_P256 KEY_AGREEMENT ECDH pair
ECC_NIST_P384 SIGN_VERIFY ECDSA_SHA_384 pair
ECC_NIST_P384 KEY_AGREEMENT ECDH pair
ECC_NIST_P521 SIGN_VERIFY ECDSA_SHA_512 pair
ECC_NIST_P521 KEY_AGREEMENT ECDH pair
ECC_SECG_P256K1 SIGN_VERIFY ECDSA_SHA_256 pair
ECC_NIST_EDWARDS25519 SIGN_VERIFY ED25519_SHA_512,ED25519_PH_SHA_512 pair
ML_DSA_44 SIGN_VERIFY ML_DSA_SHAKE_256
ML_DSA_65 SIGN_VERIFY ML_DSA_SHAKE_256
ML_DSA_87 SIGN_VERIFY ML_DSA_SHAKE_256
SM2 ENCRYPT_DECRYPT SM2PKE pair
SM2 SIGN_VERIFY SM2DSA pair
SM2 KEY_AGREEMENT ECDH pair`
	seen := map[Spec]int{}
	for _, line := range strings.Split(strings.TrimSpace(table), "\n") {
		f := strings.Fields(line)
		spec, ok1 := ParseSpec(f[0])
		usage, ok2 := ParseUsage(f[1])
		if !ok1 || !ok2 || spec.String() != f[0] || usage.String() != f[1] {
			t.Fatalf("%s: unknown spec or usage", line)
		}
		seen[spec]++
		if !spec.Allows(usage) {
			t.Errorf("%s: usage not allowed", line)
		}
		want := strings.Split(f[2], ",")
		if got := spec.Algorithms(usage); len(got) != len(want) {
			t.Errorf("%s: algorithms %v", line, got)
		}
		for _, name := range want {
			alg, ok := ParseAlgorithm(name)
			if !ok || alg.String() != name || !spec.Supports(usage, alg) {
				t.Errorf("%s: no %s", line, name)
			}
		}
		if spec.DataKeyPair() != (len(f) == 4) {
			t.Errorf("%s: data key pair %v", line, spec.DataKeyPair())
		}
		_, hasDefault := spec.DefaultUsage()
		if hasDefault != (spec == SymmetricDefault) {
			t.Errorf("%s: default usage %v", line, hasDefault)
		}
	}
	if len(seen) != int(numSpecs)-1 {
		t.Errorf("%d specs, want %d", len(seen), numSpecs-1)
	}
	for spec, n := range seen {
		if len(spec.Usages()) != n {
			t.Errorf("%v has usages %v", spec, spec.Usages())
		}
	}
}

// TestNamesOfTheModel: every value of the service model's enumerations parses,
// and nothing else does.
func TestNamesOfTheModel(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "daemon", "wire", "model", "kms-2014-11-01.json"))
	if err != nil {
		t.Fatal(err)
	}
	var model struct {
		Shapes map[string]struct{ Enum []string }
	}
	if err := json.Unmarshal(data, &model); err != nil {
		t.Fatal(err)
	}
	spec := func(s string) bool { _, ok := ParseSpec(s); return ok }
	alg := func(s string) bool { _, ok := ParseAlgorithm(s); return ok }
	for shape, parse := range map[string]func(string) bool{
		"KeySpec": spec, "DataKeyPairSpec": spec,
		"KeyUsageType":            func(s string) bool { _, ok := ParseUsage(s); return ok },
		"MessageType":             func(s string) bool { _, ok := ParseMessageType(s); return ok },
		"EncryptionAlgorithmSpec": alg, "SigningAlgorithmSpec": alg, "MacAlgorithmSpec": alg, "KeyAgreementAlgorithmSpec": alg,
	} {
		if len(model.Shapes[shape].Enum) == 0 {
			t.Errorf("the model has no %s", shape)
		}
		for _, name := range model.Shapes[shape].Enum {
			if !parse(name) {
				t.Errorf("%s: %s does not parse", shape, name)
			}
			if parse(strings.ToLower(name)) || parse(name+" ") || parse("") {
				t.Errorf("%s: something near %s parses", shape, name)
			}
		}
	}
	for _, s := range []string{Spec(200).String(), Usage(200).String(), Algorithm(200).String(), MessageType(200).String(), SpecInvalid.String()} {
		if s != "INVALID" || spec(s) || alg(s) {
			t.Errorf("a value out of range prints %q", s)
		}
	}
}

func TestMaxPlaintext(t *testing.T) {
	for _, c := range []struct {
		spec Spec
		alg  Algorithm
		want int
	}{
		{SymmetricDefault, AlgSymmetric, 4300},
		{RSA2048, AlgOAEPSHA1, 214}, {RSA2048, AlgOAEPSHA256, 190},
		{RSA3072, AlgOAEPSHA1, 342}, {RSA3072, AlgOAEPSHA256, 318},
		{RSA4096, AlgOAEPSHA1, 470}, {RSA4096, AlgOAEPSHA256, 446},
		{SM2, AlgSM2PKE, 1024},
		{RSA2048, AlgPSSSHA256, 0}, {P256, AlgOAEPSHA1, 0}, {SpecInvalid, AlgSymmetric, 0},
	} {
		if got := MaxPlaintext(c.spec, c.alg); got != c.want {
			t.Errorf("%v %v: %d, want %d", c.spec, c.alg, got, c.want)
		}
	}
	// The wire's limit on a ciphertext blob holds for the largest plaintext.
	if n := Overhead + maxSymmetricPlaintext; n > 6144 {
		t.Errorf("a blob of %d bytes", n)
	}
}

func TestKeyID(t *testing.T) {
	for s, want := range map[string]bool{
		"1234abcd-12ab-34cd-56ef-1234567890ab":  true,
		"mrk-1234abcd12ab34cd56ef1234567890ab":  true,
		"1234ABCD-12ab-34cd-56ef-1234567890ab":  false,
		"MRK-1234abcd12ab34cd56ef1234567890ab":  false,
		"1234abcd12ab34cd56ef1234567890ab":      false,
		"1234abcd-12ab-34cd-56ef-1234567890abc": false,
		"1234abcd-12ab-34cd-56ef-1234567890a":   false,
		"1234abcd-12ab-34cd-56ef_1234567890ab":  false,
		"1234abcd-12ab-34cd-56ef-1234567890ag":  false,
		"mrk-1234abcd12ab34cd56ef1234567890a-":  false,
		"mrk-1234abcd-12ab-34cd-56ef-12345678":  false,
		"alias/1234abcd-12ab-34cd-56ef-1234567": false,
		"":                                      false,
	} {
		id, ok := ParseKeyID(s)
		if ok != want {
			t.Errorf("%q: %v", s, ok)
		}
		if ok && id.String() != s {
			t.Errorf("%q prints as %q", s, id)
		}
	}
}

// TestMaterialID fixes the value: HMAC-SHA-256, keyed by 32 zero bytes, of
// "keymill/key-material-id/v1", a zero byte, the kind byte and the id 00 01 02
// ... 0f, computed with another program. It may never change.
func TestMaterialID(t *testing.T) {
	var id KeyID
	for i := range id.ID {
		id.ID[i] = byte(i)
	}
	material := make([]byte, 32)
	for _, c := range []struct {
		mrk  bool
		want string
	}{
		{false, "beed49a861273bb348bbfe2766194274fe67acbbd0a561a63f4df919c9a66bf1"},
		{true, "a58dc17f649d8b94ca35c90f0a87561056330e23b396f8052aa1a391409faac9"},
	} {
		id.MultiRegion = c.mrk
		if got := ComputeMaterialID(id, material).String(); got != c.want {
			t.Errorf("multi-Region %v: %s, want %s", c.mrk, got, c.want)
		}
	}
}

func TestAppendContext(t *testing.T) {
	p := func(kv ...string) (pairs []ContextPair) {
		for i := 0; i < len(kv); i += 2 {
			pairs = append(pairs, ContextPair{kv[i], kv[i+1]})
		}
		return pairs
	}
	if got := AppendContext([]byte("x"), nil); string(got) != "x" {
		t.Errorf("no context: %q", got)
	}
	if got := string(AppendContext(nil, p("b", "2", "a", "1"))); got != string(AppendContext(nil, p("a", "1", "b", "2"))) {
		t.Errorf("the order shows: %q", got)
	}
	// Bytes, not letters, are sorted, and the shorter of two comes first.
	want := "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x01Z\x00\x00\x00\x00" + "\x00\x00\x00\x01a\x00\x00\x00\x00" +
		"\x00\x00\x00\x02aa\x00\x00\x00\x00" + "\x00\x00\x00\x02\xc3\xa4\x00\x00\x00\x00"
	if got := string(AppendContext(nil, p("ä", "", "aa", "", "Z", "", "", "", "a", ""))); got != want {
		t.Errorf("canonical order: %q", got)
	}
	distinct := [][]ContextPair{
		nil, p("", ""), p("a", "b"), p("ab", ""), p("", "ab"), p("a", "", "b", ""), p("a", "b", "c", "d"), p("a", "bcd"),
	}
	seen := map[string]int{}
	for i, pairs := range distinct {
		form := string(AppendContext(nil, pairs))
		if j, dup := seen[form]; dup {
			t.Errorf("contexts %d and %d have one form", i, j)
		}
		seen[form] = i
	}
}
