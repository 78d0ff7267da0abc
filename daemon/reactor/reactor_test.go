package reactor

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// A rig is a Server with the fasthttp.Server of its others.
type rig struct {
	*Server
	http *fasthttp.Server
	addr net.Addr
	tls  *tls.Config // of clients, nil for plaintext

	stop func() error
}

func newHTTP(h fasthttp.RequestHandler) *fasthttp.Server {
	return &fasthttp.Server{
		Handler:                       h,
		DisableHeaderNamesNormalizing: true,
		NoDefaultContentType:          true,
		NoDefaultServerHeader:         true,
		NoDefaultDate:                 true,
		ReadBufferSize:                16 << 10,
		MaxRequestBodySize:            1 << 20,
		CloseOnShutdown:               true,
		Logger:                        quiet{},
	}
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}

// serve starts a Server of h; change may alter its options.
func serve(t testing.TB, h fasthttp.RequestHandler, change func(*Options)) *rig {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, ln, h, change)
}

func serveOn(t testing.TB, ln net.Listener, h fasthttp.RequestHandler, change func(*Options)) *rig {
	t.Helper()
	o := Options{Handler: h, MaxConns: 4096, FirstTimeout: time.Minute, IdleTimeout: time.Minute, WriteTimeout: time.Minute, Loops: 2, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	s, err := New(ln, o)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Server: s, http: newHTTP(h), addr: ln.Addr()}
	if o.TLS != nil {
		r.tls = &tls.Config{InsecureSkipVerify: true}
	}
	var serving sync.WaitGroup
	for _, f := range []func() error{s.Serve, func() error { return r.http.Serve(s.Others()) }} {
		serving.Go(func() {
			if err := f(); err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
	r.stop = sync.OnceValue(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err := errors.Join(s.Shutdown(ctx), r.http.ShutdownWithContext(ctx))
		serving.Wait()
		return err
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
		if n := s.Open(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	return r
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func withTLS(o *Options) { o.TLS = &tls.Config{Certificates: []tls.Certificate{certificate()}} }

// dial connects a client.
func (r *rig) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial(r.addr.Network(), r.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	if r.tls != nil {
		conn = tls.Client(conn, r.tls)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute)) // a test that hangs says where
	return conn
}

// echo answers with all it saw of a request, and whether this package served it.
func echo(ctx *fasthttp.RequestCtx) {
	_, here := ctx.Conn().(*worker)
	ctx.Response.Header.Set("X-Here", fmt.Sprint(here))
	fmt.Fprintf(ctx, "%s %s %d\n%s%s", ctx.Method(), ctx.RequestURI(), len(ctx.Request.Body()), ctx.Request.Header.RawHeaders(), ctx.Request.Body())
}

func post(head, body string) string {
	return fmt.Sprintf("POST / HTTP/1.1\r\nHost: k\r\nContent-Length: %d\r\n%s\r\n%s", len(body), head, body)
}

// tell sends request in pieces and returns all that comes back until the server
// closes or has sent as many answers as wanted.
func tell(t testing.TB, conn net.Conn, pieces []string, answers int) (all []string) {
	t.Helper()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i, p := range pieces {
			if i > 0 {
				time.Sleep(2 * time.Millisecond) // so that most arrive apart
			}
			if _, err := io.WriteString(conn, p); err != nil {
				return // the answer says why
			}
		}
	}()
	defer func() { <-sent }()
	in := bufio.NewReader(conn)
	for range answers {
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			return append(all, "no answer")
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			return append(all, "no body")
		}
		all = append(all, fmt.Sprintf("%d close=%v %s", res.StatusCode, res.Close, body))
	}
	return all
}

// What is answered here is what a plain fasthttp server answers, for requests of
// all kinds and however they arrive.
func TestAnswersAsFasthttp(t *testing.T) {
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	reference := newHTTP(echo)
	go reference.Serve(plain)
	defer reference.Shutdown()
	socket, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	rigs := map[string]*rig{"plain": serve(t, echo, nil), "tls": serve(t, echo, withTLS), "unix": serveOn(t, socket, echo, nil)}

	long := strings.Repeat("b", 10<<10)
	tests := []struct {
		name, request string
		answers       int
		here          bool // all of them, if the request comes in one piece
	}{
		{"post", post("", "body"), 1, true},
		{"without body", post("", ""), 1, true},
		{"without length", "POST / HTTP/1.1\r\nHost: k\r\n\r\n", 1, false},
		{"raw names", post("x-AMZ-target: T\r\nX-Y: 1\r\nX-Y: 2\r\n", "b"), 1, true},
		{"folded line", post("X-Fold: a\r\n  b\r\n", "b"), 1, true},
		{"long body", post("", long), 1, true},
		{"too long for here", post("", long+long), 1, false},
		{"long head", post("X-Long: "+long[:7<<10]+"\r\n", "b"), 1, true},
		{"too long a head for here", post("X-Long: "+long+"\r\n", "b"), 1, false},
		{"too long a head", post("X-Long: "+long+long+"\r\n", "b"), 1, false},
		{"get", "GET /x HTTP/1.1\r\nHost: k\r\n\r\n", 1, false},
		{"get with body", "GET / HTTP/1.1\r\nHost: k\r\nContent-Length: 3\r\n\r\nabc", 1, false},
		{"head", "OPTIONS / HTTP/1.1\r\nHost: k\r\n\r\n", 1, false},
		{"other path", "POST /x?y HTTP/1.1\r\nHost: k\r\nContent-Length: 1\r\n\r\nb", 1, false},
		{"absolute", "POST http://k/ HTTP/1.1\r\nHost: k\r\nContent-Length: 1\r\n\r\nb", 1, false},
		{"HTTP/1.0", "POST / HTTP/1.0\r\nHost: k\r\nContent-Length: 1\r\n\r\nb", 1, false},
		{"close", post("Connection: close\r\n", "b"), 1, false},
		{"chunked", "POST / HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 1, false},
		{"both lengths", "POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 1, false},
		{"two lengths", post("Content-Length: 9\r\n", "b"), 1, false},
		{"bad length", "POST / HTTP/1.1\r\nHost: k\r\nContent-Length: x\r\n\r\n", 1, false},
		{"negative length", "POST / HTTP/1.1\r\nHost: k\r\nContent-Length: -1\r\n\r\n", 1, false},
		{"huge length", "POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 9223372036854775807\r\n\r\n", 1, false},
		{"bare newline ends", "POST / HTTP/1.1\nHost: k\nContent-Length: 5\n\nb\r\n\r\n", 1, false},
		{"no HTTP", "hello\r\n\r\n", 1, false},
		{"empty lines first", "\r\n\r\n" + post("", "b"), 1, false},
		{"expect", post("Expect: 100-continue\r\n", "b"), 2, false},
		{"pipelined", post("A: 1\r\n", "one") + post("B: 2\r\n", "two"), 2, false},
		{"bad host", strings.Replace(post("", "b"), "Host: k", "Host: a b", 1), 1, false},
		{"bad port", strings.Replace(post("", "b"), "Host: k", "Host: k:port", 1), 1, false},
		{"no host", strings.Replace(post("", "b"), "Host: k\r\n", "", 1), 1, false},
		{"two hosts", post("Host: b\r\n", "b"), 1, false},
		{"space before colon", post("X : 1\r\n", "b"), 1, false},
	}
	for _, tt := range tests {
		splits := [][]string{{tt.request}}
		if end := strings.Index(tt.request, "\r\n\r\n"); end > 0 && end+4 < len(tt.request) {
			splits = append(splits, []string{tt.request[:end+4], tt.request[end+4:]}) // as http.client sends it
		}
		for range 4 {
			at := 1 + mrand.IntN(len(tt.request)-1)
			splits = append(splits, []string{tt.request[:at], tt.request[at:]})
		}
		if len(tt.request) < 200 {
			splits = append(splits, strings.Split(tt.request, ""))
		}
		conn, err := net.Dial("tcp", plain.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		want := tell(t, conn, splits[0], tt.answers)
		conn.Close()
		if slices.Contains(want, "no answer") {
			t.Fatalf("%s: fasthttp gives no answer", tt.name)
		}
		for name, r := range rigs {
			for i, pieces := range splits {
				t.Run(fmt.Sprintf("%s/%s/%d", tt.name, name, i), func(t *testing.T) {
					t.Parallel()
					conn := r.dial(t)
					defer conn.Close()
					got := tell(t, conn, pieces, tt.answers)
					if fmt.Sprint(got) != fmt.Sprint(want) {
						t.Errorf("sent %.300q\ngot  %.600q\nwant %.600q", pieces, got, want)
					}
				})
			}
		}
		if tt.here {
			conn := rigs["plain"].dial(t)
			io.WriteString(conn, tt.request)
			if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.Header.Get("X-Here") != "true" {
				t.Errorf("%s: not served here: %v %v", tt.name, res, err)
			}
			conn.Close()
		}
	}
}

// A handler that waits and says so holds up nobody; its connection is served like
// any other after.
func TestMayWait(t *testing.T) {
	const waiting = 100 // more than one pass of a loop takes up
	var entered sync.WaitGroup
	entered.Add(waiting)
	leave := make(chan struct{})
	r := serve(t, func(ctx *fasthttp.RequestCtx) {
		if string(ctx.Request.Body()) == "wait" {
			MayWait(ctx)
			entered.Done()
			<-leave
			MayWait(ctx) // again is nothing
		}
		echo(ctx)
	}, func(o *Options) { o.Loops = 1 })
	conns := make([]net.Conn, waiting)
	for i := range conns {
		conns[i] = r.dial(t)
		io.WriteString(conns[i], post("", "wait"))
	}
	entered.Wait()
	busy := r.dial(t)
	for range 10 {
		if got := tell(t, busy, []string{post("", "go")}, 1); !strings.HasPrefix(got[0], "200") {
			t.Fatal(got)
		}
	}
	// The next requests of those that wait arrive before their answers.
	for _, conn := range conns[:waiting/2] {
		io.WriteString(conn, post("", "next"))
	}
	close(leave)
	for i, conn := range conns {
		in := bufio.NewReader(conn)
		for j := range 2 {
			if j == 1 && i >= waiting/2 {
				io.WriteString(conn, post("", "next"))
			}
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("connection %d, answer %d: %v", i, j, err)
			}
			io.Copy(io.Discard, res.Body)
			if res.Header.Get("X-Here") != "true" {
				t.Errorf("connection %d, answer %d: served by others", i, j)
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.resting); n > maxResting {
		t.Errorf("%d workers rest", n)
	}
}

// A client that does not read its answer holds up nobody, and gets all of it.
func TestSlowReader(t *testing.T) {
	answer := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB: more than sockets take
	for name, change := range map[string]func(*Options){"plain": nil, "tls": withTLS} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, func(ctx *fasthttp.RequestCtx) {
				if string(ctx.Request.Body()) == "much" {
					ctx.Response.SetBodyRaw(answer)
					return
				}
				echo(ctx)
			}, func(o *Options) {
				if o.Loops = 1; change != nil {
					change(o)
				}
			})
			slow := r.dial(t)
			io.WriteString(slow, post("", "much"))
			other := r.dial(t)
			for range 10 {
				if got := tell(t, other, []string{post("", "go")}, 1); !strings.HasPrefix(got[0], "200") {
					t.Fatal(got)
				}
			}
			in := bufio.NewReader(slow)
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(got, answer) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			io.WriteString(slow, post("", "next"))
			if res, err = http.ReadResponse(in, nil); err != nil || res.StatusCode != 200 {
				t.Fatalf("the next request: %v", err)
			}
		})
	}
}

// Connections end when nothing comes, first, next or the rest.
func TestTimeouts(t *testing.T) {
	for name, change := range map[string]func(*Options){"plain": nil, "tls": withTLS} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, echo, func(o *Options) {
				o.FirstTimeout, o.IdleTimeout = time.Second, 2*time.Second
				if change != nil {
					change(o)
				}
			})
			r.http.ReadTimeout = time.Second
			for _, begin := range []string{"", post("", "body"), post("", "body") + "POST / HT"} {
				conn := r.dial(t)
				io.WriteString(conn, begin)
				answer, err := io.ReadAll(conn)
				if err != nil {
					t.Errorf("%q: %v", begin, err)
				}
				if got := bytes.Count(answer, []byte("HTTP/1.1 200")); got != strings.Count(begin, "Length") {
					t.Errorf("%q: answered %q", begin, answer)
				}
			}
			if change != nil { // a handshake that does not come
				conn, err := net.Dial("tcp", r.addr.String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if answer, err := io.ReadAll(conn); len(answer) > 0 || err != nil {
					t.Errorf("%q, %v", answer, err)
				}
			}
		})
	}
}

