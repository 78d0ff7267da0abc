package daemon

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"keymill/daemon/wire"
)

func largeHeader(target string, n int) *fasthttp.RequestHeader {
	h := new(fasthttp.RequestHeader)
	h.DisableNormalizing()
	h.SetMethod("POST")
	h.Set("x-amz-target", target)
	h.SetContentLength(n)
	return h
}

// TestLargeBodies holds who may send how much, and that what was taken comes
// back whatever becomes of the request.
func TestLargeBodies(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := &largeBodies{now: func() time.Time { return now }}
	const large = 8 << 20
	for _, c := range []struct {
		target string
		n      int
		want   int
	}{
		{"TrentService.Encrypt", wire.MaxBody, 0}, // the server's bound
		{"TrentService.Encrypt", wire.MaxBody + 1, 0},
		{"Keymill.BatchEncrypt", wire.MaxBody, 0},
		{"Keymill.BatchEncrypt", wire.MaxBody + 1, wire.MaxBody + 1},
		{"Keymill.BatchEncrypt", large, large},
		{"Keymill.BatchEncrypt", large + 1, 0},
		{"Keymill.Nothing", large, 0},
		{"", large, 0},
		{"Keymill.BatchEncrypt", -1, 0},
	} {
		if got := l.configure(largeHeader(c.target, c.n)).MaxRequestBodySize; got != c.want {
			t.Errorf("%s with %d bytes may send %d, want %d", c.target, c.n, got, c.want)
		}
	}

	l = &largeBodies{now: func() time.Time { return now }}
	var requests []*fasthttp.Request
	for range maxLargeBodies / large {
		r := new(fasthttp.Request)
		largeHeader("Keymill.BatchSign", large).CopyTo(&r.Header)
		requests = append(requests, r)
		if l.configure(&r.Header).MaxRequestBodySize != large {
			t.Fatal("refused within the bound")
		}
	}
	next := largeHeader("Keymill.BatchSign", wire.MaxBody+1)
	refused := func() bool { return l.configure(next).MaxRequestBodySize == 0 }
	if !refused() {
		t.Error("allowed beyond the bound")
	}
	if e := tooLarge(next); e.Code != "ThrottlingException" {
		t.Errorf("answered %v", e)
	}
	// A connection whose last request was never heard of again.
	if l.configure(&requests[0].Header).MaxRequestBodySize != large {
		t.Error("a connection's own lease stands in its way")
	}
	body := []byte("secret")
	requests[0].SetBodyRaw(body)
	l.release(requests[0])
	if strings.Trim(string(body), "\x00") != "" {
		t.Errorf("%q is left of the body", body)
	}
	if refused() {
		t.Error("refused although a body is gone")
	}
	if l.configure(&requests[0].Header).MaxRequestBodySize != 0 {
		t.Error("allowed beyond the bound")
	}
	now = now.Add(largeBodyTime + time.Second)
	if l.configure(&requests[0].Header).MaxRequestBodySize != large {
		t.Error("refused although all leases have ended")
	}
	l.release(&fasthttp.Request{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bytes != large || len(l.leases) != 1 {
		t.Errorf("%d bytes in %d leases", l.bytes, len(l.leases))
	}
}

// TestLargeBodyArrives sends large bodies through the server.
func TestLargeBodyArrives(t *testing.T) {
	s := start(t, freePorts(t), serving(func(ctx *fasthttp.RequestCtx) {
		fmt.Fprint(ctx, len(ctx.Request.Body()))
	}))
	for range 2 * maxLargeBodies / (8 << 20) { // or the leases would run out
		for _, c := range []struct {
			target string
			n      int
			status int
			want   string
		}{
			{"Keymill.BatchEncrypt", 8 << 20, 200, fmt.Sprint(8 << 20)},
			{"Keymill.BatchEncrypt", 8<<20 + 1, 413, "larger than 8388608 bytes"},
			{"TrentService.Encrypt", wire.MaxBody + 1, 413, "larger than 1048576 bytes"},
		} {
			res, body := exchange(t, s.Addr(), fmt.Sprintf("POST / HTTP/1.1\r\nHost: k\r\nX-Amz-Target: %s\r\nContent-Length: %d\r\n\r\n%s", c.target, c.n, strings.Repeat("a", c.n)))
			if res.StatusCode != c.status || !strings.Contains(body, c.want) {
				t.Errorf("%s with %d bytes: %d %s", c.target, c.n, res.StatusCode, body)
			}
		}
	}
}
