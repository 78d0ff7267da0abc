package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// An authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t), pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key))(t)
	a.cert = must(x509.ParseCertificate(der))(t)
	a.pool.AddCert(a.cert)
	return a
}

// issue signs a certificate for name and the loopback address.
func (a *authority) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// write puts a certificate and its key into PEM files.
func write(t *testing.T, c tls.Certificate, certFile, keyFile string) {
	t.Helper()
	der := must(x509.MarshalPKCS8PrivateKey(c.PrivateKey))(t)
	for file, block := range map[string]*pem.Block{keyFile: {Type: "PRIVATE KEY", Bytes: der}, certFile: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// handshake connects and returns what was agreed on.
func handshake(d *Daemon, c *tls.Config) (tls.ConnectionState, error) {
	conn, err := tls.Dial("tcp", d.Addr(), c)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	// With TLS 1.3 a server's refusal of the client's certificate comes after the
	// client's handshake is over.
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return tls.ConnectionState{}, err
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		return tls.ConnectionState{}, err
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return tls.ConnectionState{}, err
	}
	return conn.ConnectionState(), nil
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "server authority")
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, ca.issue(t, "first"), certFile, keyFile)
	var seen tls.ConnectionState
	client := &tls.Config{RootCAs: ca.pool, VerifyConnection: func(s tls.ConnectionState) error {
		seen = s
		return nil
	}}
	d := start(t, Options{TLS: client, Args: []string{"--tls-cert", certFile, "--tls-key", keyFile}})
	s := storyIn(t, d, "us-east-1")
	id := s.symmetricKey()
	if seen.Version != tls.VersionTLS13 || seen.CurveID != tls.X25519MLKEM768 {
		t.Errorf("the SDK spoke %s with %s", tls.VersionName(seen.Version), seen.CurveID)
	}
	blob := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte("over TLS")}))(t).CiphertextBlob
	must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob}))(t)

	for _, tc := range []struct {
		name string
		conf *tls.Config
		ok   bool
	}{
		{"TLS 1.1", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
		{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, true},
		{"TLS 1.2 without forward secrecy", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}}, false},
		{"TLS 1.3", &tls.Config{MinVersion: tls.VersionTLS13}, true},
		{"classical key exchange", &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}, true},
		{"HTTP/2 offered", &tls.Config{NextProtos: []string{"h2", "http/1.1"}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.conf.RootCAs = ca.pool
			state, err := handshake(d, tc.conf)
			if (err == nil) != tc.ok {
				t.Errorf("%v", err)
			}
			if state.NegotiatedProtocol == "h2" {
				t.Error("HTTP/2 was agreed on")
			}
		})
	}
	if res, err := http.Get("http://" + d.Addr()); err == nil {
		res.Body.Close()
		if res.StatusCode < 400 {
			t.Errorf("plain HTTP was answered with %d", res.StatusCode)
		}
	}

	// SIGHUP takes the files as they are now; when they are bad, the old ones stay.
	serving := func(name string) func() bool {
		return func() bool {
			state, err := handshake(d, &tls.Config{RootCAs: ca.pool})
			return err == nil && state.PeerCertificates[0].Subject.CommonName == name
		}
	}
	if !serving("first")() {
		t.Error("the first certificate is not served")
	}
	write(t, ca.issue(t, "second"), certFile, keyFile)
	if !serving("first")() {
		t.Error("the certificate changed before the signal")
	}
	must(0, d.Signal(syscall.SIGHUP))(t)
	eventually(t, "the second certificate is served", serving("second"))
	must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob}))(t)
	if err := os.WriteFile(certFile, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(0, d.Signal(syscall.SIGHUP))(t)
	eventually(t, "the log says that the files are bad", func() bool { return strings.Contains(d.Log(), "not reloaded") })
	if !serving("second")() {
		t.Error("the second certificate is gone")
	}
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ca, others := newAuthority(t, "authority"), newAuthority(t, "authority")
	dir := t.TempDir()
	certFile, keyFile, caFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
	write(t, ca.issue(t, "server"), certFile, keyFile)
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(c ...tls.Certificate) *tls.Config { return &tls.Config{RootCAs: ca.pool, Certificates: c} }
	d := start(t, Options{
		TLS:  with(ca.issue(t, "client")),
		Args: []string{"--tls-cert", certFile, "--tls-key", keyFile, "--tls-client-ca", caFile},
	})
	storyIn(t, d, "us-east-1").symmetricKey()
	if _, err := handshake(d, with()); err == nil {
		t.Error("a client without a certificate was served")
	}
	if _, err := handshake(d, with(others.issue(t, "client"))); err == nil {
		t.Error("a client with another authority's certificate was served")
	}
}

// TestPlainHTTPRefused: keys do not go over a network in the clear by accident.
func TestPlainHTTPRefused(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"listen":       {"--listen", "0.0.0.0:0", "--admin-listen", "127.0.0.1:0"},
		"admin-listen": {"--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0"},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		out, err := keymill(t, nil, append([]string{"serve", "--data", dir}, args...)...)
		if err == nil || !strings.Contains(out, name) || !strings.Contains(out, "loopback") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: the data directory was made", name)
		}
	}
}

// eventually waits for something that another process does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(pollInterval) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}
