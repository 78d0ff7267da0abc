package kms

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keymill/daemon/sigv4/sigv4test"
	"keymill/daemon/wire"
	"keymill/daemon/wire/bulk"
	"keymill/engine"
	"keymill/keystore"
)

// bulkResult is one item of any bulk answer, from either form.
type bulkResult struct {
	Plaintext      string
	CiphertextBlob string
	Signature      string
	KeyID          string
	MaterialID     string
	Valid          bool
	Code, Message  string
}

// bulk calls a bulk operation in the binary form and in JSON and returns the
// results of both.
func (h *harness) bulk(op string, in args) (binary, plain []bulkResult) {
	h.Helper()
	in["ResponseFormat"] = "BINARY"
	b, head := h.binary(op, in)
	in["ResponseFormat"] = "JSON"
	a := h.must(op, in)
	member := "Results"
	if op == "GenerateDataKeys" {
		member = "DataKeys"
	}
	for _, r := range a.fields[member].([]any) {
		f := r.(map[string]any)
		str := func(name string) string { s, _ := f[name].(string); return s }
		valid, _ := f["SignatureValid"].(bool)
		plain = append(plain, bulkResult{unb64(h, str("Plaintext")), unb64(h, str("CiphertextBlob")), unb64(h, str("Signature")),
			str("KeyId"), str("KeyMaterialId"), valid, str("ErrorCode"), str("ErrorMessage")})
	}
	for text, want := range map[string]string{"KeyId": head.KeyID, "KeyMaterialId": head.MaterialID} {
		if got := a.str(text); got != want && op != "BatchDecrypt" && !(op == "BatchEncrypt" && text == "KeyMaterialId") {
			h.Errorf("%s: %s is %q in JSON, %q in binary", op, text, got, want)
		}
	}
	return b, plain
}

func unb64(t testing.TB, s string) string {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// binary calls a bulk operation and reads its binary answer.
func (h *harness) binary(op string, in args) ([]bulkResult, bulk.Head) {
	h.Helper()
	text, err := json.Marshal(in)
	if err != nil {
		h.Fatal(err)
	}
	resp, body := h.exchange(h.request(op, string(text)))
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != bulk.ContentType {
		h.Fatalf("%s: %s %s %s", op, resp.Status, resp.Header.Get("Content-Type"), body)
	}
	return readBinary(h, body)
}

func readBinary(t testing.TB, body []byte) ([]bulkResult, bulk.Head) {
	t.Helper()
	r, err := bulk.NewReader(body)
	if err != nil {
		t.Fatal(err)
	}
	var out []bulkResult
	for {
		var rec bulk.Record
		ok, err := r.Next(&rec)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return out, r.Head
		}
		res := bulkResult{Plaintext: string(rec.Plaintext), Signature: string(rec.Signature), KeyID: rec.KeyID, MaterialID: rec.MaterialID,
			Valid: r.Head.Kind == bulk.Verify && rec.Code == "", Code: rec.Code, Message: rec.Message}
		if (r.Head.Kind == bulk.DataKeys || r.Head.Kind == bulk.Encrypt) && rec.Code == "" {
			res.CiphertextBlob = string(r.Head.Prefix) + string(rec.Rest)
		}
		out = append(out, res)
	}
}

// exchange sends bytes and returns the response whatever its type.
func (h *harness) exchange(request []byte) (*http.Response, []byte) {
	h.Helper()
	c, err := h.ln.Dial()
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(request); err != nil {
		h.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatal(err)
	}
	return resp, body
}

// opens decrypts a blob through the AWS KMS operation.
func (h *harness) opens(blob, plaintext string, context any) {
	h.Helper()
	in := args{"CiphertextBlob": b64(blob)}
	if context != nil {
		in["EncryptionContext"] = context
	}
	if got := h.must("Decrypt", in).str("Plaintext"); got != b64(plaintext) {
		h.Errorf("blob opens to %s, want %s", got, b64(plaintext))
	}
}

