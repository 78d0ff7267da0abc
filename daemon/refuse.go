package daemon

import (
	"errors"
	"net"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"

	"keymill/daemon/wire"
)

// What is wrong with HTTP itself never reaches the KMS service. It is answered
// here, in the form AWS clients read.

// refuse answers a request that could not be read.
func (s *Server) refuse(ctx *fasthttp.RequestCtx, err error) {
	var (
		small   *fasthttp.ErrSmallBuffer
		network net.Error
		e       *wire.Error
	)
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		e = tooLarge(&ctx.Request.Header)
		discard(ctx.Conn())
	case errors.As(err, &small):
		e = wire.NewError(wire.MalformedHttpRequestException, "The request headers are larger than %d bytes.", maxHeader)
		discard(ctx.Conn())
	case errors.As(err, &network) && network.Timeout():
		e = wire.ErrorText(wire.MalformedHttpRequestException, "The request did not arrive in time.")
	default:
		e = wire.ErrorText(wire.MalformedHttpRequestException, "The request is not valid HTTP.")
	}
	s.bodies.release(&ctx.Request)
	id := uuid.NewString()
	s.log.Debug("request refused", "request_id", id, "code", e.Code, "err", err)
	ctx.Response.Reset()
	writeError(ctx, id, e)
}

// Bounds of discard.
const (
	discardBytes = 16 << 20
	discardPause = 200 * time.Millisecond
	discardTotal = 5 * time.Second
)

// discard reads what the client is still sending, for a while. The connection
// is closed after the answer; with unread bytes in the socket the kernel would
// reset it, and the client would lose the answer.
func discard(conn net.Conn) {
	var buf [8 << 10]byte
	end := time.Now().Add(discardTotal)
	for left := discardBytes; left > 0; {
		next := time.Now().Add(discardPause)
		if next.After(end) {
			return
		}
		if conn.SetReadDeadline(next) != nil {
			return
		}
		n, err := conn.Read(buf[:])
		if err != nil {
			return
		}
		left -= n
	}
}

// writeError answers as the KMS service does.
func writeError(ctx *fasthttp.RequestCtx, id string, e *wire.Error) {
	ctx.SetStatusCode(e.Status)
	ctx.SetContentType(wire.ContentType)
	ctx.Response.Header.Set("x-amzn-RequestId", id)
	ctx.SetBody(e.AppendJSON(nil))
}
