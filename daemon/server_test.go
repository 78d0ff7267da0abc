package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"keymill/daemon/wire"
)

// running is a Server under test whose service is the test's own handler.
type running struct {
	*Server
	log  *logBuffer
	stop func() error // ends Run and returns what it returned
}

// logBuffer is a log that tests read while the daemon writes.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a Server on free ports with svc behind it and waits until it is ready.
func start(t *testing.T, cfg Config, svc *service) *running {
	t.Helper()
	r := &running{log: &logBuffer{}}
	srv, err := New(cfg, Environment{Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	r.Server = srv
	srv.open = func(context.Context) (*service, error) { return svc, nil }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-srv.Ready():
	case err := <-done:
		done <- nil
		t.Fatalf("Run: %v", err)
	}
	return r
}

// freePorts is a valid configuration that binds whatever is free.
func freePorts(t *testing.T) Config {
	c := valid(t.TempDir())
	c.Listen, c.AdminListen = "127.0.0.1:0", "127.0.0.1:0"
	return c
}

// serving returns a service that answers with h.
func serving(h fasthttp.RequestHandler) *service {
	return &service{
		handler:      h,
		backup:       func(context.Context, string) error { return errors.New("no store here") },
		writeMetrics: func(w io.Writer) { io.WriteString(w, "of_the_service 1\n") },
		close:        func() error { return nil },
	}
}

func ok(ctx *fasthttp.RequestCtx) { ctx.SetBodyString("ok") }

// cutShort at the end of a request makes exchange end the sending side there.
const cutShort = "\r\nCut: "

// exchange sends raw bytes and returns the answer that comes back.
func exchange(t *testing.T, addr net.Addr, request string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(request, cutShort) {
		conn.(*net.TCPConn).CloseWrite()
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// Whatever is wrong with HTTP itself is answered in the form AWS clients read,
// and the client gets to read it.
func TestRefusals(t *testing.T) {
	s := start(t, freePorts(t), serving(ok))
	big := strings.Repeat("a", 2*wire.MaxBody)
	tests := []struct {
		name, request string
		status        int
		code          string
	}{
		{"body too large", fmt.Sprintf("POST / HTTP/1.1\r\nHost: k\r\nContent-Length: %d\r\n\r\n%s", len(big), big), 413, "RequestEntityTooLarge"},
		{"chunked body too large", fmt.Sprintf("POST / HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(big), big), 413, "RequestEntityTooLarge"},
		{"headers too large", "POST / HTTP/1.1\r\nHost: k\r\nX: " + big[:64<<10] + "\r\n\r\n", 400, "MalformedHttpRequestException"},
		{"no HTTP", "hello\r\n\r\n", 400, "MalformedHttpRequestException"},
		{"bad length", "POST / HTTP/1.1\r\nHost: k\r\nContent-Length: x\r\n\r\n", 400, "MalformedHttpRequestException"},
		{"cut short", "POST / HTTP/1.1\r\nHost: k" + cutShort, 400, "MalformedHttpRequestException"},
		{"body cut short", "POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 99\r\n\r\nbody" + cutShort, 400, "MalformedHttpRequestException"},
		{"bad chunk", "POST / HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "MalformedHttpRequestException"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res, body := exchange(t, s.Addr(), tt.request)
			if res.StatusCode != tt.status {
				t.Errorf("status %d, want %d", res.StatusCode, tt.status)
			}
			var e struct {
				Type    string `json:"__type"`
				Message string `json:"message"`
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Type != tt.code || e.Message == "" {
				t.Errorf("body %s (%v), want %s with a message", body, err, tt.code)
			}
			if got := res.Header.Get("Content-Type"); got != "application/x-amz-json-1.1" {
				t.Errorf("content type %q", got)
			}
			if len(res.Header.Get("X-Amzn-Requestid")) != 36 {
				t.Errorf("no request id: %v", res.Header)
			}
			if !res.Close {
				t.Error("the connection stays open")
			}
		})
	}
	// The bound itself is accepted.
	if res, body := exchange(t, s.Addr(), fmt.Sprintf("POST / HTTP/1.1\r\nHost: k\r\nContent-Length: %d\r\n\r\n%s", wire.MaxBody, big[:wire.MaxBody])); res.StatusCode != 200 || body != "ok" {
		t.Errorf("a body of exactly %d bytes: %d %s", wire.MaxBody, res.StatusCode, body)
	}
}

func TestHandlerSeesRawHeaders(t *testing.T) {
	names := make(chan string, 1)
	s := start(t, freePorts(t), serving(func(ctx *fasthttp.RequestCtx) {
		var all []string
		for k, v := range ctx.Request.Header.All() {
			all = append(all, string(k)+"="+string(v))
		}
		names <- strings.Join(all, ";")
	}))
	res, _ := exchange(t, s.Addr(), "POST / HTTP/1.1\r\nhost: K\r\nx-AMZ-target: T\r\nx-amz-date: 1\r\nx-amz-date: 2\r\n\r\n")
	got := <-names
	for _, want := range []string{"x-AMZ-target=T", "x-amz-date=1", "x-amz-date=2"} {
		if !strings.Contains(got, want) {
			t.Errorf("headers %q lack %q", got, want)
		}
	}
	if res.Header.Get("Server") != "" || res.Header.Get("Date") == "" || res.Header.Get("Content-Type") != "" {
		t.Errorf("answer's headers: %v", res.Header)
	}
}

func TestPanicEndsOneRequestOnly(t *testing.T) {
	s := start(t, freePorts(t), serving(func(ctx *fasthttp.RequestCtx) {
		if ctx.IsPost() {
			panic("boom")
		}
		ok(ctx)
	}))
	res, body := exchange(t, s.Addr(), "POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 0\r\n\r\n")
	if res.StatusCode != 500 || !strings.Contains(body, "KMSInternalException") || strings.Contains(body, "boom") {
		t.Errorf("answer %d %s", res.StatusCode, body)
	}
	if !strings.Contains(s.log.String(), "boom") || !strings.Contains(s.log.String(), res.Header.Get("X-Amzn-Requestid")) {
		t.Errorf("log lacks the panic or its request id: %s", s.log)
	}
	if res, body := exchange(t, s.Addr(), "GET / HTTP/1.1\r\nHost: k\r\n\r\n"); res.StatusCode != 200 {
		t.Errorf("the next request: %d %s", res.StatusCode, body)
	}
}

func TestAdmin(t *testing.T) {
	s := start(t, freePorts(t), serving(ok))
	get := func(method, path string) (int, string) {
		res, body := exchange(t, s.AdminAddr(), method+" "+path+" HTTP/1.1\r\nHost: k\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return res.StatusCode, body
	}
	if code, _ := get("GET", "/healthz"); code != 200 {
		t.Errorf("/healthz: %d", code)
	}
	if code, _ := get("GET", "/readyz"); code != 200 {
		t.Errorf("/readyz: %d", code)
	}
	if code, body := get("GET", "/metrics"); code != 200 || !strings.Contains(body, "keymill_http_connections ") || !strings.Contains(body, "process_resident_memory_bytes ") || !strings.Contains(body, "of_the_service 1") {
		t.Errorf("/metrics: %d %s", code, body)
	}
	// What writes is on the control socket alone.
	if code, _ := get("POST", "/backup"); code != 404 {
		t.Errorf("POST /backup on the admin listener: %d", code)
	}
}

// The admin listener answers while the store is still being opened, and says so.
func TestNotReadyWhileOpening(t *testing.T) {
	cfg := freePorts(t)
	socket := filepath.Join(t.TempDir(), "a.sock")
	cfg.AdminListen = "unix:" + socket
	srv, err := New(cfg, Environment{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	opening := make(chan struct{})
	srv.open = func(ctx context.Context) (*service, error) {
		close(opening)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	<-opening
	addr := &net.UnixAddr{Name: socket, Net: "unix"}
	if res, _ := exchange(t, addr, "GET /readyz HTTP/1.1\r\nHost: k\r\n\r\n"); res.StatusCode != 503 {
		t.Errorf("/readyz: %d", res.StatusCode)
	}
	if res, _ := exchange(t, addr, "GET /healthz HTTP/1.1\r\nHost: k\r\n\r\n"); res.StatusCode != 200 {
		t.Errorf("/healthz: %d", res.StatusCode)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket was left behind: %v", err)
	}
}

// A request in flight is finished and answered; the store is closed after it,
// and nobody is accepted meanwhile.
func TestStopFinishesWhatIsInFlight(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var events []string
	event := func(e string) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	}
	svc := serving(func(ctx *fasthttp.RequestCtx) {
		if ctx.IsGet() {
			return
		}
		close(entered)
		<-leave
		event("answered")
		ok(ctx)
	})
	svc.close = func() error { event("closed"); return nil }
	s := start(t, freePorts(t), svc)

	idle, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: k\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(idle), nil); err != nil {
		t.Fatal(err)
	}

	type answer struct {
		res  *http.Response
		body string
	}
	got := make(chan answer, 1)
	go func() {
		res, body := exchange(t, s.Addr(), "POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 0\r\n\r\n")
		got <- answer{res, body}
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	for { // until the listener is closed
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			break
		}
		conn.Close()
	}
	if s.serving.Load() {
		t.Error("ready while stopping")
	}
	select {
	case err := <-stopped:
		t.Fatalf("stopped with a request in flight: %v", err)
	default:
	}
	close(leave)
	if a := <-got; a.res.StatusCode != 200 || a.body != "ok" || !a.res.Close {
		t.Errorf("answer %d %q, close %v", a.res.StatusCode, a.body, a.res.Close)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if got := strings.Join(events, " "); got != "answered closed" {
		t.Errorf("events: %s", got)
	}
}

func TestBackupGoesThroughTheControlSocket(t *testing.T) {
	var dirs []string
	fail := error(nil)
	svc := serving(ok)
	svc.backup = func(_ context.Context, dir string) error {
		dirs = append(dirs, dir)
		return fail
	}
	cfg := freePorts(t)
	ctx := t.Context()
	if err := RequestBackup(ctx, cfg.Data, "to"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before the start: %v", err)
	}
	s := start(t, cfg, svc)
	if err := RequestBackup(ctx, cfg.Data, "to"); err != nil {
		t.Fatal(err)
	}
	want, _ := filepath.Abs("to")
	if len(dirs) != 1 || dirs[0] != want {
		t.Errorf("backup into %q, want %q", dirs, want)
	}
	fail = errors.New("disk full")
	if err := RequestBackup(ctx, cfg.Data, "to"); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a backup that fails: %v", err)
	}
	info, err := os.Stat(filepath.Join(cfg.Data, controlName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("control socket: %v, %v", info, err)
	}
	socket := &net.UnixAddr{Name: filepath.Join(cfg.Data, controlName), Net: "unix"}
	for _, body := range []string{`{"to":"relative"}`, `{`, `{}`} {
		res, answer := exchange(t, socket, fmt.Sprintf("POST /backup HTTP/1.1\r\nHost: k\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		if res.StatusCode != 400 || !strings.Contains(answer, "error") {
			t.Errorf("body %s: %d %s", body, res.StatusCode, answer)
		}
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if err := RequestBackup(ctx, cfg.Data, "to"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the stop: %v", err)
	}
}

func TestAnnouncement(t *testing.T) {
	cfg := freePorts(t)
	cfg.Data = filepath.Join(cfg.Data, "it's here")
	if err := os.Mkdir(cfg.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	var out logBuffer
	srv, err := New(cfg, Environment{Logger: slog.New(slog.DiscardHandler), Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	srv.open = func(context.Context) (*service, error) { return serving(ok), nil }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	<-srv.Ready()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := "AWS_SHARED_CREDENTIALS_FILE='" + strings.ReplaceAll(cfg.Data, "'", `'\''`) + "/credentials' aws --endpoint-url http://" +
		srv.Addr().String() + " --region us-east-1 kms create-key"
	if !strings.Contains(out.String(), want) {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
	if err := srv.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
}

// A socket left by a killed daemon is replaced; a live one or a file is not.
func TestListenUnix(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("long/", 30))
	if err := os.MkdirAll(long, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "s"), filepath.Join(long, "s")} {
		ln, err := listenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		go func(ln net.Listener) {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}(ln)
		if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("a live socket: %v", err)
		}
		if ln.Addr().String() != path {
			t.Errorf("address %s, want %s", ln.Addr(), path)
		}
		ln.(*unixListener).UnixListener.Close() // as a killed process leaves it
		if _, err := os.Lstat(path); err != nil {
			t.Fatal(err)
		}
		ln, err = listenUnix(path)
		if err != nil {
			t.Fatalf("a dead socket: %v", err)
		}
		ln.Close()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("close left the socket: %v", err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(file); err == nil || !strings.Contains(err.Error(), "in the way") {
		t.Errorf("a file: %v", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "mine" {
		t.Error("the file was changed")
	}
}

// What the name promised is checked on what was bound.
func TestListenChecksTheBoundAddress(t *testing.T) {
	if ln, err := listen(address{"tcp", "0.0.0.0:0"}, false); err == nil {
		ln.Close()
		t.Error("bound every interface without being told")
	}
	ln, err := listen(address{"tcp", "0.0.0.0:0"}, true)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
}

// A taken address is found before anything is made on disk.
func TestTakenAddressChangesNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := freePorts(t)
	cfg.Data = filepath.Join(cfg.Data, "new")
	cfg.Listen = taken.Addr().String()
	srv, err := New(cfg, Environment{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := srv.Run(ctx); err == nil || !strings.Contains(err.Error(), "listen:") {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Stat(cfg.Data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("data directory: %v", err)
	}
}