// A request of which the rest is late is served all the same, by others.
func TestLateRest(t *testing.T) {
	for name, change := range map[string]func(*Options){"plain": nil, "tls": withTLS} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, echo, change)
			request := post("", "body")
			var conns [3]net.Conn // one more than are followed
			for i := range conns {
				conns[i] = r.dial(t)
				io.WriteString(conns[i], request[:len(request)-2])
			}
			for _, l := range r.loops {
				for l.size.Load() > 0 || r.Open() < int64(len(conns)) {
					time.Sleep(time.Millisecond)
				}
			}
			for _, conn := range conns {
				io.WriteString(conn, request[len(request)-2:])
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil || res.StatusCode != 200 || res.Header.Get("X-Here") != "false" {
					t.Fatalf("%v %v", res, err)
				}
				if body, _ := io.ReadAll(res.Body); !strings.HasSuffix(string(body), "body") {
					t.Errorf("%q", body)
				}
			}
		})
	}
}

// Stopping ends what rests, at once, and what is busy after its answer.
func TestShutdown(t *testing.T) {
	for name, change := range map[string]func(*Options){"plain": nil, "tls": withTLS} {
		t.Run(name, func(t *testing.T) {
			entered, leave := make(chan struct{}), make(chan struct{})
			r := serve(t, func(ctx *fasthttp.RequestCtx) {
				if string(ctx.Request.Body()) == "wait" {
					MayWait(ctx)
					close(entered)
					<-leave
				}
				echo(ctx)
			}, change)
			var resting []net.Conn
			for range 10 {
				conn := r.dial(t)
				tell(t, conn, []string{post("", "go")}, 1)
				resting = append(resting, conn)
			}
			unspoken, err := net.Dial("tcp", r.addr.String()) // with TLS, one whose handshake does not come
			if err != nil {
				t.Fatal(err)
			}
			defer unspoken.Close()
			busy := r.dial(t)
			io.WriteString(busy, post("", "wait"))
			<-entered
			stopped := make(chan error, 1)
			go func() { stopped <- r.stop() }()
			for _, conn := range append(resting, unspoken) {
				if b, err := io.ReadAll(conn); len(b) > 0 || err != nil {
					t.Errorf("resting: %q, %v", b, err)
				}
			}
			select {
			case err := <-stopped:
				t.Fatalf("stopped with a request in flight: %v", err)
			default:
			}
			close(leave)
			res, err := http.ReadResponse(bufio.NewReader(busy), nil)
			if err != nil || res.StatusCode != 200 || !res.Close {
				t.Errorf("%v %v", res, err)
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		})
	}
}

// Who stops for too short a time is told, and nothing breaks.
func TestShutdownInVain(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	r := serve(t, func(ctx *fasthttp.RequestCtx) {
		close(entered) // without a word: the loop waits too
		<-leave
	}, func(o *Options) { o.Loops = 1 })
	conn := r.dial(t)
	io.WriteString(conn, post("", ""))
	<-entered
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	second, err := New(ln, r.o)
	if err != nil {
		t.Fatal(err)
	}
	go second.Serve()
	if err := second.Shutdown(t.Context()); err != nil {
		t.Errorf("with nothing to do: %v", err)
	}
	close(leave)
	if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
		t.Error(err)
	}
}