func TestGenerateDataKeys(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	for _, c := range []struct {
		name string
		in   args
		n    int
		size int
		ctx  func(i int) any
	}{
		{"one", args{"NumberOfKeys": 1, "KeySpec": "AES_256"}, 1, 32, nil},
		{"two pieces and a bit", args{"NumberOfKeys": 130, "KeySpec": "AES_128"}, 130, 16, nil},
		{"bytes", args{"NumberOfKeys": 3, "NumberOfBytes": 1024}, 3, 1024, nil},
		{"one context", args{"NumberOfKeys": 65, "KeySpec": "AES_256", "EncryptionContext": args{"a": "b"}}, 65, 32, func(int) any { return args{"a": "b"} }},
		{"contexts", args{"KeySpec": "AES_256", "EncryptionContexts": contexts(70)}, 70, 32, func(i int) any { return contexts(70)[i] }},
		{"contexts and number", args{"KeySpec": "AES_256", "NumberOfKeys": 2, "EncryptionContexts": contexts(2)}, 2, 32, func(i int) any { return contexts(2)[i] }},
		{"no plaintext", args{"NumberOfKeys": 66, "KeySpec": "AES_256", "WithoutPlaintext": true}, 66, 32, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.in["KeyId"] = id
			binary, plain := h.bulk("GenerateDataKeys", c.in)
			for _, got := range [][]bulkResult{binary, plain} {
				if len(got) != c.n {
					t.Fatalf("%d data keys, want %d", len(got), c.n)
				}
				seen := map[string]bool{}
				for i, r := range got {
					var ctx any
					if c.ctx != nil {
						ctx = c.ctx(i)
					}
					if c.in["WithoutPlaintext"] == true {
						if r.Plaintext != "" {
							t.Fatal("plaintext although not asked for")
						}
						in := args{"CiphertextBlob": b64(r.CiphertextBlob)}
						r.Plaintext = unb64(t, h.must("Decrypt", in).str("Plaintext"))
					} else if i < 3 || i%13 == 0 || i == c.n-1 {
						h.opens(r.CiphertextBlob, r.Plaintext, ctx)
					}
					if len(r.Plaintext) != c.size || seen[r.Plaintext] || seen[r.CiphertextBlob] {
						t.Fatalf("data key %d has %d bytes or repeats", i, len(r.Plaintext))
					}
					seen[r.Plaintext], seen[r.CiphertextBlob] = true, true
				}
			}
		})
	}
	a := h.must("GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 2, "KeySpec": "AES_256"})
	if a.str("KeyId") != arn || len(a.str("KeyMaterialId")) != 64 {
		t.Errorf("answer %v", a.fields)
	}
}

func contexts(n int) []args {
	var out []args
	for i := range n {
		c := args{}
		for j := range i % 3 {
			c[fmt.Sprintf("k%d", j)] = fmt.Sprintf("v%d", i)
		}
		out = append(out, c)
	}
	return out
}

