package perf

import (
	"bytes"
	"net"

	"github.com/valyala/fasthttp"
)

// ServeBare serves HTTP on ln with fasthttp as it comes: every request is read
// whole and answered with a body of size bytes, and nothing else is done. It is
// the ceiling for a server of the same requests and answers on that library. It
// returns when ln is closed.
func ServeBare(ln net.Listener, size int) error {
	body := bytes.Repeat([]byte{'x'}, size)
	server := fasthttp.Server{
		Handler: func(ctx *fasthttp.RequestCtx) {
			ctx.SetContentType(contentType)
			ctx.SetBody(body)
		},
	}
	return server.Serve(ln)
}
