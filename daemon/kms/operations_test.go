package kms

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keymill/daemon/sigv4/sigv4test"
	"keymill/daemon/wire"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestTableCoversTheModel: every operation of the model authenticates, decodes
// and either works or says that it is not available.
func TestTableCoversTheModel(t *testing.T) {
	h := newHarness(t)
	for op := wire.OpInvalid + 1; op <= wire.NumOps; op++ {
		row := operations[op]
		if row.op != op {
			t.Errorf("row of %s is for %s", op, row.op)
		}
		if row.run != nil {
			if row.key != nil && len(row.states) != int(stateCount) {
				t.Errorf("%s has a key and %d key states", op, len(row.states))
			}
			continue
		}
		a := h.call(op.String(), args{})
		if c := a.code(); c != "UnsupportedOperationException" && c != "ValidationException" {
			t.Errorf("%s: %s", op, a)
		}
	}
}

func TestDescribeKeyShowsWhatCreateKeyMade(t *testing.T) {
	h := newHarness(t)
	for _, c := range []struct {
		in   args
		want args
	}{
		{nil, args{
			"KeySpec": "SYMMETRIC_DEFAULT", "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT",
			"EncryptionAlgorithms": []any{"SYMMETRIC_DEFAULT"}, "Description": "",
		}},
		{args{"KeySpec": "HMAC_384", "KeyUsage": "GENERATE_VERIFY_MAC", "Description": "d"}, args{
			"KeySpec": "HMAC_384", "CustomerMasterKeySpec": "HMAC_384", "KeyUsage": "GENERATE_VERIFY_MAC",
			"MacAlgorithms": []any{"HMAC_SHA_384"}, "Description": "d",
		}},
		{args{"CustomerMasterKeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}, args{
			"KeySpec": "ECC_NIST_P256", "CustomerMasterKeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY",
			"SigningAlgorithms": []any{"ECDSA_SHA_256"}, "Description": "",
		}},
		{args{"KeySpec": "ECC_NIST_P384", "KeyUsage": "KEY_AGREEMENT"}, args{
			"KeySpec": "ECC_NIST_P384", "CustomerMasterKeySpec": "ECC_NIST_P384", "KeyUsage": "KEY_AGREEMENT",
			"KeyAgreementAlgorithms": []any{"ECDH"}, "Description": "",
		}},
		{args{"KeySpec": "ML_DSA_44", "KeyUsage": "SIGN_VERIFY"}, args{
			"KeySpec": "ML_DSA_44", "CustomerMasterKeySpec": "ML_DSA_44", "KeyUsage": "SIGN_VERIFY", "SigningAlgorithms": []any{"ML_DSA_SHAKE_256"}, "Description": "",
		}},
	} {
		m := h.must("CreateKey", c.in).fields["KeyMetadata"].(map[string]any)
		id := m["KeyId"].(string)
		want := maps.Clone(map[string]any(c.want))
		maps.Copy(want, map[string]any{
			"AWSAccountId": testAccount, "KeyId": id, "Arn": "arn:aws:kms:" + testRegion + ":" + testAccount + ":key/" + id,
			"CreationDate": 1777863721.987, "Enabled": true, "KeyState": "Enabled", "Origin": "AWS_KMS",
			"KeyManager": "CUSTOMER", "MultiRegion": false,
		})
		if c.want["KeySpec"] == "SYMMETRIC_DEFAULT" {
			want["CurrentKeyMaterialId"] = m["CurrentKeyMaterialId"]
			if s, _ := m["CurrentKeyMaterialId"].(string); len(s) != 64 {
				t.Errorf("CurrentKeyMaterialId %q", s)
			}
		}
		if d := cmp.Diff(want, m); d != "" {
			t.Errorf("CreateKey %v (-want +got):\n%s", c.in, d)
		}
		if d := cmp.Diff(m, h.must("DescribeKey", args{"KeyId": id}).fields["KeyMetadata"]); d != "" {
			t.Errorf("DescribeKey after CreateKey %v (-created +described):\n%s", c.in, d)
		}
	}

	m := h.must("CreateKey", args{"MultiRegion": true}).fields["KeyMetadata"].(map[string]any)
	arn := m["Arn"].(string)
	if id := m["KeyId"].(string); len(id) != 36 || !strings.HasPrefix(id, "mrk-") {
		t.Errorf("multi-Region key id %q", id)
	}
	want := map[string]any{"MultiRegionKeyType": "PRIMARY", "PrimaryKey": map[string]any{"Arn": arn, "Region": testRegion}, "ReplicaKeys": []any{}}
	if d := cmp.Diff(want, m["MultiRegionConfiguration"]); d != "" {
		t.Errorf("MultiRegionConfiguration (-want +got):\n%s", d)
	}
}

