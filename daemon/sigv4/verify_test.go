package sigv4_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"keymill/daemon/sigv4"
	"keymill/daemon/sigv4/sigv4test"
	"keymill/daemon/wire"
)

var testKey = sigv4test.Key{ID: "AKIDTESTTESTTESTTEST", Secret: "an example secret access key of forty by", Region: "us-east-1", Service: "kms"}

var testTime = time.Date(2026, 2, 28, 23, 59, 30, 0, time.UTC)

// bench is a verifier with its surroundings in the test's hands.
type bench struct {
	*sigv4.Verifier
	creds map[string]*sigv4.Credential
	now   time.Time
	log   bytes.Buffer
}

func newBench(cacheSize int) *bench {
	b := &bench{now: testTime, creds: map[string]*sigv4.Credential{}}
	b.add(testKey)
	off := *b.creds[testKey.ID]
	off.AccessKeyID, off.Active = "AKIDDISABLED", false
	b.creds[off.AccessKeyID] = &off
	empty := *b.creds[testKey.ID]
	empty.AccessKeyID, empty.Secret = "AKIDNOSECRET", nil
	b.creds[empty.AccessKeyID] = &empty
	b.Verifier = sigv4.New(sigv4.Options{
		Lookup: func(id []byte) *sigv4.Credential { return b.creds[string(id)] },
		Region: func(r []byte) (string, bool) {
			switch string(r) {
			case "us-east-1":
				return "us-east-1", true
			case "eu-central-1":
				return "eu-central-1", true
			}
			return "", false
		},
		Served:    []string{"us-east-1", "eu-central-1"},
		Clock:     func() time.Time { return b.now },
		CacheSize: cacheSize,
		Logger:    slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	return b
}

func (b *bench) add(k sigv4test.Key) *sigv4.Credential {
	c := &sigv4.Credential{AccessKeyID: k.ID, Account: "000000000000", Secret: []byte(k.Secret), Active: true}
	b.creds[k.ID] = c
	return c
}

func (b *bench) verify(r *sigv4test.Request) (sigv4.Result, *wire.Error) {
	res := sigv4.Result{Region: "left over"}
	err := b.Verify(convert(r), &res)
	return res, err
}

// request is what a client sends, unsigned.
func request() *sigv4test.Request {
	return &sigv4test.Request{Method: "POST", Path: "/", Body: `{"KeyId":"alias/a","NumberOfBytes":32}`, Headers: []sigv4test.Header{
		{"Host", "127.0.0.1:4599"},
		{"User-Agent", "test/1"},
		{"Content-Length", "38"},
		{"Content-Type", "application/x-amz-json-1.1"},
		{"X-Amz-Target", "TrentService.GenerateDataKey"},
		{"X-Amz-Date", ""},
		{"Accept-Encoding", "identity"},
	}}
}

const usual = "content-type;host;x-amz-date;x-amz-target"

func signedRequest() *sigv4test.Request {
	r := request()
	r.Sign(testKey, testTime, strings.Split(usual, ";")...)
	return r
}

func TestVerify(t *testing.T) {
	b := newBench(0)
	for range 3 { // the second time with a cached signing key
		res, err := b.verify(signedRequest())
		if err != nil {
			t.Fatal(err)
		}
		if res.Credential != b.creds[testKey.ID] || res.Region != "us-east-1" {
			t.Errorf("result %+v", res)
		}
		if n := b.CachedKeys(); n != 1 {
			t.Errorf("%d cached keys, want 1", n)
		}
		if b.Leftovers() {
			t.Error("key material left in the working memory")
		}
	}
	if b.log.Len() > 0 {
		t.Errorf("log of accepted requests: %s", &b.log)
	}
}

// Everything that a signature covers, and everything about it, changed one at a
// time. Nothing that is refused leaves a key in the cache or a result, whether
// the cache was warm or not.
func TestRefused(t *testing.T) {
	const mismatch = "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
	const invalidToken = "The security token included in the request is invalid."
	type req = sigv4test.Request
	sign := func(names string) func(r *req) {
		return func(r *req) { r.Sign(testKey, testTime, strings.Split(names, ";")...) }
	}
	// replace edits the Authorization header after signing.
	replace := func(old, new string) func(r *req) {
		return func(r *req) {
			a := r.Get("Authorization")
			if !strings.Contains(a, old) {
				t.Fatalf("no %q in %q", old, a)
			}
			r.Set("Authorization", strings.Replace(a, old, new, 1))
		}
	}
	signAs := func(edit func(k *sigv4test.Key)) func(r *req) {
		return func(r *req) {
			k := testKey
			edit(&k)
			r.Sign(k, testTime, strings.Split(usual, ";")...)
		}
	}
	add := func(name, value string) func(r *req) {
		return func(r *req) { r.Headers = append(r.Headers, sigv4test.Header{name, value}) }
	}
	drop := func(name string) func(r *req) {
		return func(r *req) {
			kept := r.Headers[:0]
			for _, h := range r.Headers {
				if h[0] != name {
					kept = append(kept, h)
				}
			}
			r.Headers = kept
		}
	}
	both := func(f, g func(r *req)) func(r *req) { return func(r *req) { f(r); g(r) } }
	at := func(d time.Duration) func(r *req) {
		return func(r *req) { r.Sign(testKey, testTime.Add(d), strings.Split(usual, ";")...) }
	}
	sig := func(f func(s string) string) func(r *req) {
		return func(r *req) {
			a := r.Get("Authorization")
			i := strings.Index(a, "Signature=") + len("Signature=")
			r.Set("Authorization", a[:i]+f(a[i:]))
		}
	}
	const (
		invalid      = wire.InvalidSignatureException
		incomplete   = wire.IncompleteSignatureException
		unrecognized = wire.UnrecognizedClientException
		missing      = wire.MissingAuthenticationTokenException
	)
	for _, c := range []struct {
		name string
		edit func(r *req)
		code wire.Code
		text string // the whole, or what it starts with when it ends in "..."
	}{
		{"method", func(r *req) { r.Method = "PUT" }, invalid, mismatch},
		{"method's case", func(r *req) { r.Method = "post" }, invalid, mismatch},
		{"path", func(r *req) { r.Path = "/x" }, invalid, mismatch},
		{"query", func(r *req) { r.Query = "a=b" }, invalid, mismatch},
		{"signed header", func(r *req) { r.Set("X-Amz-Target", "TrentService.Decrypt") }, invalid, mismatch},
		{"signed header, inner space", func(r *req) { r.Set("X-Amz-Target", "TrentService. GenerateDataKey") }, invalid, mismatch},
		{"signed header, line break", func(r *req) { r.Set("Content-Type", "application/x-amz-json-1.1\nhost:127.0.0.1:4599") }, invalid, mismatch},
		{"host", func(r *req) { r.Set("Host", "127.0.0.1:4598") }, invalid, mismatch},
		{"signed header again", add("Content-Type", "application/x-amz-json-1.1"), invalid, mismatch},
		{"body", func(r *req) { r.Body = strings.Replace(r.Body, "32", "64", 1) }, invalid, mismatch},
		{"body shorter", func(r *req) { r.Body = r.Body[:len(r.Body)-1] }, invalid, mismatch},
		{"body longer", func(r *req) { r.Body += " " }, invalid, mismatch},
		{"body gone", func(r *req) { r.Body = "" }, invalid, mismatch},
		{"date, a second", func(r *req) { r.Set("X-Amz-Date", "20260228T235931Z") }, invalid, mismatch},
		{"signature's first bit", sig(func(s string) string { return flip(s, 0) + s[1:] }), invalid, mismatch},
		{"signature's last bit", sig(func(s string) string { return s[:63] + flip(s, 63) }), invalid, mismatch},
		{"signature short", sig(func(s string) string { return s[:63] }), invalid, mismatch},
		{"signature long", sig(func(s string) string { return s + "0" }), invalid, mismatch},
		{"signature upper case", sig(strings.ToUpper), invalid, mismatch},
		{"signature not hex", sig(func(s string) string { return "g" + s[1:] }), invalid, mismatch},
		{"signature of zeroes", sig(func(string) string { return strings.Repeat("0", 64) }), invalid, mismatch},
		{"secret", signAs(func(k *sigv4test.Key) { k.Secret += "x" }), invalid, mismatch},
		{"another region's signature", both(signAs(func(k *sigv4test.Key) { k.Region = "eu-central-1" }), replace("eu-central-1", "us-east-1")), invalid, mismatch},
		{"signed header list shorter", replace("content-type;host", "host"), invalid, mismatch},
		{"signed header list longer", replace(usual, "accept-encoding;"+usual), invalid, mismatch},
		{"scope's region, also served", replace("us-east-1", "eu-central-1"), invalid, mismatch},
		{"access key of another", replace(testKey.ID, "AKIDDISABLED"), unrecognized, invalidToken},

		{"no authorization", drop("Authorization"), missing, "Missing Authentication Token"},
		{"two authorizations", func(r *req) { add("authorization", r.Get("Authorization"))(r) }, incomplete, "'Authorization' must be sent exactly once; the request has 2 of it."},
		{"authorization empty", func(r *req) { r.Set("Authorization", "") }, incomplete, "Unsupported AWS 'algorithm': ''. ..."},
		{"basic", func(r *req) { r.Set("Authorization", "Basic dXNlcjpwYXNz") }, incomplete, "Unsupported AWS 'algorithm': 'Basic'. Use 'AWS4-HMAC-SHA256'."},
		{"SigV4a", replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), incomplete, "Unsupported AWS 'algorithm': 'AWS4-ECDSA-P256-SHA256'. Use 'AWS4-HMAC-SHA256'."},
		{"algorithm alone", func(r *req) { r.Set("Authorization", "AWS4-HMAC-SHA256") }, incomplete,
			"Authorization header requires 'Credential' parameter. Authorization header requires 'Signature' parameter. Authorization header requires 'SignedHeaders' parameter. Authorization=AWS4-HMAC-SHA256"},
		{"nothing at all", both(func(r *req) { r.Set("Authorization", "AWS4-HMAC-SHA256 ") }, drop("X-Amz-Date")), incomplete,
			"Authorization header requires 'Credential' parameter. Authorization header requires 'Signature' parameter. Authorization header requires 'SignedHeaders' parameter. Authorization header requires existence of a 'X-Amz-Date' header. Authorization=AWS4-HMAC-SHA256"},
		{"no signature", func(r *req) {
			a, _, _ := strings.Cut(r.Get("Authorization"), ", Signature=")
			r.Set("Authorization", a)
		}, incomplete,
			"Authorization header requires 'Signature' parameter. Authorization=AWS4-HMAC-SHA256 Credential=AKIDTESTTESTTESTTEST/20260228/us-east-1/kms/aws4_request, SignedHeaders=" + usual},
		{"no credential", replace("Credential=", "Credential=,X="), incomplete, "Authorization header has an unknown parameter 'X'. ..."},
		{"credential empty", func(r *req) { r.Set("Authorization", "AWS4-HMAC-SHA256 Credential=, SignedHeaders=a, Signature=b") }, incomplete,
			"Authorization header requires 'Credential' parameter. Authorization=AWS4-HMAC-SHA256 Credential=, SignedHeaders=a, Signature=b"},
		{"no date", drop("X-Amz-Date"), incomplete, "Authorization header requires existence of a 'X-Amz-Date' header. Authorization=AWS4-HMAC-SHA256 Credential=AKID..."},
		{"trailing comma", sig(func(s string) string { return s + "," }), incomplete, "'' not a valid key=value pair (missing equal-sign) in Authorization header: 'AWS4-HMAC-SHA256 Credential=..."},
		{"space in a value", replace("Credential=", "Credential= "), incomplete, "'Credential= AKID..."},
		{"parameter twice", replace("SignedHeaders=", "SignedHeaders=a, SignedHeaders="), incomplete, "Authorization header has parameter 'SignedHeaders' more than once. ..."},
		{"parameter's case", replace("Credential=", "credential="), incomplete, "Authorization header has an unknown parameter 'credential'. ..."},
		{"authorization too long", replace("Credential=", strings.Repeat("x", 4096)), incomplete, "Authorization header is longer than 4096 bytes."},
		{"four elements", replace("/kms/", "/"), incomplete, "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got 'AKIDTESTTESTTESTTEST/20260228/us-east-1/aws4_request'."},
		{"six elements", replace("/kms/", "/kms/kms/"), incomplete, "Credential must have exactly 5 slash-delimited elements, ..."},
		{"empty access key", replace("Credential="+testKey.ID, "Credential="), incomplete, "Credential must have exactly 5 slash-delimited elements, ..."},
		{"empty terminator", replace("/aws4_request", "/"), incomplete, "Credential must have exactly 5 slash-delimited elements, ..."},
		{"access key too long", replace(testKey.ID, strings.Repeat("A", 129)), unrecognized, invalidToken},

		{"region not served", replace("us-east-1", "us-west-9"), invalid, "Credential should be scoped to a valid region. This endpoint serves: us-east-1, eu-central-1."},
		{"service", replace("/kms/", "/sts/"), invalid, "Credential should be scoped to correct service: 'kms'."},
		{"terminator", replace("aws4_request", "aws5_request"), invalid, "Credential should be scoped with a valid terminator: 'aws4_request', not 'aws5_request'."},
		{"scope's date", replace("/20260228/", "/20260227/"), invalid,
			"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '20260227' != '20260228', from '20260228T235930Z'."},
		{"whole scope", replace("20260228/us-east-1/kms/aws4_request", "x/y/z/t"), invalid, "Credential should be scoped to a valid region. This endpoint serves: us-east-1, eu-central-1. Credential should be scoped to correct service: 'kms'. Credential should be scoped with a valid terminator: 'aws4_request', not 't'. Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: 'x' != '20260228', from '20260228T235930Z'."},

		{"unknown access key", replace(testKey.ID, "AKIDUNKNOWN"), unrecognized, invalidToken},
		{"disabled access key", signAs(func(k *sigv4test.Key) { k.ID = "AKIDDISABLED" }), unrecognized, invalidToken},
		{"access key without secret", signAs(func(k *sigv4test.Key) { k.ID, k.Secret = "AKIDNOSECRET", "" }), unrecognized, invalidToken},
		{"session token", both(add("X-Amz-Security-Token", "token"), sign("content-type;host;x-amz-date;x-amz-security-token;x-amz-target")), unrecognized, invalidToken},
		{"session token unsigned", add("X-Amz-Security-Token", "token"), invalid, "'X-Amz-Security-Token' must be a 'SignedHeader' in the AWS Authorization."},
		{"two session tokens", both(both(add("X-Amz-Security-Token", "a"), add("X-Amz-Security-Token", "b")), sign("content-type;host;x-amz-date;x-amz-security-token;x-amz-target")),
			incomplete, "'X-Amz-Security-Token' must be sent exactly once; the request has 2 of it."},

		{"host unsigned", sign("content-type;x-amz-date;x-amz-target"), invalid, "'Host' must be a 'SignedHeader' in the AWS Authorization."},
		{"date unsigned", sign("content-type;host;x-amz-target"), invalid, "'X-Amz-Date' must be a 'SignedHeader' in the AWS Authorization."},
		{"target unsigned", sign("content-type;host;x-amz-date"), invalid, "'X-Amz-Target' must be a 'SignedHeader' in the AWS Authorization."},
		{"two hosts", both(add("host", "127.0.0.1:4599"), sign(usual)), incomplete, "'Host' must be sent exactly once; the request has 2 of it."},
		{"two targets", both(add("x-amz-target", "TrentService.Decrypt"), sign(usual)), incomplete, "'X-Amz-Target' must be sent exactly once; the request has 2 of it."},
		{"two dates", both(add("x-amz-date", "20260228T235930Z"), sign(usual)), incomplete, "'X-Amz-Date' must be sent exactly once; the request has 2 of it."},
		{"signed header not sent", sign("content-type;date;host;x-amz-date;x-amz-target"), invalid, "'date' is a 'SignedHeader' in the AWS Authorization, but the request has no such header."},
		{"target not sent", drop("X-Amz-Target"), invalid, "'x-amz-target' is a 'SignedHeader' in the AWS Authorization, but the request has no such header."},
		{"list unsorted", sign("host;content-type;x-amz-date;x-amz-target"), incomplete, "Authorization header's 'SignedHeaders' must be lower-case header names, ..."},
		{"list with a repeat", sign("content-type;content-type;host;x-amz-date;x-amz-target"), incomplete, "Authorization header's 'SignedHeaders' must be ..."},
		{"list in upper case", sign("Content-Type;host;x-amz-date;x-amz-target"), incomplete, "Authorization header's 'SignedHeaders' must be ..."},
		{"list with an empty name", sign("content-type;;host;x-amz-date;x-amz-target"), incomplete, "Authorization header's 'SignedHeaders' must be ..."},
		{"list with an end", sign(usual + ";"), incomplete, "Authorization header's 'SignedHeaders' must be ..."},
		{"list with a colon", sign("a:b;" + usual), incomplete, "Authorization header's 'SignedHeaders' must be ..."},
		{"list too long", func(r *req) {
			var names []string
			for i := range 65 {
				names = append(names, fmt.Sprintf("a%02d", i))
				add(names[i], "")(r)
			}
			sign(strings.Join(names, ";") + ";" + usual)(r)
		}, incomplete, "Authorization header signs more than 64 headers."},
		{"too many headers", func(r *req) {
			for range 256 {
				add("a", "")(r)
			}
		}, incomplete, "The request is too large to verify: ..."},
		{"path too long", func(r *req) { r.Path = "/" + strings.Repeat("a", 8192); sign(usual)(r) }, incomplete, "The request is too large to verify: ..."},
		{"query too long", func(r *req) { r.Query = strings.Repeat("a", 8193); sign(usual)(r) }, incomplete, "The request is too large to verify: ..."},

		{"date of another form", func(r *req) { r.Set("X-Amz-Date", "Sat, 28 Feb 2026 23:59:30 GMT") }, incomplete,
			"Date must be in ISO-8601 'basic format'. Got 'Sat, 28 Feb 2026 23:59:30 GMT'. See http://en.wikipedia.org/wiki/ISO_8601"},
		{"no such day", func(r *req) { r.Set("X-Amz-Date", "20260229T235930Z") }, incomplete, "Date must be in ISO-8601 'basic format'. Got '20260229T235930Z'. ..."},
		{"replayed a second too late", at(-5*time.Minute - time.Second), invalid,
			"Signature expired: 20260228T235429Z is now earlier than 20260228T235430Z (20260228T235930Z - 5 min.)"},
		{"replayed a year later", at(-365 * 24 * time.Hour), invalid, "Signature expired: 20250228T235930Z is now earlier than 20260228T235430Z (20260228T235930Z - 5 min.)"},
		{"a second too early", at(5*time.Minute + time.Second), invalid,
			"Signature not yet current: 20260301T000431Z is still later than 20260301T000430Z (20260228T235930Z + 5 min.)"},

		{"presigned", both(drop("Authorization"), func(r *req) {
			r.Query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a&X-Amz-Date=b&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=c"
		}), incomplete, "Query-string authentication (a presigned request) is not supported; sign the request with the Authorization header."},
		{"presigned besides", func(r *req) { r.Query = "x=y&X-Amz-Signature=c"; sign(usual)(r) }, incomplete, "Query-string authentication ..."},
		{"body hash of another body", both(add("X-Amz-Content-Sha256", strings.Repeat("0", 64)), sign("content-type;host;x-amz-content-sha256;x-amz-date;x-amz-target")), invalid, mismatch},
		{"body hash unsigned, of another body", add("X-Amz-Content-Sha256", strings.Repeat("0", 64)), invalid, mismatch},
		{"unsigned payload", both(add("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"), sign("content-type;host;x-amz-content-sha256;x-amz-date;x-amz-target")), invalid,
			"The value of 'X-Amz-Content-Sha256' must be the lower-case hex SHA-256 of the body; unsigned and streaming payloads are not supported."},
		{"streaming payload", add("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), invalid, "The value of 'X-Amz-Content-Sha256' must be ..."},
		{"two body hashes", both(add("X-Amz-Content-Sha256", strings.Repeat("0", 64)), add("X-Amz-Content-Sha256", strings.Repeat("0", 64))), incomplete,
			"'X-Amz-Content-Sha256' must be sent exactly once; the request has 2 of it."},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := signedRequest()
			valid := r.Get("Authorization")
			c.edit(r)
			for _, warm := range []bool{false, true} {
				b := newBench(0)
				keys := 0
				if warm {
					if _, err := b.verify(signedRequest()); err != nil {
						t.Fatal(err)
					}
					keys = 1
				}
				res, err := b.verify(r)
				if err == nil {
					t.Fatalf("accepted:\n%s", r.Canonical(usual))
				}
				want, prefix := strings.CutSuffix(c.text, "...")
				if err.Code != c.code.String() || err.Status != 400 || !(err.Message == want || prefix && strings.HasPrefix(err.Message, want)) {
					t.Errorf("%d %s: %s\nwant %s: %s", err.Status, err.Code, err.Message, c.code, c.text)
				}
				if res != (sigv4.Result{}) {
					t.Errorf("result %+v", res)
				}
				if n := b.CachedKeys(); n != keys {
					t.Errorf("%d cached keys, want %d", n, keys)
				}
				if b.Leftovers() {
					t.Error("key material left in the working memory")
				}
				// Neither the answer nor the log repeats a signature; the log has the request's id.
				for _, text := range []string{err.Message, b.log.String()} {
					for _, a := range []string{valid, r.Get("Authorization")} {
						if _, s, _ := strings.Cut(a, "Signature="); len(s) > 32 && strings.Contains(text, s[:32]) {
							t.Errorf("signature repeated: %s", text)
						}
					}
					if len(text) > 2048 || strings.Contains(text, testKey.Secret) {
						t.Errorf("text: %s", text)
					}
				}
				if !strings.Contains(b.log.String(), "request_id=test-request code="+c.code.String()) {
					t.Errorf("log: %s", &b.log)
				}
				if _, err := b.verify(signedRequest()); err != nil {
					t.Errorf("the untouched request afterwards: %v", err)
				}
			}
		})
	}
}

// flip returns the hex digit at i with its lowest bit changed.
func flip(s string, i int) string {
	n := strings.IndexByte("0123456789abcdef", s[i])
	return "0123456789abcdef"[n^1 : n^1+1]
}

// What may change without breaking a signature, and what clients do differently.
func TestAccepted(t *testing.T) {
	type req = sigv4test.Request
	for _, c := range []struct {
		name string
		edit func(r *req)
	}{
		{"unsigned header changed", func(r *req) { r.Set("User-Agent", "another") }},
		{"header names in upper case", func(r *req) {
			for i := range r.Headers {
				r.Headers[i][0] = strings.ToUpper(r.Headers[i][0])
			}
		}},
		{"headers in reverse", func(r *req) {
			for i, j := 0, len(r.Headers)-1; i < j; i, j = i+1, j-1 {
				r.Headers[i], r.Headers[j] = r.Headers[j], r.Headers[i]
			}
		}},
		{"space around values", func(r *req) { r.Set("X-Amz-Date", " "+r.Get("X-Amz-Date")+"\t") }},
		{"no space after commas", func(r *req) { r.Set("Authorization", strings.ReplaceAll(r.Get("Authorization"), ", ", ",")) }},
		{"space before commas", func(r *req) { r.Set("Authorization", strings.ReplaceAll(r.Get("Authorization"), ", ", " ,\t")) }},
		{"space after the algorithm", func(r *req) { r.Set("Authorization", " "+strings.Replace(r.Get("Authorization"), " ", "  ", 1)+" ") }},
		{"signature first", func(r *req) {
			a, s, _ := strings.Cut(strings.TrimPrefix(r.Get("Authorization"), "AWS4-HMAC-SHA256 "), ", Signature=")
			r.Set("Authorization", "AWS4-HMAC-SHA256 Signature="+s+", "+a)
		}},
		{"body hash", func(r *req) {
			r.Set("X-Amz-Content-Sha256", fmt.Sprintf("%x", sha256.Sum256([]byte(r.Body))))
			r.Sign(testKey, testTime)
		}},
		{"everything signed", func(r *req) { r.Sign(testKey, testTime) }},
		{"empty body", func(r *req) { r.Body = ""; r.Sign(testKey, testTime) }},
		{"empty path", func(r *req) { r.Path = "" }},
		{"another region", func(r *req) { k := testKey; k.Region = "eu-central-1"; r.Sign(k, testTime) }},
		{"five minutes old", func(r *req) { r.Sign(testKey, testTime.Add(-sigv4.MaxSkew)) }},
		{"five minutes ahead, the next day", func(r *req) { r.Sign(testKey, testTime.Add(sigv4.MaxSkew)) }},
		{"repeated signed header", func(r *req) {
			r.Headers = append(r.Headers, sigv4test.Header{"a", "1"}, sigv4test.Header{"b", ""}, sigv4test.Header{"A", "2"}, sigv4test.Header{"a", "3"})
			r.Sign(testKey, testTime)
		}},
		{"64 signed headers", func(r *req) {
			for i := len(r.Headers); i < 64; i++ {
				r.Set(fmt.Sprint("a", i), "v")
			}
			r.Sign(testKey, testTime)
		}},
		{"a long path and query", func(r *req) {
			r.Path, r.Query = strings.Repeat("/\xff", 4096), strings.Repeat("&", 4096)+strings.Repeat("a&", 2048)
			r.Sign(testKey, testTime)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(0)
			r := signedRequest()
			c.edit(r)
			if _, err := b.verify(r); err != nil {
				t.Error(err)
			}
			b.now = testTime.Add(999 * time.Millisecond)
			if _, err := b.verify(r); err != nil {
				t.Errorf("within the same second: %v", err)
			}
		})
	}
}

// The AWS SDK's own signer, on requests made at random.
func TestAgainstSDK(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	text := func(alphabet string, n int) string {
		var sb strings.Builder
		a := []rune(alphabet)
		for range rnd.IntN(n + 1) {
			sb.WriteRune(a[rnd.IntN(len(a))])
		}
		return sb.String()
	}
	signer := v4.NewSigner()
	b := newBench(64)
	for i := range 3000 {
		k := testKey
		k.ID = fmt.Sprint("AKIDSDK", rnd.IntN(40))
		k.Secret = k.ID + "secret" + strings.Repeat("+/", rnd.IntN(40))
		k.ID += fmt.Sprint("X", len(k.Secret))
		k.Region = pick("us-east-1", "eu-central-1")
		b.creds[k.ID] = nil
		b.add(k)
		body := text("{}\":,abcäöü\x00\n ", 600)
		u := &url.URL{Scheme: "http", Host: pick("localhost:4599", "kms.us-east-1.amazonaws.com", "[::1]:4599"), Path: "/" + text("aZ09-_.~ %+ሴ$&=@:/", 6)}
		if strings.Contains(u.Path, "//") || strings.Contains(u.Path, "/.") {
			u.Path = "/" // the SDK leaves these as they are, AWS's documents and its suite do not
		}
		q := url.Values{}
		for range rnd.IntN(5) {
			q.Add(text("abAB-._~ %+&=/ሴ", 3), text("ab12-._~ %+&=/ሴ", 3))
		}
		u.RawQuery = q.Encode()
		req, err := http.NewRequest("POST", u.String(), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = int64(len(body))
		req.Header.Set("X-Amz-Target", "TrentService."+text("abc", 9))
		req.Header.Set("Content-Type", "application/x-amz-json-1.1")
		req.Header.Set("User-Agent", "sdk")
		for range rnd.IntN(5) {
			req.Header.Add(pick("X-Amz-Api-Version", "Amz-Sdk-Request", "My-Header", "X-A-"+text("abcXYZ0189", 4)), text("ab  \t\",;=é", 12))
		}
		hash := fmt.Sprintf("%x", sha256.Sum256([]byte(body)))
		if rnd.IntN(4) == 0 {
			req.Header.Set("X-Amz-Content-Sha256", hash)
		}
		when := testTime.Add(time.Duration(rnd.IntN(601)-300) * time.Second)
		err = signer.SignHTTP(context.Background(), aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret}, req, hash, "kms", k.Region, when)
		if err != nil {
			t.Fatal(err)
		}
		got, verr := b.verify(sent(req, body))
		if verr != nil {
			t.Fatalf("request %d: %v\n%+v", i, verr, sent(req, body))
		}
		if got.Region != k.Region || got.Credential.AccessKeyID != k.ID {
			t.Fatalf("request %d: %+v", i, got)
		}
		// And one bit wrong somewhere.
		r := sent(req, body)
		a := r.Get("Authorization")
		n := len(a) - 1 - rnd.IntN(64)
		r.Set("Authorization", a[:n]+flip(a, n)+a[n+1:])
		if _, verr := b.verify(r); verr == nil || verr.Code != wire.InvalidSignatureException.String() {
			t.Fatalf("request %d with a changed signature: %v", i, verr)
		}
	}
	if n := b.CachedKeys(); n == 0 || n > 64 {
		t.Errorf("%d cached keys, want at most 64", n)
	}
}

// sent is the request as net/http would write it.
func sent(req *http.Request, body string) *sigv4test.Request {
	r := &sigv4test.Request{Method: req.Method, Path: req.URL.EscapedPath(), Query: req.URL.RawQuery, Body: body,
		Headers: []sigv4test.Header{{"Host", req.Host}}}
	if req.ContentLength > 0 {
		r.Headers = append(r.Headers, sigv4test.Header{"Content-Length", fmt.Sprint(req.ContentLength)})
	}
	var names []string
	for n := range req.Header {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		for _, v := range req.Header[n] {
			r.Headers = append(r.Headers, sigv4test.Header{n, v})
		}
	}
	return r
}

func TestLogHasCanonicalHash(t *testing.T) {
	b := newBench(0)
	r := signedRequest()
	r.Body = "tampered"
	if _, err := b.verify(r); err == nil {
		t.Fatal("accepted")
	}
	h := sha256.Sum256([]byte(r.Canonical(usual)))
	for _, want := range []string{"canonical_request_sha256=" + hex.EncodeToString(h[:]), "signed_headers=" + usual, "access_key_id=" + testKey.ID} {
		if !strings.Contains(b.log.String(), want) {
			t.Errorf("log without %s: %s", want, &b.log)
		}
	}
}

func TestDefaults(t *testing.T) {
	v := sigv4.New(sigv4.Options{
		Lookup: func([]byte) *sigv4.Credential { return newBench(0).creds[testKey.ID] },
		Region: func([]byte) (string, bool) { return "us-east-1", true },
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	r := request()
	r.Sign(testKey, time.Now())
	if err := v.Verify(convert(r), new(sigv4.Result)); err != nil {
		t.Error(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("New without Lookup did not panic")
		}
	}()
	sigv4.New(sigv4.Options{})
}

// The time that the caller has read counts instead of the clock.
func TestNowOfTheCaller(t *testing.T) {
	b := newBench(0)
	for _, c := range []struct {
		clock, now time.Time
		ok         bool
	}{
		{testTime, time.Time{}, true},
		{testTime.Add(time.Hour), time.Time{}, false},
		{testTime.Add(time.Hour), testTime, true},
		{testTime, testTime.Add(time.Hour), false},
		{testTime, testTime.Add(-time.Hour), false},
	} {
		b.now = c.clock
		r := convert(signedRequest())
		r.Now = c.now
		if err := b.Verify(r, new(sigv4.Result)); (err == nil) != c.ok {
			t.Errorf("clock %v, caller %v: %v", c.clock, c.now, err)
		}
	}
}
