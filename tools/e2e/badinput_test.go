package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
)

const signatureMismatch = "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."

// TestBadRequests: each wrong request has an answer of its own, and none changes
// anything. Every case starts from a request that would schedule the deletion of
// a key, unless it says otherwise.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	id := s.symmetricKey()
	must(s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: ptr("alias/stays"), TargetKeyId: &id}))(t)
	must(s.TagResource(s.ctx(), &kms.TagResourceInput{KeyId: &id, Tags: []types.Tag{{TagKey: ptr("a"), TagValue: ptr("b")}}}))(t)
	body := `{"KeyId":"` + id + `"}`
	before := s.everything()

	stamp := func(at time.Time) string { return at.UTC().Format("20060102T150405Z") }
	for _, tc := range []struct {
		name   string
		change func(*rawCall)
		status int
		code   string
		text   string
	}{
		// Who is calling.
		{"unsigned", func(r *rawCall) { r.unsigned = true }, 400, "MissingAuthenticationTokenException", "Missing Authentication Token"},
		{"empty Authorization", func(r *rawCall) { r.after = setHeader("Authorization", "") }, 400, "...", "..."},
		{"another scheme", func(r *rawCall) { r.after = setHeader("Authorization", "Basic YTpi") }, 400, "IncompleteSignatureException", "Unsupported AWS 'algorithm': 'Basic'..."},
		{"no parameters", func(r *rawCall) { r.after = setHeader("Authorization", "AWS4-HMAC-SHA256") }, 400, "IncompleteSignatureException", "Authorization header requires 'Credential' parameter. Authorization header requires 'Signature' parameter. Authorization header requires 'SignedHeaders' parameter. ..."},
		{"no signature", func(r *rawCall) {
			r.after = func(q *http.Request) {
				a, _, _ := strings.Cut(q.Header.Get("Authorization"), ", Signature=")
				q.Header.Set("Authorization", a)
			}
		}, 400, "IncompleteSignatureException", "Authorization header requires 'Signature' parameter. ..."},
		{"malformed credential", func(r *rawCall) { r.after = replaceAuth("/kms/aws4_request", "/kms") }, 400, "IncompleteSignatureException", "..."},
		{"unknown access key", func(r *rawCall) { r.creds.AccessKeyID = "AKIAUNKNOWNUNKNOWN77" }, 400, "UnrecognizedClientException", "The security token included in the request is invalid."},
		{"wrong secret", func(r *rawCall) { r.creds.SecretAccessKey += "x" }, 400, "InvalidSignatureException", signatureMismatch},
		{"one digit of the signature", func(r *rawCall) {
			r.after = func(q *http.Request) {
				a := []byte(q.Header.Get("Authorization"))
				a[len(a)-1] = "0123456789abcdef"[(strings.IndexByte("0123456789abcdef", a[len(a)-1])+1)%16]
				q.Header.Set("Authorization", string(a))
			}
		}, 400, "InvalidSignatureException", signatureMismatch},
		{"session token", func(r *rawCall) { r.creds.SessionToken = "token" }, 400, "UnrecognizedClientException", "The security token included in the request is invalid."},
		{"presigned", func(r *rawCall) {
			r.presign = true
			r.after = setHeader("X-Amz-Target", "TrentService.ScheduleKeyDeletion") // the SDK moves it into the query
		}, 400, "IncompleteSignatureException", "Query-string authentication (a presigned request) is not supported; ..."},
		{"ten minutes old", func(r *rawCall) { r.at = time.Now().Add(-10 * time.Minute) }, 400, "InvalidSignatureException", "Signature expired: ..."},
		{"ten minutes early", func(r *rawCall) { r.at = time.Now().Add(10 * time.Minute) }, 400, "InvalidSignatureException", "Signature not yet current: ..."},
		{"date moved after signing", func(r *rawCall) { r.after = setHeader("X-Amz-Date", stamp(time.Now().Add(-time.Minute))) }, 400, "InvalidSignatureException", "..."},
		{"date in another form", func(r *rawCall) { r.after = setHeader("X-Amz-Date", time.Now().UTC().Format(time.RFC1123)) }, 400, "IncompleteSignatureException", "Date must be in ISO-8601 'basic format'...."},
		{"no date", func(r *rawCall) { r.after = func(q *http.Request) { q.Header.Del("X-Amz-Date") } }, 400, "IncompleteSignatureException", "..."},
		{"another region in the scope, served", func(r *rawCall) { r.after = replaceAuth("/"+s.region+"/", "/eu-west-1/") }, 400, "InvalidSignatureException", signatureMismatch},
		{"no region in the scope", func(r *rawCall) { r.region = "NOWHERE" }, 400, "InvalidSignatureException", "Credential should be scoped to a valid region..."},
		{"another service", func(r *rawCall) { r.service = "s3" }, 400, "InvalidSignatureException", "Credential should be scoped to correct service: 'kms'...."},
		{"target not signed", func(r *rawCall) {
			r.header.Del("X-Amz-Target")
			r.after = setHeader("X-Amz-Target", "TrentService.ScheduleKeyDeletion")
		}, 400, "InvalidSignatureException", "'X-Amz-Target' must be a 'SignedHeader' in the AWS Authorization...."},

		// Tampered with on the way.
		{"body changed", func(r *rawCall) {
			r.after = func(q *http.Request) {
				b := `{"PendingWindowInDays":7,` + body[1:]
				q.Body, q.ContentLength = io.NopCloser(strings.NewReader(b)), int64(len(b))
			}
		}, 400, "InvalidSignatureException", signatureMismatch},
		{"target changed", func(r *rawCall) { r.after = setHeader("X-Amz-Target", "TrentService.DisableKey") }, 400, "InvalidSignatureException", signatureMismatch},
		{"host changed", func(r *rawCall) { r.after = func(q *http.Request) { q.Host = "kms.us-east-1.example" } }, 400, "InvalidSignatureException", signatureMismatch},
		{"query added", func(r *rawCall) { r.after = func(q *http.Request) { q.URL.RawQuery = "a=b" } }, 400, "InvalidSignatureException", signatureMismatch},
		{"signed header repeated", func(r *rawCall) {
			r.after = func(q *http.Request) { q.Header.Add("X-Amz-Target", "TrentService.DisableKey") }
		}, 400, "IncompleteSignatureException", "'X-Amz-Target' must be sent exactly once; the request has 2 of it...."},

		// What is asked for.
		{"unknown operation", func(r *rawCall) { r.header.Set("X-Amz-Target", "TrentService.MeltKey") }, 400, "UnknownOperationException", "..."},
		{"operation in another case", func(r *rawCall) { r.header.Set("X-Amz-Target", "TrentService.scheduleKeyDeletion") }, 400, "UnknownOperationException", "..."},
		{"another target prefix", func(r *rawCall) { r.header.Set("X-Amz-Target", "AmazonKMS.ScheduleKeyDeletion") }, 400, "UnknownOperationException", "..."},
		{"no target", func(r *rawCall) { r.header.Del("X-Amz-Target") }, 400, "UnknownOperationException", "..."},
		{"GET", func(r *rawCall) { r.method = http.MethodGet; r.body = nil }, 405, "UnknownOperationException", "..."},
		{"PUT", func(r *rawCall) { r.method = http.MethodPut }, 405, "UnknownOperationException", "..."},
		{"another path", func(r *rawCall) { r.path = "/keys" }, 404, "UnknownOperationException", "..."},
		{"content type JSON", func(r *rawCall) { r.header.Set("Content-Type", "application/json") }, 415, "UnknownOperationException", "..."},
		{"content type of JSON 1.0", func(r *rawCall) { r.header.Set("Content-Type", "application/x-amz-json-1.0") }, 415, "UnknownOperationException", "..."},
		{"no content type", func(r *rawCall) { r.header.Del("Content-Type") }, 415, "UnknownOperationException", "..."},

		// The body.
		{"not JSON", func(r *rawCall) { r.body = []byte("KeyId=" + id) }, 400, "SerializationException", "..."},
		{"cut JSON", func(r *rawCall) { r.body = []byte(body[:len(body)-1]) }, 400, "SerializationException", "..."},
		{"two documents", func(r *rawCall) { r.body = []byte(body + body) }, 400, "SerializationException", "..."},
		{"an array", func(r *rawCall) { r.body = []byte("[" + body + "]") }, 400, "SerializationException", "..."},
		{"null", func(r *rawCall) { r.body = []byte("null") }, 400, "SerializationException", "..."},
		{"string for a number", func(r *rawCall) { r.body = []byte(`{"KeyId":"` + id + `","PendingWindowInDays":"7"}`) }, 400, "SerializationException", "..."},
		{"fraction for an integer", func(r *rawCall) { r.body = []byte(`{"KeyId":"` + id + `","PendingWindowInDays":7.5}`) }, 400, "SerializationException", "..."},
		{"number for a string", func(r *rawCall) { r.body = []byte(`{"KeyId":7}`) }, 400, "SerializationException", "..."},
		{"object for a string", func(r *rawCall) { r.body = []byte(`{"KeyId":{}}`) }, 400, "SerializationException", "..."},
		{"member twice", func(r *rawCall) { r.body = []byte(`{"KeyId":"` + unknownID + `","KeyId":"` + id + `"}`) }, 400, "SerializationException", "..."},
		{"invalid UTF-8", func(r *rawCall) { r.body = []byte("{\"KeyId\":\"" + id + "\",\"X\":\"\xff\"}") }, 400, "SerializationException", "..."},
		{"nested too deep", func(r *rawCall) {
			r.body = []byte(`{"X":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `,` + body[1:])
		}, 400, "SerializationException", "..."},
		{"member in another case", func(r *rawCall) { r.body = []byte(`{"keyId":"` + id + `"}`) }, 400, "ValidationException", "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null"},
		{"member null", func(r *rawCall) { r.body = []byte(`{"KeyId":null}`) }, 400, "ValidationException", "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null"},
		{"empty body", func(r *rawCall) { r.body = nil }, 400, "ValidationException", "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null"},
		{"out of range", func(r *rawCall) { r.body = []byte(`{"KeyId":"` + id + `","PendingWindowInDays":366}`) }, 400, "ValidationException", "1 validation error detected: Value '366' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value less than or equal to 365"},
		{"integer out of every range", func(r *rawCall) {
			r.body = []byte(`{"KeyId":"` + id + `","PendingWindowInDays":` + strings.Repeat("9", 30) + `}`)
		}, 400, "...", "..."},
		{"over 1 MiB", func(r *rawCall) { r.body = bytes.Repeat([]byte(" "), 1<<20+1) }, 413, "RequestEntityTooLarge", "..."},
		{"just 1 MiB, nonsense", func(r *rawCall) { r.body = bytes.Repeat([]byte("x"), 1<<20) }, 400, "SerializationException", "..."},
		{"1 MiB of headers", func(r *rawCall) { r.after = setHeader("X-Long", strings.Repeat("h", 1<<20)) }, 400, "MalformedHttpRequestException", "The request headers are larger than ..."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := s.raw("ScheduleKeyDeletion", body)
			tc.change(r)
			if tc.code != "..." {
				r.wantRefusal(t, tc.status, tc.code, tc.text)
			} else if got, _ := r.send(t); got.Status != tc.status || !strings.HasPrefix(got.Body, `{"__type":"`) {
				t.Errorf("got %+v", got)
			}
		})
	}
	if diff := compare(before, s.everything()); diff != "" {
		t.Errorf("a refused request changed something (-before +after):\n%s", diff)
	}

	t.Run("and the right one", func(t *testing.T) {
		r := s.raw("ScheduleKeyDeletion", body)
		r.header.Set("Content-Type", contentType+"; charset=utf-8")
		if got, header := r.send(t); got.Status != 200 || header.Get("Date") == "" {
			t.Errorf("%+v, %v", got, header)
		}
	})
}