// TestBulkRefused holds what refuses a request whole.
func TestBulkRefused(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	rsa, rsaARN := h.newKey(args{"KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"})
	off, offARN := h.newKey(nil)
	h.must("DisableKey", args{"KeyId": off})
	items := func(n int, item args) []args {
		out := make([]args, n)
		for i := range out {
			out[i] = item
		}
		return out
	}
	plaintext := args{"Plaintext": "QQ=="}
	missing := "00000000-1111-2222-3333-444444444444"
	recipient := args{"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": "QQ=="}
	const noRecipient = "Recipient is not supported: this version of Keymill cannot verify attestation documents."
	for _, c := range []struct {
		op         string
		in         args
		code, text string
	}{
		{"GenerateDataKeys", args{"KeyId": id, "KeySpec": "AES_256"}, "ValidationException", "Please specify either NumberOfKeys or EncryptionContexts."},
		{"GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 1}, "ValidationException", "Please specify either number of bytes or key spec."},
		{"GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 10001, "KeySpec": "AES_256"}, "ValidationException",
			"1 validation error detected: Value '10001' at 'numberOfKeys' failed to satisfy constraint: Member must have value less than or equal to 10000"},
		{"GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 10000, "NumberOfBytes": 1024}, "ValidationException",
			"The answer could be longer than 12582912 bytes: send fewer items in a request."},
		{"GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 3, "KeySpec": "AES_256", "EncryptionContexts": contexts(2)}, "ValidationException",
			"NumberOfKeys is 3, but EncryptionContexts has 2 members."},
		{"GenerateDataKeys", args{"KeyId": id, "KeySpec": "AES_256", "EncryptionContext": args{"a": "b"}, "EncryptionContexts": contexts(2)}, "ValidationException",
			"EncryptionContext and EncryptionContexts cannot be used together."},
		{"GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 2, "KeySpec": "AES_256", "DryRun": true}, "DryRunOperationException",
			"The request would have succeeded, but the DryRun option is set."},
		{"GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 2, "KeySpec": "AES_256", "ResponseFormat": "XML"}, "ValidationException",
			"1 validation error detected: Value 'XML' at 'responseFormat' failed to satisfy constraint: Member must satisfy enum value set: [JSON, BINARY]"},
		{"GenerateDataKeys", args{"KeyId": off, "NumberOfKeys": 2, "KeySpec": "AES_256"}, "DisabledException", offARN + " is disabled."},
		{"GenerateDataKeys", args{"KeyId": rsa, "NumberOfKeys": 2, "KeySpec": "AES_256"}, "InvalidKeyUsageException",
			rsaARN + " key usage is SIGN_VERIFY which is not valid for GenerateDataKeys."},
		{"GenerateDataKeys", args{"KeyId": missing, "NumberOfKeys": 2, "KeySpec": "AES_256"}, "NotFoundException",
			"Key '" + strings.Replace(arn, id, missing, 1) + "' does not exist"},
		{"BatchEncrypt", args{"KeyId": id, "Items": items(10001, plaintext)}, "ValidationException",
			"1 validation error detected: Value at 'items' failed to satisfy constraint: Member must have length less than or equal to 10000"},
		{"BatchEncrypt", args{"KeyId": id, "Items": []args{}}, "ValidationException",
			"1 validation error detected: Value at 'items' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{"BatchEncrypt", args{"KeyId": id}, "ValidationException",
			"1 validation error detected: Value null at 'items' failed to satisfy constraint: Member must not be null"},
		{"BatchEncrypt", args{"KeyId": id, "Items": items(1, args{"Plaintext": "!"})}, "SerializationException", "Plaintext must be Base64 with padding"},
		{"BatchEncrypt", args{"KeyId": id, "Items": items(1, plaintext), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}, "InvalidKeyUsageException",
			"Algorithm RSAES_OAEP_SHA_256 is incompatible with key spec SYMMETRIC_DEFAULT."},
		{"BatchEncrypt", args{"KeyId": off, "Items": items(1, plaintext)}, "DisabledException", offARN + " is disabled."},
		{"BatchEncrypt", args{"KeyId": id, "Items": items(1, plaintext), "DryRun": true}, "DryRunOperationException",
			"The request would have succeeded, but the DryRun option is set."},
		{"BatchDecrypt", args{"EncryptionAlgorithm": "RSAES_OAEP_SHA_256", "Items": items(1, args{"CiphertextBlob": "QQ=="})}, "ValidationException",
			"A key ID is required to decrypt with algorithm RSAES_OAEP_SHA_256: only symmetric ciphertext names its key."},
		{"BatchDecrypt", args{"Items": items(1, args{"CiphertextBlob": "QQ=="}), "Recipient": recipient}, "UnsupportedOperationException", noRecipient},
		{"GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 2, "KeySpec": "AES_256", "Recipient": recipient}, "UnsupportedOperationException", noRecipient},
		{"BatchDecrypt", args{"KeyId": off, "Items": items(1, args{"CiphertextBlob": "QQ=="})}, "DisabledException", offARN + " is disabled."},
		{"BatchSign", args{"KeyId": id, "SigningAlgorithm": "ECDSA_SHA_256", "Items": items(1, args{"Message": "QQ=="})}, "InvalidKeyUsageException",
			arn + " key usage is ENCRYPT_DECRYPT which is not valid for BatchSign."},
		{"BatchVerify", args{"KeyId": rsa, "SigningAlgorithm": "ECDSA_SHA_256", "Items": items(1, args{"Message": "QQ==", "Signature": "QQ=="})}, "InvalidKeyUsageException",
			"Algorithm ECDSA_SHA_256 is incompatible with key spec RSA_2048."},
	} {
		h.refused(c.op, c.in, c.code, c.text)
		if got := h.svc.bulk.memory.Load(); got != 0 {
			t.Fatalf("%s %v left %d bytes taken", c.op, c.in, got)
		}
	}
}

// TestBatchItems holds that each item has its own result, in order, and that
// the two forms say the same.
func TestBatchItems(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	other, otherARN := h.newKey(nil)
	off, offARN := h.newKey(nil)
	const tooShort = "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length greater than or equal to 1"
	const tooLong = "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096"
	const none = "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must not be null"

	items := []args{{"Plaintext": ""}, {"Plaintext": b64("first")}, {"Plaintext": b64(strings.Repeat("x", 4097))}, {}, {"Plaintext": b64("own"), "EncryptionContext": args{"c": "d"}},
		{"Plaintext": b64("bare"), "EncryptionContext": args{}}}
	for i := range 200 {
		items = append(items, args{"Plaintext": b64(strings.Repeat("y", 1+i*20))})
	}
	binary, plain := h.bulk("BatchEncrypt", args{"KeyId": id, "EncryptionContext": args{"a": "b"}, "Items": items})
	for _, got := range [][]bulkResult{binary, plain} {
		if len(got) != len(items) {
			t.Fatalf("%d results for %d items", len(got), len(items))
		}
		for i, want := range map[int]bulkResult{0: {Code: "ValidationException", Message: tooShort}, 2: {Code: "ValidationException", Message: tooLong}, 3: {Code: "ValidationException", Message: none}} {
			if got[i] != want {
				t.Errorf("item %d: %+v, want %+v", i, got[i], want)
			}
		}
		h.opens(got[1].CiphertextBlob, "first", args{"a": "b"})
		h.opens(got[4].CiphertextBlob, "own", args{"c": "d"})
		h.opens(got[5].CiphertextBlob, "bare", nil)
		for i := 6; i < len(items); i += 31 {
			h.opens(got[i].CiphertextBlob, unb64(t, items[i]["Plaintext"].(string)), args{"a": "b"})
		}
	}

	blob := func(key, text string) string {
		return h.must("Encrypt", args{"KeyId": key, "Plaintext": b64(text)}).str("CiphertextBlob")
	}
	material := func(key string) string {
		return h.must("Decrypt", args{"CiphertextBlob": blob(key, "x")}).str("KeyMaterialId")
	}
	one, two := material(id), material(other)
	offBlob := blob(off, "off")
	h.must("DisableKey", args{"KeyId": off})
	gone := []byte(unb64(t, blob(id, "gone")))
	gone[5] ^= 1
	damaged := []byte(unb64(t, blob(id, "damaged")))
	damaged[len(damaged)-1] ^= 1
	const denied = "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access."
	const incorrect = "The key ID in the request does not identify a CMK that can perform this operation."
	type row struct {
		blob                 string
		ctx                  any
		want                 bulkResult // without KeyId in the request
		codeWithKey, message string     // with KeyId
	}
	ok := func(text, key, material string) bulkResult {
		return bulkResult{Plaintext: text, KeyID: key, MaterialID: material}
	}
	rows := []row{
		{blob(id, "a"), nil, ok("a", arn, one), "", ""},
		{blob(other, "b"), nil, ok("b", otherARN, two), "IncorrectKeyException", incorrect},
		{offBlob, nil, bulkResult{Code: "DisabledException", Message: offARN + " is disabled."}, "IncorrectKeyException", incorrect},
		{blob(id, "c"), nil, ok("c", arn, one), "", ""},
		{b64("no blob"), nil, bulkResult{Code: "InvalidCiphertextException"}, "InvalidCiphertextException", ""},
		{b64(string(gone)), nil, bulkResult{Code: "AccessDeniedException", Message: denied}, "IncorrectKeyException", incorrect},
		{b64(string(damaged)), nil, bulkResult{Code: "InvalidCiphertextException"}, "InvalidCiphertextException", ""},
		{blob(id, "d"), args{"x": "y"}, bulkResult{Code: "InvalidCiphertextException"}, "InvalidCiphertextException", ""},
		{blob(other, "e"), nil, ok("e", otherARN, two), "IncorrectKeyException", incorrect},
		{blob(other, "f"), nil, ok("f", otherARN, two), "IncorrectKeyException", incorrect},
		{blob(id, "g"), nil, ok("g", arn, one), "", ""},
	}
	var ciphertexts []args
	var without, with []bulkResult
	for range 20 {
		for _, r := range rows {
			item := args{"CiphertextBlob": r.blob}
			if r.ctx != nil {
				item["EncryptionContext"] = r.ctx
			}
			ciphertexts = append(ciphertexts, item)
			without = append(without, r.want)
			if r.codeWithKey != "" {
				with = append(with, bulkResult{Code: r.codeWithKey, Message: r.message})
			} else {
				with = append(with, r.want)
			}
		}
	}
	for name, c := range map[string]struct {
		in   args
		want []bulkResult
	}{"without a key": {args{}, without}, "with a key": {args{"KeyId": arn}, with}} {
		c.in["Items"] = ciphertexts
		binary, plain := h.bulk("BatchDecrypt", c.in)
		if diff := cmp.Diff(c.want, binary); diff != "" {
			t.Errorf("%s, binary: -want +got\n%s", name, diff)
		}
		if diff := cmp.Diff(c.want, plain); diff != "" {
			t.Errorf("%s, JSON: -want +got\n%s", name, diff)
		}
	}
}

func TestBatchSignVerify(t *testing.T) {
	h := newHarness(t)
	for _, c := range []struct{ spec, alg string }{
		{"ECC_NIST_P256", "ECDSA_SHA_256"}, {"RSA_2048", "RSASSA_PSS_SHA_256"}, {"ECC_NIST_EDWARDS25519", "ED25519_SHA_512"}, {"ML_DSA_87", "ML_DSA_SHAKE_256"},
	} {
		id, _ := h.newKey(args{"KeySpec": c.spec, "KeyUsage": "SIGN_VERIFY"})
		messages := []args{{"Message": b64("m0")}, {"Message": ""}, {"Message": b64("m2")}, {}, {"Message": b64(strings.Repeat("z", 4096))}}
		binary, plain := h.bulk("BatchSign", args{"KeyId": id, "SigningAlgorithm": c.alg, "Items": messages})
		for _, got := range [][]bulkResult{binary, plain} {
			var items []args
			for i, r := range got {
				if bad := i == 1 || i == 3; (r.Code == "ValidationException") != bad || bad != (r.Signature == "") {
					t.Errorf("%s item %d: %+v", c.spec, i, r)
				}
				items = append(items, args{"Message": cmpOr(messages[i]["Message"], b64("x")), "Signature": b64(r.Signature + strings.Repeat("s", i%2))})
			}
			items = append(items, args{"Message": b64("other"), "Signature": b64(got[0].Signature)}, args{"Message": b64("m0")})
			a, b := h.bulk("BatchVerify", args{"KeyId": id, "SigningAlgorithm": c.alg, "Items": items})
			if diff := cmp.Diff(a, b); diff != "" {
				t.Errorf("%s: binary and JSON differ: %s", c.spec, diff)
			}
			var codes []string
			for _, r := range a {
				codes = append(codes, fmt.Sprint(r.Valid, r.Code))
			}
			want := []string{"true", "falseKMSInvalidSignatureException", "true", "falseKMSInvalidSignatureException", "true", "falseKMSInvalidSignatureException", "falseValidationException"}
			if diff := cmp.Diff(want, codes); diff != "" {
				t.Errorf("%s: %s", c.spec, diff)
			}
		}
	}
	id, _ := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})
	a, _ := h.bulk("BatchSign", args{"KeyId": id, "SigningAlgorithm": "ECDSA_SHA_256", "MessageType": "DIGEST", "Items": []args{{"Message": b64("short")}, {"Message": b64(strings.Repeat("d", 32))}}})
	if a[0].Message != "Digest is invalid length for algorithm ECDSA_SHA_256." || a[1].Code != "" {
		t.Errorf("digests: %+v", a)
	}
}

