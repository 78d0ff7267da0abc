package xks

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keymill/daemon/wire"
	"keymill/engine"
)

// TestClientAgainstServer: the two sides of this package, over TLS.
func TestClientAgainstServer(t *testing.T) {
	r := newRig(t)
	c := r.client()
	ctx := context.Background()

	h, err := c.Health(ctx, "CreateCustomKeyStore", "id")
	if err != nil || h.Err() != nil || h.FleetSize != 1 || h.Vendor != "Keymill" || h.Fleet[0].Health != HealthActive {
		t.Fatalf("%+v: %v", h, err)
	}
	m, err := c.Metadata(ctx, "one", testCall)
	if err != nil || m.Err() != nil {
		t.Fatalf("%+v: %v", m, err)
	}
	for _, n := range []int{0, 1, 32, 4300} {
		for _, aad := range [][]byte{nil, []byte("context"), make([]byte, MaxAAD)} {
			plaintext := bytes.Repeat([]byte("secret"), n/6+1)[:n]
			s, err := c.Encrypt(ctx, "one", plaintext, aad, testCall)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Decrypt(ctx, "one", s, aad, testCall)
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Fatalf("%d bytes: %v", n, err)
			}
		}
	}
	if _, err := c.Metadata(ctx, "..", testCall); ReasonOf(err) != KeyNotFoundException {
		t.Errorf("a key id that is a directory: %v", err)
	}
	if log := r.log.String(); strings.Contains(log, "secretsecret") || strings.Contains(log, base64.StdEncoding.EncodeToString([]byte("secretsec"))[:12]) {
		t.Error("the log has a plaintext")
	} else {
		for _, want := range []string{callerARN, kmsARN, testCall.RequestID, "kms_operation=GenerateDataKey", "outcome=ok", "took="} {
			if !strings.Contains(log, want) {
				t.Errorf("the log lacks %s", want)
			}
		}
	}
}

// TestKeyThroughProxy: a KMS key in an external key store that is this
// appliance's own proxy, and what a change of the store does to it.
func TestKeyThroughProxy(t *testing.T) {
	r := newRig(t)
	c := r.client()
	var current atomic.Pointer[Client]
	current.Store(c)
	store := func() (*Client, error) {
		if c := current.Load(); c != nil {
			return c, nil
		}
		return nil, NewError(NotConnected, nil)
	}
	id := engine.KeyID{ID: [16]byte{9}}
	list, src := versions(t, id, 1)
	k := NewKey(store, "one", id, list, 0, src)
	run := func(op engine.Op) engine.Op {
		op.Alg = engine.AlgSymmetric
		ops := []engine.Op{op}
		k.Do(ops)
		if ops[0].Err == engine.ErrPending {
			if err := k.Warm(WithCall(context.Background(), testCall), ops); err != nil {
				t.Fatal(err)
			}
		}
		return ops[0]
	}
	enc := run(engine.Op{Verb: engine.Encrypt, In: make([]byte, 4096), AAD: make([]byte, 20_000)})
	if enc.Err != nil || len(enc.Out) > 6144 {
		t.Fatal(enc.Err)
	}
	if dec := run(engine.Op{Verb: engine.Decrypt, In: enc.Out, AAD: make([]byte, 20_000)}); dec.Err != nil || !bytes.Equal(dec.Out, make([]byte, 4096)) {
		t.Fatal(dec.Err)
	}
	if dec := run(engine.Op{Verb: engine.Decrypt, In: enc.Out}); ReasonOf(dec.Err) != InvalidCiphertextException {
		t.Errorf("another context: %v", dec.Err)
	}
	current.Store(nil)
	if dec := run(engine.Op{Verb: engine.Decrypt, In: enc.Out}); ReasonOf(dec.Err) != NotConnected || CryptoError(dec.Err).Code != "KMSInvalidStateException" {
		t.Errorf("not connected: %v", dec.Err)
	}
	if log := r.log.String(); !strings.Contains(log, "kms_key="+kmsARN) {
		t.Error("the proxy was not told for which key")
	}
	// Without a call in the context the proxy still gets what it must.
	current.Store(c)
	ops := []engine.Op{{Verb: engine.Encrypt, Alg: engine.AlgSymmetric, In: []byte("a")}}
	k.Do(ops)
	if err := k.Warm(context.Background(), ops); err != nil || ops[0].Err != nil {
		t.Error(err, ops[0].Err)
	}
}

