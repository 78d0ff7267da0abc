package daemon

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

// What is wrong with HTTP itself never reaches the KMS service. It is answered
// here, in the form AWS clients read.

// refuse answers a request that could not be read.
func (s *Server) refuse(ctx *fasthttp.RequestCtx, err error) {
	var (
		small   *fasthttp.ErrSmallBuffer
		network net.Error
		status  int
		code    string
		text    string
	)
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		status, code, text = fasthttp.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "The request body is larger than 1 MiB."
	case errors.As(err, &small):
		status, code, text = fasthttp.StatusRequestHeaderFieldsTooLarge, "RequestHeaderSectionTooLarge", "The request headers are larger than 16 KiB."
	case errors.As(err, &network) && network.Timeout():
		status, code, text = fasthttp.StatusRequestTimeout, "RequestTimeoutException", "The request did not arrive in time."
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &network):
		return // nobody is there to read an answer
	default:
		status, code, text = fasthttp.StatusBadRequest, "MalformedHttpRequestException", "The request is not valid HTTP."
	}
	id := requestID()
	s.log.Debug("request refused", "request_id", id, "code", code, "err", err)
	if status == fasthttp.StatusRequestEntityTooLarge || status == fasthttp.StatusRequestHeaderFieldsTooLarge {
		discard(ctx.Conn())
	}
	ctx.Response.Reset()
	writeError(ctx, id, status, code, text)
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

// writeError answers in the form of AWS JSON 1.1.
func writeError(ctx *fasthttp.RequestCtx, id string, status int, code, text string) {
	body, err := json.Marshal(struct {
		Type    string `json:"__type"`
		Message string `json:"message"`
	}{code, text})
	if err != nil {
		body = nil // two strings always marshal
	}
	ctx.SetStatusCode(status)
	ctx.SetContentType("application/x-amz-json-1.1")
	ctx.Response.Header.Set("x-amzn-RequestId", id)
	ctx.SetBody(body)
}

// requestID returns a random UUID, version 4.
func requestID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	var s [36]byte
	hex.Encode(s[0:8], b[0:4])
	hex.Encode(s[9:13], b[4:6])
	hex.Encode(s[14:18], b[6:8])
	hex.Encode(s[19:23], b[8:10])
	hex.Encode(s[24:36], b[10:16])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}
