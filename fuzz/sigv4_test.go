package fuzz

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"keymill/daemon/sigv4"
	"keymill/daemon/sigv4/sigv4test"
	"keymill/daemon/wire"
)

var (
	sigv4Key  = sigv4test.Key{ID: "AKIDFUZZ", Secret: "a secret for fuzzing only", Region: "us-east-1", Service: "kms"}
	sigv4Time = time.Date(2026, 2, 28, 12, 0, 0, 0, time.UTC)
)

func sigv4Verifier() *sigv4.Verifier {
	cred := &sigv4.Credential{AccessKeyID: sigv4Key.ID, Secret: []byte(sigv4Key.Secret), Active: true}
	return sigv4.New(sigv4.Options{
		Lookup: func(id []byte) *sigv4.Credential {
			if string(id) == cred.AccessKeyID {
				return cred
			}
			return nil
		},
		Region: func(r []byte) (string, bool) { return sigv4Key.Region, string(r) == sigv4Key.Region },
		Clock:  func() time.Time { return sigv4Time },
	})
}

func sigv4Convert(r *sigv4test.Request) *sigv4.Request {
	c := &sigv4.Request{Method: []byte(r.Method), Path: []byte(r.Path), Query: []byte(r.Query), Body: []byte(r.Body)}
	for _, h := range r.Headers {
		c.Headers = append(c.Headers, sigv4.Header{Name: []byte(h[0]), Value: []byte(h[1])})
	}
	return c
}

func sigv4Request() *sigv4test.Request {
	return &sigv4test.Request{Method: "POST", Path: "/", Body: "{}", Headers: []sigv4test.Header{
		{"Host", "localhost"}, {"X-Amz-Target", "TrentService.ListKeys"}, {"X-Amz-Date", ""}}}
}

var sigv4Codes = map[string]bool{
	wire.MissingAuthenticationTokenException.String(): true,
	wire.IncompleteSignatureException.String():        true,
	wire.UnrecognizedClientException.String():         true,
	wire.InvalidSignatureException.String():           true,
}

// FuzzAuthorization feeds the parsers of Authorization and X-Amz-Date whatever
// there is. Nothing but the one right signature over the one right scope is
// accepted, no answer is longer than a few times what is echoed, holds anything
// but printable ASCII, or repeats the right signature.
func FuzzAuthorization(f *testing.F) {
	r := sigv4Request()
	r.Sign(sigv4Key, sigv4Time)
	good, date := r.Get("Authorization"), r.Get("X-Amz-Date")
	_, signature, _ := strings.Cut(good, "Signature=")
	f.Add(good, date)
	f.Add(strings.ReplaceAll(good, ", ", " ,\t"), " "+date)
	f.Add(strings.Replace(good, "=", " ", 1), date)
	f.Add(strings.Replace(good, "Signature=", "Signature ", 1), date)
	f.Add("AWS4-HMAC-SHA256 ", "")
	f.Add("AWS4-ECDSA-P256-SHA256 Credential=a/b/c/d, SignedHeaders=x, Signature=00", "20260228T120000Z")
	f.Add("AWS4-HMAC-SHA256 Credential=AKIDFUZZ/20260228/us-east-1/kms/aws4_request,SignedHeaders=;;,Signature=", "20260230T120000Z")
	v := sigv4Verifier()
	f.Fuzz(func(t *testing.T, authorization, date string) {
		r := sigv4Request()
		r.Set("X-Amz-Date", date)
		r.Set("Authorization", authorization)
		var res sigv4.Result
		err := v.Verify(sigv4Convert(r), &res)
		if err == nil {
			scope := "20260228/us-east-1/kms/aws4_request"
			if !strings.Contains(authorization, signature) || !strings.Contains(authorization, "Credential=AKIDFUZZ/"+scope) || strings.Trim(date, " \t\r\n") != "20260228T120000Z" {
				t.Fatalf("accepted %q at %q", authorization, date)
			}
			return
		}
		if !sigv4Codes[err.Code] || res != (sigv4.Result{}) {
			t.Fatalf("code %s, result %+v", err.Code, res)
		}
		if len(err.Message) > 1600 || strings.Contains(err.Message, signature) {
			t.Fatalf("%d bytes of text: %q", len(err.Message), err.Message)
		}
		for _, c := range []byte(err.Message) {
			if c < ' ' || c > '~' {
				t.Fatalf("text %q", err.Message)
			}
		}
	})
}

