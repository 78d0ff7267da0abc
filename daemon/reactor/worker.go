package reactor

import (
	"bufio"
	"bytes"
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	// maxHead bounds a head that is read here: a signature takes under 1 KiB, a
	// session token up to some 4 KiB.
	maxHead = 8 << 10

	// maxRequest bounds a request that is answered here, head and body. It holds
	// those that carry the 4,096 bytes that AWS KMS allows, in Base64.
	maxRequest = 16 << 10

	// maxAnswer bounds an answer that leaves in one write.
	maxAnswer = 8 << 10
)

// A worker answers one request at a time. It is the net.Conn of the request it
// answers, by which MayWait finds it.
type worker struct {
	net.Conn // what the request came on

	srv *Server
	job chan job // where it rests

	loop *loop // that it runs, nil once it has left it

	ctx   fasthttp.RequestCtx
	in    []byte // a request
	head  bytes.Reader
	br    *bufio.Reader // over head
	bw    *bufio.Writer // over the worker
	sent  int           // bytes of an answer
	until time.Time     // when the answer has to be out, zero before it had to wait
	uri   fasthttp.URI  // scratch
}

// A job is a loop to run or, without one, a connection to serve. No job at all is
// the end.
type job struct {
	loop *loop
	conn *conn
}

func newWorker(s *Server) *worker {
	w := &worker{srv: s, job: make(chan job, 1), in: make([]byte, maxRequest)}
	w.br = bufio.NewReaderSize(&w.head, maxHead)
	w.bw = bufio.NewWriterSize(nil, maxAnswer)
	w.ctx.Init2(w, nil, false)
	return w
}

// MayWait tells the server that the handler of ctx may wait from now on. It does
// nothing for a request that this package does not serve.
func MayWait(ctx *fasthttp.RequestCtx) {
	if w, ok := ctx.Conn().(*worker); ok {
		w.leave()
	}
}

// work does jobs until there are no more.
func (w *worker) work() {
	for {
		j := <-w.job
		switch {
		case j.loop != nil:
			w.run(j.loop)
		case j.conn != nil:
			w.serve(j.conn)
		default:
			return
		}
		if !w.srv.rest(w) {
			return
		}
	}
}

// run runs a loop until the loop ends or the worker has left it.
func (w *worker) run(l *loop) {
	w.loop = l
	for {
		for c := l.pop(); c != nil; c = l.pop() {
			w.serve(c)
			if w.loop == nil {
				return
			}
		}
		if !l.wait() {
			w.loop = nil
			return
		}
	}
}

// leave gives the loop to another worker.
func (w *worker) leave() {
	if l := w.loop; l != nil {
		w.loop = nil
		w.srv.give(job{loop: l})
	}
}

// What became of a connection.
type outcome int8

const (
	answered outcome = iota
	waiting          // for more
	gone             // to be closed
	other            // not for us
)

// serve answers what c has sent. The caller owns c, and no longer does after.
func (w *worker) serve(c *conn) {
	w.Conn, c.worker = c.stream, w
	c.reads = 0
	defer func() { w.Conn = nil }()
	for {
		switch w.answer(c) {
		case answered:
			c.waitFor(next)
		case waiting:
			if len(c.partial) > 0 && c.waits.Load() != halfway {
				c.waitFor(halfway)
			}
			if !w.stay(c) {
				return
			}
		case gone:
			c.end()
			return
		case other:
			return
		}
	}
}

// stay decides what becomes of a connection that has sent nothing more. It returns
// whether the worker goes on with it.
func (w *worker) stay(c *conn) bool {
	s := w.srv
	switch {
	case c.std != nil && !c.followed: // TLS had something to say, and the client did not read
		c.handOver(c.partial)
		return false
	case c.followed:
		// Somebody called: whatever the reason, it was there before the call. The
		// next call is for the next reason.
		c.std.SetReadDeadline(time.Time{})
		switch {
		case s.stopping.Load() || s.late(c):
			c.end()
			return false
		case !s.few():
			s.unfollow(c)
			if err := c.adopt(); err != nil {
				c.end()
				return false
			}
		}
	case len(c.partial) == 0 && s.few():
		w.leave()
		if err := c.release(); err != nil {
			c.end()
			return false
		}
		s.follow(c)
	case c.rest():
		return false
	}
	c.worker = w
	c.drained, c.toEnd = false, true // there may be more, or an end
	return true
}

