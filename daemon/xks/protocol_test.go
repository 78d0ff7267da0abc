package xks

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"keymill/daemon/wire"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestIntegrityVector is the example of the protocol's document.
func TestIntegrityVector(t *testing.T) {
	sum := Integrity([]byte("project=nile,department=marketing"), []byte("key_version=1"),
		unhex(t, "1ccae5470f39700254779031"), unhex(t, "821c642b5b71783367deaf18"), unhex(t, "bc1c4dda7707d6812447c5955e99b261"))
	if got := base64.StdEncoding.EncodeToString(sum[:]); got != "qHA/ImC9h5HsLRXqCyPmWgYx7tzyoTplzILbP0fPXsc=" {
		t.Error(got)
	}
	if got := hex.EncodeToString(sum[:]); got != "a8703f2260bd8791ec2d15ea0b23e65a0631eedcf2a13a65cc82db3f47cf5ec7" {
		t.Error(got)
	}
	if Integrity(nil, nil, nil, nil, nil) != Integrity([]byte{}, nil, nil, nil, nil) {
		t.Error("absent is not empty")
	}
}

// fields builds a JSON object from pairs of name and raw value.
func fields(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, ",%q:%s", pairs[i], pairs[i+1])
	}
	return "{" + strings.TrimPrefix(b.String(), ",") + "}"
}

func b64(n int) string {
	return `"` + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, n)) + `"`
}

// without returns pairs without a name, or with another value.
func without(pairs []string, name string, value ...string) []string {
	var out []string
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i] != name {
			out = append(out, pairs[i], pairs[i+1])
		} else if len(value) > 0 {
			out = append(out, name, value[0])
		}
	}
	return out
}

