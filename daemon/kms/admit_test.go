package kms

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keymill/daemon/quota"
	"keymill/daemon/wire"
	"keymill/engine"
)

const throttleText = "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."

// profile reads a profile as operators write it.
func profile(t testing.TB, text string) *quota.Profile {
	t.Helper()
	p, err := quota.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// throttled tells whether an answer is AWS's throttling error, and fails on one
// that only looks like it.
func (h *harness) throttled(a answer) bool {
	h.Helper()
	if a.code() != "ThrottlingException" {
		return false
	}
	if a.status != 400 || a.str("message") != throttleText {
		h.Errorf("throttled with %s", a)
	}
	return true
}

// admitted counts how many of n calls are not throttled, all at one time.
func (h *harness) admitted(n int, op string, in args) (got int) {
	h.Helper()
	for range n {
		if !h.throttled(h.call(op, in)) {
			got++
		}
	}
	return got
}

// admits expects exactly that many calls to get through at the present time.
func (h *harness) admits(want int, op string, in args) {
	h.Helper()
	if got := h.admitted(want+3, op, in); got != want {
		h.Errorf("%s %v: %d admitted, want %d", op, in, got, want)
	}
}

// The profile aws, on the wire: CreateKey five times a second.
func TestAWSProfileThrottles(t *testing.T) {
	h := newHarnessWith(t, quota.AWS())
	h.admits(5, "CreateKey", nil)
	h.now = h.now.Add(200*time.Millisecond - 1)
	h.admits(0, "CreateKey", nil)
	h.now = h.now.Add(1)
	h.admits(1, "CreateKey", nil)
	h.now = h.now.Add(time.Hour)
	h.admits(5, "CreateKey", nil)

	// Another region has its own.
	h.key.Region = "us-east-1"
	h.admits(5, "CreateKey", nil)
	// So has another operation, also one that is not available yet.
	h.admits(5, "UpdateKeyDescription", args{"KeyId": "alias/x", "Description": ""})
	h.admits(100, "ListGrants", args{"KeyId": "alias/x"})
}

// Cryptographic operations count in the bucket of their key's kind.
func TestCryptographicClasses(t *testing.T) {
	h := newHarnessWith(t, profile(t, `
base: none
requests: {symmetric: 4, rsa: 5, ecc-sm2: 2, ml-dsa: 1, RSA_2048: 2, ECC_NIST_P256: 3}
`))
	sym, _ := h.newKey(nil)
	other, _ := h.newKey(nil)
	mac, _ := h.newKey(args{"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"})
	rsa, _ := h.newKey(args{"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"})
	ecc, _ := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})
	ecdh, _ := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT"})
	mldsa, _ := h.newKey(args{"KeySpec": "ML_DSA_44", "KeyUsage": "SIGN_VERIFY"})
	second := func() { h.now = h.now.Add(time.Second) }

	text := b64("hello")
	encrypt := args{"KeyId": sym, "Plaintext": text}
	sign := args{"KeyId": ecc, "Message": text, "SigningAlgorithm": "ECDSA_SHA_256"}
	h.admits(4, "Encrypt", encrypt)
	second()
	// All of these share: one each, and nothing is left.
	blob := h.must("Encrypt", encrypt).str("CiphertextBlob")
	h.must("GenerateRandom", args{"NumberOfBytes": 8})
	h.must("GenerateMac", args{"KeyId": mac, "Message": text, "MacAlgorithm": "HMAC_SHA_256"})
	h.must("GenerateDataKey", args{"KeyId": other, "KeySpec": "AES_256"})
	h.admits(0, "Decrypt", args{"CiphertextBlob": blob})
	h.admits(0, "GenerateRandom", args{"NumberOfBytes": 8})
	// What is not symmetric has its own.
	h.admits(5, "Encrypt", args{"KeyId": rsa, "Plaintext": text, "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"})
	h.must("Sign", sign)
	h.admits(1, "DeriveSharedSecret", args{"KeyId": ecdh, "KeyAgreementAlgorithm": "ECDH", "PublicKey": h.must("GetPublicKey", args{"KeyId": ecdh}).str("PublicKey")})
	h.admits(0, "Sign", sign)
	h.admits(1, "Sign", args{"KeyId": mldsa, "Message": text, "SigningAlgorithm": "ML_DSA_SHAKE_256"})
	// Data key pairs: per KeyPairSpec, with and without plaintext together, and not
	// as symmetric.
	pair := func(spec string) args { return args{"KeyId": sym, "KeyPairSpec": spec} }
	h.admits(2, "GenerateDataKeyPair", pair("RSA_2048"))
	h.admits(0, "GenerateDataKeyPairWithoutPlaintext", pair("RSA_2048"))
	h.admits(3, "GenerateDataKeyPairWithoutPlaintext", pair("ECC_NIST_P256"))

	// A dry run counts, and so does what is refused: malformed, for a key that does
	// not exist, or for one of another kind.
	second()
	if a := h.call("Encrypt", args{"KeyId": sym, "Plaintext": text, "DryRun": true}); a.code() != "DryRunOperationException" {
		t.Error(a)
	}
	if a := h.call("Encrypt", args{"KeyId": sym}); a.code() != "ValidationException" {
		t.Error(a)
	}
	if a := h.call("Encrypt", args{"KeyId": "alias/none", "Plaintext": text}); a.code() != "NotFoundException" {
		t.Error(a)
	}
	h.admits(1, "Encrypt", encrypt)
	h.admits(0, "Encrypt", args{"KeyId": "alias/none", "Plaintext": text})
	if a := h.call("Sign", args{"KeyId": rsa, "Message": text, "SigningAlgorithm": "RSASSA_PSS_SHA_256"}); a.code() != "InvalidKeyUsageException" {
		t.Error(a)
	}
	h.admits(4, "Encrypt", args{"KeyId": rsa, "Plaintext": text, "EncryptionAlgorithm": "RSAES_OAEP_SHA_1"})

	// Who cannot sign requests takes nothing from whom they name.
	second()
	secret := h.key.Secret
	h.key.Secret = "another"
	for range 10 {
		if a := h.call("Encrypt", encrypt); a.code() != "InvalidSignatureException" {
			t.Fatal(a)
		}
	}
	h.key.Secret = secret
	h.admits(4, "Encrypt", encrypt)
}