func TestCreateKeyRefusals(t *testing.T) {
	h := newHarness(t)
	for _, c := range []struct {
		in         args
		code, text string
	}{
		{args{"KeySpec": "RSA_2048"}, "ValidationException", "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."},
		{args{"KeySpec": "RSA_2048", "KeyUsage": "KEY_AGREEMENT"}, "ValidationException", "KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048"},
		{args{"Tags": []args{{"TagKey": "aws:x", "TagValue": ""}}}, "TagException", "Tags beginning with aws: are reserved"},
		{args{"Tags": []args{{"TagKey": "a", "TagValue": "1"}, {"TagKey": "a", "TagValue": "2"}}}, "TagException", "Duplicate tag keys"},
		{args{"Policy": "{}x"}, "MalformedPolicyDocumentException", "This policy contains invalid Json: text after the end at offset 2."},
		{args{"Policy": `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*"}]}`},
			"MalformedPolicyDocumentException", "The new key policy will not allow you to update the key policy in the future."},
		{args{"Policy": strings.Repeat(" ", 32769)}, "LimitExceededException", "The key policy has 32769 bytes; the limit is 32768."},
	} {
		h.refused("CreateKey", c.in, c.code, c.text)
	}
	if keys := h.must("ListKeys", nil).fields["Keys"].([]any); len(keys) != 0 {
		t.Errorf("refused CreateKey left %d keys", len(keys))
	}
}

func TestIdentifiers(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	aliasARN := "arn:aws:kms:" + testRegion + ":" + testAccount + ":alias/a/b"
	h.must("CreateAlias", args{"AliasName": "alias/a/b", "TargetKeyId": arn})
	for _, form := range []string{id, arn, "alias/a/b", aliasARN} {
		if got := h.must("Encrypt", args{"KeyId": form, "Plaintext": b64("x")}).str("KeyId"); got != arn {
			t.Errorf("Encrypt with %s answers KeyId %s", form, got)
		}
	}
	const unknown = "1234abcd-12ab-34cd-56ef-1234567890ab"
	unknownARN := "arn:aws:kms:" + testRegion + ":" + testAccount + ":key/" + unknown
	for _, c := range []struct{ id, code, text string }{
		{unknown, "NotFoundException", "Key '" + unknownARN + "' does not exist"},
		{unknownARN, "NotFoundException", "Key '" + unknownARN + "' does not exist"},
		{"mrk-1234abcd12ab34cd56ef1234567890ab", "NotFoundException", "Key 'arn:aws:kms:" + testRegion + ":" + testAccount + ":key/mrk-1234abcd12ab34cd56ef1234567890ab' does not exist"},
		{"mrk-" + strings.ReplaceAll(id, "-", ""), "NotFoundException", "Key 'arn:aws:kms:" + testRegion + ":" + testAccount + ":key/mrk-" + strings.ReplaceAll(id, "-", "") + "' does not exist"},
		{"nonsense", "NotFoundException", "Invalid keyId 'nonsense'"},
		{strings.ReplaceAll(unknown, "-", ""), "NotFoundException", "Invalid keyId '" + strings.ReplaceAll(unknown, "-", "") + "'"},
		{strings.Replace(arn, testRegion, "us-west-2", 1), "NotFoundException", "Invalid arn us-west-2"},
		{strings.Replace(arn, testAccount, "999999999999", 1), "NotFoundException", "Key '" + strings.Replace(arn, testAccount, "999999999999", 1) + "' does not exist"},
		{strings.Replace(arn, id, "nonsense", 1), "NotFoundException", "Invalid keyId nonsense"},
		{strings.ToUpper(unknown), "NotFoundException", "Key '" + strings.Replace(arn, id, strings.ToUpper(unknown), 1) + "' does not exist"},
		{"arn:aws:kms:nonsense", "InvalidArnException", "Invalid arn arn:aws:kms:nonsense"},
		{"alias/missing", "NotFoundException", "Alias arn:aws:kms:" + testRegion + ":" + testAccount + ":alias/missing is not found."},
		{strings.Replace(aliasARN, testAccount, "999999999999", 1), "NotFoundException", "Alias " + strings.Replace(aliasARN, testAccount, "999999999999", 1) + " is not found."},
		{"", "ValidationException", "2 validation errors detected: Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
			`Value '' at 'keyId' failed to satisfy constraint: Member must satisfy regular expression pattern: ^\p{ASCII}+$`},
	} {
		h.refused("DescribeKey", args{"KeyId": c.id}, c.code, c.text)
	}
	h.refused("EnableKey", args{"KeyId": "alias/a/b"}, "InvalidArnException", "Key Aliases are not supported for this operation.")

	// The same id in another region is another key.
	h.key.Region = "us-east-1"
	h.refused("DescribeKey", args{"KeyId": id}, "NotFoundException", "Key 'arn:aws:kms:us-east-1:"+testAccount+":key/"+id+"' does not exist")
}

