package reactor

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// What clients do that mean harm, or only look like it.

// crowded dials clients until connections share loops, and asks once on each.
func (r *rig) crowded(t *testing.T) (clients []net.Conn) {
	t.Helper()
	for range len(r.loops) + 1 {
		c := r.dial(t)
		tell(t, c, []string{post("", "go")}, 1)
		clients = append(clients, c)
	}
	return clients
}

// A client that never waits for an answer does not keep a loop for itself.
func TestGreedy(t *testing.T) {
	for name, change := range map[string]func(*Options){"plain": nil, "tls": withTLS} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, func(ctx *fasthttp.RequestCtx) {
				for begin := time.Now(); time.Since(begin) < 50*time.Microsecond; {
				}
				ctx.SetBodyString("ok")
			}, func(o *Options) {
				if o.Loops = 1; change != nil {
					change(o)
				}
			})
			victim := r.crowded(t)[0]
			greedy := r.dial(t)
			request := post("", "x")
			if name == "plain" { // each fills the buffer to its last byte
				request = post("", strings.Repeat("x", maxRequest-len(post("", ""))-4))
			}
			var sending sync.WaitGroup
			sending.Go(func() {
				for {
					if _, err := io.WriteString(greedy, request); err != nil {
						return
					}
				}
			})
			go io.Copy(io.Discard, greedy)
			time.Sleep(100 * time.Millisecond)
			for range 5 {
				if got := tell(t, victim, []string{post("", "go")}, 1); !strings.HasPrefix(got[0], "200") {
					t.Errorf("beside it: %q", got)
				}
			}
			greedy.Close()
			sending.Wait()
		})
	}
}

// An event that comes while somebody else owns a connection is not lost: not the
// end that it told of, nor the request.
func TestEventsOfOwned(t *testing.T) {
	r := serve(t, echo, func(o *Options) { o.Loops = 1 })
	r.crowded(t)
	l := r.loops[0]
	eventually := func(what func() bool) {
		for !what() {
			time.Sleep(time.Millisecond)
		}
	}

	// What serve and begin do, with a pause between adopt and rest.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	std, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.size.Add(1)
	r.open.Add(1)
	c := &conn{srv: r.Server, loop: l, remote: std.RemoteAddr(), fd: -1, std: std}
	c.state.Store(busy)
	c.stream = c
	io.WriteString(client, post("", "last"))
	client.(*net.TCPConn).CloseWrite()
	if err := c.adopt(); err != nil {
		t.Fatal(err)
	}
	eventually(func() bool { return c.state.Load() == again })
	if c.rest() {
		t.Fatal("rest did not see the event")
	}
	r.give(job{conn: c})
	client.SetDeadline(time.Now().Add(time.Minute))
	if b, err := io.ReadAll(client); err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 200")) {
		t.Errorf("answered %q, %v", b, err)
	}

	// What end does for a connection that is not late any more.
	client = r.dial(t)
	tell(t, client, []string{post("", "go")}, 1)
	c = l.all(func(c *conn) bool { return c.remote.String() == client.LocalAddr().String() })[0]
	eventually(c.take)
	io.WriteString(client, post("", "next"))
	eventually(func() bool { return c.state.Load() == again })
	if !c.rest() {
		r.give(job{conn: c})
	}
	if got := tell(t, client, nil, 1); !strings.HasPrefix(got[0], "200") {
		t.Errorf("the request is lost: %q", got)
	}
}

