package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"keymill/daemon/xks"
	"keymill/engine"
)

const xksFile = `stores:
  - credentials:
      - access-key-id: ABCDEFGHIJKLMNOPQRST
        secret-access-key: 0123456789012345678901234567890123456789abc
    keys:
      - external-id: one
        key: arn:aws:kms:eu-west-1:000000000000:alias/one
`

// named is pair for a host name and a common name.
func (a *authority) named(certFile, keyFile, name string) tls.Certificate {
	a.t.Helper()
	c := &x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	c.Subject = pkix.Name{CommonName: name}
	cert, key := a.make(c)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, certFile, "CERTIFICATE", cert.Raw)
	writePEM(a.t, keyFile, "PRIVATE KEY", der)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		a.t.Fatal(err)
	}
	return pair
}

// TestXKSProxy: the proxy is served beside the API, on its own listener, to
// callers with the right certificate; its files are read again; it stops.
func TestXKSProxy(t *testing.T) {
	ca := newAuthority(t)
	cfg := freePorts(t)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(cfg.XKSCredentials, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const host, kmsName = "xks.example.com", "cks.kms.eu-west-1.amazonaws.com"
	cfg.XKSListen, cfg.XKSCredentials, cfg.XKSTLSCert, cfg.XKSTLSKey = "127.0.0.1:0", file("xks.yml"), file("cert.pem"), file("key.pem")
	cfg.XKSClientCA, cfg.XKSClientName = file("ca.pem"), kmsName
	ca.named(cfg.XKSTLSCert, cfg.XKSTLSKey, host)
	writePEM(t, cfg.XKSClientCA, "CERTIFICATE", ca.cert.Raw)
	ca.named(file("kms.pem"), file("kms.key"), kmsName)
	ca.named(file("other.pem"), file("other.key"), "cks.kms.us-east-1.amazonaws.com")

	if _, err := New(cfg, Environment{}); err == nil || !strings.Contains(err.Error(), "xks-credentials: ") {
		t.Errorf("without the file: %v", err)
	}
	write(xksFile)

	id := engine.KeyID{ID: [16]byte{1}}
	secret, err := engine.GenerateMaterial(engine.SymmetricDefault)
	if err != nil {
		t.Fatal(err)
	}
	material := engine.ComputeMaterialID(id, secret)
	key := xks.ServedKey{ID: id, State: "Enabled", Served: true, Materials: []engine.MaterialID{material}}
	key.Handle = engine.NewLocalKey(id, engine.SymmetricDefault, engine.EncryptDecrypt, []engine.KeyVersion{{Number: 1, MaterialID: material}}, 0, nil,
		func(context.Context, uint32) ([]byte, error) { return bytes.Clone(secret), nil })
	svc := serving(func(ctx *fasthttp.RequestCtx) {})
	svc.servedKey = func(ref xks.KeyRef) (xks.ServedKey, error) {
		if ref.Resource != "alias/one" {
			return xks.ServedKey{}, xks.ErrNoKey
		}
		return key, nil
	}
	s := start(t, cfg, svc)

	call := func(cert string) error {
		t.Helper()
		tc := xks.TransportConfig{CAFiles: []string{cfg.XKSClientCA}, Hosts: map[string]string{host: s.XKSAddr().String()}, Budget: 20 * time.Second}
		if cert != "" {
			tc.CertFile, tc.KeyFile = file(cert+".pem"), file(cert+".key")
		}
		tr, err := xks.NewTransport(tc)
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		c, err := tr.NewClient(xks.ClientConfig{Endpoint: "https://" + host, Path: xks.PathSuffix, AccessKeyID: "ABCDEFGHIJKLMNOPQRST",
			Secret: []byte("0123456789012345678901234567890123456789abc"), Region: "eu-west-1"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Encrypt(t.Context(), "one", []byte("a"), nil, xks.Call{PrincipalARN: "p", KeyARN: "k", Operation: "Encrypt", RequestID: "id"})
		return err
	}
	if err := call("kms"); err != nil {
		t.Errorf("the right certificate: %v", err)
	}
	for _, cert := range []string{"", "other"} {
		if err := call(cert); xks.ReasonOf(err) != xks.TLSFailed {
			t.Errorf("certificate %q: %v", cert, err)
		}
	}
	if !strings.Contains(s.log.String(), "XKS proxy ready") {
		t.Error("the log does not say that the proxy is served")
	}
	resp, err := http.Get("http://" + s.AdminAddr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !strings.Contains(string(text), `keymill_xks_requests_total{call="encrypt",outcome="ok"} 1`) {
		t.Error("the metrics do not have the call")
	}

	// A changed file counts after Reload; a wrong one is told and changes nothing.
	write(strings.Replace(xksFile, "alias/one", "alias/two", 1))
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := call("kms"); xks.ReasonOf(err) != xks.KeyNotFoundException {
		t.Errorf("after the change: %v", err)
	}
	write("stores: []")
	if err := s.Reload(); err == nil || !strings.Contains(err.Error(), "xks-credentials: ") {
		t.Errorf("a wrong file: %v", err)
	}
	if err := call("kms"); xks.ReasonOf(err) != xks.KeyNotFoundException {
		t.Errorf("after the mistake: %v", err)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if err := call("kms"); xks.ReasonOf(err) != xks.Unreachable {
		t.Errorf("after the stop: %v", err)
	}
}

// TestBoundedListener: what is beyond the bound is closed, and a place comes
// back with each connection that ends.
func TestBoundedListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := newBounded(inner, 1)
	defer ln.Close()
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	dial()
	first := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("a connection beyond the bound stays open")
	}
	first.Close()
	first.Close() // twice gives one place back
	dial()
	second := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("closing twice made room for two")
	}
	second.Close()
}