func cmpOr(v any, def string) any {
	if v == nil || v == "" {
		return def
	}
	return v
}

// TestBatchAsymmetricEncryption: blobs without a shared prefix.
func TestBatchAsymmetricEncryption(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(args{"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"})
	const alg = "RSAES_OAEP_SHA_256"
	binary, plain := h.bulk("BatchEncrypt", args{"KeyId": id, "EncryptionAlgorithm": alg, "Items": []args{{"Plaintext": b64("a")}, {"Plaintext": b64(strings.Repeat("l", 300))}, {"Plaintext": b64("b"), "EncryptionContext": args{"x": "y"}}}})
	for _, got := range [][]bulkResult{binary, plain} {
		if got[1].Code != "ValidationException" || got[2].Code != "ValidationException" {
			t.Errorf("results %+v", got)
		}
		a, b := h.bulk("BatchDecrypt", args{"KeyId": id, "EncryptionAlgorithm": alg, "Items": []args{{"CiphertextBlob": b64(got[0].CiphertextBlob)}, {"CiphertextBlob": b64("no")}}})
		want := []bulkResult{{Plaintext: "a", KeyID: arn}, {Code: "InvalidCiphertextException"}}
		if diff := cmp.Diff(want, a) + cmp.Diff(want, b); diff != "" {
			t.Error(diff)
		}
	}
}