// ReEncrypt counts once in each bucket that it has to do with.
func TestReEncryptCountsOnceInEach(t *testing.T) {
	h := newHarnessWith(t, profile(t, "base: none\nrequests: {symmetric: 3, rsa: 3}\nper-key: 4\nper-key-burst: 4\n"))
	a, _ := h.newKey(nil)
	b, _ := h.newKey(nil)
	rsa, _ := h.newKey(args{"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"})
	blob := h.must("Encrypt", args{"KeyId": a, "Plaintext": b64("x")}).str("CiphertextBlob")
	minute := func() { h.now = h.now.Add(time.Minute) }

	minute() // symmetric to symmetric, another key and the same
	h.admits(3, "ReEncrypt", args{"CiphertextBlob": blob, "DestinationKeyId": b})
	minute()
	h.admits(3, "ReEncrypt", args{"CiphertextBlob": blob, "DestinationKeyId": a})
	minute() // symmetric to RSA: one of each
	in := args{"CiphertextBlob": blob, "DestinationKeyId": rsa, "DestinationEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
	h.must("ReEncrypt", in)
	h.admits(2, "Encrypt", args{"KeyId": b, "Plaintext": b64("x")})
	h.admits(2, "Encrypt", args{"KeyId": rsa, "Plaintext": b64("x"), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"})
}

// The limit per key holds over all operations on it, whatever the account has left, and
// editing the key does not fill it up.
func TestKeyLimit(t *testing.T) {
	h := newHarnessWith(t, profile(t, "base: none\nper-key: 2\nper-key-burst: 5\n"))
	a, arn := h.newKey(nil)
	b, _ := h.newKey(nil)
	h.must("Encrypt", args{"KeyId": a, "Plaintext": b64("x")})
	h.must("UpdateKeyDescription", args{"KeyId": arn, "Description": "edited"})
	h.must("TagResource", args{"KeyId": a, "Tags": []args{{"TagKey": "k", "TagValue": "v"}}})
	h.must("CreateAlias", args{"AliasName": "alias/a", "TargetKeyId": a})
	h.admits(1, "Encrypt", args{"KeyId": "alias/a", "Plaintext": b64("x")})
	h.admits(0, "DescribeKey", args{"KeyId": a})
	h.admits(5, "Encrypt", args{"KeyId": b, "Plaintext": b64("x")})
	h.must("ListKeys", nil)
	h.now = h.now.Add(time.Second)
	h.admits(2, "Encrypt", args{"KeyId": a, "Plaintext": b64("x")})
}

// However many connections ask at once, exactly the quota gets through.
func TestConcurrentCallsKeepTheQuota(t *testing.T) {
	h := newHarnessWith(t, profile(t, "base: none\nrequests: {symmetric: 50}\n"))
	id, _ := h.newKey(nil)
	request := h.request("GenerateDataKey", fmt.Sprintf(`{"KeyId":%q,"KeySpec":"AES_256"}`, id))
	var ok, refused atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			answers := h.serveConn(request, 25)
			ok.Add(int64(strings.Count(string(answers), "HTTP/1.1 200 OK")))
			refused.Add(int64(strings.Count(string(answers), throttleText)))
		})
	}
	wg.Wait()
	if ok.Load() != 50 || refused.Load() != 150 {
		t.Errorf("%d admitted, %d throttled; want 50 and 150", ok.Load(), refused.Load())
	}
}