// Whoever comes when there are as many connections as may be is told.
func TestTooMany(t *testing.T) {
	r := serve(t, echo, func(o *Options) { o.MaxConns = 2 })
	var conns [2]net.Conn
	for i := range conns {
		conns[i] = r.dial(t)
		tell(t, conns[i], []string{post("", "go")}, 1)
	}
	if got, err := io.ReadAll(r.dial(t)); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 503 ") {
		t.Fatalf("%q, %v", got, err)
	}
	if r.Refused() != 1 || r.Open() != 2 {
		t.Errorf("%d refused, %d open", r.Refused(), r.Open())
	}
	conns[0].Close()
	for r.Open() == 2 {
		time.Sleep(time.Millisecond)
	}
	if got := tell(t, r.dial(t), []string{post("", "go")}, 1); !strings.HasPrefix(got[0], "200") {
		t.Error(got)
	}
}

// A client that has said all it will is answered.
func TestHalfClosed(t *testing.T) {
	r := serve(t, echo, nil)
	for range 50 {
		conn := r.dial(t).(*net.TCPConn)
		io.WriteString(conn, post("", "last"))
		conn.CloseWrite()
		if b, err := io.ReadAll(conn); err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 200")) {
			t.Fatalf("%q, %v", b, err)
		}
	}
}