func setHeader(name, value string) func(*http.Request) {
	return func(q *http.Request) { q.Header.Set(name, value) }
}

func replaceAuth(old, with string) func(*http.Request) {
	return func(q *http.Request) {
		q.Header.Set("Authorization", strings.Replace(q.Header.Get("Authorization"), old, with, 1))
	}
}

// TestUnservedRegion: a daemon of some regions refuses others and names its own.
func TestUnservedRegion(t *testing.T) {
	t.Parallel()
	d := start(t, Options{Regions: "us-east-1,eu-central-1"})
	for _, region := range []string{"us-east-1", "eu-central-1"} {
		storyIn(t, d, region).symmetricKey()
	}
	s := storyIn(t, d, "eu-west-1")
	_, err := s.ListKeys(s.ctx(), &kms.ListKeysInput{})
	wantError(t, err, "InvalidSignatureException", "Credential should be scoped to a valid region...")
	if text := apiErrorOf(err).Text; !strings.Contains(text, "us-east-1") || !strings.Contains(text, "eu-central-1") {
		t.Errorf("%q does not say which regions are served", text)
	}
}

// TestBadCiphertexts: however a blob was damaged, the answer is one and the same,
// byte for byte, so that it tells nothing.
func TestBadCiphertexts(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	id, other := s.symmetricKey(), s.symmetricKey()
	encrypt := func(id, text string, context map[string]string) []byte {
		return must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte(text), EncryptionContext: context}))(t).CiphertextBlob
	}
	a, b := encrypt(id, "first text", nil), encrypt(id, "other text", nil)
	ofOther := encrypt(other, "first text", nil)

	bad := make(map[string][]byte)
	for n := 1; n < len(a); n++ {
		bad[fmt.Sprintf("cut to %d", n)] = a[:n]
	}
	bad["one byte more"] = append(bytes.Clone(a), 0)
	bad["twice"] = append(bytes.Clone(a), a...)
	bad["long"] = append(bytes.Clone(a), make([]byte, 6144-len(a))...)
	bad["zeros"] = make([]byte, len(a))
	bad["text"] = []byte("no ciphertext at all")
	for n := 1; n < len(a); n++ {
		bad[fmt.Sprintf("spliced at %d", n)] = append(bytes.Clone(a[:n]), b[n:]...)
	}
	delete(bad, fmt.Sprintf("spliced at %d", len(a)))
	for name, blob := range bad {
		if bytes.Equal(blob, a) || bytes.Equal(blob, b) {
			delete(bad, name) // the header that both share
		}
	}
	const want = `{"__type":"InvalidCiphertextException"}`
	try := func(t *testing.T, name string, body string, allowed ...string) {
		t.Helper()
		got, _ := s.raw("Decrypt", body).send(t)
		for _, w := range append(allowed, want) {
			if got == (rawAnswer{400, w}) {
				return
			}
		}
		t.Errorf("%s: %+v", name, got)
	}
	blob64 := func(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
	t.Run("damaged", func(t *testing.T) {
		for name, blob := range bad {
			try(t, name, `{"CiphertextBlob":"`+blob64(blob)+`"}`)
			try(t, name+", key named", `{"KeyId":"`+id+`","CiphertextBlob":"`+blob64(blob)+`"}`)
		}
	})
	// A flipped bit may make the blob name a key that is not there, which is what
	// the caller is then told.
	t.Run("bits flipped", func(t *testing.T) {
		elsewhere := errorBody("AccessDeniedException", "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.")
		wrongKey := errorBody("IncorrectKeyException", incorrectKey)
		named := 0
		for bit := range len(a) * 8 {
			blob := bytes.Clone(a)
			blob[bit/8] ^= 1 << (bit % 8)
			body := `{"CiphertextBlob":"` + blob64(blob) + `"}`
			if got, _ := s.raw("Decrypt", body).send(t); got.Body == elsewhere {
				named++
			}
			try(t, fmt.Sprintf("bit %d", bit), body, elsewhere)
			try(t, fmt.Sprintf("bit %d, key named", bit), `{"KeyId":"`+id+`","CiphertextBlob":"`+blob64(blob)+`"}`, wrongKey)
		}
		if named > 17*8 { // the id and its kind
			t.Errorf("%d bits of %d name another key", named, len(a)*8)
		}
	})
	t.Run("header of another key", func(t *testing.T) {
		// Everything up to the first difference of two blobs of one key is header:
		// put the other key's in front of this one's body.
		n := 0
		for n < len(a) && a[n] == b[n] {
			n++
		}
		try(t, "swapped", `{"CiphertextBlob":"`+blob64(append(bytes.Clone(ofOther[:n]), a[n:]...))+`"}`)
	})
	for _, op := range []string{"Decrypt", "ReEncrypt"} {
		r := s.raw(op, fmt.Sprintf(`{"CiphertextBlob":%q,"EncryptionContext":{"a":"b"},"SourceEncryptionContext":{"a":"b"},"DestinationKeyId":%q}`, blob64(a), other))
		r.wantRefusal(t, 400, "InvalidCiphertextException", "")
	}
	// Base64 has one spelling.
	good := blob64(encrypt(id, "ab", nil))
	for name, text := range map[string]string{
		"url alphabet": strings.NewReplacer("A", "-").Replace(good), "line break": good[:8] + `\n` + good[8:],
		"no padding": strings.TrimRight(blob64(append(bytes.Clone(a), 1)), "="), "space": good + " ", "three": good[:len(good)-1],
	} {
		if text == good {
			continue
		}
		t.Run("base64 "+name, func(t *testing.T) {
			got, _ := s.raw("Decrypt", `{"CiphertextBlob":"`+text+`"}`).send(t)
			if got.Status != 400 || !strings.HasPrefix(got.Body, `{"__type":"SerializationException"`) && len(text)%4 != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
	if got := must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: a}))(t); string(got.Plaintext) != "first text" {
		t.Errorf("the undamaged blob decrypts to %q", got.Plaintext)
	}
}