// The time for an answer is one for all of it, however slowly it is read.
func TestAnswerTooSlow(t *testing.T) {
	answer := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	r := serve(t, func(ctx *fasthttp.RequestCtx) { ctx.Response.SetBodyRaw(answer) }, func(o *Options) {
		withTLS(o)
		o.WriteTimeout = time.Second
	})
	conn := r.dialSmall(t)
	c := tls.Client(conn, r.tls)
	io.WriteString(c, post("", "much"))
	b := make([]byte, 16<<10)
	for total := 0; ; {
		n, err := io.ReadFull(c, b)
		if total += n; err != nil {
			return
		}
		if total >= len(answer) {
			t.Fatal("all of it arrived")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// dialSmall connects a client whose kernel takes little.
func (r *rig) dialSmall(t *testing.T) net.Conn {
	t.Helper()
	small := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	conn, err := small.Dial(r.addr.Network(), r.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// updater sends TLS 1.3 KeyUpdates on a connection of crypto/tls behind its back.
type updater struct {
	raw    net.Conn
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    int
}

func (u *updater) keys() {
	b, _ := aes.NewCipher(expand(u.secret, "key", 16))
	u.aead, _ = cipher.NewGCM(b)
	u.iv = expand(u.secret, "iv", 12)
	u.seq = 0
}

// record appends a record of a type.
func (u *updater) record(dst []byte, data []byte, typ byte) []byte {
	inner := append(bytes.Clone(data), typ)
	head := []byte{23, 3, 3, byte((len(inner) + 16) >> 8), byte(len(inner) + 16)}
	dst = append(dst, head...)
	nonce := bytes.Clone(u.iv)
	nonce[11] ^= byte(u.seq)
	nonce[10] ^= byte(u.seq >> 8)
	u.seq++
	return u.aead.Seal(dst, nonce, inner, head)
}

// update appends a KeyUpdate that asks for one.
func (u *updater) update(dst []byte) []byte {
	dst = u.record(dst, []byte{24, 0, 0, 1, 1}, 22)
	u.secret = expand(u.secret, "traffic upd", 32)
	u.keys()
	return dst
}

func expand(secret []byte, label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 "+label)))
	info = append(info, "tls13 "+label...)
	info = append(info, 0)
	out, err := hkdf.Expand(sha256.New, secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return out
}

// updater shakes hands and takes over what crypto/tls would send.
func (r *rig) updater(t *testing.T) *updater {
	t.Helper()
	raw := r.dialSmall(t)
	var log bytes.Buffer
	conf := r.tls.Clone()
	conf.KeyLogWriter = &log
	conn := tls.Client(raw, conf)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	if conn.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip("the machine prefers another cipher suite than AES-128-GCM")
	}
	u := &updater{raw: raw}
	for line := range strings.Lines(log.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			u.secret, _ = hex.DecodeString(f[2])
		}
	}
	u.keys()
	return u
}

// A smallListener's connections have small send buffers.
type smallListener struct{ net.Listener }

func (l smallListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		err = c.(*net.TCPConn).SetWriteBuffer(4096)
	}
	return c, err
}

// A client that makes TLS itself answer, and does not read that, is ended like any
// other.
func TestKeyUpdates(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := serveOn(t, smallListener{ln}, echo, func(o *Options) {
		withTLS(o)
		o.Loops = 1
		o.FirstTimeout, o.IdleTimeout, o.WriteTimeout = 2*time.Second, 2*time.Second, 2*time.Second
	})
	r.http.ReadTimeout = 2 * time.Second
	r.crowded(t)
	u := r.updater(t)
	head := "POST / HTTP/1.1\r\nX: " + strings.Repeat("x", 7<<10) // and its end never comes
	var b []byte
	for i := range head {
		for range 15 { // crypto/tls allows one more
			b = u.update(b)
		}
		b = u.record(b, []byte{head[i]}, 23)
	}
	u.raw.SetDeadline(time.Now().Add(time.Minute))
	go u.raw.Write(b)
	time.Sleep(time.Second)
	// Now it reads all there is, and says nothing more.
	if _, err := io.Copy(io.Discard, u.raw); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it was not ended: %v", err)
	}
}

// A request in many small records holds up nobody.
func TestDrip(t *testing.T) {
	r := serve(t, echo, func(o *Options) { o.Loops = 1; withTLS(o) })
	clients := r.crowded(t)
	victim := clients[0]
	u := r.updater(t)
	body := strings.Repeat("x", 8<<10)
	request := post(strings.Repeat("a: b\r\n", 1200), body)
	b := u.record(nil, []byte(request[:len(request)-len(body)]), 23)
	for i := range body {
		b = u.record(b, []byte{body[i]}, 23)
	}
	go u.raw.Write(b)
	for range 100 {
		if got := tell(t, victim, []string{post("", "go")}, 1); !strings.HasPrefix(got[0], "200") {
			t.Fatalf("beside it: %q", got)
		}
	}
	u.raw.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := io.ReadFull(u.raw, make([]byte, 4000)); err != nil {
		t.Errorf("%d bytes of its answer, %v", n, err)
	}
	if n := r.loops[0].size.Load(); n != int64(len(clients)) {
		t.Errorf("the loop has %d connections: it read all the records itself", n)
	}
}

// What a worker read of a request that another finished does not stay with it.
func TestWipedPart(t *testing.T) {
	secret := "the plaintext of a data key"
	entered, leave := make(chan *worker, 1), make(chan struct{})
	r := serve(t, func(ctx *fasthttp.RequestCtx) {
		if string(ctx.Request.Body()) == "wait" {
			MayWait(ctx)
			entered <- ctx.Conn().(*worker)
			<-leave
		}
	}, func(o *Options) { o.Loops = 1 })
	clients := r.crowded(t)
	request := post("", strings.Repeat("x", 1000)+secret+"end")
	io.WriteString(clients[0], request[:len(request)-3])
	for len(r.loops[0].all(func(c *conn) bool { return c.waits.Load() == halfway && c.state.Load() == idle })) == 0 {
		time.Sleep(time.Millisecond)
	}
	io.WriteString(clients[1], post("", "wait"))
	w := <-entered
	tell(t, clients[0], []string{request[len(request)-3:]}, 1)
	close(leave)
	tell(t, clients[1], nil, 1)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(w.in, []byte(secret)) {
		t.Error("a worker that rests has the request in its buffer")
	}
}

type failing struct{ n int }

func (f *failing) Read(p []byte) (int, error) {
	if f.n++; f.n > 1 {
		return 0, errors.New("half way")
	}
	return copy(p, "the plaintext of a data key"), nil
}

// An answer does not stay either, whatever became of it.
func TestWipedAnswer(t *testing.T) {
	secret := []byte("the plaintext of a data key")
	for name, tt := range map[string]struct {
		answer func(*fasthttp.Response)
		gone   bool // the client is
	}{
		"stream fails": {func(r *fasthttp.Response) { r.SetBodyStream(&failing{}, 1000) }, false},
		"client gone":  {func(r *fasthttp.Response) { r.SetBody(secret) }, true},
		"swapped body": {func(r *fasthttp.Response) { r.SwapBody(bytes.Clone(secret)) }, false}, // as package kms does it
	} {
		t.Run(name, func(t *testing.T) {
			workers, leave := make(chan *worker, 1), make(chan struct{})
			r := serve(t, func(ctx *fasthttp.RequestCtx) {
				MayWait(ctx)
				workers <- ctx.Conn().(*worker)
				<-leave
				tt.answer(&ctx.Response)
			}, nil)
			client := r.dial(t)
			io.WriteString(client, post("", "go"))
			w := <-workers
			if tt.gone {
				client.(*net.TCPConn).SetLinger(0)
				client.Close()
				time.Sleep(50 * time.Millisecond) // until the server's kernel knows
			}
			close(leave)
			if !tt.gone {
				tell(t, client, nil, 1)
			}
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			w.bw.Reset(nil)
			out := w.bw.AvailableBuffer()
			body := w.ctx.Response.SwapBody(nil)
			for where, b := range map[string][]byte{"bw": out, "the body": body} {
				if bytes.Contains(b[:cap(b)], secret) {
					t.Errorf("it is in %s", where)
				}
			}
		})
	}
}

// What is given to others that have ended is closed.
func TestOthersEnded(t *testing.T) {
	r := serve(t, echo, nil)
	get := "GET / HTTP/1.1\r\nHost: k\r\nConnection: close\r\n\r\n"
	tell(t, r.dial(t), []string{get}, 1)
	if err := r.http.Shutdown(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		client := r.dial(t)
		io.WriteString(client, get)
		if b, err := io.ReadAll(client); err != nil && !errors.Is(err, syscall.ECONNRESET) || len(b) > 0 {
			t.Errorf("%q, %v", b, err)
		}
	}
}

// Requests in several records, several in one segment, and the end behind them.
func TestRecords(t *testing.T) {
	r := serve(t, echo, withTLS)
	r.crowded(t)
	for i := range 300 {
		conn := r.dial(t).(*tls.Conn)
		whole := post("", "body")
		at := 1 + i%(len(whole)-1)
		io.WriteString(conn, whole[:at])
		io.WriteString(conn, whole[at:])
		io.WriteString(conn, whole)
		conn.CloseWrite()
		conn.NetConn().(*net.TCPConn).CloseWrite()
		b, err := io.ReadAll(conn)
		if err != nil || bytes.Count(b, []byte("HTTP/1.1 200")) != 2 {
			t.Fatalf("%d: %v %q", i, err, b)
		}
		conn.Close()
	}
}

// Connections that are followed and not in turns, while they are used.
func TestFewAndMany(t *testing.T) {
	for name, change := range map[string]func(*Options){"plain": nil, "tls": withTLS} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, echo, change)
			var wg sync.WaitGroup
			end := time.Now().Add(2 * time.Second)
			var n atomic.Int64
			for range 2 {
				conn := r.dial(t)
				wg.Go(func() {
					in := bufio.NewReader(conn)
					for time.Now().Before(end) {
						whole := post("", "body")
						at := int(n.Add(1)) % len(whole)
						io.WriteString(conn, whole[:at])
						io.WriteString(conn, whole[at:])
						res, err := http.ReadResponse(in, nil)
						if err != nil {
							t.Error(err)
							return
						}
						io.Copy(io.Discard, res.Body)
					}
				})
			}
			for time.Now().Before(end) {
				c := r.dial(t)
				io.WriteString(c, "P")
				time.Sleep(200 * time.Microsecond)
				c.Close()
			}
			wg.Wait()
			t.Log(n.Load(), "requests")
		})
	}
}
