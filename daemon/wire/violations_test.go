package wire_test

import (
	"strings"
	"testing"

	"keymill/daemon/wire"
)

// TestValidation holds the wording. Rows marked "recorded" repeat answers that
// were recorded from the real service.
func TestValidation(t *testing.T) {
	const one = "1 validation error detected: "
	const word = " failed to satisfy constraint: "
	for _, c := range []struct {
		name     string
		op       wire.Op
		in, want string
	}{
		{"valid", wire.OpGenerateDataKey, `{"KeyId":"k","NumberOfBytes":1024}`, ""},
		{"number too small (recorded)", wire.OpGenerateRandom, `{"NumberOfBytes":0}`,
			one + "Value '0' at 'numberOfBytes'" + word + "Member must have value greater than or equal to 1"},
		{"number too large (recorded)", wire.OpGenerateRandom, `{"NumberOfBytes":1025}`,
			one + "Value '1025' at 'numberOfBytes'" + word + "Member must have value less than or equal to 1024"},
		{"list member (recorded)", wire.OpTagResource, `{"KeyId":"k","Tags":[{"TagKey":"a","TagValue":"` + strings.Repeat("v", 257) + `"}]}`,
			one + "Value '" + strings.Repeat("v", 257) + "' at 'tags.1.member.tagValue'" + word + "Member must have length less than or equal to 256"},
		{"blob (recorded)", wire.OpEncrypt, `{"KeyId":"k","Plaintext":"` + strings.Repeat("AAAA", 1366) + `"}`,
			one + "Value at 'plaintext'" + word + "Member must have length less than or equal to 4096"},
		{"missing", wire.OpDescribeKey, `{}`, one + "Value null at 'keyId'" + word + "Member must not be null"},
		{"null is missing", wire.OpDescribeKey, `{"KeyId":null}`, one + "Value null at 'keyId'" + word + "Member must not be null"},
		{"empty is not missing", wire.OpDescribeKey, `{"KeyId":""}`,
			"2 validation errors detected: Value '' at 'keyId'" + word + "Member must have length greater than or equal to 1; " +
				"Value '' at 'keyId'" + word + `Member must satisfy regular expression pattern: ^\p{ASCII}+$`},
		{"not ASCII", wire.OpDescribeKey, `{"KeyId":"é"}`,
			one + "Value 'é' at 'keyId'" + word + `Member must satisfy regular expression pattern: ^\p{ASCII}+$`},
		{"enum", wire.OpGenerateMac, `{"KeyId":"k","Message":"QQ==","MacAlgorithm":"INVALID"}`,
			one + "Value 'INVALID' at 'macAlgorithm'" + word + "Member must satisfy enum value set: [HMAC_SHA_384, HMAC_SHA_256, HMAC_SHA_224, HMAC_SHA_512]"},
		{"missing, sensitive", wire.OpEncrypt, `{"KeyId":"k"}`, one + "Value at 'plaintext'" + word + "Member must not be null"},
		{"pattern", wire.OpDeleteAlias, `{"AliasName":"alias/a b"}`,
			one + "Value 'alias/a b' at 'aliasName'" + word + "Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{"pattern and length", wire.OpDeleteAlias, `{"AliasName":""}`,
			"2 validation errors detected: Value '' at 'aliasName'" + word + "Member must have length greater than or equal to 1; " +
				"Value '' at 'aliasName'" + word + "Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{"final line break", wire.OpDeleteAlias, `{"AliasName":"alias/a\n"}`,
			one + "Value 'alias/a\n' at 'aliasName'" + word + "Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{"several", wire.OpGenerateMac, `{"Message":""}`,
			"3 validation errors detected: Value null at 'keyId'" + word + "Member must not be null; " +
				"Value null at 'macAlgorithm'" + word + "Member must not be null; " +
				"Value at 'message'" + word + "Member must have length greater than or equal to 1"},
		{"nested", wire.OpGenerateRandom, `{"Recipient":{"AttestationDocument":"","KeyEncryptionAlgorithm":"X"}}`,
			"2 validation errors detected: Value at 'recipient.attestationDocument'" + word + "Member must have length greater than or equal to 1; " +
				"Value 'X' at 'recipient.keyEncryptionAlgorithm'" + word + "Member must satisfy enum value set: [RSAES_OAEP_SHA_256]"},
		{"list length", wire.OpDescribeKey, `{"KeyId":"k","GrantTokens":["a","a","a","a","a","a","a","a","a","a","b"]}`,
			one + "Value '[a, a, a, a, a, a, a, a, a, a, b]' at 'grantTokens'" + word + "Member must have length less than or equal to 10"},
		{"list element", wire.OpUntagResource, `{"KeyId":"k","TagKeys":["a",""]}`,
			one + "Value '[a, ]' at 'tagKeys'" + word + "Member must satisfy constraint: [Member must have length less than or equal to 128, Member must have length greater than or equal to 1]"},
		{"sensitive", wire.OpCreateCustomKeyStore, `{"CustomKeyStoreName":"n","KeyStorePassword":"123456","XksProxyAuthenticationCredential":{"AccessKeyId":"a-b"}}`,
			"4 validation errors detected: Value at 'keyStorePassword'" + word + "Member must have length greater than or equal to 7; " +
				"Value at 'xksProxyAuthenticationCredential.accessKeyId'" + word + "Member must have length greater than or equal to 20; " +
				"Value at 'xksProxyAuthenticationCredential.accessKeyId'" + word + "Member must satisfy regular expression pattern: ^[A-Z2-7]+$; " +
				"Value at 'xksProxyAuthenticationCredential.rawSecretAccessKey'" + word + "Member must not be null"},
		{"code points", wire.OpUpdateKeyDescription, `{"KeyId":"k","Description":"` + strings.Repeat("\U0001F600", 8192) + `"}`, ""},
		{"days", wire.OpScheduleKeyDeletion, `{"KeyId":"k","PendingWindowInDays":366}`,
			one + "Value '366' at 'pendingWindowInDays'" + word + "Member must have value less than or equal to 365"},
		{"lower case", wire.OpUpdateCustomKeyStore, `{"CustomKeyStoreId":"c","XksProxyUriEndpoint":"http://long.enough"}`,
			one + "Value 'http://long.enough' at 'xksProxyUriEndpoint'" + word + "Member must satisfy regular expression pattern: ^https://[a-zA-Z0-9.-]+$"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d wire.Decoder
			var v wire.Violations
			in := wire.NewInput(c.op)
			if err := d.Decode(in, []byte(strings.ReplaceAll(c.in, "\n", `\n`))); err != nil {
				t.Fatal(err)
			}
			in.Validate(&v)
			got := ""
			if err := v.Err(); err != nil {
				got = err.Message
				if err.Code != "ValidationException" || err.Status != 400 {
					t.Errorf("code %s, status %d", err.Code, err.Status)
				}
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if v.Reset(); v.Len() != 0 || v.Err() != nil {
				t.Error("Reset left violations")
			}
		})
	}
}

