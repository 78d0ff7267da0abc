package fuzz

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"

	"keymill/perf"
)

// FuzzResponse compares the load generator's HTTP parser with net/http's: what
// the lean one accepts, the other accepts with the same meaning; and no
// beginning of an accepted answer is an error or complete.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 400 Bad Request\r\ncontent-length:0\r\nConnection: close\r\n\r\n",
		"HTTP/1.1 204\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\ntransfer-encoding:chunked\r\n\r\n2\r\n{}\r\n0A\r\n0123456789\r\n0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := perf.ParseResponse(b)
		if err != nil || r.Len == 0 {
			return
		}
		if !r.Complete(len(b)) {
			if r.Body != nil {
				t.Fatalf("a body of %d bytes before the answer is complete", len(r.Body))
			}
			return
		}
		req := &http.Request{Method: http.MethodPost}
		want, err := http.ReadResponse(bufio.NewReaderSize(bytes.NewReader(b), 1<<17), req)
		if err != nil {
			// net/http also checks that names and values hold no strange bytes.
			return
		}
		body, err := io.ReadAll(want.Body)
		if err != nil || want.StatusCode != r.Status || !bytes.Equal(body, r.Body) {
			t.Fatalf("got %d %q; net/http has %d %q, %v", r.Status, r.Body, want.StatusCode, body, err)
		}
		if r.Close && !want.Close {
			t.Fatal("close, where net/http keeps the connection")
		}
		for _, n := range []int{0, 1, r.Len / 2, r.Len - 1} {
			if p, err := perf.ParseResponse(b[:n]); err != nil || p.Complete(n) {
				t.Fatalf("of %d bytes of %d: %+v, %v", n, r.Len, p, err)
			}
		}
	})
}

// FuzzCredentials checks that what is read from a credentials file is what
// stands there after the signs that separate.
func FuzzCredentials(f *testing.F) {
	f.Add([]byte("[default]\naws_access_key_id = AKIA\naws_secret_access_key = secret\n"))
	f.Add([]byte("# x\n[ default ]\r\naws_access_key_id=A\r\naws_secret_access_key==\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := perf.ParseCredentials(b)
		if err != nil {
			return
		}
		again, err := perf.ParseCredentials([]byte("[default]\naws_access_key_id=" + c.AccessKeyID + "\naws_secret_access_key=" + string(c.Secret)))
		if err != nil || again.AccessKeyID != c.AccessKeyID || !bytes.Equal(again.Secret, c.Secret) {
			t.Fatalf("%q and %q read as %q and %q, %v", c.AccessKeyID, c.Secret, again.AccessKeyID, again.Secret, err)
		}
	})
}

// FuzzBenchReport checks that a report of an earlier run is refused or can be
// compared with itself, and shows no change then, without a panic.
func FuzzBenchReport(f *testing.F) {
	f.Add([]byte(`{"format":1,"measurements":[{"workload":"Encrypt","connections":16,"series":[
		{"name":"bare fasthttp","bare":true,"figures":{"requests_per_s":[90,91]}},
		{"name":"keymill","figures":{"requests_per_s":[60,61],"p99_us":[1,2]}}],"primitive_items_per_s":[4,5]}]}`))
	f.Add([]byte(`{"format":1,"measurements":[{"series":[{"figures":{"requests_per_s":[]}}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := perf.ReadReport(bytes.NewReader(b))
		if err != nil {
			return
		}
		changes, _, err := perf.Changes(r, r)
		if err != nil {
			return
		}
		for _, c := range changes {
			if c.Delta != "~" && c.Delta != "0.00%" && c.Delta != "?" {
				t.Fatalf("changed against itself: %+v", c)
			}
		}
		if err := r.WriteTable(io.Discard); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzBenchOperation checks that what an operation prints is read as the same.
func FuzzBenchOperation(f *testing.F) {
	for _, s := range []string{"Encrypt", "Sign:RSA_4096", "Sign:RSA_2048:RSASSA_PKCS1_V1_5_SHA_256", "Verify:ECC_NIST_EDWARDS25519", "CreateKey:SM2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := perf.ParseOperation(text)
		if err != nil {
			return
		}
		if again, err := perf.ParseOperation(o.String()); err != nil || again != o {
			t.Fatalf("%q is %v, which reads as %v, %v", text, o, again, err)
		}
	})
}