// TestBulkAccept: the Accept header asks for the binary form, ResponseFormat
// overrules it, errors are JSON.
func TestBulkAccept(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	for _, c := range []struct{ body, want string }{
		{`{"KeyId":"` + id + `","NumberOfKeys":1,"KeySpec":"AES_256"}`, bulk.ContentType},
		{`{"KeyId":"` + id + `","NumberOfKeys":1,"KeySpec":"AES_256","ResponseFormat":"JSON"}`, wire.ContentType},
		{`{"KeyId":"` + id + `","NumberOfKeys":0,"KeySpec":"AES_256","ResponseFormat":"BINARY"}`, wire.ContentType},
	} {
		r := &sigv4test.Request{Method: "POST", Path: "/", Body: c.body, Headers: []sigv4test.Header{
			{"Host", "localhost"}, {"Content-Type", wire.ContentType}, {"X-Amz-Target", "Keymill.GenerateDataKeys"},
			{"Accept", bulk.ContentType}, {"Content-Length", fmt.Sprint(len(c.body))},
		}}
		r.Sign(h.key, h.now)
		resp, body := h.exchange(raw(r))
		if got := resp.Header.Get("Content-Type"); got != c.want {
			t.Errorf("%s: %s %.100q", c.body, got, body)
		}
	}
}