// TestKeyStates walks the operations through the states a key can reach here.
func TestKeyStates(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	rsa, rsaARN := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": b64("x")}).str("CiphertextBlob")
	disabled := func(arn string) [2]string { return [2]string{"DisabledException", arn + " is disabled."} }
	pending := func(arn string) [2]string {
		return [2]string{"KMSInvalidStateException", arn + " is pending deletion."}
	}
	ok := func(string) [2]string { return [2]string{} }
	type step struct {
		op                string
		in                args
		arn               string
		enabled, dis, pen func(string) [2]string
	}
	steps := []step{
		{"DescribeKey", args{"KeyId": id}, arn, ok, ok, ok},
		{"Encrypt", args{"KeyId": id, "Plaintext": b64("x")}, arn, ok, disabled, pending},
		{"Decrypt", args{"CiphertextBlob": blob}, arn, ok, disabled, pending},
		{"Decrypt", args{"CiphertextBlob": blob, "KeyId": id}, arn, ok, disabled, pending},
		{"ReEncrypt", args{"CiphertextBlob": blob, "DestinationKeyId": id}, arn, ok, disabled, pending},
		{"GenerateDataKey", args{"KeyId": id, "KeySpec": "AES_128"}, arn, ok, disabled, pending},
		{"GenerateDataKeyWithoutPlaintext", args{"KeyId": id, "KeySpec": "AES_128"}, arn, ok, disabled, pending},
		{"GenerateDataKeyPair", args{"KeyId": id, "KeyPairSpec": "ECC_NIST_P256"}, arn, ok, disabled, pending},
		{"Sign", args{"KeyId": rsa, "Message": b64("x"), "SigningAlgorithm": "ECDSA_SHA_256"}, rsaARN, ok, disabled, pending},
		{"GetPublicKey", args{"KeyId": rsa}, rsaARN, ok, ok, pending},
		{"GetKeyPolicy", args{"KeyId": id}, arn, ok, ok, ok},
		{"ListKeyPolicies", args{"KeyId": id}, arn, ok, ok, ok},
		{"ListResourceTags", args{"KeyId": id}, arn, ok, ok, ok},
		{"ListAliases", args{"KeyId": id}, arn, ok, ok, ok},
		{"TagResource", args{"KeyId": id, "Tags": []args{{"TagKey": "k", "TagValue": "v"}}}, arn, ok, ok, pending},
		{"UntagResource", args{"KeyId": id, "TagKeys": []string{"k"}}, arn, ok, ok, pending},
		{"UpdateKeyDescription", args{"KeyId": id, "Description": "d"}, arn, ok, ok, pending},
		{"CreateAlias", args{"AliasName": "alias/new", "TargetKeyId": id}, arn, ok, ok, pending},
		{"DeleteAlias", args{"AliasName": "alias/new"}, arn, ok, ok, func(string) [2]string {
			return [2]string{"NotFoundException", "Alias arn:aws:kms:" + testRegion + ":" + testAccount + ":alias/new is not found."}
		}},
		{"CancelKeyDeletion", args{"KeyId": id}, arn, notPending, notPending, nil},
		{"EnableKey", args{"KeyId": rsa}, rsaARN, ok, nil, pending},
		{"DisableKey", args{"KeyId": rsa}, rsaARN, nil, ok, pending},
		{"ScheduleKeyDeletion", args{"KeyId": id}, arn, nil, nil, pending},
	}
	walk := func(state string, pick func(step) func(string) [2]string) {
		for _, s := range steps {
			if want := pick(s); want != nil {
				w := want(s.arn)
				if a := h.call(s.op, s.in); a.code() != w[0] || a.str("message") != w[1] && w[0] != "" {
					t.Errorf("%s: %s %v\n got %s\nwant %q", state, s.op, s.in, a, w)
				}
			}
		}
	}
	walk("Enabled", func(s step) func(string) [2]string { return s.enabled })
	for _, k := range []string{id, rsa} {
		h.must("DisableKey", args{"KeyId": k})
		h.must("DisableKey", args{"KeyId": k}) // idempotent
	}
	walk("Disabled", func(s step) func(string) [2]string { return s.dis })
	for _, k := range []string{id, rsa} {
		a := h.must("ScheduleKeyDeletion", args{"KeyId": k, "PendingWindowInDays": 7})
		if got := a.fields["DeletionDate"].(float64); got != 1777863721.987+7*86400 {
			t.Errorf("DeletionDate %f", got)
		}
	}
	walk("PendingDeletion", func(s step) func(string) [2]string { return s.pen })
	for _, k := range []string{id, rsa} {
		h.must("CancelKeyDeletion", args{"KeyId": k})
		m := h.must("DescribeKey", args{"KeyId": k}).fields["KeyMetadata"].(map[string]any)
		if m["KeyState"] != "Disabled" || m["Enabled"] != false || m["DeletionDate"] != nil {
			t.Errorf("after CancelKeyDeletion: %v", m)
		}
		h.must("EnableKey", args{"KeyId": k})
	}
	walk("Enabled again", func(s step) func(string) [2]string { return s.enabled })
	h.refused("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 6}, "ValidationException",
		"1 validation error detected: Value '6' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value greater than or equal to 7")
}

func notPending(arn string) [2]string {
	return [2]string{"KMSInvalidStateException", arn + " is not pending deletion."}
}

