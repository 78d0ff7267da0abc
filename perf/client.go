package perf

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"keymill/daemon/wire"
)

// A Target is where requests go and in whose name.
type Target struct {
	Addr        string // HOST:PORT
	Region      string
	Credentials Credentials
}

// A conn is one keep-alive connection. It belongs to one goroutine.
type conn struct {
	c   net.Conn
	out []byte // request
	in  []byte // answer, and room for the next
}

func dial(ctx context.Context, addr string) (*conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &conn{c: c, in: make([]byte, 4096)}, nil
}

// roundTrip sends the request in c.out and reads the answer, which is valid
// until the next call. After an error the connection is unusable.
func (c *conn) roundTrip() (Response, error) {
	if _, err := c.c.Write(c.out); err != nil {
		return Response{}, err
	}
	var r Response
	for n := 0; ; {
		m, err := c.c.Read(c.in[n:])
		n += m
		if n >= r.Len && m > 0 {
			var perr error
			if r, perr = ParseResponse(c.in[:n]); perr != nil {
				return r, perr
			}
			if r.Complete(n) {
				if n > r.Len {
					return r, fmt.Errorf("%d bytes after the answer that nobody asked for", n-r.Len)
				}
				return r, nil
			}
		}
		if err == io.EOF {
			return r, io.ErrUnexpectedEOF
		}
		if err != nil {
			return r, err
		}
		if want := max(r.Len, n+1); want > len(c.in) {
			c.in = append(c.in[:n], make([]byte, max(want, 2*len(c.in))-n)...)
		}
	}
}

// close closes the connection and wipes what it holds, which may be data keys.
func (c *conn) close() {
	c.c.Close()
	clear(c.in)
	clear(c.out)
}

// An Input is a request structure of package wire.
type Input interface{ AppendJSON(dst []byte) []byte }

// A Client makes single calls, to set a measurement up. It belongs to one
// goroutine.
type Client struct {
	target Target
	conn   *conn
}

// Dial connects to target. Close the client when done.
func Dial(ctx context.Context, target Target) (*Client, error) {
	c, err := dial(ctx, target.Addr)
	if err != nil {
		return nil, err
	}
	return &Client{target, c}, nil
}

// Close closes the connection.
func (c *Client) Close() { c.conn.close() }

// callTimeout bounds one call of a [Client]: creating an RSA_4096 key on a busy
// machine takes seconds.
const callTimeout = 30 * time.Second

// Call makes one request and returns the answer's body, which is valid until
// the next call. An answer other than 200 is an [*AnswerError].
func (c *Client) Call(ctx context.Context, op wire.Op, in Input) ([]byte, error) {
	b := newBuilder(c.target.Addr, c.target.Region, targetOf(op), c.target.Credentials)
	c.conn.c.SetDeadline(time.Now().Add(callTimeout))
	defer context.AfterFunc(ctx, func() { c.conn.c.SetDeadline(time.Unix(1, 0)) })()
	c.conn.out = b.append(c.conn.out[:0], time.Now(), in.AppendJSON(nil))
	r, err := c.conn.roundTrip()
	if err != nil {
		return nil, fmt.Errorf("%v: %w", op, err)
	}
	if r.Status != 200 {
		return nil, fmt.Errorf("%v: %w", op, newAnswerError(r))
	}
	return r.Body, nil
}

// An AnswerError is an answer other than 200.
type AnswerError struct {
	Status int
	Body   string // its beginning
}

// newAnswerError copies what it keeps of r.
func newAnswerError(r Response) *AnswerError {
	return &AnswerError{r.Status, string(r.Body[:min(len(r.Body), 512)])}
}

func (e *AnswerError) Error() string {
	if e.Body == "" {
		return fmt.Sprintf("status %d without a body", e.Status)
	}
	return fmt.Sprintf("status %d: %s", e.Status, e.Body)
}
