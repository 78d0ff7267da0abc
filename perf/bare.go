package perf

import (
	"bytes"
	"net"

	"github.com/valyala/fasthttp"
)

// ServeBare serves HTTP on ln with fasthttp as it comes: every request is read
// whole and answered with a body of size bytes, and nothing else is done. It is
// the ceiling for a server of the same requests and answers on that library.
// With a pair it serves TLS. It returns when ln is closed.
func ServeBare(ln net.Listener, size int, pair *Pair) error {
	body := bytes.Repeat([]byte{'x'}, size)
	server := fasthttp.Server{
		Handler: func(ctx *fasthttp.RequestCtx) {
			ctx.SetContentType(contentType)
			ctx.SetBody(body)
		},
		MaxRequestBodySize: maxBody,
	}
	if pair != nil {
		return server.ServeTLS(ln, pair.CertFile, pair.KeyFile)
	}
	return server.Serve(ln)
}

// ListenLoopback listens on a free port of the loopback interface.
func ListenLoopback() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