// TestCiphertexts: what decrypts, what does not, and that a refusal tells
// nothing but that.
func TestCiphertexts(t *testing.T) {
	h := newHarness(t)
	a, arnA := h.newKey(nil)
	b, _ := h.newKey(nil)
	ctx := args{"one": "1", "two": "2"}
	blob := h.must("Encrypt", args{"KeyId": a, "Plaintext": b64("plain"), "EncryptionContext": ctx}).str("CiphertextBlob")
	got := h.must("Decrypt", args{"CiphertextBlob": blob, "EncryptionContext": ctx})
	if got.str("Plaintext") != b64("plain") || got.str("KeyId") != arnA || got.str("EncryptionAlgorithm") != "SYMMETRIC_DEFAULT" || len(got.str("KeyMaterialId")) != 64 {
		t.Errorf("Decrypt: %s", got)
	}
	sealed, _ := base64.StdEncoding.DecodeString(blob)
	refuse := func(what string, in args) {
		t.Helper()
		if got := h.call("Decrypt", in); got.status != 400 || got.body != `{"__type":"InvalidCiphertextException"}` {
			t.Errorf("%s: %s", what, got)
		}
	}
	for _, c := range []args{nil, {}, {"one": "1"}, {"one": "1", "two": "2 "}, {"One": "1", "two": "2"}, {"one": "1", "two": "2", "three": "3"}, {"on": "e1", "two": "2"}} {
		refuse(fmt.Sprintf("context %v", c), args{"CiphertextBlob": blob, "EncryptionContext": c, "KeyId": a})
	}
	for n := range sealed {
		refuse(fmt.Sprintf("first %d bytes", n), args{"CiphertextBlob": base64.StdEncoding.EncodeToString(append([]byte{}, sealed[:max(n, 1)]...)), "EncryptionContext": ctx, "KeyId": a})
	}
	for i := range sealed {
		bad := slices.Clone(sealed)
		bad[i] ^= 1 << (i % 8)
		in := args{"CiphertextBlob": base64.StdEncoding.EncodeToString(bad), "EncryptionContext": ctx}
		if got := h.call("Decrypt", in); got.status == 200 {
			t.Errorf("byte %d flipped: decrypted", i)
		}
		in["KeyId"] = a
		if got := h.call("Decrypt", in); got.code() != "InvalidCiphertextException" && got.code() != "IncorrectKeyException" {
			t.Errorf("byte %d flipped: %s", i, got)
		}
	}
	const incorrect = "The key ID in the request does not identify a CMK that can perform this operation."
	h.refused("Decrypt", args{"CiphertextBlob": blob, "EncryptionContext": ctx, "KeyId": b}, "IncorrectKeyException", incorrect)
	mac, macARN := h.newKey(args{"KeySpec": "HMAC_224", "KeyUsage": "GENERATE_VERIFY_MAC"})
	wrongUsage := macARN + " key usage is GENERATE_VERIFY_MAC which is not valid for "
	off, offARN := h.newKey(nil)
	h.must("DisableKey", args{"KeyId": off})
	offMAC, offMACARN := h.newKey(args{"KeySpec": "HMAC_224", "KeyUsage": "GENERATE_VERIFY_MAC"})
	h.must("DisableKey", args{"KeyId": offMAC})
	for _, c := range []struct {
		op         string
		in         args
		code, text string
	}{
		{"Decrypt", args{"KeyId": off, "CiphertextBlob": blob}, "IncorrectKeyException", incorrect},
		{"Encrypt", args{"KeyId": off, "Plaintext": b64("x")}, "DisabledException", offARN + " is disabled."},
		{"Encrypt", args{"KeyId": offMAC, "Plaintext": b64("x")}, "InvalidKeyUsageException", offMACARN + " key usage is GENERATE_VERIFY_MAC which is not valid for Encrypt."},
		{"GenerateDataKey", args{"KeyId": off}, "ValidationException", "Please specify either number of bytes or key spec."},
		{"Decrypt", args{"KeyId": mac, "CiphertextBlob": blob}, "IncorrectKeyException", incorrect},
		{"Decrypt", args{"KeyId": mac, "CiphertextBlob": blob, "EncryptionAlgorithm": "RSAES_OAEP_SHA_1"}, "InvalidKeyUsageException", wrongUsage + "Decrypt."},
		{"Decrypt", args{"KeyId": mac, "CiphertextBlob": blob, "DryRun": true, "DryRunModifiers": []string{"IGNORE_CIPHERTEXT"}}, "InvalidKeyUsageException", wrongUsage + "Decrypt."},
		{"ReEncrypt", args{"SourceKeyId": mac, "CiphertextBlob": blob, "DestinationKeyId": b}, "IncorrectKeyException", incorrect},
		{"ReEncrypt", args{"CiphertextBlob": blob, "SourceEncryptionContext": ctx, "DestinationKeyId": mac}, "InvalidKeyUsageException", wrongUsage + "ReEncrypt."},
	} {
		h.refused(c.op, c.in, c.code, c.text)
	}

	moved := h.must("ReEncrypt", args{"CiphertextBlob": blob, "SourceEncryptionContext": ctx, "DestinationKeyId": b})
	if got := h.must("Decrypt", args{"CiphertextBlob": moved.str("CiphertextBlob"), "KeyId": b}); got.str("Plaintext") != b64("plain") {
		t.Errorf("after ReEncrypt: %s", got)
	}

	// Another region's key of that name does not exist: the blob names nothing here.
	h.key.Region = "us-east-1"
	h.refused("Decrypt", args{"CiphertextBlob": blob, "EncryptionContext": ctx}, "AccessDeniedException",
		"The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.")
}

