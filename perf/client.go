package perf

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"keymill/daemon/wire"
)

// A Target is where requests go and in whose name.
type Target struct {
	Addr        string      // HOST:PORT
	TLS         *tls.Config // nil is plain HTTP
	Region      string
	Credentials Credentials
}

// ParseEndpoint returns the target of an http or https URL, as yet without
// credentials. tlsConfig serves when the URL is https; nil is the system's
// authorities. A path other than "/" is refused: none of the dialects has one.
func ParseEndpoint(text string, tlsConfig *tls.Config) (Target, error) {
	u, err := url.Parse(text)
	if err != nil {
		u = new(url.URL)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return Target{}, fmt.Errorf("%q is no endpoint; give http://HOST:PORT or https://HOST:PORT", text)
	}
	t := Target{Addr: u.Host}
	if u.Scheme == "https" {
		t.TLS = &tls.Config{}
		if tlsConfig != nil {
			t.TLS = tlsConfig.Clone()
		}
		t.TLS.ServerName = u.Hostname()
		t.TLS.NextProtos = []string{"http/1.1"}
	}
	if u.Port() == "" {
		port := map[string]string{"http": "80", "https": "443"}[u.Scheme]
		t.Addr = net.JoinHostPort(u.Hostname(), port)
	}
	return t, nil
}

// A conn is one keep-alive connection. It belongs to one goroutine.
type conn struct {
	c  net.Conn
	in []byte // answer, and room for the next
}

func dial(ctx context.Context, t Target) (*conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", t.Addr)
	if err != nil {
		return nil, err
	}
	if t.TLS != nil {
		secure := tls.Client(c, t.TLS)
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if err := secure.HandshakeContext(ctx); err != nil {
			c.Close()
			return nil, fmt.Errorf("TLS with %s: %w", t.Addr, err)
		}
		c = secure
	}
	return &conn{c: c, in: make([]byte, 4096)}, nil
}

// roundTrip sends a request and reads the answer, which is valid until the next
// call. After an error the connection is unusable.
func (c *conn) roundTrip(request []byte) (Response, error) {
	if _, err := c.c.Write(request); err != nil {
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
}

// An Input is a request structure of package wire.
type Input interface{ AppendJSON(dst []byte) []byte }

// A Client makes single calls, to set a measurement up. It belongs to one
// goroutine.
type Client struct {
	target   Target
	conn     *conn
	builders map[wire.Op]*builder
}

// Dial connects to target. Close the client when done.
func Dial(ctx context.Context, target Target) (*Client, error) {
	c, err := dial(ctx, target)
	if err != nil {
		return nil, err
	}
	return &Client{target, c, make(map[wire.Op]*builder)}, nil
}

// Close closes the connection.
func (c *Client) Close() { c.conn.close() }

// callTimeout bounds one call of a [Client]: creating an RSA_4096 key on a busy
// machine takes seconds.
const callTimeout = 30 * time.Second

// Call makes one request of the AWS KMS API and returns the answer's body,
// which is valid until the next call. An answer other than 200 is an
// [*AnswerError].
func (c *Client) Call(ctx context.Context, op wire.Op, in Input) ([]byte, error) {
	b := c.builders[op]
	if b == nil {
		b = newBuilder(c.target.Addr, c.target.Region, targetOf(op), c.target.Credentials)
		c.builders[op] = b
	}
	body, err := c.send(ctx, b.append(nil, time.Now(), in.AppendJSON(nil)))
	if err != nil {
		return nil, fmt.Errorf("%v: %w", op, err)
	}
	return body, nil
}

// send sends one request. When the server has closed, or closes, the
// connection, the next call makes another.
func (c *Client) send(ctx context.Context, request []byte) ([]byte, error) {
	if c.conn == nil || c.conn.c == nil {
		return nil, errors.New("the client is closed")
	}
	c.conn.c.SetDeadline(time.Now().Add(callTimeout))
	stop := context.AfterFunc(ctx, func() { c.conn.c.SetDeadline(time.Unix(1, 0)) })
	r, err := c.conn.roundTrip(request)
	stop()
	if err != nil {
		return nil, err
	}
	if r.Close {
		next, err := dial(ctx, c.target)
		if err != nil {
			return nil, err
		}
		c.conn.c.Close()
		c.conn.c = next.c
	}
	if r.Status < 200 || r.Status > 299 {
		return nil, newAnswerError(r)
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