// good answers any call as a proxy should that encrypts nothing.
func good(a Action, q *Request) *Response {
	switch a {
	case Metadata:
		return &Response{KeySpec: SpecAES256, KeyUsage: []string{UsageDecrypt, UsageEncrypt}, KeyStatus: StatusEnabled}
	case Encrypt:
		r := &Response{Ciphertext: bytes.Clone(q.Plaintext), Metadata: []byte("v1"), IV: make([]byte, 12), Tag: make([]byte, 16)}
		sum := Integrity(q.AAD, r.Metadata, r.IV, r.Ciphertext, r.Tag)
		r.Integrity = sum[:]
		return r
	case Decrypt:
		return &Response{Plaintext: bytes.Clone(q.Ciphertext)}
	}
	return &Response{FleetSize: 1, Vendor: "v", Model: "m", Maker: "e", Fleet: []Manager{{"a", "b", HealthActive}}}
}

// faulty serves every call with f in place of the rig's own server.
func (r *rig) faulty(f http.HandlerFunc) *Client {
	r.Helper()
	s := r.serve(f)
	r.conf.Hosts = map[string]string{testHost: s.Listener.Addr().String()}
	return r.client()
}

// changed answers as good does, but for what change does to it.
func changed(t testing.TB, a Action, change func(*Response)) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		var d wire.Decoder
		q, err := DecodeRequest(&d, a, body)
		if err != nil {
			t.Error(err)
			return
		}
		resp := good(a, q)
		if change != nil {
			change(resp)
		}
		_, _ = w.Write(resp.Append(nil))
	}
}

func (r *rig) try(c *Client, a Action) error {
	ctx := context.Background()
	var err error
	switch a {
	case Health:
		_, err = c.Health(ctx, "KmsHealthCheck", "id")
	case Metadata:
		_, err = c.Metadata(ctx, "one", testCall)
	case Encrypt:
		_, err = c.Encrypt(ctx, "one", []byte("12345"), []byte("aad"), testCall)
	case Decrypt:
		_, err = c.Decrypt(ctx, "one", engine.Sealed{Ciphertext: []byte("12345"), IV: make([]byte, 12), Tag: make([]byte, 16)}, nil, testCall)
	}
	return err
}

