package xks

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"keymill/engine"
)

const (
	testHost   = "xks.example.com"
	testPrefix = "/test"
	testRegion = "eu-west-1"
	testID     = "ABCDEFGHIJKLMNOPQRST"
	testSecret = "0123456789012345678901234567890123456789abc"
	testARN    = "arn:aws:kms:eu-west-1:000000000000:key/00000000-0000-0000-0000-000000000001"
	callerARN  = "arn:aws:iam::111122223333:role/app"
	kmsARN     = "arn:aws:kms:eu-west-1:111122223333:key/11111111-0000-0000-0000-000000000001"
)

var testCall = Call{PrincipalARN: callerARN, KeyARN: kmsARN, Operation: "GenerateDataKey", RequestID: "4112f4d6-db54-4af4-ae30-c55a22a8dfae"}

// An authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	return a
}

func issue(t testing.TB, c *x509.Certificate, by *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// server returns a certificate for a host name.
func (a *authority) server(t testing.TB, host string) tls.Certificate {
	cert, key := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}}, a)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// file writes the authority's certificate.
func (a *authority) file(t testing.TB) string {
	name := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// testKeys are KMS keys in memory.
type testKeys struct {
	mu   sync.Mutex
	keys map[string]ServedKey // by resource
	err  error
}

func (k *testKeys) ServedKey(r KeyRef) (ServedKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return ServedKey{}, k.err
	}
	key, ok := k.keys[r.Resource]
	if !ok {
		return ServedKey{}, ErrNoKey
	}
	return key, nil
}

func (k *testKeys) change(resource string, f func(*ServedKey)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key := k.keys[resource]
	f(&key)
	k.keys[resource] = key
}

// versions makes material in n versions and what fetches it.
func versions(t testing.TB, id engine.KeyID, n int) ([]engine.KeyVersion, engine.Source) {
	var secrets [][]byte
	var list []engine.KeyVersion
	for i := range n {
		m, err := engine.GenerateMaterial(engine.SymmetricDefault)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, m)
		list = append(list, engine.KeyVersion{Number: uint32(i + 1), MaterialID: engine.ComputeMaterialID(id, m)})
	}
	return list, func(_ context.Context, v uint32) ([]byte, error) { return bytes.Clone(secrets[v-1]), nil }
}

func newServedKey(t testing.TB, last byte, n int) ServedKey {
	id := engine.KeyID{ID: [16]byte{15: last}}
	list, src := versions(t, id, n)
	k := ServedKey{ID: id, State: "Enabled", Served: true}
	k.Handle = engine.NewLocalKey(id, engine.SymmetricDefault, engine.EncryptDecrypt, list, n-1, nil, src)
	for _, v := range list {
		k.Materials = append(k.Materials, v.MaterialID)
	}
	return k
}

// A rig is a Server over TLS, and what a Client needs to speak to it.
type rig struct {
	testing.TB
	keys   *testKeys
	server *Server
	http   *httptest.Server
	ca     *authority
	conf   TransportConfig
	now    time.Time
	log    *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const testFile = `
stores:
  - prefix: /test
    credentials:
      - access-key-id: ABCDEFGHIJKLMNOPQRST
        secret-access-key: 0123456789012345678901234567890123456789abc
    keys:
      - external-id: one
        key: arn:aws:kms:eu-west-1:000000000000:key/00000000-0000-0000-0000-000000000001
      - external-id: strict.key-2_
        key: arn:aws:kms:eu-west-1:000000000000:alias/two
        accounts: ["111122223333"]
        principals: ["arn:aws:iam::111122223333:role/app", "arn:aws:sts::111122223333:assumed-role/batch/*"]
        operations: [CreateKey, Encrypt, Decrypt]
      - external-id: gone
        key: arn:aws:kms:eu-west-1:000000000000:alias/gone
`

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{TB: t, ca: newAuthority(t), now: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), log: &lockedBuffer{}}
	r.keys = &testKeys{keys: map[string]ServedKey{
		"key/00000000-0000-0000-0000-000000000001": newServedKey(t, 1, 2),
		"alias/two": newServedKey(t, 2, 1),
	}}
	clock := func() time.Time { return r.now }
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.server = NewServer(ServerOptions{Keys: r.keys, Clock: clock, Logger: log})
	r.load(testFile)
	r.http = r.serve(r.server)
	// Slow machines must not fail tests that are not about time.
	r.conf = TransportConfig{Budget: 20 * time.Second, CAFiles: []string{r.ca.file(t)}, Clock: clock, Logger: log,
		Hosts: map[string]string{testHost: r.http.Listener.Addr().String()}}
	return r
}

func (r *rig) load(text string) {
	r.Helper()
	c, err := parseFile([]byte(text))
	if err != nil {
		r.Fatal(err)
	}
	r.server.use(c)
}

// serve serves h over TLS as testHost.
func (r *rig) serve(h http.Handler, configure ...func(*tls.Config)) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{r.ca.server(r, testHost)}, MinVersion: tls.VersionTLS12}
	for _, f := range configure {
		f(s.TLS)
	}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	r.Cleanup(s.Close)
	return s
}

func (r *rig) transport() *Transport {
	r.Helper()
	t, err := NewTransport(r.conf)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(t.Close)
	return t
}

func (r *rig) config() ClientConfig {
	return ClientConfig{Endpoint: "https://" + testHost, Path: testPrefix + PathSuffix, AccessKeyID: testID, Secret: []byte(testSecret), Region: testRegion}
}

func (r *rig) client() *Client {
	r.Helper()
	c, err := r.transport().NewClient(r.config())
	if err != nil {
		r.Fatal(err)
	}
	return c
}

// post sends a request that the Client would not make. Nil headers sign.
func (r *rig) post(method, path, body string, sign func(*http.Request)) (int, http.Header, string) {
	r.Helper()
	req, err := http.NewRequest(method, r.http.URL+path, strings.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	req.Host = testHost
	if sign != nil {
		sign(req)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		r.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(answer)
}