func TestWrongKeyForOperation(t *testing.T) {
	h := newHarness(t)
	sym, symARN := h.newKey(nil)
	sig, sigARN := h.newKey(args{"KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"})
	enc, _ := h.newKey(args{"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"})
	mac, _ := h.newKey(args{"KeySpec": "HMAC_224", "KeyUsage": "GENERATE_VERIFY_MAC"})
	ed, _ := h.newKey(args{"KeySpec": "ECC_NIST_EDWARDS25519", "KeyUsage": "SIGN_VERIFY"})
	mldsa, _ := h.newKey(args{"KeySpec": "ML_DSA_44", "KeyUsage": "SIGN_VERIFY"})
	for _, c := range []struct {
		op         string
		in         args
		code, text string
	}{
		{"Encrypt", args{"KeyId": sig, "Plaintext": b64("x")}, "InvalidKeyUsageException", sigARN + " key usage is SIGN_VERIFY which is not valid for Encrypt."},
		{"DeriveSharedSecret", args{"KeyId": sym, "KeyAgreementAlgorithm": "ECDH", "PublicKey": b64("x")}, "InvalidKeyUsageException", symARN + " key usage is ENCRYPT_DECRYPT which is not valid for DeriveSharedSecret."},
		{"GenerateMac", args{"KeyId": mac, "Message": b64("x"), "MacAlgorithm": "HMAC_SHA_256"}, "InvalidKeyUsageException", "Algorithm HMAC_SHA_256 is incompatible with key spec HMAC_224."},
		{"Sign", args{"KeyId": sig, "Message": b64("x"), "SigningAlgorithm": "ECDSA_SHA_256"}, "InvalidKeyUsageException", "Algorithm ECDSA_SHA_256 is incompatible with key spec RSA_2048."},
		{"Sign", args{"KeyId": sig, "Message": b64("x"), "MessageType": "DIGEST", "SigningAlgorithm": "RSASSA_PSS_SHA_256"}, "ValidationException", "Digest is invalid length for algorithm RSASSA_PSS_SHA_256."},
		{"Encrypt", args{"KeyId": enc, "Plaintext": b64("x")}, "InvalidKeyUsageException", "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048."},
		{"Encrypt", args{"KeyId": enc, "Plaintext": b64(strings.Repeat("x", 215)), "EncryptionAlgorithm": "RSAES_OAEP_SHA_1"}, "ValidationException", "Algorithm RSAES_OAEP_SHA_1 and key spec RSA_2048 cannot encrypt data larger than 214 bytes."},
		{"GenerateDataKey", args{"KeyId": sym}, "ValidationException", "Please specify either number of bytes or key spec."},
		{"GenerateDataKey", args{"KeyId": sym, "KeySpec": "AES_256", "NumberOfBytes": 32}, "ValidationException", "Please specify either number of bytes or key spec."},
		{"GenerateDataKeyPair", args{"KeyId": enc, "KeyPairSpec": "RSA_2048"}, "InvalidKeyUsageException", "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048."},
		{"GenerateRandom", args{}, "ValidationException", "NumberOfBytes is required."},
		{"GenerateRandom", args{"NumberOfBytes": 1025}, "ValidationException", "1 validation error detected: Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024"},
		{"Decrypt", args{}, "ValidationException", "1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null"},
		{"Encrypt", args{"KeyId": sym, "Plaintext": b64("x"), "GrantTokens": []string{"t"}}, "InvalidGrantTokenException", "Invalid grant token: it is malformed, or not one of a grant in eu-west-1."},
		{"GenerateRandom", args{"NumberOfBytes": 8, "Recipient": args{"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": b64("x")}}, "UnsupportedOperationException", "Recipient is not supported: this version of Keymill cannot verify attestation documents."},
		{"GetPublicKey", args{"KeyId": sym}, "UnsupportedOperationException", ""},
		{"GenerateDataKey", args{"KeyId": enc, "KeySpec": "AES_256"}, "InvalidKeyUsageException", "You cannot generate a data key with an asymmetric CMK"},
		{"GenerateDataKeyWithoutPlaintext", args{"KeyId": sig, "NumberOfBytes": 1}, "InvalidKeyUsageException", sigARN + " key usage is SIGN_VERIFY which is not valid for GenerateDataKeyWithoutPlaintext."},
		{"GenerateDataKey", args{"KeyId": sig}, "ValidationException", "Please specify either number of bytes or key spec."}, // before the usage
		{"Sign", args{"KeyId": ed, "Message": b64("x"), "SigningAlgorithm": "ED25519_PH_SHA_512"}, "ValidationException", "Message type RAW is incompatible with algorithm ED25519_PH_SHA_512."},
		{"Sign", args{"KeyId": ed, "Message": b64("x"), "SigningAlgorithm": "ED25519_SHA_512", "MessageType": "DIGEST"}, "ValidationException", "Message type DIGEST is incompatible with algorithm ED25519_SHA_512."},
		{"Sign", args{"KeyId": mldsa, "Message": b64("x"), "SigningAlgorithm": "ML_DSA_SHAKE_256", "MessageType": "DIGEST"}, "ValidationException", "Message type DIGEST is incompatible with key spec ML_DSA_44."},
	} {
		h.refused(c.op, c.in, c.code, c.text)
	}
	for _, c := range []struct {
		op   string
		in   args
		body string
	}{
		{"Verify", args{"KeyId": sig, "Message": b64("x"), "Signature": b64("y"), "SigningAlgorithm": "RSASSA_PSS_SHA_256"}, `{"__type":"KMSInvalidSignatureException"}`},
		{"VerifyMac", args{"KeyId": mac, "Message": b64("x"), "Mac": b64("y"), "MacAlgorithm": "HMAC_SHA_224"}, `{"__type":"KMSInvalidMacException"}`},
		{"Decrypt", args{"KeyId": enc, "CiphertextBlob": b64("y"), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}, `{"__type":"InvalidCiphertextException"}`},
		{"Decrypt", args{"KeyId": enc, "CiphertextBlob": b64("y")}, `{"__type":"InvalidCiphertextException"}`}, // before the algorithm
		{"Decrypt", args{"KeyId": mac, "CiphertextBlob": b64("y")}, `{"__type":"InvalidCiphertextException"}`}, // before the usage
	} {
		if a := h.call(c.op, c.in); a.status != 400 || a.body != c.body {
			t.Errorf("%s %v: %s", c.op, c.in, a)
		}
	}
}

