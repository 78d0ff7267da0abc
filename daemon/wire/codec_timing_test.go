package wire_test

import (
	"encoding/json"
	"syscall"
	"testing"

	"keymill/daemon/wire"
)

// cpu is the processor time of this process. Unlike the clock it does not run
// while others have the machine.
func cpu(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// timed runs f and reports processor time beside the clock's.
func timed(b *testing.B, f func()) {
	b.ReportAllocs()
	from := cpu(b)
	for b.Loop() {
		f()
	}
	b.ReportMetric(float64(cpu(b)-from)/float64(b.N), "cpu-ns/op")
}

// BenchmarkDecode compares decoding with validation, and encoding/json
// without, in one run.
func BenchmarkDecode(b *testing.B) {
	for _, h := range hotOps() {
		body := []byte(h.body)
		b.Run(h.name+"/wire", func(b *testing.B) {
			var d wire.Decoder
			var v wire.Violations
			b.SetBytes(int64(len(body)))
			timed(b, func() {
				if d.Decode(h.in, body) != nil {
					b.Fatal("refused")
				}
				v.Reset()
				if h.in.Validate(&v); v.Len() != 0 {
					b.Fatal("invalid")
				}
			})
		})
		b.Run(h.name+"/json", func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			timed(b, func() {
				if err := json.Unmarshal(body, h.oracle()); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// BenchmarkEncode compares the encoders.
func BenchmarkEncode(b *testing.B) {
	for _, h := range hotOps() {
		dst := make([]byte, 0, 4096)
		b.Run(h.name+"/wire", func(b *testing.B) {
			timed(b, func() { dst = h.out.AppendJSON(dst[:0]) })
		})
		text := h.out.AppendJSON(nil)
		var tree map[string]string
		if err := json.Unmarshal(text, &tree); err != nil {
			b.Fatal(err)
		}
		answer := struct{ A, B, C, D string }{tree["CiphertextBlob"] + tree["Signature"], tree["Plaintext"], tree["KeyId"], tree["KeyMaterialId"]}
		b.Run(h.name+"/json", func(b *testing.B) {
			timed(b, func() {
				if _, err := json.Marshal(&answer); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}
