package kms

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttputil"

	"keymill/daemon/quota"
	"keymill/daemon/sigv4/sigv4test"
	"keymill/daemon/wire"
	"keymill/hsm/hsmtest"
	"keymill/keystore"
)

const (
	testAccount = "111122223333"
	testRegion  = "eu-west-1"
)

// A harness is a Service on a real store and an in-memory root of trust, behind
// fasthttp on an in-memory listener, with a clock that tests set.
type harness struct {
	testing.TB
	svc   *Service
	store *keystore.Store
	dir   string // of the store
	conf  Config // of svc
	root  *hsmtest.Memory
	key   sigv4test.Key
	now   time.Time
	ln    *fasthttputil.InmemoryListener
}

func newHarness(t testing.TB) *harness {
	t.Helper()
	return newHarnessWith(t, nil)
}

// newHarnessWith is newHarness with quotas; nil is none.
func newHarnessWith(t testing.TB, quotas *quota.Profile) *harness {
	t.Helper()
	return newHarnessConfig(t, func(c *Config) { c.Quota = quotas })
}

// newHarnessConfig is newHarness with a changed configuration of the service.
func newHarnessConfig(t testing.TB, change func(*Config)) *harness {
	t.Helper()
	return newHarnessOn(t, func(o keystore.Options) keystore.Options { return o }, change)
}

// newHarnessOn is newHarnessConfig with a changed configuration of the store.
func newHarnessOn(t testing.TB, on func(keystore.Options) keystore.Options, change func(*Config)) *harness {
	t.Helper()
	h := &harness{
		TB:   t,
		root: hsmtest.NewMemory(),
		key:  sigv4test.Key{ID: "AKIAIOSFODNN7EXAMPLE", Secret: "not-a-secret-but-a-test-fixture-0123456789", Region: testRegion, Service: "kms"},
		now:  time.Date(2026, 5, 4, 3, 2, 1, 987654321, time.UTC),
	}
	clock := func() time.Time { return h.now }
	var err error
	h.dir = t.TempDir()
	h.store, err = keystore.Open(context.Background(), on(keystore.Options{Dir: h.dir, Root: h.root, Clock: clock}))
	if err != nil {
		t.Fatal(err)
	}
	tx := h.store.NewTxn()
	tx.PutPrincipal(&keystore.Principal{ID: testAccount, Account: testAccount, ARN: "arn:aws:iam::" + testAccount + ":root", Root: true}, 0)
	tx.PutAccessKey(&keystore.AccessKey{ID: h.key.ID, Account: testAccount, PrincipalID: testAccount, Secret: []byte(h.key.Secret), Active: true, Created: h.now}, 0)
	if _, err := tx.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	config := Config{
		Store: h.store, Account: testAccount, Region: testRegion, Regions: []string{"us-east-1"},
		Clock: clock, Logger: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	change(&config)
	h.conf = config
	if h.svc, err = New(config); err != nil {
		t.Fatal(err)
	}
	h.ln = fasthttputil.NewInmemoryListener()
	server := h.server()
	done := make(chan error, 1)
	go func(ln net.Listener) { done <- server.Serve(ln) }(h.ln) // which restart may replace
	t.Cleanup(func() {
		_ = h.ln.Close()
		<-done
		h.svc.Close()
		if err := h.store.Close(); err != nil {
			t.Error(err)
		}
		_ = h.root.Close()
	})
	return h
}

func (h *harness) server() *fasthttp.Server {
	return &fasthttp.Server{
		Handler: h.svc.ServeHTTP, DisableHeaderNamesNormalizing: true,
		NoDefaultServerHeader: true, NoDefaultContentType: true, ReadBufferSize: 16 << 10,
	}
}

// in returns the harness as a subtest sees it.
func (h *harness) in(t testing.TB) *harness {
	sub := *h
	sub.TB = t
	return &sub
}

type testLog struct{ testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

// request builds a signed request as it goes over the wire.
func (h *harness) request(op, body string) []byte {
	r := &sigv4test.Request{
		Method: "POST", Path: "/", Body: body,
		Headers: []sigv4test.Header{
			{"Host", "kms." + h.key.Region + ".amazonaws.com"},
			{"Content-Type", "application/x-amz-json-1.1"},
			{"X-Amz-Target", target(op)},
			{"Content-Length", fmt.Sprint(len(body))},
		},
	}
	r.Sign(h.key, h.now)
	return raw(r)
}

// target returns the X-Amz-Target of an operation's name.
func target(name string) string {
	for op := wire.OpInvalid + 1; op <= wire.NumOps; op++ {
		if op.String() == name {
			return op.Target()
		}
	}
	return wire.TargetPrefix + name
}

func raw(r *sigv4test.Request) []byte {
	var b bytes.Buffer
	target := r.Path
	if r.Query != "" {
		target += "?" + r.Query
	}
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", r.Method, target)
	for _, hd := range r.Headers {
		fmt.Fprintf(&b, "%s: %s\r\n", hd[0], hd[1])
	}
	b.WriteString("\r\n" + r.Body)
	return b.Bytes()
}

// An answer is a response as a client sees it.
type answer struct {
	status int
	header http.Header
	body   string
	fields map[string]any
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.status, a.body) }

func (a answer) str(name string) string { s, _ := a.fields[name].(string); return s }

// code is the error's code, "" for success.
func (a answer) code() string {
	if a.status == 200 {
		return ""
	}
	return a.str("__type")
}

// send sends bytes over a connection of their own and reads one response.
func (h *harness) send(request []byte) answer {
	h.Helper()
	c, err := h.ln.Dial()
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(request); err != nil {
		h.Fatal(err)
	}
	return h.receive(c)
}

func (h *harness) receive(c net.Conn) answer {
	h.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, body: string(body)}
	if len(body) > 0 {
		if err := json.Unmarshal(body, &a.fields); err != nil {
			h.Fatalf("body %q: %v", body, err)
		}
	}
	if id := resp.Header.Get("X-Amzn-Requestid"); len(id) != 36 {
		h.Errorf("request id %q", id)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/x-amz-json-1.1" {
		h.Errorf("content type %q", ct)
	}
	return a
}

// args are the members of a request.
type args map[string]any

func (h *harness) call(op string, in args) answer {
	h.Helper()
	if in == nil {
		in = args{}
	}
	body, err := json.Marshal(in)
	if err != nil {
		h.Fatal(err)
	}
	return h.send(h.request(op, string(body)))
}

// must calls and expects success.
func (h *harness) must(op string, in args) answer {
	h.Helper()
	a := h.call(op, in)
	if a.status != 200 {
		h.Fatalf("%s %v: %s", op, in, a)
	}
	return a
}

// refused calls and expects an error with that code and text.
func (h *harness) refused(op string, in args, code, text string) {
	h.Helper()
	a := h.call(op, in)
	if a.code() != code || a.str("message") != text {
		h.Errorf("%s %v:\n got %s\nwant %s %q", op, in, a, code, text)
	}
}

// newKey creates a key and returns its id and ARN.
func (h *harness) newKey(in args) (id, arn string) {
	h.Helper()
	m := h.must("CreateKey", in).fields["KeyMetadata"].(map[string]any)
	return m["KeyId"].(string), m["Arn"].(string)
}