// Nothing of a request or an answer stays in a worker.
func TestWiped(t *testing.T) {
	secret := []byte("the plaintext of a data key")
	workers := make(chan *worker, 8)
	r := serve(t, func(ctx *fasthttp.RequestCtx) {
		workers <- ctx.Conn().(*worker)
		ctx.Response.SetBodyRaw(ctx.Request.Body())
	}, nil)
	conn := r.dial(t)
	for _, size := range []int{len(secret), maxAnswer, maxRequest - 200} {
		request := post("", strings.Repeat("x", size-len(secret))+string(secret))
		half := len(request) - 5
		if got := tell(t, conn, []string{request[:half], request[half:]}, 1); !strings.HasSuffix(got[0], string(secret)) {
			t.Fatalf("%.100q", got)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for range len(workers) {
		w := <-workers
		out := w.bw.AvailableBuffer()
		for name, b := range map[string][]byte{"request": w.in, "answer": out[:cap(out)]} {
			if bytes.Contains(b, secret[:8]) || bytes.Contains(b, []byte("xxxx")) {
				t.Errorf("the %s buffer holds what was in it", name)
			}
		}
	}
}

// Clients that do all sorts of things, at once: every whole request has its own
// answer, and no connection or descriptor is left.
func TestCrowd(t *testing.T) {
	for _, tt := range []struct {
		name   string
		size   int
		change func(*Options)
	}{
		{"plain", 32, nil},
		{"tls", 32, withTLS},
		{"plain, few", 3, nil}, // about as many as are followed
		{"tls, few", 3, withTLS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := descriptors(t)
			var handled atomic.Int64
			r := serve(t, func(ctx *fasthttp.RequestCtx) {
				handled.Add(1)
				switch body := ctx.Request.Body(); {
				case bytes.HasPrefix(body, []byte("wait")):
					MayWait(ctx)
					time.Sleep(time.Duration(mrand.IntN(1000)) * time.Microsecond)
				}
				ctx.Response.SetBody(ctx.Request.Body())
			}, tt.change)
			rounds := 1000 / tt.size
			if testing.Short() {
				rounds /= 5
			}
			var crowd sync.WaitGroup
			var answered atomic.Int64
			for client := range tt.size {
				crowd.Go(func() {
					random := mrand.New(mrand.NewPCG(uint64(client), 1))
					for range rounds {
						conn := r.dial(t)
						in := bufio.NewReader(conn)
						for i := range random.IntN(20) {
							body := fmt.Sprintf("%s %d %d %s", [2]string{"go", "wait"}[random.IntN(2)], client, i, strings.Repeat("z", random.IntN(3000)))
							request := post("", body)
							if random.IntN(4) == 0 {
								at := random.IntN(len(request))
								io.WriteString(conn, request[:at])
								if random.IntN(3) == 0 {
									break // and hangs up
								}
								time.Sleep(time.Duration(random.IntN(300)) * time.Microsecond)
								request = request[at:]
							}
							io.WriteString(conn, request)
							res, err := http.ReadResponse(in, nil)
							if err != nil {
								t.Errorf("no answer: %v", err)
								break
							}
							if got, err := io.ReadAll(res.Body); err != nil || string(got) != body {
								t.Errorf("sent %.40q, got %.40q, %v", body, got, err)
								break
							}
							answered.Add(1)
						}
						conn.Close()
					}
				})
			}
			crowd.Wait()
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			if handled.Load() != answered.Load() || answered.Load() == 0 {
				t.Errorf("%d requests handled, %d answered", handled.Load(), answered.Load())
			}
			for _, l := range r.loops {
				if len(l.conns) != 0 || l.size.Load() != 0 {
					t.Errorf("a loop has %d connections watched, %d counted", len(l.conns), l.size.Load())
				}
			}
			for try := 0; descriptors(t) > before; try++ { // the clients' own close behind their backs
				if try == 1000 {
					t.Fatalf("%d descriptors, %d before", descriptors(t), before)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// FuzzParse holds that a request which is answered here is one that fasthttp reads
// in the same way, to its last byte.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		post("", ""), post("", "body"), post("Content-Length: 2\r\n", "b"), post("X: 1\r\n y\r\n", "b"), post("Expect: 100-continue\r\n", "b"),
		post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), post("Connection: close\r\n", ""), "POST / HTTP/1.1\nContent-Length: 5\n\nb\r\n\r\n",
		"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nb", "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n", "\r\n" + post("", ""),
		"POST http://k/ HTTP/1.1\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\nb",
	} {
		f.Add([]byte(s))
	}
	w := newWorker(&Server{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxRequest {
			return
		}
		defer w.ctx.Request.Reset()
		body, r := w.parse(b)
		if r != whole {
			if got := w.ctx.Request.Header.Method(); string(got) != "GET" || len(w.ctx.Request.Header.RawHeaders()) > 0 {
				t.Fatalf("declined, and left %q", got)
			}
			return
		}
		got := &w.ctx.Request
		got.SetBodyRaw(body)
		var want fasthttp.Request
		want.Header.DisableNormalizing()
		in := bufio.NewReaderSize(bytes.NewReader(b), maxHead)
		if err := want.Header.Read(in); err != nil {
			t.Fatalf("fasthttp reads no head: %v", err)
		}
		if err := want.ReadBody(in, want.Header.ContentLength(), maxRequest); err != nil {
			t.Fatalf("fasthttp reads no body: %v", err)
		}
		if rest, _ := io.ReadAll(in); len(rest) > 0 {
			t.Fatalf("fasthttp leaves %q", rest)
		}
		if !bytes.Equal(got.Body(), want.Body()) || !bytes.Equal(got.Header.RawHeaders(), want.Header.RawHeaders()) ||
			!bytes.Equal(got.Header.RequestURI(), want.Header.RequestURI()) || got.Header.ContentLength() != want.Header.ContentLength() {
			t.Fatalf("read %q, fasthttp %q", got.String(), want.String())
		}
	})
}
