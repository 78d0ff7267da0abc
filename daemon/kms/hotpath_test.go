package kms

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

// maxHotAllocations bounds what one warm request may allocate between the
// socket and the socket, fasthttp's own share included.
const maxHotAllocations = 1

// TestHotPathAllocations holds the allocations of warm requests through the
// whole pipeline: HTTP, signature, codec, key, cryptography, answer.
func TestHotPathAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("skipped under the race detector: it allocates on its own account")
	}
	h := newHarnessWith(t, profile(t, "base: aws\nrequests: {symmetric: 10000000}\nper-key: 10000000\n"))
	id, arn := h.newKey(nil)
	h.must("CreateAlias", args{"AliasName": "alias/hot", "TargetKeyId": id})
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8="}).str("CiphertextBlob")
	mac, _ := h.newKey(args{"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"})
	for _, c := range []struct{ name, op, body string }{
		{"data key", "GenerateDataKey", `{"KeyId":"` + id + `","KeySpec":"AES_256"}`},
		{"data key, context and ARN", "GenerateDataKey", `{"KeyId":"` + arn + `","KeySpec":"AES_256","EncryptionContext":{"bucket":"b","object":"o"}}`},
		{"data key, alias", "GenerateDataKey", `{"KeyId":"alias/hot","NumberOfBytes":64}`},
		{"encrypt", "Encrypt", `{"KeyId":"` + id + `","Plaintext":"` + strings.Repeat("QUJD", 11) + `"}`},
		{"decrypt", "Decrypt", `{"CiphertextBlob":"` + blob + `"}`},
		{"mac", "GenerateMac", `{"KeyId":"` + mac + `","Message":"aGVsbG8=","MacAlgorithm":"HMAC_SHA_256"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := h.allocations(c.op, c.body)
			t.Logf("%.2f allocations a request", got)
			if got > maxHotAllocations {
				t.Errorf("%.2f allocations a request, at most %d are allowed", got, maxHotAllocations)
			}
		})
	}
}

// allocations serves a request many times over one connection and returns the
// allocations of each.
func (h *harness) allocations(op, body string) float64 {
	h.Helper()
	const n = 2000
	one := h.request(op, body)
	h.serveConn(one, 100) // warm up
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	sent := h.serveConn(one, n)
	runtime.ReadMemStats(&after)
	if got := bytes.Count(sent, []byte("HTTP/1.1 200 OK")); got != n {
		h.Fatalf("%d of %d requests succeeded: %.400s", got, n, sent)
	}
	return float64(after.Mallocs-before.Mallocs) / n
}

// serveConn serves request n times over one connection of bytes and returns
// what was answered.
func (h *harness) serveConn(request []byte, n int) []byte {
	c := &replay{request: request, left: n}
	c.answers.Grow(n * 1024)
	if err := h.server().ServeConn(c); err != nil && err != io.EOF {
		h.Fatal(err)
	}
	return c.answers.Bytes()
}

// A replay is a connection over which the same request comes again and again.
type replay struct {
	request []byte
	at      int
	left    int
	answers bytes.Buffer
	forget  bool // keep no answers
}

func (c *replay) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.request[c.at:])
	if c.at += n; c.at == len(c.request) {
		c.at = 0
		c.left--
	}
	return n, nil
}

func (c *replay) Write(b []byte) (int, error) {
	if c.forget {
		return len(b), nil
	}
	return c.answers.Write(b)
}

func (c *replay) Close() error                     { return nil }
func (c *replay) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *replay) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *replay) SetDeadline(time.Time) error      { return nil }
func (c *replay) SetReadDeadline(time.Time) error  { return nil }
func (c *replay) SetWriteDeadline(time.Time) error { return nil }