// A throttled request does no work: a key pair is not made, a key is not stored.
func TestThrottledDoesNothing(t *testing.T) {
	h := newHarnessWith(t, profile(t, "base: none\nrequests: {CreateKey: 1}\n"))
	h.newKey(nil)
	h.admits(0, "CreateKey", nil)
	if keys := h.must("ListKeys", nil).fields["Keys"].([]any); len(keys) != 1 {
		t.Errorf("%d keys", len(keys))
	}
}

func TestResourceQuotas(t *testing.T) {
	h := newHarnessWith(t, profile(t, `
base: none
resources: {keys: 3, aliases-per-key: 2, policy-bytes: 400, tags-per-key: 2}
`))
	id, _ := h.newKey(nil)
	h.newKey(nil)
	gone, _ := h.newKey(nil)
	full := "The account 111122223333 has 3 KMS keys in eu-west-1, which is the limit."
	h.refused("CreateKey", nil, "LimitExceededException", full)
	h.must("ScheduleKeyDeletion", args{"KeyId": gone}) // counts until it is gone
	h.refused("CreateKey", nil, "LimitExceededException", full)
	h.key.Region = "us-east-1"
	h.newKey(nil)
	h.key.Region = testRegion

	h.must("CreateAlias", args{"AliasName": "alias/1", "TargetKeyId": id})
	h.must("CreateAlias", args{"AliasName": "alias/2", "TargetKeyId": id})
	if a := h.call("CreateAlias", args{"AliasName": "alias/3", "TargetKeyId": id}); a.code() != "LimitExceededException" || !strings.Contains(a.str("message"), "2 aliases") {
		t.Error(a)
	}
	text := h.must("GetKeyPolicy", args{"KeyId": id}).str("Policy")
	h.must("PutKeyPolicy", args{"KeyId": id, "Policy": text + strings.Repeat(" ", 400-len(text))})
	h.refused("PutKeyPolicy", args{"KeyId": id, "Policy": text + strings.Repeat(" ", 401-len(text))},
		"LimitExceededException", "The key policy has 401 bytes; the limit is 400.")
	tag := func(k string) args { return args{"TagKey": k, "TagValue": "v"} }
	h.must("TagResource", args{"KeyId": id, "Tags": []args{tag("a"), tag("b")}})
	h.refused("TagResource", args{"KeyId": id, "Tags": []args{tag("c")}}, "TagException", "Too many tags")
	h.must("TagResource", args{"KeyId": id, "Tags": []args{tag("b")}})
}