// TestValidationBounds shows that neither long values nor many violations
// make a message without bound.
func TestValidationBounds(t *testing.T) {
	var v wire.Violations
	in := &wire.TagResourceRequest{KeyId: strings.Repeat("é", 100000), Tags: make([]wire.Tag, 5000)}
	in.Validate(&v)
	err := v.Err()
	if v.Len() != 10002 || !strings.HasPrefix(err.Message, "10002 validation errors detected: Value 'é") {
		t.Errorf("%d violations: %.100s", v.Len(), err.Message)
	}
	if len(err.Message) > 16<<10 {
		t.Errorf("message of %d bytes", len(err.Message))
	}
	if !strings.Contains(err.Message, "é...' at 'keyId'") {
		t.Error("a long value must be cut at a character")
	}
}

// TestByHand covers the rules that operations add.
func TestByHand(t *testing.T) {
	var v wire.Violations
	v.Range("pendingWindowInDays", 7, 7, 30)
	v.Length("description", "abc", 0, 3)
	v.BlobLength("message", 5, 1, 5)
	if v.Len() != 0 {
		t.Fatalf("valid values gave %v", v.Err())
	}
	v.Range("pendingWindowInDays", 6, 7, 30)
	v.Range("limit", 51, 1, 50)
	v.Length("description", "abcd", 0, 3)
	v.BlobLength("message", 6, 1, 5)
	v.Enum("origin", "X", "[A, B]")
	v.Pattern("policyName", "x y", `[\w]+`)
	v.Rule("policyName", "x", "Member must be \"default\"")
	v.Required("keyId")
	const word = " failed to satisfy constraint: Member must "
	want := "8 validation errors detected: " + strings.Join([]string{
		"Value '6' at 'pendingWindowInDays'" + word + "have value greater than or equal to 7",
		"Value '51' at 'limit'" + word + "have value less than or equal to 50",
		"Value 'abcd' at 'description'" + word + "have length less than or equal to 3",
		"Value at 'message'" + word + "have length less than or equal to 5",
		"Value 'X' at 'origin'" + word + "satisfy enum value set: [A, B]",
		"Value 'x y' at 'policyName'" + word + `satisfy regular expression pattern: [\w]+`,
		"Value 'x' at 'policyName'" + word + "be \"default\"",
		"Value null at 'keyId'" + word + "not be null",
	}, "; ")
	if got := v.Err().Message; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