// TestBareErrors: the three errors without a message have none on the wire.
func TestBareErrors(t *testing.T) {
	t.Parallel()
	k := newKeyring(newStory(t))
	bad := base64.StdEncoding.EncodeToString([]byte("bad"))
	k.raw("Decrypt", `{"CiphertextBlob":"`+bad+`"}`).wantRefusal(t, 400, "InvalidCiphertextException", "")
	k.raw("Verify", fmt.Sprintf(`{"KeyId":%q,"Message":%q,"Signature":%q,"SigningAlgorithm":"ECDSA_SHA_256"}`, *k.signer.KeyId, bad, bad)).wantRefusal(t, 400, "KMSInvalidSignatureException", "")
	k.raw("VerifyMac", fmt.Sprintf(`{"KeyId":%q,"Message":%q,"Mac":%q,"MacAlgorithm":"HMAC_SHA_256"}`, *k.mac.KeyId, bad, bad)).wantRefusal(t, 400, "KMSInvalidMacException", "")
}

// TestEmptyAnswers: operations without output answer with no body at all.
func TestEmptyAnswers(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	id := s.symmetricKey()
	for _, c := range []struct{ op, body string }{
		{"CreateAlias", `{"AliasName":"alias/x","TargetKeyId":"` + id + `"}`},
		{"UpdateAlias", `{"AliasName":"alias/x","TargetKeyId":"` + id + `"}`},
		{"DeleteAlias", `{"AliasName":"alias/x"}`},
		{"DisableKey", `{"KeyId":"` + id + `"}`},
		{"EnableKey", `{"KeyId":"` + id + `"}`},
		{"TagResource", `{"KeyId":"` + id + `","Tags":[]}`},
		{"UntagResource", `{"KeyId":"` + id + `","TagKeys":[]}`},
		{"UpdateKeyDescription", `{"KeyId":"` + id + `","Description":""}`},
		{"PutKeyPolicy", `{"KeyId":"` + id + `","Policy":` + fmt.Sprintf("%q", ownerPolicy) + `}`},
	} {
		got, header := s.raw(c.op, c.body).send(t)
		if diff := cmp.Diff(rawAnswer{200, ""}, got); diff != "" {
			t.Errorf("%s: %s", c.op, diff)
		}
		if ct := header.Get("Content-Type"); ct != contentType {
			t.Errorf("%s: Content-Type %q", c.op, ct)
		}
	}
}

// TestBrokenHTTP speaks what is no HTTP request at all; the next caller is not
// disturbed.
func TestBrokenHTTP(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	for name, text := range map[string]string{
		"noise":              "\x00\x01\x02\r\n\r\n",
		"TLS hello":          "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n",
		"two lengths":        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"length and chunked": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"negative length":    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := must(net.Dial("tcp", s.d.Addr()))(t)
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, text); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				return // a closed connection is an answer too
			}
			defer res.Body.Close()
			if res.StatusCode < 400 || res.StatusCode > 499 {
				t.Errorf("status %d", res.StatusCode)
			}
		})
	}
	s.symmetricKey()
}