// Keys made at the same time do not pass the limit between count and commit.
func TestKeyQuotaIsExact(t *testing.T) {
	h := newHarnessWith(t, profile(t, "base: none\nresources: {keys: 20}\n"))
	request := h.request("CreateKey", "{}")
	var ok, refused atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			answers := string(h.serveConn(request, 5))
			ok.Add(int64(strings.Count(answers, "HTTP/1.1 200 OK")))
			refused.Add(int64(strings.Count(answers, "LimitExceededException")))
		})
	}
	wg.Wait()
	if n, err := h.store.CountKeys(testAccount, testRegion); err != nil || n != 20 || ok.Load() != 20 || refused.Load() != 20 {
		t.Errorf("%d keys (%v), %d made, %d refused; want 20 each", n, err, ok.Load(), refused.Load())
	}
}

// A request of more units than a bucket ever holds is told so, instead of to try
// again for ever.
func TestMoreThanTheBurst(t *testing.T) {
	h := newHarnessWith(t, profile(t, "base: none\nrequests: {symmetric: 10, rsa: 20}\nper-key: 10\nper-key-burst: 10\n"))
	for units, want := range map[int64]string{
		10: "",
		11: "ValidationException: The request counts for 11 operations, and the quota admits at most 10 at once: send fewer items in a request.",
	} {
		for name, admit := range map[string]func(x *exchange) error{
			"account": func(x *exchange) error { return x.admit(quota.Symmetric) },
			"key":     func(x *exchange) error { return x.admitKey(&keyView{bucket: h.svc.quota.NewKeyBucket()}) },
		} {
			x := newExchange(h.svc)
			x.now, x.units = h.now, units
			x.quotas = h.svc.quota.Account(testAccount, fmt.Sprint(units))
			got := ""
			if err := admit(x); err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("%s, %d: %q", name, units, got)
			}
		}
	}
}

// Rows and quotas agree: cryptographic operations have a rule, all others the
// operation's own quota.
func TestRowsHaveQuotas(t *testing.T) {
	for op := wire.Op(1); op <= wire.NumOps; op++ {
		row := &operations[op]
		if row.run != nil && (quota.Of(op) == quota.NoClass) != (row.quota != ownQuota) {
			t.Errorf("%s: rule %d, class %q", op, row.quota, quota.Of(op))
		}
		if row.quota == keyQuota && row.key == nil {
			t.Errorf("%s: the quota of a key it does not have", op)
		}
	}
	for _, name := range []string{"SYMMETRIC_DEFAULT", "HMAC_512", "RSA_2048", "RSA_4096", "ECC_NIST_P256", "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519", "SM2", "ML_DSA_87"} {
		spec, ok := engine.ParseSpec(name)
		want := map[string]quota.Class{"SY": quota.Symmetric, "HM": quota.Symmetric, "RS": quota.RSA, "EC": quota.ECC, "SM": quota.ECC, "ML": quota.MLDSA}[name[:2]]
		if !ok || keyClass(spec) != want {
			t.Errorf("%s: %s", name, keyClass(spec))
		}
		if spec.DataKeyPair() != (quota.Pair(name) != quota.NoClass) {
			t.Errorf("%s: data key pairs have the class %q", name, quota.Pair(name))
		}
	}
}
