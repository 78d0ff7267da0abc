package kms

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"keymill/daemon/wire"
	"keymill/daemon/wire/bulk"
)

// A defect in an operation fails its request and leaves nothing behind.
func TestPanic(t *testing.T) {
	const secret = "plaintext that nobody may see again"
	for _, c := range []struct {
		name string
		fail func(x *exchange)
		log  string
	}{
		{"runtime error", func(x *exchange) { _ = x.secret[len(x.secret):][:cap(x.secret)+1] }, "slice bounds out of range"},
		{"value", func(x *exchange) { panic(errors.New(secret)) }, "a value of type *errors.errorString"},
		{"on a heavy worker", func(x *exchange) { _ = x.svc.runHeavy(func() { panic(secret) }) }, "a value of type string"},
		{"bulk", func(x *exchange) {
			b, err := x.newBulk(bulk.Encrypt, "BINARY", 1<<20, 1<<16)
			if err != nil {
				t.Error(err)
			}
			b.buf = append(b.buf, secret...)
			b.finish(x)
			panic(1)
		}, "a value of type int"},
		{"while the answer is written", func(x *exchange) {
			x.ctx.Response.SetBodyString(secret)
			panic(2)
		}, "a value of type int"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(t)
			key, _ := h.newKey(nil)
			var log bytes.Buffer
			h.svc.log = slog.New(slog.NewTextHandler(&log, nil))
			row := &operations[wire.OpDescribeKey]
			was := row.run
			defer func() { row.run = was }()
			var left [][]byte
			row.run = func(x *exchange) error {
				x.secret = append(x.secret[:0], secret...)
				x.out = append(x.out[:0], secret...)
				x.ops[0].Out = []byte(secret)
				left = append(left, x.secret, x.out, x.ops[0].Out)
				c.fail(x)
				return nil
			}
			a := h.call("DescribeKey", args{"KeyId": key})
			if a.status != 500 || a.code() != "KMSInternalException" {
				t.Errorf("answered %d %s", a.status, a.code())
			}
			if strings.Contains(a.body, secret) {
				t.Error("the answer repeats what it was working on")
			}
			for i, b := range left {
				if bytes.Contains(b, []byte("nobody")) { // the answer may use it
					t.Errorf("buffer %d was not wiped: %q", i, b)
				}
			}
			text := log.String()
			id := a.header.Get("X-Amzn-Requestid")
			if !strings.Contains(text, c.log) || !strings.Contains(text, "operation=DescribeKey") ||
				!strings.Contains(text, "panics_test.go") || !strings.Contains(text, "request_id="+id) {
				t.Errorf("log: %s", text)
			}
			if strings.Contains(text, secret) {
				t.Errorf("the log has the secret: %s", text)
			}
			if n := h.svc.bulk.memory.Load(); n != 0 {
				t.Errorf("%d bytes of bulk answers still counted", n)
			}
			var metrics bytes.Buffer
			h.svc.WriteMetrics(&metrics)
			for _, want := range []string{"keymill_operation_panics_total 1\n", `code="KMSInternalException"} 1`} {
				if !strings.Contains(metrics.String(), want) {
					t.Errorf("metrics without %q", want)
				}
			}
			row.run = was
			h.must("DescribeKey", args{"KeyId": key})
		})
	}
}