// TestFaultyAnswers: whatever a proxy answers that is not what the protocol
// says is a malformed reply, and gives no result.
func TestFaultyAnswers(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		name   string
		action Action
		change func(*Response)
		want   Reason // 0: the answer is good
	}{
		{"encrypt", Encrypt, nil, 0},
		{"no metadata", Encrypt, func(r *Response) {
			r.Metadata = nil
			sum := Integrity([]byte("aad"), nil, r.IV, r.Ciphertext, r.Tag)
			r.Integrity = sum[:]
		}, 0},
		{"wrong integrity", Encrypt, func(r *Response) { r.Integrity[31] ^= 1 }, MalformedReply},
		{"no integrity", Encrypt, func(r *Response) { r.Integrity = nil }, MalformedReply},
		{"long integrity", Encrypt, func(r *Response) { r.Integrity = append(r.Integrity, 0) }, MalformedReply},
		{"ciphertext changed", Encrypt, func(r *Response) { r.Ciphertext[0] ^= 1 }, MalformedReply},
		{"metadata changed", Encrypt, func(r *Response) { r.Metadata[0] ^= 1 }, MalformedReply},
		{"IV changed", Encrypt, func(r *Response) { r.IV[0] ^= 1 }, MalformedReply},
		{"tag changed", Encrypt, func(r *Response) { r.Tag[0] ^= 1 }, MalformedReply},
		{"short ciphertext", Encrypt, func(r *Response) { r.Ciphertext = r.Ciphertext[1:] }, MalformedReply},
		{"long ciphertext", Encrypt, func(r *Response) { r.Ciphertext = append(r.Ciphertext, 0) }, MalformedReply},
		{"IV of 24", Encrypt, func(r *Response) { r.IV = make([]byte, 24) }, MalformedReply},
		{"metadata of 21", Encrypt, func(r *Response) { r.Metadata = make([]byte, 21) }, MalformedReply},
		{"decrypt", Decrypt, nil, 0},
		{"short plaintext", Decrypt, func(r *Response) { r.Plaintext = r.Plaintext[1:] }, MalformedReply},
		{"no plaintext", Decrypt, func(r *Response) { r.Plaintext = nil }, MalformedReply},
		{"metadata", Metadata, nil, 0},
		{"no spec", Metadata, func(r *Response) { r.KeySpec = "" }, MalformedReply},
		{"health", Health, nil, 0},
		{"no fleet", Health, func(r *Response) { r.FleetSize = 0 }, MalformedReply},
	} {
		err := r.try(r.faulty(changed(t, c.action, c.change)), c.action)
		if ReasonOf(err) != c.want || (c.want == 0) != (err == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// TestErrors: every error of the protocol arrives under its name, whatever goes
// with it; its message goes to the log and nowhere else.
func TestErrors(t *testing.T) {
	r := newRig(t)
	var status int
	var body string
	c := r.faulty(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
	for name, reason := range byName {
		status, body = reason.row().status, fields("errorName", `"`+name+`"`, "errorMessage", `"said by the proxy\n"`)
		for a := Health; a <= Decrypt; a++ {
			if err := r.try(c, a); ReasonOf(err) != reason {
				t.Errorf("%s: %v", name, err)
			}
		}
		r.now = r.now.Add(2 * time.Second)
	}
	if log := r.log.String(); !strings.Contains(log, "said by the proxy?") || strings.Contains(log, `proxy\n`) {
		t.Error("the proxy's words are not in the log, or as they came")
	}
	for _, c2 := range []struct {
		status int
		body   string
	}{
		{404, "Not Found"}, {502, "<html>"}, {500, "{}"}, {400, `{"errorName":"NewException"}`}, {503, ""},
		{400, `{"errorName":7}`}, {204, ""}, {301, ""}, {200, ""}, {200, "[]"}, {200, "{}"}, {200, "null"},
	} {
		status, body = c2.status, c2.body
		if err := r.try(c, Encrypt); ReasonOf(err) != MalformedReply {
			t.Errorf("%d %q: %v", status, body, err)
		}
	}
}

// TestRedirectIsNotFollowed: neither to another path nor to another host.
func TestRedirectIsNotFollowed(t *testing.T) {
	r := newRig(t)
	var calls atomic.Int32
	for _, status := range []int{301, 302, 307, 308} {
		c := r.faulty(func(w http.ResponseWriter, req *http.Request) {
			calls.Add(1)
			w.Header().Set("Location", "https://"+testHost+"/elsewhere")
			w.WriteHeader(status)
		})
		if err := r.try(c, Encrypt); ReasonOf(err) != MalformedReply {
			t.Error(err)
		}
	}
	if calls.Load() != 4 {
		t.Errorf("%d calls", calls.Load())
	}
}

// TestHugeAnswer: a body without end is cut, compressed ones are not asked for.
func TestHugeAnswer(t *testing.T) {
	r := newRig(t)
	c := r.faulty(func(w http.ResponseWriter, req *http.Request) {
		if e := req.Header.Get("Accept-Encoding"); e != "" {
			t.Errorf("Accept-Encoding %q", e)
		}
		chunk := bytes.Repeat([]byte(" "), 32<<10)
		for range 1000 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
		t.Error("the client read 32 MB")
	})
	if err := r.try(c, Encrypt); ReasonOf(err) != MalformedReply || !strings.Contains(err.Error(), "longer") {
		t.Error(err)
	}
	c = r.faulty(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Long", strings.Repeat("a", 64<<10))
	})
	if err := r.try(c, Encrypt); err == nil {
		t.Error("a head of 64 KiB was read")
	}
}

// TestSlowProxy: a proxy that takes longer than the budget is a timeout,
// wherever it is slow, and the caller waits no longer than that.
func TestSlowProxy(t *testing.T) {
	r := newRig(t)
	r.conf.Budget = 50 * time.Millisecond
	hang := make(chan struct{})
	defer close(hang)
	c := r.faulty(func(http.ResponseWriter, *http.Request) { <-hang })
	if err := r.try(c, Encrypt); ReasonOf(err) != TimedOut {
		t.Errorf("no answer: %v", err)
	}
	c = r.faulty(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"ciphertext":`)
		w.(http.Flusher).Flush()
		<-hang
	})
	if err := r.try(c, Encrypt); ReasonOf(err) != TimedOut {
		t.Errorf("half an answer: %v", err)
	}
	// One that accepts connections and says nothing.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r.conf.Hosts = map[string]string{testHost: ln.Addr().String()}
	if err := r.try(r.client(), Encrypt); ReasonOf(err) != TimedOut {
		t.Errorf("no handshake: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.client().Health(ctx, "KmsHealthCheck", "id"); ReasonOf(err) == 0 {
		t.Errorf("a caller that is gone: %v", err)
	}
}

// TestBusyStore: more calls than may be under way are refused, not queued
// beyond their budget.
func TestBusyStore(t *testing.T) {
	r := newRig(t)
	r.conf.Budget, r.conf.Calls = 100*time.Millisecond, 2
	in, hang := make(chan struct{}, 9), make(chan struct{})
	c := r.faulty(func(http.ResponseWriter, *http.Request) {
		in <- struct{}{}
		<-hang
	})
	defer close(hang)
	// Two calls that never end of themselves hold the two places.
	c.places <- struct{}{}
	c.places <- struct{}{}
	if err := r.try(c, Encrypt); ReasonOf(err) != ThrottlingException {
		t.Error(err)
	}
	<-c.places
	if err := r.try(c, Encrypt); ReasonOf(err) != TimedOut || len(in) != 1 {
		t.Error(err)
	}
	if len(c.places) != 1 {
		t.Errorf("%d places are taken", len(c.places))
	}
}

// TestBrokenConnections: cut before an answer, in the middle of one, and by a
// server that closes kept connections without a word.
func TestBrokenConnections(t *testing.T) {
	r := newRig(t)
	raw := func(serve func(net.Conn, *bufio.Reader)) *Client {
		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{r.ca.server(t, testHost)}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					serve(conn, bufio.NewReader(conn))
				}()
			}
		}()
		r.conf.Hosts = map[string]string{testHost: ln.Addr().String()}
		return r.client()
	}
	request := func(br *bufio.Reader) bool {
		req, err := http.ReadRequest(br)
		if err != nil {
			return false
		}
		_, err = io.ReadAll(req.Body)
		return err == nil
	}
	if err := r.try(raw(func(_ net.Conn, br *bufio.Reader) { request(br) }), Encrypt); ReasonOf(err) != Unreachable {
		t.Errorf("closed: %v", err)
	}
	if err := r.try(raw(func(c net.Conn, br *bufio.Reader) {
		request(br)
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"ciphertext\"")
	}), Encrypt); ReasonOf(err) != MalformedReply {
		t.Errorf("truncated: %v", err)
	}
	if err := r.try(raw(func(c net.Conn, br *bufio.Reader) {
		request(br)
		fmt.Fprint(c, "I speak no HTTP\r\n\r\n")
	}), Encrypt); ReasonOf(err) != MalformedReply {
		t.Errorf("no HTTP: %v", err)
	}
	body := good(Health, nil).Append(nil)
	var served atomic.Int32
	c := raw(func(c net.Conn, br *bufio.Reader) { // one answer for each connection, then closed after the next request
		if request(br) {
			served.Add(1)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			request(br)
		}
	})
	for i := range 5 {
		if err := r.try(c, Health); err != nil {
			t.Errorf("call %d over a connection that the proxy closes: %v", i, err)
		}
	}
	if served.Load() != 5 {
		t.Errorf("%d answers", served.Load())
	}
}

// TestTrust: a certificate must come from a known authority and be the host's.
func TestTrust(t *testing.T) {
	r := newRig(t)
	r.conf.CAFiles = nil
	if err := r.try(r.client(), Health); ReasonOf(err) != TLSFailed {
		t.Errorf("unknown authority: %v", err)
	}
	r.conf.CAFiles = []string{newAuthority(t).file(t)}
	if err := r.try(r.client(), Health); ReasonOf(err) != TLSFailed {
		t.Errorf("another authority: %v", err)
	}
	r.conf.CAFiles = []string{r.ca.file(t)}
	c := r.config()
	c.Endpoint = "https://other.example.com"
	r.conf.Hosts["other.example.com"] = r.http.Listener.Addr().String()
	client, err := r.transport().NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.try(client, Health); ReasonOf(err) != TLSFailed {
		t.Errorf("another host's certificate: %v", err)
	}
	// TLS 1.1 at most.
	s := r.serve(http.NotFoundHandler(), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	r.conf.Hosts[testHost] = s.Listener.Addr().String()
	if err := r.try(r.client(), Health); ReasonOf(err) != TLSFailed {
		t.Errorf("TLS 1.1: %v", err)
	}
	// Plain HTTP.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() { _ = http.Serve(ln, http.NotFoundHandler()) }()
	r.conf.Hosts[testHost] = ln.Addr().String()
	if err := r.try(r.client(), Health); ReasonOf(err) != TLSFailed {
		t.Errorf("plain HTTP: %v", err)
	}
}

// TestAddresses: what may be called.
func TestAddresses(t *testing.T) {
	r := newRig(t)
	tr := r.transport()
	for _, endpoint := range []string{
		"", "http://xks.example.com", "https://", "https://127.0.0.1", "https://[::1]", "https://127.1", "https://2130706433", "https://xks.example.com:8443",
		"https://xks.example.com/path", "https://user@xks.example.com", "https://xks..example.com", "https://-a.example.com", "https://a_b.example.com",
		"https://xks.example.com?x", "https://xks.example.com.", "https://" + strings.Repeat("a", 64) + ".com",
	} {
		c := r.config()
		c.Endpoint = endpoint
		if _, err := tr.NewClient(c); ReasonOf(err) != BadConfiguration {
			t.Errorf("endpoint %q: %v", endpoint, err)
		}
	}
	for _, path := range []string{"", "/", "/kms/xks/v2", "kms/xks/v1", "/a/../kms/xks/v1", "//kms/xks/v1", "/a//b/kms/xks/v1", "/a?/kms/xks/v1", "/kms/xks/v1/", "/" + strings.Repeat("a", 128) + "/kms/xks/v1"} {
		c := r.config()
		c.Path = path
		if _, err := tr.NewClient(c); ReasonOf(err) != BadConfiguration {
			t.Errorf("path %q: %v", path, err)
		}
	}
	for _, path := range []string{"/kms/xks/v1", "/a-b_C/9/kms/xks/v1"} {
		if !ValidPath(path) {
			t.Errorf("path %q is refused", path)
		}
	}
	// A name that means this machine is refused once it is resolved.
	c := r.config()
	c.Endpoint = "https://localhost"
	client, err := tr.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.try(client, Health); ReasonOf(err) != ConnectionRefused {
		t.Errorf("localhost: %v", err)
	}
	for addr, refused := range map[string]bool{
		"127.0.0.1:443": true, "[::1]:443": true, "169.254.169.254:443": true, "[fe80::1]:443": true, "0.0.0.0:443": true, "224.0.0.1:443": true,
		"[::ffff:127.0.0.1]:443": true, "10.1.2.3:443": false, "192.0.2.1:443": false, "[2001:db8::1]:443": false,
	} {
		if err := refuseReserved("tcp", addr, nil); (err != nil) != refused {
			t.Errorf("%s: %v", addr, err)
		}
	}
	for _, hosts := range []map[string]string{{"127.0.0.1": "a:1"}, {"a.example.com": "10.0.0.1"}, {"": "a:1"}} {
		if _, err := NewTransport(TransportConfig{Hosts: hosts}); err == nil {
			t.Errorf("%v is taken", hosts)
		}
	}
	if _, err := NewTransport(TransportConfig{CAFiles: []string{"/nonexistent"}}); err == nil {
		t.Error("a missing file of authorities is passed over")
	}
}

// TestReuse: calls one after the other share a connection.
func TestReuse(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	conns := map[string]bool{}
	answer := changed(t, Encrypt, nil)
	c := r.faulty(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		conns[req.RemoteAddr] = true
		mu.Unlock()
		answer(w, req)
	})
	for range 20 {
		if err := r.try(c, Encrypt); err != nil {
			t.Fatal(err)
		}
	}
	if len(conns) != 1 {
		t.Errorf("%d connections", len(conns))
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 10 {
				if err := r.try(c, Encrypt); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// A caller may start another connection and then get one that came free.
	if len(conns) > 3*16 {
		t.Errorf("%d connections for 16 callers and 160 calls", len(conns))
	}
}

// TestWarnings: a proxy that is down does not fill the log.
func TestWarnings(t *testing.T) {
	r := newRig(t)
	c := r.faulty(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	for range 50 {
		_ = r.try(c, Encrypt)
	}
	if n := strings.Count(r.log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings in one second", n)
	}
	r.now = r.now.Add(time.Second)
	_ = r.try(c, Encrypt)
	if log := r.log.String(); !strings.Contains(log, "others_not_shown=49") || !strings.Contains(log, "request_id="+testCall.RequestID) {
		t.Error("the next warning does not say how many were left out")
	}
}

func TestUsableKeys(t *testing.T) {
	for _, c := range []struct {
		m    KeyMetadata
		want Reason
	}{
		{KeyMetadata{SpecAES256, []string{"WRAP", UsageDecrypt, UsageEncrypt}, StatusEnabled}, 0},
		{KeyMetadata{SpecAES256, []string{UsageDecrypt, UsageEncrypt}, StatusDisabled}, InvalidStateException},
		{KeyMetadata{"AES_128", []string{UsageDecrypt, UsageEncrypt}, StatusEnabled}, KeyMisconfigured},
		{KeyMetadata{SpecAES256, []string{UsageEncrypt}, StatusEnabled}, KeyMisconfigured},
		{KeyMetadata{SpecAES256, nil, StatusEnabled}, KeyMisconfigured},
	} {
		if err := c.m.Err(); ReasonOf(err) != c.want {
			t.Errorf("%+v: %v", c.m, err)
		}
	}
	for health, want := range map[string]Reason{HealthUnavailable: ManagersDown, HealthDegraded: 0} {
		h := &HealthStatus{Fleet: []Manager{{Health: HealthUnavailable}, {Health: health}}}
		if err := h.Err(); ReasonOf(err) != want {
			t.Errorf("%s: %v", health, err)
		}
	}
	var e *Error
	if !errors.As((&HealthStatus{Fleet: []Manager{{Health: HealthUnavailable}}}).Err(), &e) || e.Error() != "xks: key managers unavailable" {
		t.Error(e)
	}
}

// TestClientMetrics: what a key store's calls leave behind, for as long as it is there.
func TestClientMetrics(t *testing.T) {
	r := newRig(t)
	tr := r.transport()
	conf := r.config()
	for _, conf.Store = range []string{"", "cks-1", "cks-1"} { // a store's clients count together
		c, err := tr.NewClient(conf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Health(t.Context(), "KmsHealthCheck", "id"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Metadata(t.Context(), "unknown", testCall); ReasonOf(err) != KeyNotFoundException {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	tr.WriteMetrics(&b)
	const store = `{custom_key_store="cks-1",`
	for _, want := range []string{
		"keymill_xks_proxy_requests_total" + store + `call="health",outcome="ok"} 2`,
		"keymill_xks_proxy_requests_total" + store + `call="metadata",outcome="KeyNotFoundException"} 2`,
		"keymill_xks_proxy_request_seconds_count" + store + `call="health"} 2`,
		"keymill_xks_proxy_key_managers" + store + `state="ACTIVE"} 1`,
		"keymill_xks_proxy_key_managers" + store + `state="UNAVAILABLE"} 0`,
		`keymill_xks_proxy_certificate_not_after{custom_key_store="cks-1"} `,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s is not in\n%s", want, &b)
		}
	}
	tr.Forget("cks-1")
	b.Reset()
	if tr.WriteMetrics(&b); b.Len() > 0 {
		t.Errorf("of a store that is gone:\n%s", &b)
	}
}
