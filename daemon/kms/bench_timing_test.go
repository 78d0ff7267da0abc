package kms

import (
	"io"
	"strings"
	"testing"
)

// BenchmarkPipeline is a warm request from the bytes of a connection to the
// bytes of the answer, without a socket.
func BenchmarkPipeline(b *testing.B) {
	h := newHarness(b)
	id, _ := h.newKey(nil)
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": b64("0123456789abcdef0123456789abcdef")}).str("CiphertextBlob")
	for _, c := range []struct{ op, body string }{
		{"GenerateDataKey", `{"KeyId":"` + id + `","KeySpec":"AES_256"}`},
		{"Encrypt", `{"KeyId":"` + id + `","Plaintext":"` + b64("0123456789abcdef0123456789abcdef") + `"}`},
		{"Decrypt", `{"CiphertextBlob":"` + blob + `"}`},
		{"Encrypt", `{"KeyId":"` + id + `","Plaintext":"` + b64(strings.Repeat("x", 4096)) + `"}`},
	} {
		b.Run(c.op, func(b *testing.B) {
			request := h.request(c.op, c.body)
			h.serveConn(request, 100)
			b.ReportAllocs()
			b.ResetTimer()
			c := &replay{request: request, left: b.N, forget: true}
			if err := h.server().ServeConn(c); err != nil && err != io.EOF {
				b.Fatal(err)
			}
		})
	}
}