// TestRequestRules: the rules on requests, one by one.
func TestRequestRules(t *testing.T) {
	meta := fields("awsPrincipalArn", `"`+callerARN+`"`, "kmsKeyArn", `"`+kmsARN+`"`, "kmsOperation", `"Encrypt"`, "kmsRequestId", `"id"`)
	enc := []string{"requestMetadata", meta, "plaintext", b64(5), "encryptionAlgorithm", `"AES_GCM"`}
	dec := []string{"requestMetadata", meta, "ciphertext", b64(5), "encryptionAlgorithm", `"AES_GCM"`, "initializationVector", b64(12), "authenticationTag", b64(16)}
	health := fields("requestMetadata", fields("kmsOperation", `"KmsHealthCheck"`, "kmsRequestId", `"id"`))
	arn := `"arn:` + strings.Repeat("a", 2044) + `"`
	long := fields("awsPrincipalArn", arn, "kmsKeyArn", arn, "kmsOperation", `"Encrypt"`, "kmsRequestId", `"id"`)
	for _, c := range []struct {
		name   string
		action Action
		body   string
		want   string // "" passes; "501 " a value that is too large here
	}{
		{"encrypt", Encrypt, fields(enc...), ""},
		{"no body", Encrypt, "", "requestMetadata is required"},
		{"not JSON", Encrypt, "plaintext", "JSON"},
		{"no metadata", Encrypt, fields(without(enc, "requestMetadata")...), "requestMetadata is required"},
		{"null metadata", Encrypt, fields(without(enc, "requestMetadata", "null")...), "requestMetadata is required"},
		{"ARNs of full length", Encrypt, fields(without(enc, "requestMetadata", long)...), ""},
		{"ARN too long", Encrypt, fields(without(enc, "requestMetadata", strings.ReplaceAll(long, "arn:", "arn:x"))...), "longer than 2048"},
		{"no plaintext", Encrypt, fields(without(enc, "plaintext")...), "plaintext is required"},
		{"empty plaintext", Encrypt, fields(without(enc, "plaintext", `""`)...), ""},
		{"plaintext no Base64", Encrypt, fields(without(enc, "plaintext", `"*"`)...), "Base64"},
		{"plaintext without padding", Encrypt, fields(without(enc, "plaintext", `"AA"`)...), "Base64"},
		{"plaintext a number", Encrypt, fields(without(enc, "plaintext", `7`)...), "Base64 string"},
		{"largest plaintext", Encrypt, fields(without(enc, "plaintext", b64(4300))...), ""},
		{"plaintext too large", Encrypt, fields(without(enc, "plaintext", b64(4301))...), "501 "},
		{"largest AAD", Encrypt, fields(append(enc, "additionalAuthenticatedData", b64(8192))...), ""},
		{"AAD too large", Encrypt, fields(append(enc, "additionalAuthenticatedData", b64(8193))...), "501 "},
		{"no algorithm", Encrypt, fields(without(enc, "encryptionAlgorithm")...), "encryptionAlgorithm"},
		{"other algorithm", Encrypt, fields(without(enc, "encryptionAlgorithm", `"AES_CBC"`)...), "encryptionAlgorithm"},
		{"integrity", Encrypt, fields(append(enc, "ciphertextDataIntegrityValueAlgorithm", `"SHA_256"`)...), ""},
		{"other integrity", Encrypt, fields(append(enc, "ciphertextDataIntegrityValueAlgorithm", `"SHA_512"`)...), "SHA_256"},
		{"unknown members", Encrypt, fields(append(enc, "new", `[{"a":null}]`)...), ""},
		{"unknown operation", Encrypt, fields(without(enc, "requestMetadata", strings.Replace(meta, `"Encrypt"`, `"FutureOperation"`, 1))...), ""},
		{"unknown member in metadata", Encrypt, fields(without(enc, "requestMetadata", strings.Replace(meta, "{", `{"new":1,`, 1))...), ""},
		{"member twice", Encrypt, fields(append(enc, "plaintext", b64(1))...), "more than once"},
		{"all at once", Encrypt, fields("requestMetadata", long, "plaintext", b64(4300), "encryptionAlgorithm", `"AES_GCM"`, "additionalAuthenticatedData", b64(8192)), ""},
		{"no principal", Encrypt, fields(without(enc, "requestMetadata", strings.Replace(meta, "awsPrincipalArn", "x", 1))...), "awsPrincipalArn is required"},
		{"no key ARN", Encrypt, fields(without(enc, "requestMetadata", strings.Replace(meta, "kmsKeyArn", "x", 1))...), "kmsKeyArn is required"},
		{"no operation", Encrypt, fields(without(enc, "requestMetadata", strings.Replace(meta, "kmsOperation", "x", 1))...), "kmsOperation is required"},
		{"no request id", Encrypt, fields(without(enc, "requestMetadata", strings.Replace(meta, "kmsRequestId", "x", 1))...), "kmsRequestId is required"},

		{"decrypt", Decrypt, fields(dec...), ""},
		{"no ciphertext", Decrypt, fields(without(dec, "ciphertext")...), "ciphertext is required"},
		{"largest ciphertext", Decrypt, fields(without(dec, "ciphertext", b64(4300))...), ""},
		{"no IV", Decrypt, fields(without(dec, "initializationVector")...), "initializationVector"},
		{"IV of 16", Decrypt, fields(without(dec, "initializationVector", b64(16))...), ""},
		{"IV of 13", Decrypt, fields(without(dec, "initializationVector", b64(13))...), "initializationVector"},
		{"no tag", Decrypt, fields(without(dec, "authenticationTag")...), "authenticationTag"},
		{"short tag", Decrypt, fields(without(dec, "authenticationTag", b64(15))...), "authenticationTag"},
		{"metadata of 20", Decrypt, fields(append(dec, "ciphertextMetadata", b64(20))...), ""},
		{"metadata of 21", Decrypt, fields(append(dec, "ciphertextMetadata", b64(21))...), "ciphertextMetadata"},

		{"metadata", Metadata, fields("requestMetadata", strings.Replace(meta, "kmsKeyArn", "x", 1)), ""},
		{"metadata without principal", Metadata, fields("requestMetadata", strings.Replace(meta, "awsPrincipalArn", "x", 1)), "awsPrincipalArn"},
		{"health", Health, health, ""},
		{"health without operation", Health, strings.Replace(health, "kmsOperation", "x", 1), "kmsOperation"},
		{"body too long", Health, health + strings.Repeat(" ", MaxBody), "longer"},
	} {
		var d wire.Decoder
		_, err := DecodeRequest(&d, c.action, []byte(c.body))
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		m, ok := err.(*errMessage)
		if !ok {
			t.Errorf("%s: %v", c.name, err)
		} else if c.want == "501 " != m.unsupported || !m.unsupported && !strings.Contains(m.text, c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestResponseRules: the rules on responses, one by one.
func TestResponseRules(t *testing.T) {
	meta := []string{"keySpec", `"AES_256"`, "keyUsage", `["SIGN","ENCRYPT","DECRYPT"]`, "keyStatus", `"ENABLED"`}
	enc := []string{"ciphertext", b64(5), "initializationVector", b64(12), "authenticationTag", b64(16)}
	fleet := `{"id":"a","model":"b","healthStatus":"ACTIVE"}`
	health := []string{"xksProxyFleetSize", "2", "xksProxyVendor", `"v"`, "xksProxyModel", `"m"`, "ekmVendor", `"e"`, "ekmFleetDetails", "[" + fleet + "]"}
	eleven := func(s string) string { return strings.TrimSuffix(strings.Repeat(s+",", 11), ",") }
	for _, c := range []struct {
		name   string
		action Action
		body   string
		want   string
	}{
		{"metadata", Metadata, fields(meta...), ""},
		{"no spec", Metadata, fields(without(meta, "keySpec")...), "required"},
		{"no usage", Metadata, fields(without(meta, "keyUsage")...), "required"},
		{"no status", Metadata, fields(without(meta, "keyStatus")...), "required"},
		{"unknown status", Metadata, fields(without(meta, "keyStatus", `"BUSY"`)...), "keyStatus"},
		{"eleven usages", Metadata, fields(without(meta, "keyUsage", "["+eleven(`"ENCRYPT"`)+"]")...), "keyUsage"},
		{"usage a string", Metadata, fields(without(meta, "keyUsage", `"ENCRYPT"`)...), "list"},
		{"encrypt", Encrypt, fields(enc...), ""},
		{"no ciphertext", Encrypt, fields(without(enc, "ciphertext")...), "ciphertext"},
		{"IV of 16", Encrypt, fields(without(enc, "initializationVector", b64(16))...), ""},
		{"IV of 11", Encrypt, fields(without(enc, "initializationVector", b64(11))...), "initializationVector"},
		{"tag of 12", Encrypt, fields(without(enc, "authenticationTag", b64(12))...), "authenticationTag"},
		{"metadata of 21", Encrypt, fields(append(enc, "ciphertextMetadata", b64(21))...), "ciphertextMetadata"},
		{"decrypt", Decrypt, fields("plaintext", b64(5)), ""},
		{"no plaintext", Decrypt, `{}`, "plaintext"},
		{"health", Health, fields(health...), ""},
		{"no fleet size", Health, fields(without(health, "xksProxyFleetSize", "0")...), "xksProxyFleetSize"},
		{"fleet size a string", Health, fields(without(health, "xksProxyFleetSize", `"1"`)...), "integer"},
		{"no vendor", Health, fields(without(health, "xksProxyVendor")...), "required"},
		{"no managers", Health, fields(without(health, "ekmFleetDetails", "[]")...), "ekmFleetDetails"},
		{"eleven managers", Health, fields(without(health, "ekmFleetDetails", "["+eleven(fleet)+"]")...), "ekmFleetDetails"},
		{"unknown health", Health, fields(without(health, "ekmFleetDetails", "["+strings.Replace(fleet, "ACTIVE", "FINE", 1)+"]")...), "healthStatus"},
	} {
		var d wire.Decoder
		_, err := DecodeResponse(&d, c.action, []byte(c.body))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestAppend: what one side writes the other reads as the same.
func TestAppend(t *testing.T) {
	var d wire.Decoder
	q := &Request{
		Call:      Call{"p", "vpc-1", "vpce-1", "k", "Encrypt", `id "quoted"`, "ebs"},
		Algorithm: AESGCM, Plaintext: []byte("plain"), AAD: []byte{}, Integrity: SHA256,
	}
	if got, err := DecodeRequest(&d, Encrypt, q.Append(nil)); err != nil || !reflect.DeepEqual(got, q) {
		t.Errorf("%+v: %v", got, err)
	}
	q = &Request{Call: q.Call, Algorithm: AESGCM, Ciphertext: []byte{1}, Metadata: []byte{2}, IV: make([]byte, 12), Tag: make([]byte, 16)}
	if got, err := DecodeRequest(&d, Decrypt, q.Append(nil)); err != nil || !reflect.DeepEqual(got, q) {
		t.Errorf("%+v: %v", got, err)
	}
	for a, r := range map[Action]*Response{
		Metadata: {KeySpec: SpecAES256, KeyUsage: []string{UsageEncrypt, UsageDecrypt}, KeyStatus: StatusEnabled},
		Encrypt:  {Ciphertext: []byte("c"), Metadata: []byte("m"), IV: make([]byte, 16), Tag: make([]byte, 16), Integrity: make([]byte, 32)},
		Decrypt:  {Plaintext: []byte("p")},
		Health:   {FleetSize: 3, Vendor: "v", Model: "m", Maker: "e", Fleet: []Manager{{"a", "b", HealthActive}, {"c", "d", HealthDegraded}}},
	} {
		if got, err := DecodeResponse(&d, a, r.Append(nil)); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%v: %+v: %v", a, got, err)
		}
	}
}

func TestValidKeyID(t *testing.T) {
	for id, want := range map[string]bool{
		"a": true, "A.b_c-9": true, strings.Repeat("x", 128): true, "...": true, "..a": true,
		"": false, ".": false, "..": false, strings.Repeat("x", 129): false, "a/b": false, "a b": false, "ä": false, "a%2e": false,
	} {
		if ValidKeyID(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}

// TestMapping: the table of the reference page, cell by cell.
func TestMapping(t *testing.T) {
	const (
		state   = "CustomKeyStoreInvalidStateException"
		resp    = "XksProxyInvalidResponseException"
		reach   = "XksProxyUriUnreachableException"
		keyConf = "XksKeyInvalidConfigurationException"
	)
	for _, c := range []struct {
		reason             Reason
		name               string
		status             int
		store, key, connec string
		gist               string
	}{
		{ValidationException, "ValidationException", 400, resp, state, "XKS_PROXY_INVALID_RESPONSE", "cannot be interpreted"},
		{InvalidStateException, "InvalidStateException", 400, resp, keyConf, "XKS_PROXY_INVALID_RESPONSE", "not enabled"},
		{InvalidCiphertextException, "InvalidCiphertextException", 400, resp, state, "XKS_PROXY_INVALID_RESPONSE", "encryption context is corrupted, missing, or otherwise invalid"},
		{InvalidKeyUsageException, "InvalidKeyUsageException", 400, resp, keyConf, "XKS_PROXY_INVALID_RESPONSE", "does not support this operation"},
		{AuthenticationFailedException, "AuthenticationFailedException", 401, "XksProxyIncorrectAuthenticationCredentialException", state, "INVALID_CREDENTIALS", "could not authenticate"},
		{AccessDeniedException, "AccessDeniedException", 403, resp, state, "XKS_PROXY_ACCESS_DENIED", "denied access"},
		{KeyNotFoundException, "KeyNotFoundException", 404, resp, "XksKeyNotFoundException", "XKS_PROXY_INVALID_RESPONSE", "could not find the external key"},
		{InvalidURIPathException, "InvalidUriPathException", 404, "XksProxyInvalidConfigurationException", state, "XKS_PROXY_INVALID_CONFIGURATION", "URI path"},
		{UnsupportedOperationException, "UnsupportedOperationException", 501, resp, state, "XKS_PROXY_INVALID_RESPONSE", "does not support"},
		{DependencyTimeoutException, "DependencyTimeoutException", 503, reach, state, "XKS_PROXY_TIMED_OUT", "time allotted"},
		{ThrottlingException, "ThrottlingException", 429, reach, state, "XKS_PROXY_NOT_REACHABLE", "very high request rate"},
		{InternalException, "InternalException", 500, resp, state, "XKS_PROXY_INVALID_RESPONSE", "cannot reach the external key manager"},
		{MalformedReply, "malformed reply", 0, resp, state, "XKS_PROXY_INVALID_RESPONSE", "cannot be interpreted"},
		{Unreachable, "unreachable", 0, reach, state, "XKS_PROXY_NOT_REACHABLE", "cannot be reached"},
		{TLSFailed, "TLS failed", 0, reach, state, "XKS_PROXY_INVALID_TLS_CONFIGURATION", "TLS"},
		{TimedOut, "timed out", 0, reach, state, "XKS_PROXY_TIMED_OUT", "time allotted"},
		{NotConnected, "not connected", 0, state, state, "INTERNAL_ERROR", "not connected"},
		{ManagersDown, "key managers unavailable", 0, reach, state, "XKS_PROXY_NOT_REACHABLE", "none of its external key managers"},
		{KeyMisconfigured, "key of another kind", 0, resp, keyConf, "XKS_PROXY_INVALID_RESPONSE", "256-bit AES"},
		{BadConfiguration, "bad configuration", 0, "XksProxyInvalidConfigurationException", state, "XKS_PROXY_INVALID_CONFIGURATION", "endpoint or path"},
		{ConnectionRefused, "reserved address", 0, reach, state, "XKS_PROXY_NOT_REACHABLE", "cannot be reached"},
	} {
		err := fmt.Errorf("somewhere: %w", NewError(c.reason, fmt.Errorf("what the proxy said")))
		store, key, crypto := StoreError(err), KeyError(err), CryptoError(err)
		if c.reason.String() != c.name || c.reason.row().status != c.status || store.Code != c.store || key.Code != c.key ||
			crypto.Code != "KMSInvalidStateException" || ConnectionCode(err) != c.connec {
			t.Errorf("%v: %d, %s, %s, %s, %s", c.reason, c.reason.row().status, store.Code, key.Code, crypto.Code, ConnectionCode(err))
		}
		for _, e := range []*wire.Error{store, key, crypto} {
			if !strings.Contains(e.Message, c.gist) || strings.Contains(e.Message, "proxy said") || e.NoMessage || e.Status != 400 {
				t.Errorf("%v: %q", c.reason, e.Message)
			}
		}
	}
	if StoreError(nil) != nil || KeyError(fmt.Errorf("other")) != nil || CryptoError(nil) != nil || ConnectionCode(fmt.Errorf("other")) != "INTERNAL_ERROR" {
		t.Error("an error of somebody else is mapped")
	}
}