// FuzzVerifyTampered signs a request with the plain implementation, expects the
// verifier to accept it, and changes it: what it makes of the change must be
// what the plain implementation makes of it, which is that the canonical request
// is still the same, or not.
func FuzzVerifyTampered(f *testing.F) {
	f.Add("POST", "/", "", "", "", "{}", uint8(0), uint16(0), byte(1))
	f.Add("POST", "/a/../%41 b//", "b=2&a=%20&a=+&&=", "x-a", "  a  b\r\n c\t", "{\"KeyId\":\"k\"}", uint8(1), uint16(3), byte(0x20))
	f.Add("GET", "", "%zz=%e1%88%b4;", "My-Header", "é", "", uint8(2), uint16(1), byte(0x80))
	f.Add("PUT", "/./..", "a=b", "X-AMZ-Meta", ",", "x", uint8(4), uint16(7), byte(0x0a))
	f.Add("POST", "/", "", "h", "a  b", "y", uint8(4), uint16(1), byte(0))
	f.Add("POST", "/", "", "h", "v", "y", uint8(6), uint16(30), byte(1))
	f.Add("POST", "/", "", "h", "v", "y", uint8(7), uint16(0), byte(0))
	v := sigv4Verifier()
	f.Fuzz(func(t *testing.T, method, path, query, name, value, body string, what uint8, at uint16, change byte) {
		if len(path) > 8000 || len(query) > 8000 || strings.Contains(strings.ToLower(query), "x-amz-") {
			t.Skip("refused for that alone")
		}
		r := sigv4Request()
		r.Method, r.Path, r.Query, r.Body = method, path, query, body
		if lower := strings.ToLower(name); name != "" && headerName(name) && !strings.HasPrefix(lower, "x-amz-") && lower != "host" && lower != "authorization" {
			r.Headers = append(r.Headers, sigv4test.Header{name, value}, sigv4test.Header{strings.ToUpper(name), "second"})
		}
		r.Sign(sigv4Key, sigv4Time)
		if err := v.Verify(sigv4Convert(r), new(sigv4.Result)); err != nil {
			t.Fatalf("signed by the plain implementation: %v\n%+v", err, r)
		}

		list, _, _ := strings.Cut(r.Get("Authorization")[strings.Index(r.Get("Authorization"), "SignedHeaders=")+14:], ",")
		before := r.Canonical(list)
		mutate := func(s string) string {
			b := []byte(s)
			if len(b) == 0 {
				return string(append(b, change))
			}
			b[int(at)%len(b)] ^= change
			return string(b)
		}
		c := r.Clone()
		authorization := false
		switch what % 9 {
		case 0:
			c.Method = mutate(c.Method)
		case 1:
			c.Path = mutate(c.Path)
		case 2:
			c.Query = mutate(c.Query)
		case 3:
			c.Body = mutate(c.Body)
		case 4:
			h := &c.Headers[int(at)%len(c.Headers)]
			authorization = h[0] == "Authorization"
			h[1] = mutate(h[1])
		case 5:
			h := &c.Headers[int(at)%len(c.Headers)]
			authorization = h[0] == "Authorization"
			h[0] = mutate(h[0])
		case 6:
			authorization = true
			c.Set("Authorization", mutate(c.Get("Authorization")))
		case 7:
			c.Headers = append(c.Headers, c.Headers[int(at)%len(c.Headers)])
		case 8:
			i := int(at) % len(c.Headers)
			c.Headers = append(c.Headers[:i], c.Headers[i+1:]...)
		}
		err := v.Verify(sigv4Convert(c), new(sigv4.Result))
		if err != nil && !sigv4Codes[err.Code] {
			t.Fatalf("code %s", err.Code)
		}
		same := c.Canonical(list) == before
		if err == nil && !same {
			t.Fatalf("accepted although changed\n%q\n%q", before, c.Canonical(list))
		}
		if err == nil && authorization && !sameParameters(c.Get("Authorization"), r.Get("Authorization")) {
			t.Fatalf("accepted with another authorization: %q", c.Get("Authorization"))
		}
		// What is one canonical request is one signature, unless the change broke a
		// rule about the headers, or the query became a presigned one.
		if err != nil && same && what%9 < 4 && !strings.Contains(strings.ToLower(c.Query), "x-amz-") {
			t.Fatalf("refused although the canonical request is the same: %v\n%q", err, before)
		}
	})
}

// sameParameters compares Authorization headers but for white space.
func sameParameters(a, b string) bool {
	strip := strings.NewReplacer(" ", "", "\t", "", "\r", "", "\n", "")
	return strip.Replace(a) == strip.Replace(b)
}

func headerName(s string) bool {
	for _, c := range []byte(s) {
		if !bytes.ContainsRune([]byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.!#$%&'*+^`|~"), rune(c)) {
			return false
		}
	}
	return true
}
