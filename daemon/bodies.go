package daemon

import (
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"keymill/daemon/wire"
	"keymill/hsm/arena"
)

// # Large bodies
//
// A request body is read, into memory, before anybody knows who sent it. For the
// operations of AWS KMS that is at most wire.MaxBody on each connection. Those of
// our own that take more (wire.Op.MaxBody) get it only while the large bodies of
// all connections together stay within maxLargeBodies, and only with a
// Content-Length. Whoever comes when there is no room left is told to come again.
//
// What such a request can make the daemon hold is then: its body; up to twice
// that while it is decoded; and an answer, which daemon/kms bounds on its own.
//
// The right to send a large body is a lease on behalf of the connection. It ends
// when the request was answered or refused. fasthttp says nothing when a client
// hangs up in between, so a lease also ends by itself, after largeBodyTime: by
// then the body's memory is gone, since reading it has a deadline.

const (
	// maxLargeBodies is eight of the largest bodies: more than a machine of a
	// few cores works on at once.
	maxLargeBodies = 64 << 20

	// largeBodyTime covers a body's arrival and its work.
	largeBodyTime = 4 * readTimeout
)

// largeBodies hands out leases.
type largeBodies struct {
	now func() time.Time

	mu     sync.Mutex
	leases map[*fasthttp.RequestHeader]lease // guarded by mu
	bytes  int                               // of all leases; guarded by mu
}

type lease struct {
	bytes int
	until time.Time
}

// configure is fasthttp's HeaderReceived: it allows a large body.
func (l *largeBodies) configure(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	n := h.ContentLength()
	if n <= wire.MaxBody || n > bodyBound(h) || !l.take(h, n) {
		return fasthttp.RequestConfig{} // the server's own bound
	}
	return fasthttp.RequestConfig{MaxRequestBodySize: n}
}

// bodyBound returns the bound of a request's body by its operation.
func bodyBound(h *fasthttp.RequestHeader) int {
	for name, value := range h.All() {
		if strings.EqualFold(string(name), "X-Amz-Target") {
			if op, ok := wire.OpByTarget(value); ok {
				return op.MaxBody()
			}
			break
		}
	}
	return wire.MaxBody
}

func (l *largeBodies) take(h *fasthttp.RequestHeader, n int) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(h) // the connection's last request, of which nothing was heard
	if l.bytes+n > maxLargeBodies {
		for other, have := range l.leases {
			if now.After(have.until) {
				l.drop(other)
			}
		}
	}
	if l.bytes+n > maxLargeBodies {
		return false
	}
	if l.leases == nil {
		l.leases = map[*fasthttp.RequestHeader]lease{}
	}
	l.leases[h] = lease{n, now.Add(largeBodyTime)}
	l.bytes += n
	return true
}

// drop ends a lease, if there is one. The caller holds mu.
func (l *largeBodies) drop(h *fasthttp.RequestHeader) {
	l.bytes -= l.leases[h].bytes
	delete(l.leases, h)
}

// release wipes the large body of a request that was worked on or refused, gives
// its memory back and ends its lease. It does nothing for others.
func (l *largeBodies) release(r *fasthttp.Request) {
	if r.Header.ContentLength() <= wire.MaxBody {
		return
	}
	arena.Wipe(r.Body())
	r.ResetBody()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(&r.Header)
}

// tooLarge says why a body was not read.
func tooLarge(h *fasthttp.RequestHeader) *wire.Error {
	bound, n := bodyBound(h), h.ContentLength()
	switch {
	case n <= wire.MaxBody: // chunked: fasthttp puts in what it had read, or nothing
		return wire.NewError(wire.RequestEntityTooLarge, "The request body is larger than %d bytes, the most without Content-Length.", wire.MaxBody)
	case n > bound:
		return wire.NewError(wire.RequestEntityTooLarge, "The request body is larger than %d bytes.", bound)
	}
	return wire.ErrorText(wire.ThrottlingException, "Too many large requests are under way. Try again.")
}