func TestDryRun(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	sig, _ := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})
	const text = "The request would have succeeded, but the DryRun option is set."
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": b64("x")}).str("CiphertextBlob")
	for _, c := range []struct {
		op string
		in args
	}{
		{"Encrypt", args{"KeyId": id, "Plaintext": b64("x")}},
		{"Decrypt", args{"CiphertextBlob": blob}},
		{"Decrypt", args{"KeyId": id, "DryRunModifiers": []string{"IGNORE_CIPHERTEXT"}}},
		{"ReEncrypt", args{"CiphertextBlob": blob, "DestinationKeyId": id}},
		{"ReEncrypt", args{"SourceKeyId": id, "DestinationKeyId": id, "DryRunModifiers": []string{"IGNORE_CIPHERTEXT"}}},
		{"GenerateDataKey", args{"KeyId": id, "KeySpec": "AES_256"}},
		{"GenerateDataKeyPair", args{"KeyId": id, "KeyPairSpec": "RSA_4096"}},
		{"GenerateDataKeyPairWithoutPlaintext", args{"KeyId": id, "KeyPairSpec": "RSA_4096"}},
		{"Sign", args{"KeyId": sig, "Message": b64("x"), "SigningAlgorithm": "ECDSA_SHA_256"}},
	} {
		c.in["DryRun"] = true
		h.refused(c.op, c.in, "DryRunOperationException", text)
	}
	if a := h.call("Decrypt", args{"CiphertextBlob": b64("nonsense"), "DryRun": true}); a.code() != "InvalidCiphertextException" {
		t.Errorf("dry run of a bad ciphertext: %s", a)
	}
	h.refused("Decrypt", args{"KeyId": id, "CiphertextBlob": blob, "DryRunModifiers": []string{"IGNORE_CIPHERTEXT"}}, "ValidationException", "DryRunModifiers can only be used when DryRun is true.")
}

