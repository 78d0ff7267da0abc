package wire_test

import (
	"errors"
	"io"
	"testing"

	"keymill/daemon/wire"
	"keymill/daemon/wire/reftest"
)

func TestErrorBody(t *testing.T) {
	for _, c := range []struct {
		err    *wire.Error
		status int
		want   string
	}{
		{wire.NewError(wire.NotFoundException, "Key '%s' does not exist", "k"), 400, `{"__type":"NotFoundException","message":"Key 'k' does not exist"}`},
		{wire.ErrorText(wire.ValidationException, "100% \"\n"), 400, `{"__type":"ValidationException","message":"100% \"\n"}`},
		{wire.NewError(wire.InvalidCiphertextException, "for the log"), 400, `{"__type":"InvalidCiphertextException"}`},
		{wire.NewError(wire.KMSInvalidMacException, "x"), 400, `{"__type":"KMSInvalidMacException"}`},
		{wire.NewError(wire.KMSInvalidSignatureException, "x"), 400, `{"__type":"KMSInvalidSignatureException"}`},
		{wire.Bare(wire.UnsupportedOperationException), 400, `{"__type":"UnsupportedOperationException"}`},
		{wire.Bare(wire.UnknownOperationException).WithStatus(404), 404, `{"__type":"UnknownOperationException"}`},
		{wire.ErrorText(wire.KMSInternalException, ""), 500, `{"__type":"KMSInternalException","message":""}`},
		{wire.Bare(wire.KeyUnavailableException), 500, `{"__type":"KeyUnavailableException"}`},
		{wire.Bare(wire.DependencyTimeoutException), 500, `{"__type":"DependencyTimeoutException"}`},
		{wire.Bare(wire.InternalFailure), 500, `{"__type":"InternalFailure"}`},
		{wire.Bare(wire.ServiceUnavailable), 503, `{"__type":"ServiceUnavailable"}`},
		{wire.Bare(wire.RequestEntityTooLarge), 413, `{"__type":"RequestEntityTooLarge"}`},
		{wire.Bare(wire.ThrottlingException), 400, `{"__type":"ThrottlingException"}`},
		{wire.Bare(wire.AccessDeniedException), 400, `{"__type":"AccessDeniedException"}`},
	} {
		if got := string(c.err.AppendJSON(nil)); got != c.want || c.err.Status != c.status {
			t.Errorf("got %d %s, want %d %s", c.err.Status, got, c.status, c.want)
		}
		if err := reftest.CheckError(c.err, c.err.Code); err != nil {
			t.Error(err)
		}
	}
}

func TestErrorCause(t *testing.T) {
	plain := wire.ErrorText(wire.KMSInternalException, "sorry")
	e := plain.WithCause(io.ErrUnexpectedEOF)
	if !errors.Is(e, io.ErrUnexpectedEOF) || errors.Is(plain, io.ErrUnexpectedEOF) {
		t.Error("the cause must be reachable from the copy only")
	}
	if !errors.Is(e, plain) || errors.Is(e, wire.Bare(wire.NotFoundException)) || !e.Has(wire.KMSInternalException) {
		t.Error("errors with one code must match, others not")
	}
	if got := string(e.AppendJSON(nil)); got != `{"__type":"KMSInternalException","message":"sorry"}` {
		t.Errorf("the cause shows in %s", got)
	}
	if (*wire.Error)(nil).Has(wire.NotFoundException) {
		t.Error("nil has no code")
	}
}
