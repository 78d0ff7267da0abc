package sigv4_test

import (
	"testing"
	"time"

	"keymill/daemon/sigv4"
	"keymill/daemon/sigv4/sigv4test"
)

// TestSigner: signatures are those of the plain implementation, over changes of
// day, and are verified by a Verifier of the same service; after Wipe not.
func TestSigner(t *testing.T) {
	key := sigv4test.Key{ID: "ABCDEFGHIJKLMNOPQRST", Secret: "a secret that signs tests and nothing else", Region: "eu-west-1", Service: "kms-xks-proxy"}
	var now time.Time
	v := sigv4.New(sigv4.Options{
		Service: key.Service, NoTarget: true,
		Lookup: func(id []byte) *sigv4.Credential {
			return &sigv4.Credential{AccessKeyID: key.ID, Secret: []byte(key.Secret), Active: string(id) == key.ID}
		},
		Region: func(r []byte) (string, bool) { return key.Region, string(r) == key.Region },
		Clock:  func() time.Time { return now },
	})
	s := sigv4.NewSigner(key.ID, []byte(key.Secret), key.Region, key.Service)
	sign := func(path, body string) *sigv4test.Request {
		r := &sigv4test.Request{Method: "POST", Path: path, Body: body, Headers: []sigv4test.Header{{"Host", "proxy.example.com"}}}
		date, auth := s.Sign("proxy.example.com", path, []byte(body), now)
		r.Set("X-Amz-Date", date)
		r.Set("Authorization", auth)
		return r
	}
	convert := func(r *sigv4test.Request) *sigv4.Request {
		c := &sigv4.Request{Method: []byte(r.Method), Path: []byte(r.Path), Body: []byte(r.Body)}
		for _, h := range r.Headers {
			c.Headers = append(c.Headers, sigv4.Header{Name: []byte(h[0]), Value: []byte(h[1])})
		}
		return c
	}
	for _, now = range []time.Time{
		time.Date(2026, 2, 28, 23, 59, 59, 0, time.UTC), time.Date(2026, 3, 1, 0, 0, 0, 0, time.FixedZone("", 3600)),
		time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC),
	} {
		for _, path := range []string{"/kms/xks/v1/health", "/pre-fix_1/a/kms/xks/v1/keys/a.b-c_d/encrypt"} {
			r := sign(path, `{"a":"b"}`)
			want := r.Clone()
			want.Sign(key, now, "host", "x-amz-date")
			if got := r.Get("Authorization"); got != want.Get("Authorization") {
				t.Errorf("%v %s: %s\nwant %s", now, path, got, want.Get("Authorization"))
			}
			var res sigv4.Result
			if err := v.Verify(convert(r), &res); err != nil {
				t.Errorf("%v %s: %v", now, path, err)
			}
		}
	}
	s.Wipe()
	var res sigv4.Result
	if err := v.Verify(convert(sign("/kms/xks/v1/health", "")), &res); err == nil {
		t.Error("a wiped signer signs")
	}
}