func TestPagination(t *testing.T) {
	h := newHarness(t)
	var keys, names []string
	for i := range 7 {
		id, _ := h.newKey(nil)
		keys = append(keys, id)
		name := fmt.Sprintf("alias/%c", 'a'+i)
		names = append(names, name)
		h.must("CreateAlias", args{"AliasName": name, "TargetKeyId": keys[0]})
		h.must("TagResource", args{"KeyId": keys[0], "Tags": []args{{"TagKey": fmt.Sprint(i), "TagValue": "v"}}})
	}
	slices.Sort(keys)
	for _, c := range []struct {
		op, list, item string
		in             args
		want           []string
	}{
		{"ListKeys", "Keys", "KeyId", args{}, keys},
		{"ListAliases", "Aliases", "AliasName", args{}, withManaged(names)},
		{"ListAliases", "Aliases", "AliasName", args{"KeyId": ""}, names},
		{"ListResourceTags", "Tags", "TagKey", args{"KeyId": keys[0]}, nil},
	} {
		if k, ok := c.in["KeyId"]; ok {
			if k == "" {
				c.in["KeyId"] = h.must("ListAliases", nil).fields["Aliases"].([]any)[0].(map[string]any)["TargetKeyId"]
			} else {
				c.in["KeyId"] = h.must("ListAliases", nil).fields["Aliases"].([]any)[0].(map[string]any)["TargetKeyId"]
				c.want = []string{"0", "1", "2", "3", "4", "5", "6"}
			}
		}
		for _, limit := range []int{1, 2, 3, 7, 8} {
			in := maps.Clone(c.in)
			in["Limit"] = limit
			var got []string
			for pages := 0; ; pages++ {
				a := h.must(c.op, in)
				items := a.fields[c.list].([]any)
				for _, it := range items {
					got = append(got, it.(map[string]any)[c.item].(string))
				}
				if len(items) > limit || pages > 40 {
					t.Fatalf("%s: page of %d with limit %d", c.op, len(items), limit)
				}
				next, ok := a.fields["NextMarker"]
				if ok != a.fields["Truncated"].(bool) {
					t.Fatalf("%s: Truncated %v, NextMarker %v", c.op, a.fields["Truncated"], next)
				}
				if !ok {
					break
				}
				in["Marker"] = next
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("%s %v in pages of %d (-want +got):\n%s", c.op, c.in, limit, d)
			}
		}
		for _, m := range []string{"x", "!!", b64("ListGrants\x00a")} {
			in := maps.Clone(c.in)
			in["Marker"] = m
			if a := h.call(c.op, in); a.code() != "InvalidMarkerException" {
				t.Errorf("%s with marker %q: %s", c.op, m, a)
			}
		}
	}
	// A marker is one list's only.
	m := h.must("ListKeys", args{"Limit": 1}).fields["NextMarker"]
	if a := h.call("ListAliases", args{"Marker": m}); a.code() != "InvalidMarkerException" {
		t.Errorf("ListAliases with ListKeys' marker: %s", a)
	}
}

// withManaged adds the predefined aliases to names.
func withManaged(names []string) []string {
	names = slices.Clone(names)
	for _, service := range managedServices {
		names = append(names, managedPrefix+service)
	}
	slices.Sort(names)
	return names
}

func TestAliases(t *testing.T) {
	h := newHarness(t)
	a, arnA := h.newKey(nil)
	b, _ := h.newKey(nil)
	mac, _ := h.newKey(args{"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"})
	arn := "arn:aws:kms:" + testRegion + ":" + testAccount + ":alias/x"
	if got := h.must("CreateAlias", args{"AliasName": "alias/x", "TargetKeyId": a}); got.body != "" {
		t.Errorf("CreateAlias answers %q, want an empty body", got.body)
	}
	h.refused("CreateAlias", args{"AliasName": "alias/x", "TargetKeyId": b}, "AlreadyExistsException", "An alias with the name "+arn+" already exists")
	h.refused("CreateAlias", args{"AliasName": "x", "TargetKeyId": b}, "ValidationException", "Alias must start with the prefix \"alias/\". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html")
	h.refused("CreateAlias", args{"AliasName": "alias/y", "TargetKeyId": "alias/x"}, "ValidationException", "Aliases must refer to keys. Not aliases")
	h.refused("CreateAlias", args{"AliasName": "alias/aws/s3", "TargetKeyId": b}, "NotAuthorizedException", "Aliases that begin with alias/aws/ are reserved.")
	h.refused("UpdateAlias", args{"AliasName": "alias/y", "TargetKeyId": b}, "NotFoundException", "Alias "+strings.Replace(arn, "/x", "/y", 1)+" is not found.")
	if got := h.call("UpdateAlias", args{"AliasName": "alias/x", "TargetKeyId": mac}); got.code() != "ValidationException" {
		t.Errorf("UpdateAlias to a MAC key: %s", got)
	}
	if got := h.must("DescribeKey", args{"KeyId": "alias/x"}).fields["KeyMetadata"].(map[string]any)["Arn"]; got != arnA {
		t.Errorf("alias/x is %s", got)
	}
	h.must("UpdateAlias", args{"AliasName": "alias/x", "TargetKeyId": b})
	if got := h.must("DescribeKey", args{"KeyId": "alias/x"}).fields["KeyMetadata"].(map[string]any)["KeyId"]; got != b {
		t.Errorf("after UpdateAlias alias/x is %s", got)
	}
	if got := h.must("ListAliases", args{"KeyId": a}).fields["Aliases"].([]any); len(got) != 0 {
		t.Errorf("the old key still lists %v", got)
	}
	h.must("DeleteAlias", args{"AliasName": "alias/x"})
	h.refused("DescribeKey", args{"KeyId": "alias/x"}, "NotFoundException", "Alias "+arn+" is not found.")
	h.refused("DeleteAlias", args{"AliasName": "alias/x"}, "NotFoundException", "Alias "+arn+" is not found.")
	for i := range 50 {
		h.must("CreateAlias", args{"AliasName": fmt.Sprintf("alias/n%d", i), "TargetKeyId": a})
	}
	if got := h.call("CreateAlias", args{"AliasName": "alias/toomany", "TargetKeyId": a}); got.code() != "LimitExceededException" {
		t.Errorf("alias number 51: %s", got)
	}
}

