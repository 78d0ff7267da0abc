package kms

import (
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// BenchmarkBulk is a warm bulk request of 10,000 items (1,000 signatures) from
// the bytes of a connection to the bytes of the answer, without a socket. It
// reports processor time and wall-clock time per item.
func BenchmarkBulk(b *testing.B) {
	h := newHarness(b)
	id, _ := h.newKey(nil)
	p256, _ := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})
	rsa, _ := h.newKey(args{"KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"})
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": b64("0123456789abcdef0123456789abcdef")}).str("CiphertextBlob")
	list := func(n int, item string) string { return `"Items":[` + strings.Repeat(item+",", n-1) + item + `]` }
	for _, c := range []struct {
		name, op, key, body string
		n                   int
	}{
		{"GenerateDataKeys", "GenerateDataKeys", id, `"KeySpec":"AES_256","NumberOfKeys":10000`, 10000},
		{"WithoutPlaintext", "GenerateDataKeys", id, `"KeySpec":"AES_256","NumberOfKeys":10000,"WithoutPlaintext":true`, 10000},
		{"BatchEncrypt", "BatchEncrypt", id, list(10000, `{"Plaintext":"`+b64("0123456789abcdef0123456789abcdef")+`"}`), 10000},
		{"BatchDecrypt", "BatchDecrypt", id, list(10000, `{"CiphertextBlob":"`+blob+`"}`), 10000},
		{"BatchSign/P256", "BatchSign", p256, `"SigningAlgorithm":"ECDSA_SHA_256",` + list(1000, `{"Message":"`+b64("message")+`"}`), 1000},
		{"BatchSign/RSA2048", "BatchSign", rsa, `"SigningAlgorithm":"RSASSA_PSS_SHA_256",` + list(1000, `{"Message":"`+b64("message")+`"}`), 1000},
	} {
		for _, format := range []string{"BINARY", "JSON"} {
			b.Run(fmt.Sprintf("%s/%s", c.name, format), func(b *testing.B) {
				request := h.request(c.op, `{"KeyId":"`+c.key+`","ResponseFormat":"`+format+`",`+c.body+`}`)
				serve := func(n int) int64 {
					conn := &sink{replay: replay{request: request, left: n}}
					if err := h.server().ServeConn(conn); err != nil && err != io.EOF {
						b.Fatal(err)
					}
					if conn.answered != n {
						b.Fatalf("%d of %d answered: %.300s", conn.answered, n, conn.last)
					}
					return conn.written
				}
				serve(2)
				b.ReportAllocs()
				from, start := cpuTime(b), time.Now()
				b.ResetTimer()
				b.SetBytes(serve(b.N) / int64(b.N))
				items := float64(b.N * c.n)
				b.ReportMetric(float64(cpuTime(b)-from)/items, "cpu-ns/item")
				b.ReportMetric(float64(time.Since(start))/items, "ns/item")
			})
		}
	}
}

// A sink is a replay that counts what it is sent and keeps only its beginning.
type sink struct {
	replay
	written  int64
	answered int
	last     []byte
}

var _ net.Conn = (*sink)(nil)

func (s *sink) Write(p []byte) (int, error) {
	s.written += int64(len(p))
	if strings.HasPrefix(string(p[:min(len(p), 15)]), "HTTP/1.1 200 OK") {
		s.answered++
	}
	s.last = append(s.last[:0], p[:min(len(p), 300)]...)
	return len(p), nil
}

// cpuTime is the processor time of this process. Unlike the clock it does not
// run while others have the machine.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