// TestBulkCold: material that is cold is fetched, once, and the batch goes on.
func TestBulkCold(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	binary, _ := h.bulk("GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 100, "KeySpec": "AES_256"})
	v, err := h.svc.view(h.ref(id))
	if err != nil {
		t.Fatal(err)
	}
	var items []args
	for _, r := range binary {
		items = append(items, args{"CiphertextBlob": b64(r.CiphertextBlob)})
	}
	v.handle.Purge()
	got, _ := h.bulk("BatchDecrypt", args{"Items": items})
	for i := range got {
		if got[i].Plaintext != binary[i].Plaintext {
			t.Fatalf("item %d: %+v", i, got[i])
		}
	}
}

// TestBulkMemory: an answer counts against the common bound until it was sent,
// is wiped then, and beyond the bound requests are told to come again.
func TestBulkMemory(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	x := newExchange(h.svc)
	var err error
	if x.key, err = h.svc.view(h.ref(id)); err != nil {
		t.Fatal(err)
	}
	in := &wire.GenerateDataKeysRequest{NumberOfKeys: wire.Some(int64(100)), KeySpec: "AES_256", ResponseFormat: "BINARY"}
	if err := generateDataKeys(x, in); err != nil {
		t.Fatal(err)
	}
	b := x.bulk
	if h.svc.bulk.memory.Load() < int64(len(b.buf)) {
		t.Errorf("%d bytes taken for an answer of %d", h.svc.bulk.memory.Load(), len(b.buf))
	}
	body, scratch := b.buf, b.scratch
	results, _ := readBinary(t, bytes.Clone(body))
	if bytes.Contains(scratch, []byte(results[99].Plaintext)) {
		t.Error("a data key is left in the scratch memory")
	}
	var sent bytes.Buffer
	if n, err := b.WriteTo(&sent); err != nil || int(n) != len(body) {
		t.Fatal(n, err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if !allZero(body[:cap(body)]) || !allZero(scratch) {
		t.Error("the answer is not wiped after it was sent")
	}
	if got := h.svc.bulk.memory.Load(); got != 0 {
		t.Errorf("%d bytes are still taken", got)
	}

	h.svc.bulk.memory.Add(maxBulkMemory)
	a := h.call("GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 1, "KeySpec": "AES_256"})
	if a.code() != "ThrottlingException" {
		t.Errorf("beyond the bound: %s", a)
	}
	h.svc.bulk.memory.Add(-maxBulkMemory)
	h.must("GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 1, "KeySpec": "AES_256"})
}

func allZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// TestBulkRoom: a buffer that has to move leaves nothing behind.
func TestBulkRoom(t *testing.T) {
	b := &bulkAnswer{buf: append(make([]byte, 0, 8), "secret"...)}
	old := b.buf
	b.room(100)
	if string(b.buf) != "secret" || !allZero(old) || cap(b.buf) < 106 {
		t.Errorf("%q, left %q", b.buf, old)
	}
}

// TestBulkAllocations holds that an item allocates nothing.
func TestBulkAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("skipped under the race detector: it allocates on its own account")
	}
	h := newHarness(t)
	id, _ := h.newKey(nil)
	items := func(member, value string) func(n int) string {
		return func(n int) string {
			return `"Items":[` + strings.Repeat(`{"`+member+`":"`+value+`"},`, n-1) + `{"` + member + `":"` + value + `"}]`
		}
	}
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8="}).str("CiphertextBlob")
	for _, c := range []struct {
		op   string
		body func(n int) string
	}{
		{"GenerateDataKeys", func(n int) string { return fmt.Sprintf(`"KeySpec":"AES_256","NumberOfKeys":%d`, n) }},
		{"BatchEncrypt", items("Plaintext", "aGVsbG8=")},
		{"BatchDecrypt", items("CiphertextBlob", blob)},
	} {
		for _, format := range []string{"JSON", "BINARY"} {
			measure := func(n int) float64 {
				request := h.request(c.op, `{"KeyId":"`+id+`","ResponseFormat":"`+format+`",`+c.body(n)+`}`)
				h.serveConn(request, 5)
				const rounds = 20
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				h.serveConn(request, rounds)
				runtime.ReadMemStats(&after)
				return float64(after.Mallocs-before.Mallocs) / rounds
			}
			few, many := measure(64), measure(6400)
			t.Logf("%s %s: %.1f allocations for 64 items, %.1f for 6,400", c.op, format, few, many)
			// Lists of decoded items grow by doubling; buffers may be collected.
			if many > few+40 {
				t.Errorf("%s %s: %.1f allocations for 64 items, %.1f for 6,400", c.op, format, few, many)
			}
		}
	}
}

func (h *harness) ref(id string) keystore.Ref {
	k, ok := engine.ParseKeyID(id)
	if !ok {
		h.Fatalf("key id %q", id)
	}
	return keystore.Ref{Region: testRegion, ID: k.ID}
}