func TestPolicies(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	var doc map[string]any
	if err := json.Unmarshal([]byte(h.must("GetKeyPolicy", args{"KeyId": id}).str("Policy")), &doc); err != nil {
		t.Fatal(err)
	}
	if doc["Id"] != "key-default-1" {
		t.Errorf("default policy: %v", doc)
	}
	open := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + testAccount + `"},"Action":"kms:*","Resource":"*"}]}`
	closed := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"999999999999"},"Action":"kms:*","Resource":"*"}]}`
	h.must("PutKeyPolicy", args{"KeyId": id, "Policy": open})
	h.refused("PutKeyPolicy", args{"KeyId": id, "Policy": closed}, "MalformedPolicyDocumentException", "The new key policy will not allow you to update the key policy in the future.")
	if got := h.must("GetKeyPolicy", args{"KeyId": id, "PolicyName": "default"}); got.str("Policy") != open || got.str("PolicyName") != "default" {
		t.Errorf("GetKeyPolicy: %s", got)
	}
	h.must("PutKeyPolicy", args{"KeyId": id, "Policy": closed, "BypassPolicyLockoutSafetyCheck": true})
	h.refused("PutKeyPolicy", args{"KeyId": id, "Policy": open, "PolicyName": "other"}, "UnsupportedOperationException", "Only default policy is supported")
	h.refused("GetKeyPolicy", args{"KeyId": id, "PolicyName": "other"}, "NotFoundException", "No such policy exists")
}

// TestRefusedBeforeTheOperation: what is wrong with a request as such.
func TestRefusedBeforeTheOperation(t *testing.T) {
	h := newHarness(t)
	change := func(f func(r *sigv4test.Request)) []byte {
		r := &sigv4test.Request{Method: "POST", Path: "/", Body: "{}", Headers: []sigv4test.Header{
			{"Host", "localhost"}, {"Content-Type", "application/x-amz-json-1.1"}, {"X-Amz-Target", "TrentService.ListKeys"}, {"Content-Length", "2"},
		}}
		f(r)
		if r.Get("Authorization") == "" && r.Get("unsigned") == "" {
			r.Sign(h.key, h.now)
		}
		return raw(r)
	}
	for _, c := range []struct {
		name   string
		change func(r *sigv4test.Request)
		status int
		code   string
	}{
		{"nothing", func(*sigv4test.Request) {}, 200, ""},
		{"method", func(r *sigv4test.Request) { r.Method = "PUT" }, 405, "UnknownOperationException"},
		{"path", func(r *sigv4test.Request) { r.Path = "/x" }, 404, "UnknownOperationException"},
		{"media type", func(r *sigv4test.Request) { r.Set("Content-Type", "application/json") }, 415, "UnknownOperationException"},
		{"media type with parameter", func(r *sigv4test.Request) { r.Set("Content-Type", "application/x-amz-json-1.1; charset=utf-8") }, 200, ""},
		{"target", func(r *sigv4test.Request) { r.Set("X-Amz-Target", "TrentService.Nope") }, 400, "UnknownOperationException"},
		{"target of another service", func(r *sigv4test.Request) { r.Set("X-Amz-Target", "DynamoDB_20120810.ListTables") }, 400, "UnknownOperationException"},
		{"no target", func(r *sigv4test.Request) { r.Headers = slices.Delete(r.Headers, 2, 3) }, 400, "UnknownOperationException"},
		{"no signature", func(r *sigv4test.Request) { r.Set("unsigned", "1") }, 400, "MissingAuthenticationTokenException"},
		{"presigned", func(r *sigv4test.Request) {
			r.Set("unsigned", "1")
			r.Query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Target=TrentService.ListKeys&X-Amz-Signature=00"
			r.Headers = slices.Delete(r.Headers, 2, 3)
		}, 400, "IncompleteSignatureException"},
		{"query", func(r *sigv4test.Request) { r.Query = "a=b" }, 200, ""},
		{"garbage signature", func(r *sigv4test.Request) { r.Set("Authorization", "AWS4-HMAC-SHA256 x") }, 400, "IncompleteSignatureException"},
		{"body not JSON", func(r *sigv4test.Request) { r.Body = "{]" }, 400, "SerializationException"},
		{"wrong type", func(r *sigv4test.Request) { r.Body = `{"Limit":"1"}`; r.Set("Content-Length", "13") }, 400, "SerializationException"},
		{"no body", func(r *sigv4test.Request) { r.Body = ""; r.Set("Content-Length", "0") }, 200, ""},
	} {
		a := h.send(change(c.change))
		if a.status != c.status || a.code() != c.code {
			t.Errorf("%s: %s, want %d %s", c.name, a, c.status, c.code)
		}
	}
}
