package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const contentType = "application/x-amz-json-1.1"

// A rawCall is one request as bytes, so that it can be wrong in any way. What a
// test changes before signing is signed; what it changes after is tampering.
type rawCall struct {
	s      *story
	method string
	path   string
	header http.Header
	body   []byte

	region, service string
	creds           aws.Credentials
	at              time.Time
	unsigned        bool
	presign         bool
	after           func(*http.Request) // changes the signed request
}

// raw returns a correct request for a KMS operation.
func (s *story) raw(op, body string) *rawCall {
	s.Helper()
	return &rawCall{
		s: s, method: http.MethodPost, path: "/", body: []byte(body),
		header: http.Header{"Content-Type": {contentType}, "X-Amz-Target": {"TrentService." + op}},
		region: s.region, service: "kms", at: time.Now(),
		creds: must(s.Options().Credentials.Retrieve(s.ctx()))(s),
	}
}

// A rawAnswer is what came back, byte for byte where it matters.
type rawAnswer struct {
	Status int
	Body   string
}

// errorBody is the body of an error as KMS writes it; no text, no member.
func errorBody(code, text string) string {
	if text == "" {
		return `{"__type":"` + code + `"}`
	}
	b, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return `{"__type":"` + code + `","message":` + string(b) + `}`
}

func (r *rawCall) send(t testing.TB) (rawAnswer, http.Header) {
	t.Helper()
	req := must(http.NewRequestWithContext(t.Context(), r.method, r.s.d.URL()+r.path, bytes.NewReader(r.body)))(t)
	req.Header = r.header.Clone()
	if !r.unsigned {
		sum := sha256.Sum256(r.body)
		hash := hex.EncodeToString(sum[:])
		if r.presign {
			uri, signed, err := v4.NewSigner().PresignHTTP(t.Context(), r.creds, req, hash, r.service, r.region, r.at)
			if err != nil {
				t.Fatal(err)
			}
			req = must(http.NewRequestWithContext(t.Context(), r.method, uri, bytes.NewReader(r.body)))(t)
			for k, v := range signed {
				req.Header[k] = v
			}
		} else if err := v4.NewSigner().SignHTTP(t.Context(), r.creds, req, hash, r.service, r.region, r.at); err != nil {
			t.Fatal(err)
		}
	}
	if r.after != nil {
		r.after(req)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return rawAnswer{res.StatusCode, string(must(io.ReadAll(res.Body))(t))}, res.Header
}

// wantRefusal sends r and compares the answer with an error of code and text. A
// text that ends in "..." is a beginning, "" says that there is no message.
func (r *rawCall) wantRefusal(t testing.TB, status int, code, text string) {
	t.Helper()
	got, header := r.send(t)
	want := rawAnswer{status, errorBody(code, text)}
	if n := len(text) - 3; n >= 0 && text[n:] == "..." {
		prefix := errorBody(code, text[:n])
		if prefix = prefix[:len(prefix)-2]; n == 0 {
			prefix = `{"__type":"` + code + `"`
		}
		if len(got.Body) > len(prefix) && got.Body[:len(prefix)] == prefix && json.Valid([]byte(got.Body)) {
			want.Body = got.Body
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if id := header.Get("X-Amzn-Requestid"); !uuidForm.MatchString(id) {
		t.Errorf("x-amzn-RequestId %q", id)
	}
	if ct := header.Get("Content-Type"); ct != contentType {
		t.Errorf("Content-Type %q", ct)
	}
}

// everything is what a caller can see of a region.
func (s *story) everything() map[string]any {
	s.Helper()
	all := map[string]any{"aliases": s.aliases(nil, 100)}
	for _, id := range s.keyIDs() {
		meta := *s.describe(id)
		policy, _ := s.raw("GetKeyPolicy", `{"KeyId":"`+id+`"}`).send(s)
		all[id] = []any{meta, s.tags(id), policy}
	}
	return all
}

// compare shows how two results of everything differ.
func compare(before, after map[string]any) string {
	return cmp.Diff(before, after, cmpopts.IgnoreUnexported(types.KeyMetadata{}))
}