// answer reads one request and answers it.
func (w *worker) answer(c *conn) outcome {
	w.until = time.Time{}
	n := copy(w.in, c.partial)
	var body []byte
	for tries := 1; ; tries++ {
		m, err := c.stream.Read(w.in[n:])
		n += m
		if m > 0 {
			var r reading
			if body, r = w.parse(w.in[:n]); r == whole {
				break
			} else if r == foreign || n == len(w.in) || tries == maxReads {
				return w.decline(c, n)
			}
			if c.followed && c.waits.Load() != halfway {
				c.waitFor(halfway) // the next read waits
			}
		}
		switch {
		case err == nil:
		case err == errWouldBlock:
			if n > len(c.partial) {
				clear(c.partial)
				c.partial = bytes.Clone(w.in[:n])
			}
			clear(w.in[:n])
			return waiting
		case n > 0: // and no more to come; fasthttp says what it thinks of that
			return w.decline(c, n)
		default:
			return gone
		}
	}
	clear(c.partial)
	c.partial = nil

	req, resp := &w.ctx.Request, &w.ctx.Response
	req.SetBodyRaw(body)
	resp.Header.DisableNormalizing()
	resp.Header.SetNoDefaultContentType(true)
	w.srv.o.Handler(&w.ctx)
	last := resp.ConnectionClose() || w.srv.stopping.Load()
	if last {
		resp.SetConnectionClose()
	}
	w.sent, w.until = 0, time.Time{}
	w.bw.Reset(w)
	err := resp.Write(w.bw)
	if err == nil {
		err = w.bw.Flush()
	}
	// All of these may hold plaintext.
	clear(w.in[:n])
	if err != nil {
		w.bw.Reset(w)
		w.sent = maxAnswer
	}
	out := w.bw.AvailableBuffer()
	clear(out[:min(w.sent, cap(out))])
	if !resp.IsBodyStream() {
		b := resp.SwapBody(nil)
		clear(b[:cap(b)])
		resp.SwapBody(b)
	}
	req.Reset()
	resp.Reset()
	switch {
	case err != nil || last:
		return gone
	case c.std != nil && !c.followed: // the client had not read; others may wait for it
		c.handOver(nil)
		return other
	}
	return answered
}

// Write sends a part of the answer.
func (w *worker) Write(p []byte) (int, error) {
	w.sent += len(p)
	return w.Conn.Write(p)
}

// decline hands the connection over, with the first n bytes of w.in.
func (w *worker) decline(c *conn, n int) outcome {
	clear(c.partial)
	c.handOver(bytes.Clone(w.in[:n]))
	clear(w.in[:n])
	return other
}

// What parse makes of the bytes that are there.
type reading int8

const (
	unfinished reading = iota
	whole              // a request to answer here, and nothing else
	foreign            // something for others
)

// parse reads a request's head into w.ctx and returns its body, which is part of b.
// Unless that is the whole of b, w.ctx holds nothing.
func (w *worker) parse(b []byte) (body []byte, r reading) {
	end := bytes.Index(b, endOfHead)
	if end < 0 {
		if len(b) > maxHead {
			return nil, foreign
		}
		return nil, unfinished
	}
	end += len(endOfHead)
	if end > maxHead {
		return nil, foreign
	}
	w.head.Reset(b[:end])
	w.br.Reset(&w.head)
	h := &w.ctx.Request.Header
	h.DisableNormalizing() // a signature covers names as they were sent
	if err := h.Read(w.br); err != nil || w.head.Len()+w.br.Buffered() > 0 ||
		!h.IsPost() || !h.IsHTTP11() || string(h.RequestURI()) != "/" ||
		h.ConnectionClose() || h.ContentLength() < 0 || w.ctx.Request.MayContinue() || w.uri.Parse(h.Host(), h.RequestURI()) != nil {
		r = foreign
	} else if n := end + h.ContentLength(); n > maxRequest || n < len(b) {
		r = foreign
	} else if n > len(b) {
		r = unfinished
	} else {
		return b[end:], whole
	}
	w.ctx.Request.Reset()
	return nil, r
}

var endOfHead = []byte("\r\n\r\n")
