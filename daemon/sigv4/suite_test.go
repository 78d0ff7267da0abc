package sigv4_test

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"keymill/daemon/sigv4"
	"keymill/daemon/sigv4/sigv4test"
)

// The cases of AWS's published Signature Version 4 test suite, with the
// signatures it publishes for AKIDEXAMPLE on 30 August 2015, us-east-1, service
// "service". Each case is the request as it would arrive; every one has
// Host: example.amazonaws.com and X-Amz-Date: 20150830T123600Z besides.
// Of get-header-value-multiline two editions exist; this is the newer one, in
// which a fold is a space.
var suite = []struct {
	name, method, path, query string
	headers                   []sigv4test.Header
	body                      string
	signature                 string
}{
	{name: "get-vanilla", signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{name: "post-vanilla", method: "POST", signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
	{name: "empty path", path: "-", signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{name: "get-relative", path: "/example/..", signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{name: "get-relative-relative", path: "/example1/example2/../..", signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{name: "get-slash", path: "//", signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{name: "get-slash-dot-slash", path: "/./", signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{name: "get-slash-pointless-dot", path: "/./example", signature: "ef75d96142cf21edca26f06005da7988e4f8dc83a165a80865db7089db637ec5"},
	{name: "get-slashes", path: "//example//", signature: "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84"},
	{name: "get-space", path: "/example space/", signature: "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"},
	{name: "get-special-character", path: "/example/$delete", signature: "a853c9b21b528b19643d00910d35b83a10c366a10833ceefb45edd6c80e40f27"},
	{name: "get-unreserved", path: "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
		signature: "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
	{name: "get-utf8", path: "/\u1234", signature: "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
	{name: "get-vanilla-empty-query-key", query: "Param1=value1", signature: "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"},
	{name: "get-vanilla-query-order-key-case", query: "Param2=value2&Param1=value1",
		signature: "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
	{name: "get-vanilla-query-order-key", query: "Param1=value2&Param1=Value1",
		signature: "eedbc4e291e521cf13422ffca22be7d2eb8146eecf653089df300a15b2382bd1"},
	{name: "get-vanilla-query-order-value", query: "Param1=value2&Param1=value1",
		signature: "5772eed61e12b33fae39ee5e7012498b51d56abc0abb7c60486157bd471c4694"},
	{name: "get-vanilla-query-order-encoded", query: "Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
		signature: "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac"},
	{name: "get-vanilla-query-unreserved",
		query:     strings.Repeat("=-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", 2)[1:],
		signature: "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197"},
	{name: "get-vanilla-utf8-query", query: "\u1234=bar", signature: "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"},
	{name: "post-vanilla-query", method: "POST", query: "Param1=value1", signature: "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"},
	{name: "get-header-key-duplicate",
		headers:   []sigv4test.Header{{"My-Header1", "value2"}, {"My-Header1", "value2"}, {"My-Header1", "value1"}},
		signature: "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
	{name: "get-header-value-order",
		headers:   []sigv4test.Header{{"My-Header1", "value4"}, {"My-Header1", "value1"}, {"My-Header1", "value3"}, {"My-Header1", "value2"}},
		signature: "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"},
	{name: "get-header-value-multiline", headers: []sigv4test.Header{{"My-Header1", "value1\n  value2\r\n     value3"}},
		signature: "cfd34249e4b1c8d6b91ef74165d41a32e5fab3306300901bb65a51a73575eefd"},
	{name: "get-header-value-trim", headers: []sigv4test.Header{{"My-Header1", " value1"}, {"My-Header2", ` "a   b   c"`}},
		signature: "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
	{name: "post-header-key-sort", method: "POST", headers: []sigv4test.Header{{"MY-HEADER1", "value1"}},
		signature: "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"},
	{name: "post-header-value-case", method: "POST", headers: []sigv4test.Header{{"My-Header1", "VALUE1"}},
		signature: "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d"},
	{name: "post-x-www-form-urlencoded", method: "POST", headers: []sigv4test.Header{{"Content-Type", "application/x-www-form-urlencoded"}},
		body: "Param1=value1", signature: "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
	{name: "post-x-www-form-urlencoded-parameters", method: "POST",
		headers: []sigv4test.Header{{"Content-Type", "application/x-www-form-urlencoded; charset=utf8"}},
		body:    "Param1=value1", signature: "1a72ec8f64bd914b0e42e42607c7fbce7fb2c7465f63e3092b3b0d39fa77a6fe"},
	{name: "get-vanilla-with-session-token",
		headers:   []sigv4test.Header{{"X-Amz-Security-Token", "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"}},
		signature: "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"},
}

var suiteKey = sigv4test.Key{ID: "AKIDEXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", Region: "us-east-1", Service: "service"}

// The suite's requests have no X-Amz-Target, so this compares signatures made
// from the canonical request of the verifier; the plain implementation has to
// make the same one.
func TestPublishedSuite(t *testing.T) {
	const date, scope = "20150830T123600Z", "20150830/us-east-1/service/aws4_request"
	for _, c := range suite {
		t.Run(c.name, func(t *testing.T) {
			r := &sigv4test.Request{Method: "GET", Path: "/", Query: c.query, Body: c.body,
				Headers: append([]sigv4test.Header{{"Host", "example.amazonaws.com"}, {"X-Amz-Date", date}}, c.headers...)}
			if c.method != "" {
				r.Method = c.method
			}
			if c.path != "" {
				r.Path = strings.TrimPrefix(c.path, "-")
			}
			r.Sign(suiteKey, time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC))
			list := signedHeaders(r)
			if got := r.Signature(suiteKey, date, scope, list); got != c.signature {
				t.Errorf("plain implementation: signature %s, want %s\n%s", got, c.signature, r.Canonical(list))
			}
			bodyHash := sha256.Sum256([]byte(c.body))
			got, ok := sigv4.CanonicalRequest(convert(r), []byte(list), &bodyHash)
			if !ok || string(got) != r.Canonical(list) {
				t.Errorf("canonical request\n%q, want\n%q", got, r.Canonical(list))
			}
		})
	}
}

func TestCanonicalPath(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "/"}, {"/", "/"}, {".", "/"}, {"..", "/"}, {"/..", "/"}, {"/../..", "/"}, {"a", "/a"}, {"*", "/%2A"},
		{"/a/b/", "/a/b/"}, {"/a//b", "/a/b"}, {"/a/./b/../c", "/a/c"}, {"/a/..", "/"}, {"/a/../", "/"}, {"/a/b/..", "/a"}, {"/a/.", "/a"},
		{"/%41", "/%2541"}, {"/%2e%2e/a", "/%252e%252e/a"}, {"/a+b", "/a%2Bb"}, {"/...", "/..."}, {"/..a/..", "/"}, {"/\xff\n", "/%FF%0A"},
	} {
		checkCanonical(t, &sigv4test.Request{Path: c.in}, 1, c.want, sigv4test.Path(c.in))
	}
}

func TestCanonicalQuery(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""}, {"&&", ""}, {"a", "a="}, {"a=", "a="}, {"=", "="}, {"=v", "=v"}, {"a=b=c", "a=b%3Dc"},
		{"b&a", "a=&b="}, {"a=2&a=1", "a=1&a=2"}, {"a-b=1&a=2", "a=2&a-b=1"}, {"a=b+c", "a=b%2Bc"}, {"a=b%20c", "a=b%20c"},
		{"a=b%2Bc", "a=b%2Bc"}, {"a=%7e", "a=~"}, {"a=%", "a=%25"}, {"a=%4", "a=%254"}, {"a=%4g", "a=%254g"}, {"a=%aF", "a=%AF"}, {"a;b=1", "a%3Bb=1"},
		{"B=1&a=1&A=1", "A=1&B=1&a=1"}, {"k=a%2Fb&k=a-b", "k=a%2Fb&k=a-b"}, {"%61=1", "a=1"}, {"a=%0A", "a=%0A"},
	} {
		checkCanonical(t, &sigv4test.Request{Path: "/", Query: c.in}, 2, c.want, sigv4test.Query(c.in))
	}
}

func TestCanonicalValue(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""}, {" ", ""}, {"a", "a"}, {"  a  ", "a"}, {"a  b", "a b"}, {"a   b  c", "a b c"}, {"\ta\t", "a"}, {"a\tb", "a\tb"},
		{"a \t b", "a \t b"}, {"a  \t  b", "a \t b"}, {"a\r\n b", "a b"}, {"a \r\n\t b", "a b"}, {"a\nb:c", "a b:c"}, {"a\n\n b", "a b"},
		{"a  b\n c", "a b c"}, {"\r\n a", "a"}, {"\"a  b\"", "\"a b\""}, {"\u00e9  \u1234", "\u00e9 \u1234"},
	} {
		r := &sigv4test.Request{Path: "/", Headers: []sigv4test.Header{{"A", c.in}}}
		checkCanonical(t, r, 3, "a:"+c.want, strings.Split(r.Canonical("a"), "\n")[3])
	}
}

// checkCanonical compares one line of the canonical request.
func checkCanonical(t *testing.T, r *sigv4test.Request, line int, want, plain string) {
	t.Helper()
	if len(r.Headers) == 0 {
		r.Headers = []sigv4test.Header{{"a", ""}}
	}
	got, ok := sigv4.CanonicalRequest(convert(r), []byte("a"), new([32]byte))
	if !ok {
		t.Fatal("refused")
	}
	if l := strings.Split(string(got), "\n"); l[line] != want || len(l) != 7 {
		t.Errorf("%+v: %q, want %q in line %d of 7", r, l, want, line)
	}
	if plain != want {
		t.Errorf("%+v: the plain implementation makes %q, want %q", r, plain, want)
	}
}

func TestDerive(t *testing.T) {
	// The example of AWS's documentation.
	got := sigv4.Derive([]byte(suiteKey.Secret), []byte("20150830"), "us-east-1", "iam")
	if want := "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"; hex.EncodeToString(got) != want {
		t.Errorf("signing key %x, want %s", got, want)
	}
	for n := range 130 {
		k := sigv4test.Key{Secret: strings.Repeat("s", n), Region: "us-east-1", Service: "kms"}
		got := sigv4.Derive([]byte(k.Secret), []byte("20240229"), k.Region, k.Service)
		if want := sigv4test.SigningKey(k, "20240229"); string(got) != string(want) {
			t.Fatalf("secret of %d bytes: signing key %x, want %x", n, got, want)
		}
	}
}

// signedHeaders returns the list that a signed request names.
func signedHeaders(r *sigv4test.Request) string {
	_, rest, _ := strings.Cut(r.Get("Authorization"), "SignedHeaders=")
	list, _, _ := strings.Cut(rest, ",")
	return list
}

// convert makes the verifier's view of a request.
func convert(r *sigv4test.Request) *sigv4.Request {
	c := &sigv4.Request{Method: []byte(r.Method), Path: []byte(r.Path), Query: []byte(r.Query), Body: []byte(r.Body), ID: "test-request"}
	for _, h := range r.Headers {
		c.Headers = append(c.Headers, sigv4.Header{Name: []byte(h[0]), Value: []byte(h[1])})
	}
	return c
}
